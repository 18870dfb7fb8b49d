//! 黄金 gold × N: N forked event loops on one shared socket; how it is registered decides whom the kernel wakes.
//!
//! Who accepts: whichever comes first of the workers that were woken. Who serves: the worker that accepted. Who
//! balances: the order in which the kernel wakes, and the race behind it. What is inherited: the listening socket with
//! its one accept queue. Each worker makes its epoll after the fork, so the socket's wait queue has an entry for each.
//!
//! With `epoll`, the default, every sleeping worker is woken for each connection, and all but one find nothing:
//! the thundering herd.
//!
//! Compare with `event-driven.rs` (the same loop, once), `prefork-poll.rs` (one connection at a time, the same herd),
//! `accept-mutex.rs` (a lock before the socket) and `reuseport.rs` (a socket each).
//!
//! See it: `shared-accept --workers 8`, then `loadgen --connections 1 --requests-per-connection 1 --requests 2000
//! http://127.0.0.1:8080/`, and Ctrl-C: `voluntary_switches` of all workers together go far beyond `accepted`. The
//! same again with `--wait epoll-exclusive`. Who takes each connection: `lab order -- shared-accept --workers 4`.

#![forbid(unsafe_code)]

mod moved;

use std::process::ExitCode;

use acceptlab::report::ServerReport;
use acceptlab::server::{self, EventLoop, Failure, Listener, Scoreboard, Worker, WorkerPool, WorkersArgs};
use acceptlab::sys::epoll::Interest;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};

/// N forked event loops on one shared socket; how it is registered decides whom the kernel wakes
#[derive(Parser)]
#[command(name = "shared-accept", version)]
struct Args {
    /// How the workers register the shared socket
    #[arg(long, value_enum, default_value_t = Wait::Epoll)]
    wait: Wait,

    /// With --wait epoll-exclusive-rearm: go to the end of the wait queue after every K-th connection [default: 1]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u64).range(1..))]
    rearm: Option<u64>,

    #[command(flatten)]
    workers: WorkersArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wait {
    /// Level-triggered: the kernel wakes all that sleep
    Epoll,
    /// Edge-triggered: the kernel wakes all that sleep, once per arrival
    EpollEdge,
    /// EPOLLEXCLUSIVE: the kernel wakes the first registered that sleeps
    EpollExclusive,
    /// As epoll-exclusive, but a worker that has taken K connections registers again, behind the others
    EpollExclusiveRearm,
}

fn main() -> ExitCode {
    let args = Args::parse_from(moved::arguments());
    if args.rearm.is_some() && args.wait != Wait::EpollExclusiveRearm {
        let conflict = "--rearm K goes with --wait epoll-exclusive-rearm only";
        Args::command().error(ErrorKind::ArgumentConflict, conflict).exit();
    }
    server::finish(run(args.wait, args.rearm.unwrap_or(1), &args.workers))
}

fn run(wait: Wait, rearm_every: u64, args: &WorkersArgs) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(&args.server)?.nonblocking()?;
    let address = listener.address();
    let interest = match wait {
        Wait::Epoll => Interest::EPOLLIN,
        Wait::EpollEdge => Interest::EPOLLIN | Interest::EPOLLET,
        // The kernel goes along the wait queue and stops at the first exclusive entry whose owner sleeps. An entry
        // keeps the place that it got when it was registered.
        Wait::EpollExclusive | Wait::EpollExclusiveRearm => Interest::EPOLLIN | Interest::EPOLLEXCLUSIVE,
    };
    let scoreboard = Scoreboard::create("shared-accept", args.workers, args.server.scoreboard.as_deref())?;

    let mut pool = WorkerPool::new(scoreboard)?;
    for id in 0..args.workers {
        pool.fork(|ready| {
            let worker = Worker::start(id, &args.server, &scoreboard)?;
            let mut events = EventLoop::watching(&listener, interest, worker)?;
            ready.announce();

            let mut taken: u64 = 0;
            while events.serve_until_connection()? {
                let connection = events.acceptor.accept_nonblocking();
                if events.add_accepted(connection)? {
                    taken += 1;
                    after_accepting(wait, &mut events, taken.is_multiple_of(rearm_every))?;
                }
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

/// What some ways to wait need after each connection that was taken.
fn after_accepting(wait: Wait, events: &mut EventLoop<&Listener>, is_kth: bool) -> Result<(), Failure> {
    match wait {
        // An edge is reported once: what a worker leaves in the queue stays there until the next arrives.
        Wait::EpollEdge => while events.add_accepted(events.acceptor.accept_nonblocking())? {},
        // Deleting and adding the entry puts this worker at the tail of the wait queue, so the next connection wakes
        // another.
        Wait::EpollExclusiveRearm if is_kth => events.rearm()?,
        Wait::Epoll | Wait::EpollExclusive | Wait::EpollExclusiveRearm => {}
    }
    Ok(())
}
