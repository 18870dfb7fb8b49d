//! 铂金 platinum: one thread, one epoll, and a coroutine with a stack of its own for each connection.
//!
//! Who accepts: the thread. Who serves: a new coroutine, for as long as the connection lives. It runs the same handler
//! as a thread of `threaded`, line after line: receive, work, send. Where a thread would sleep in the kernel, the
//! coroutine suspends itself: it says what it waits for and leaves the CPU to the loop of `event-driven`, which resumes
//! it when epoll reports its socket. Who balances: nobody; there is one worker. What is inherited: nothing.
//!
//! A switch between two coroutines is a few instructions in user space: the registers are saved, and the stack pointer
//! is set to another stack. The kernel sees one thread. A connection costs its stack: address space for all of it
//! (`--stack`), memory only for the pages that it has touched. Work that waits for I/O (`--work wait:1s`) suspends one
//! coroutine; work that blocks (`block:1s`, `spin:1s`) stops the thread, and with it all of them.
//!
//! Von Behren, Condit and Brewer argued for this in "Why Events Are A Bad Idea (for high-concurrency servers)", HotOS
//! 2003: the style of threads at the price of events. Go's goroutines and Java's virtual threads are coroutines of this
//! kind, on several threads.
//!
//! Compare with `threaded.rs` (the same handler, a thread each) and `event-driven.rs` (the same loop, no stacks).
//!
//! See it: `coroutines --work wait:1s`, then `loadgen --connections 100 --duration 5s http://127.0.0.1:8080/` and
//! meanwhile `grep -e Threads -e RSS /proc/$(pidof coroutines)/status`; the same again with `threaded`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::report::ServerReport;
use acceptlab::server::coroutine::{Coroutine, Coroutines, parse_stack_kib};
use acceptlab::server::{
    self, EventLoop, Failure, Listener, Scoreboard, ServerArgs, SpinArgs, Worker, blocking, termination,
};
use clap::Parser;

/// One thread, one epoll, and a coroutine with a stack of its own for each connection
#[derive(Parser)]
#[command(name = "coroutines", version)]
struct Args {
    /// KiB of a coroutine's stack; only what it touches takes memory
    #[arg(long, value_name = "KIB", default_value_t = blocking::STACK_BYTES / 1024, value_parser = parse_stack_kib)]
    stack: usize,

    #[command(flatten)]
    spin: SpinArgs,

    #[command(flatten)]
    server: ServerArgs,
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse()))
}

fn run(Args { stack, spin, server: args }: &Args) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(args)?.nonblocking()?;
    let address = listener.address();
    let scoreboard = Scoreboard::create("coroutines", 1, args.scoreboard.as_deref())?;
    let mut all_coroutines = Worker::start(0, args, &scoreboard)?;
    termination::shut_listener_when_stopping(&listener)?;
    let coroutines = Coroutines::with_stacks_of(stack * 1024);
    let mut scheduler = all_coroutines.for_one_connection();
    scheduler.spin = spin.before_sleep;
    let mut events: EventLoop<_, Coroutine> = EventLoop::serving(listener, scheduler)?;
    server::ready(address)?;

    while events.serve_until_connection()? {
        // The stack first: a connection that cannot have one waits in the accept queue.
        let accepted = coroutines.reserve_stack().and_then(|()| events.acceptor.accept_nonblocking());
        let mut worker = all_coroutines.for_one_connection();
        let spawn = |connection| coroutines.spawn(connection, move |io| blocking::handle(io, &mut worker));
        events.add_accepted(accepted.and_then(spawn))?;
    }

    events.finish()?.record_usage();
    Ok(scoreboard.report(address, None))
}
