//! 黄金 gold: one thread, one epoll, non-blocking connections.
//!
//! Who accepts: the thread. Who serves: the same one, all connections at once, each a step at a time. Who balances:
//! nobody; there is one worker. What is inherited: nothing. Work that waits for I/O (`--work wait:1s`) is a timer, and
//! others are served meanwhile: C clients get C/N requests per second from a single thread. Work that blocks the thread
//! (`block:1s`, `spin:1s`) stops all of them: then this is `sync` again.
//!
//! Compare with `sync.rs` (one connection at a time) and `shared-accept.rs` (the same loop, N times).
//!
//! See it: `event-driven --work wait:1s`, then `loadgen --connections 100 --duration 5s http://127.0.0.1:8080/`; the
//! same again with `--work block:1s`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::report::ServerReport;
use acceptlab::server::{self, EventLoop, Failure, Listener, Scoreboard, ServerArgs, SpinArgs, Worker, termination};
use clap::Parser;

/// One thread, one epoll, non-blocking connections
#[derive(Parser)]
#[command(name = "event-driven", version)]
struct Args {
    #[command(flatten)]
    spin: SpinArgs,

    #[command(flatten)]
    server: ServerArgs,
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse()))
}

fn run(Args { spin, server: args }: &Args) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(args)?.nonblocking()?;
    let address = listener.address();
    let scoreboard = Scoreboard::create("event-driven", 1, args.scoreboard.as_deref())?;
    let mut worker = Worker::start(0, args, &scoreboard)?;
    worker.spin = spin.before_sleep;
    termination::shut_listener_when_stopping(&listener)?;
    let mut events = EventLoop::new(listener, worker)?;
    server::ready(address)?;

    while events.serve_until_connection()? {
        let connection = events.acceptor.accept_nonblocking();
        events.add_accepted(connection)?;
    }

    events.finish()?.record_usage();
    Ok(scoreboard.report(address, None))
}
