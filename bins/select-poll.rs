//! 黄金 gold: one thread, and select or poll over all its connections.
//!
//! Who accepts: the thread. Who serves: the same one, all connections at once, each a step at a time. Who balances:
//! nobody; there is one worker. What is inherited: nothing. Each call passes all descriptors to the kernel, which looks
//! at each of them, and so does the program when the call returns: a request costs more, the more connections are
//! silent. That is why ten thousand clients were a problem, and why epoll is told of each connection once.
//!
//! `select` has a set of 1,024 bits (FD_SETSIZE): a descriptor of 1,024 or more has no bit, and FD_SET would write
//! outside of the set (select(2)). So with it the server opens no more descriptors than that, and other connections
//! wait in the accept queue.
//!
//! Compare with `event-driven.rs`: the difference is the call.
//!
//! See it: `select-poll --call poll`, then `loadgen --connections 1 http://127.0.0.1:8080/`, and the same again with
//! `--background idle:10000`: the requests/s of the one connection.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::report::ServerReport;
use acceptlab::server::multiplexer::Multiplexer;
use acceptlab::server::{self, EventLoop, Failure, Listener, Scoreboard, ServerArgs, SpinArgs, Worker, termination};
use clap::{Parser, ValueEnum};

/// One thread, and select or poll over all its connections
#[derive(Parser)]
#[command(name = "select-poll", version)]
struct Args {
    /// The call in which the thread sleeps until a connection is ready
    #[arg(long, value_enum, default_value_t = Call::Poll)]
    call: Call,

    #[command(flatten)]
    spin: SpinArgs,

    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Call {
    /// select(2): sets of bits, for at most 1,024 descriptors
    Select,
    /// poll(2): an array of descriptors, of any length
    Poll,
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse()))
}

fn run(Args { call, spin, server: args }: &Args) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(args)?.nonblocking()?;
    let address = listener.address();
    let scoreboard = Scoreboard::create("select-poll", 1, args.scoreboard.as_deref())?;
    let mut worker = Worker::start(0, args, &scoreboard)?;
    worker.spin = spin.before_sleep;
    termination::shut_listener_when_stopping(&listener)?;
    let multiplexer = match call {
        Call::Select => Multiplexer::select()?,
        Call::Poll => Multiplexer::poll(),
    };
    let mut events = EventLoop::waiting_in(multiplexer, listener, worker)?;
    server::ready(address)?;

    while events.serve_until_connection()? {
        let connection = events.acceptor.accept_nonblocking();
        events.add_accepted(connection)?;
    }

    events.finish()?.record_usage();
    Ok(scoreboard.report(address, None))
}
