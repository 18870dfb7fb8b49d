//! 黄金 gold: an event loop with Node's phases; what blocks, blocks a helper thread.
//!
//! Who accepts: a callback of the loop. Who serves: callbacks of the same loop, all connections at once; work that
//! blocks (`--work block:1s`) becomes a request object at one of N helper threads, and its result comes back as an
//! event. Flash called this AMPED (Pai et al., USENIX 1999); Node does it with libuv. Who balances: the pool's queue;
//! the helper that is free takes the next request, not the next connection. What is inherited: nothing, because threads
//! share everything. With N helpers the (N + 1)th blocking request waits, and all others are answered meanwhile.
//!
//! Compare with `event-driven.rs` (whoever blocks stops all) and `thread-pool.rs` (a thread for a whole connection).
//!
//! See it: `event-loop --pool 4 --work block:1s`, then `loadgen --connections 5 --requests 5 http://127.0.0.1:8080/`:
//! four answers after one second, the fifth after two. In which order callbacks run, `scenario.rs` shows.

#![forbid(unsafe_code)]

mod moved;

use std::process::ExitCode;
use std::time::Duration;

use acceptlab::phased_loop::PhasedLoop;
use acceptlab::phased_loop::args::PoolArgs;
use acceptlab::report::ServerReport;
use acceptlab::server::callbacks::Connections;
use acceptlab::server::{self, Failure, Listener, Scoreboard, ServerArgs, Worker, termination};
use acceptlab::units::parse_duration;
use clap::Parser;

/// An event loop with Node's phases; what blocks, blocks a helper thread
#[derive(Parser)]
#[command(name = "event-loop", version, after_help = "`event-loop --scenario FILE` is `scenario FILE`")]
struct Args {
    #[command(flatten)]
    pool: PoolArgs,

    /// Work that blocks for this long or longer may occupy at most half of the helper threads, rounded up
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    slow: Option<Duration>,

    #[command(flatten)]
    server: ServerArgs,
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse_from(moved::arguments())))
}

fn run(Args { pool, slow, server: args }: &Args) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(args)?.nonblocking()?;
    let address = listener.address();
    let scoreboard = Scoreboard::create("event-loop", 1, args.scoreboard.as_deref())?;
    let worker = Worker::start(0, args, &scoreboard)?;
    termination::shut_listener_when_stopping(&listener)?;
    let mut events = PhasedLoop::new(pool.threads).map_err(|errno| Failure::new("open an event loop", errno))?;
    let connections = Connections::new(listener, worker, slow.unwrap_or(Duration::MAX));
    server::ready(address)?;

    connections.serve(&mut events, |connections, events| {
        let connection = connections.acceptor.accept_nonblocking();
        connections.add_accepted(events, connection)
    })?;

    Ok(scoreboard.report(address, None))
}
