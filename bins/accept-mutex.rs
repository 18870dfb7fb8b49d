//! 黄金 gold × N: N forked event loops on one shared socket, and a mutex says which of them watches it.
//!
//! Who accepts: the worker that holds the mutex; it takes one connection and gives the mutex back before it serves.
//! Who serves: the worker that accepted. Who balances: the race for the mutex, which the last holder often wins
//! again; a worker that is nearly full leaves turns to the others. What is inherited: the listening socket, and the
//! mutex.
//!
//! An event loop cannot sleep for a lock: its connections would wait as well. So the mutex is only tried. A worker
//! that does not get it waits for its connections, and for `--retry` at most; then it tries again. It was nginx's
//! answer to the thundering herd (`accept_mutex`), on until EPOLLEXCLUSIVE and SO_REUSEPORT made it unnecessary.
//!
//! Compare with `shared-accept.rs` (`--wait epoll`: the same loop without the mutex, and the herd) and
//! `prefork-lock.rs` (locks that are waited for).
//!
//! See it: `lab order -- accept-mutex --workers 4`, and again with `--retry 1ms`.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use acceptlab::report::ServerReport;
use acceptlab::server::lock::AcceptMutex;
use acceptlab::server::{self, EventLoop, Failure, Listener, Scoreboard, SpinArgs, Worker, WorkerPool, WorkersArgs};
use acceptlab::units::parse_duration;
use clap::Parser;

/// N forked event loops on one shared socket, and a mutex says which of them watches it
#[derive(Parser)]
#[command(name = "accept-mutex", version)]
struct Args {
    /// A worker that has not got the mutex tries again after this long at most [default: as in nginx]
    #[arg(long, value_name = "DUR", default_value = "500ms", value_parser = parse_retry)]
    retry: Duration,

    #[command(flatten)]
    spin: SpinArgs,

    #[command(flatten)]
    workers: WorkersArgs,
}

fn parse_retry(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        duration if duration.is_zero() => Err("a worker that tries without a pause does nothing else".into()),
        duration => Ok(duration),
    }
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse()))
}

fn run(Args { retry, spin, workers: args }: &Args) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(&args.server)?.nonblocking()?;
    let address = listener.address();
    let mutex = AcceptMutex::new(*retry)?;
    let scoreboard = Scoreboard::create("accept-mutex", args.workers, args.server.scoreboard.as_deref())?;

    let mut pool = WorkerPool::new(scoreboard)?;
    for id in 0..args.workers {
        pool.fork(|ready| {
            let mut worker = Worker::start(id, &args.server, &scoreboard)?;
            worker.spin = spin.before_sleep;
            let mut events = EventLoop::new(&listener, worker)?;
            ready.announce();

            // Only the worker that holds the mutex watches the socket, so a connection wakes no other.
            while events.wait_for_turn(&mutex)? {
                let connection = events.acceptor.accept_nonblocking();
                // Before serving: meanwhile another worker may accept the next.
                mutex.give()?;
                events.add_accepted(connection)?;
            }
            events.finish().map(drop)
        })?;
    }
    pool.await_ready()?;
    server::ready(address)?;

    // All processes share the socket: when the parent shuts it, no worker can accept from it any more.
    pool.supervise(|| listener.shut())?;
    Ok(pool.report(address))
}
