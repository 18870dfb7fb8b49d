//! 黄金 gold × N: N forked event loops, each with a SO_REUSEPORT socket of its own.
//!
//! Who accepts: each worker, from its own accept queue. Who serves: the worker that accepted. Who balances: the kernel,
//! when the SYN arrives. It hashes the addresses and ports of both ends, of which only the client's differ: many
//! connections are spread evenly, without a look at who is busy, or stuck. `--select` gives it another way to choose
//! (`src/server/selector.rs` has them side by side). What is inherited: one listening socket per worker, all bound
//! before the first fork, so that no connection meets a group that is still growing. Each worker closes the others',
//! and the parent all of them: a copy kept open would keep its queue in the group, and nobody would ever accept from
//! it.
//!
//! Compare with `shared-accept.rs` (one queue for all).
//!
//! See it: `reuseport --workers 4`, and `ss -ltn sport = :8080` shows four sockets on one port. Who takes each
//! connection: `lab order -- reuseport --workers 4 --select random`. Stop one worker of four with SIGSTOP: a quarter of
//! the connections waits for it, but none with `--select live-set`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::report::ServerReport;
use acceptlab::server::selector::{Select, Selector};
use acceptlab::server::{
    self, EventLoop, Failure, Listener, Scoreboard, SpinArgs, Worker, WorkerPool, WorkersArgs, termination,
};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

/// N forked event loops, each with a SO_REUSEPORT socket of its own
#[derive(Parser)]
#[command(name = "reuseport", version)]
struct Args {
    /// How the kernel chooses the socket of a new connection
    #[arg(long, value_enum, default_value_t = Select::Hash)]
    select: Select,

    #[command(flatten)]
    spin: SpinArgs,

    #[command(flatten)]
    workers: WorkersArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.workers.workers > args.select.most_workers() {
        let message = format!("the program of this --select has room for {} workers", args.select.most_workers());
        Args::command().error(ErrorKind::ValueValidation, message).exit();
    }
    server::finish(run(&args))
}

fn run(Args { select, spin, workers: args }: &Args) -> Result<ServerReport, Failure> {
    let mut listeners = Listener::bind_group(args.workers, &args.server)?;
    let address = listeners[0].address();
    let scoreboard = Scoreboard::create("reuseport", args.workers, args.server.scoreboard.as_deref())?;
    let mut selector = Selector::attach(*select, &listeners)?;

    let mut pool = WorkerPool::new(scoreboard)?;
    for id in 0..args.workers {
        pool.fork(|ready| {
            let ours = listeners.swap_remove(id);
            listeners.clear();
            let mut worker = Worker::start(id, &args.server, &scoreboard)?;
            worker.spin = spin.before_sleep;
            // Some ways to `--select` look at the workers. The hash does not, and then there is no heartbeat.
            worker.heartbeat = selector.heartbeat(id, worker.row);
            termination::shut_listener_when_stopping(&ours)?;
            let mut events = EventLoop::new(ours, worker)?;
            ready.announce();

            while events.serve_until_connection()? {
                let connection = events.acceptor.accept_nonblocking();
                events.add_accepted(connection)?;
            }
            events.finish().map(drop)
        })?;
    }
    selector.close_copies(listeners);
    pool.await_ready()?;
    server::ready(address)?;

    selector.supervise(&mut pool)?;
    Ok(pool.report(address))
}
