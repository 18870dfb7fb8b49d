//! 青铜 bronze: a process for each connection.
//!
//! Who accepts: the parent. Who serves: a child, forked for the connection and gone with it. Who balances: the
//! scheduler, which sees every connection as a process. What is inherited: the accepted connection, with a copy of all
//! that the parent had in memory; nothing that the child changes comes back, and a child that dies takes one client
//! with it. With C clients and N seconds per request the server answers C/N requests per second, for the price of a
//! fork, an exit and a reaped child per connection (Stevens, Fenner, Rudoff, *UNIX Network Programming* 1, section
//! 30.5).
//!
//! All children together are worker 0: no child outlives its connection, so no child has a number.
//!
//! Compare with `threaded.rs` (a thread for each connection) and `prefork.rs` (processes made beforehand).
//!
//! See it: `fork --work block:1s`, then `loadgen --connections 100 http://127.0.0.1:8080/` and meanwhile
//! `pgrep --count --parent $(pgrep --oldest --exact fork)`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::report::ServerReport;
use acceptlab::server::children::Children;
use acceptlab::server::{self, Failure, Listener, Scoreboard, ServerArgs, Worker, blocking, termination, worker};
use acceptlab::sys::process::Usage;
use clap::Parser;

/// A process for each connection
#[derive(Parser)]
#[command(name = "fork", version)]
struct Args {
    #[command(flatten)]
    server: ServerArgs,
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse().server))
}

fn run(args: &ServerArgs) -> Result<ServerReport, Failure> {
    // Non-blocking: the parent also waits for the ends of its children, so it waits in another call than accept.
    let listener = Listener::bind(args)?.nonblocking()?;
    let address = listener.address();
    let scoreboard = Scoreboard::create("fork", 1, args.scoreboard.as_deref())?;
    let mut all_children = Worker::new(0, args, &scoreboard);
    let mut children = Children::new(scoreboard)?;
    server::ready(address)?;

    let mut processes = 0;
    while let Some(connection) = children.accept(&listener, &all_children)? {
        let mut worker = all_children.for_one_connection();
        let pin = args.pin.then_some(processes);
        let forked = children.fork(0, || {
            termination::shut_connections_when_stopping(&listener)?;
            worker::pin_or_log(pin);
            worker.answer_as_this_process(0, args);
            blocking::serve(connection, &mut worker);
            Ok(())
        });
        // The parent's copy went with the closure, so the connection ends when the child closes its own. If the fork
        // has failed, this client is lost.
        if let Err(error) = forked {
            blocking::back_off_from_spawning("fork a process", error);
        }
        processes += 1;
    }

    children.stop();
    Ok(scoreboard.report(address, Some(Usage::of_process())))
}
