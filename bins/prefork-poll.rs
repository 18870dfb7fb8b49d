//! 青铜 bronze: prefork whose workers sleep in poll, or in one epoll that all inherit, before they accept.
//!
//! Who accepts: whichever of the woken workers comes first; the others find nothing (EAGAIN) and sleep again. Who
//! serves: the worker that accepted, one connection at a time. Who balances: the race behind the wake-up. What is
//! inherited: the listening socket, and with `--call epoll` the epoll instance that watches it.
//!
//! A server that has several ports has to wait in such a call: accept(2) waits for one socket. With one port it is
//! the smallest program that shows the thundering herd. The listener is non-blocking, or a worker that comes too late
//! would sleep in accept and never look at the other ports again.
//!
//! Compare with `prefork.rs`: the difference is the call before accept. `shared-accept.rs` has an epoll for each
//! worker.
//!
//! See it: `prefork-poll --workers 8`, then `loadgen --connections 1 --requests-per-connection 1 --requests 2000
//! http://127.0.0.1:8080/`, and Ctrl-C: `voluntary_switches` of all workers together go far beyond `accepted`. In
//! `prefork` they do not.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::report::ServerReport;
use acceptlab::server::waiting::Waiting;
use acceptlab::server::{self, Failure, Listener, Scoreboard, Worker, WorkerPool, WorkersArgs, blocking, termination};
use clap::{Parser, ValueEnum};

/// Prefork whose workers sleep in poll, or in one epoll that all inherit, before they accept
#[derive(Parser)]
#[command(name = "prefork-poll", version)]
struct Args {
    /// The call in which a worker sleeps until there is a connection
    #[arg(long, value_enum, default_value_t = Call::Poll)]
    call: Call,

    #[command(flatten)]
    workers: WorkersArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Call {
    /// poll(2); the kernel wakes all
    Poll,
    /// epoll_wait(2) on one instance, made before the fork
    Epoll,
}

fn main() -> ExitCode {
    let args = Args::parse();
    server::finish(run(args.call, &args.workers))
}

fn run(call: Call, args: &WorkersArgs) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(&args.server)?.nonblocking()?;
    let address = listener.address();
    let mut waiting = match call {
        // poll(2) puts every caller on the socket's wait queue, none of them exclusively: a connection wakes them all.
        Call::Poll => Waiting::in_poll(),
        // The instance waits on the socket, and a worker that sleeps on the instance is woken exclusively; but it
        // reports a level, so the next sleeper is woken too until the queue has been emptied.
        Call::Epoll => Waiting::in_one_epoll(&listener)?,
    };
    let scoreboard = Scoreboard::create("prefork-poll", args.workers, args.server.scoreboard.as_deref())?;

    let mut pool = WorkerPool::new(scoreboard)?;
    for id in 0..args.workers {
        pool.fork(|ready| {
            let mut worker = Worker::start(id, &args.server, &scoreboard)?;
            termination::shut_connections_when_stopping(&listener)?;
            ready.announce();

            while let Some(connection) = blocking::accept_after(|| waiting.sleep(&listener), &listener, &worker)? {
                blocking::serve(connection, &mut worker);
            }
            Ok(())
        })?;
    }
    pool.await_ready()?;
    server::ready(address)?;

    // All processes share the socket: when the parent shuts it, no worker can accept from it any more.
    pool.supervise(|| listener.shut())?;
    Ok(pool.report(address))
}
