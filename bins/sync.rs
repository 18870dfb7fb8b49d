//! 石器 stone: one process, one connection at a time.
//!
//! Who accepts: the process. Who serves: the same one, and until it is done everybody else waits in the accept queue.
//! Who balances: nobody; there is one worker. What is inherited: nothing. If every request takes N seconds, this server
//! answers 1/N requests per second, however many clients there are.
//!
//! Compare with `prefork.rs`: the same loop, in several processes.
//!
//! See it: `sync --work block:1s`, and in two other terminals at once `curl localhost:8080`: one answer after
//! 1 s, the other after 2 s.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::report::ServerReport;
use acceptlab::server::{self, Failure, Listener, Scoreboard, ServerArgs, Worker, blocking, termination};
use clap::Parser;

/// One process, one connection at a time
#[derive(Parser)]
#[command(name = "sync", version)]
struct Args {
    #[command(flatten)]
    server: ServerArgs,
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse().server))
}

fn run(args: &ServerArgs) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(args)?;
    let address = listener.address();
    let scoreboard = Scoreboard::create("sync", 1, args.scoreboard.as_deref())?;
    let mut worker = Worker::start(0, args, &scoreboard)?;
    termination::shut_sockets_when_stopping(&listener)?;
    server::ready(address)?;

    while let Some(connection) = blocking::accept(&listener, &worker)? {
        blocking::serve(connection, &mut worker);
    }

    worker.record_usage();
    Ok(scoreboard.report(address, None))
}
