//! 青铜 bronze: N processes forked at the start, all blocking in accept on one inherited socket.
//!
//! Who accepts: every worker. Who serves: the worker that accepted, one connection at a time. Who balances: the
//! kernel, which wakes one of the sleepers per connection. What is inherited: the listening socket, so that all
//! workers share one accept queue. With M workers and N seconds per request the server answers M/N requests per
//! second.
//!
//! Compare with `sync.rs` (the same loop, once) and `threaded.rs` (a worker for every connection).
//!
//! See it: `prefork --workers 3 --work block:1s`, and three `curl localhost:8080` at once: three answers after
//! 1 s, from three pids.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::report::ServerReport;
use acceptlab::server::{self, Failure, Listener, Scoreboard, Worker, WorkerPool, WorkersArgs, blocking, termination};
use clap::Parser;

/// N processes forked at the start, all blocking in accept on one inherited socket
#[derive(Parser)]
#[command(name = "prefork", version)]
struct Args {
    #[command(flatten)]
    workers: WorkersArgs,
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse().workers))
}

fn run(args: &WorkersArgs) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(&args.server)?;
    let address = listener.address();
    let scoreboard = Scoreboard::create("prefork", args.workers, args.server.scoreboard.as_deref())?;

    let mut pool = WorkerPool::new(scoreboard)?;
    for id in 0..args.workers {
        pool.fork(|ready| {
            let mut worker = Worker::start(id, &args.server, &scoreboard)?;
            termination::shut_connections_when_stopping(&listener)?;
            ready.announce();

            while let Some(connection) = blocking::accept(&listener, &worker)? {
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
