//! 黄金 gold × N: N forked event loops on one shared socket; how it is registered decides whom the kernel wakes.
//!
//! Who accepts: whichever comes first of the workers that were woken. Who serves: the worker that accepted. Who
//! balances: the order in which the kernel wakes, and the race behind it. What is inherited: the listening socket with
//! its one accept queue. Each worker makes its epoll after the fork, so the socket's wait queue has an entry for each.
//!
//! With `epoll`, the default, every sleeping worker is woken for each connection, and all but one find nothing:
//! the thundering herd.
//!
//! With `--yield DUR` a worker that has more connections than the least busy one accepts later: it serves its own for
//! DUR, or until it has no more than that one, and then takes what is still there (puma: `wait_for_less_busy_worker`, 5
//! ms). With `epoll` the others were woken as well, and one of them takes the connection at once. With
//! `epoll-exclusive` none of them was: the kernel gives a wake-up to one worker, and wakes no second one when the first
//! takes its entry out of the epoll, puts it back, or closes the epoll (seen on Linux 6.18). So the connection waits
//! for DUR, or until the next one comes and wakes another worker. A worker that hangs with few connections makes the
//! others late, by DUR for each connection.
//!
//! Compare with `event-driven.rs` (the same loop, once), `prefork-poll.rs` (one connection at a time, the same herd),
//! `accept-mutex.rs` (a lock before the socket) and `reuseport.rs` (a socket each).
//!
//! See it: `shared-accept --workers 8`, then `loadgen --connections 1 --requests-per-connection 1 --requests 2000
//! http://127.0.0.1:8080/`, and Ctrl-C: `voluntary_switches` of all workers together go far beyond `accepted`. The same
//! again with `--wait epoll-exclusive`. Who takes each connection: `lab order -- shared-accept --workers 4`. Where 16
//! connections stay: `loadgen --connections 16 --duration 1s http://127.0.0.1:8080/`, with `--yield 5ms` and without.

#![forbid(unsafe_code)]

mod moved;

use std::process::ExitCode;
use std::time::Duration;

use acceptlab::report::ServerReport;
use acceptlab::scoreboard::Count;
use acceptlab::server::{self, EventLoop, Failure, Listener, Scoreboard, SpinArgs, Worker, WorkerPool, WorkersArgs};
use acceptlab::sys::epoll::Interest;
use acceptlab::units::parse_duration;
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

    /// A worker that has more connections open than another leaves a new one to it, for this long at most
    #[arg(long = "yield", value_name = "DUR", value_parser = parse_duration)]
    yield_for: Option<Duration>,

    #[command(flatten)]
    spin: SpinArgs,

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
    if args.yield_for.is_some() && args.wait == Wait::EpollEdge {
        let conflict =
            "with --wait epoll-edge a worker takes all there are, so --yield DUR would leave nothing to others";
        Args::command().error(ErrorKind::ArgumentConflict, conflict).exit();
    }
    server::finish(run(&args))
}

fn run(&Args { wait, rearm, yield_for, spin, workers: ref args }: &Args) -> Result<ServerReport, Failure> {
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
            let mut worker = Worker::start(id, &args.server, &scoreboard)?;
            worker.spin = spin.before_sleep;
            let mut events = EventLoop::watching(&listener, interest, worker)?;
            ready.announce();

            let open = || scoreboard.row(id).get(Count::Active);
            let is_busier = || scoreboard.least_busy(0..args.workers).is_some_and(|(_, fewest)| open() > fewest);
            let mut taken: u64 = 0;
            while events.serve_until_connection()? {
                if let Some(at_most) = yield_for
                    && !events.serve_while(is_busier, at_most)?
                {
                    break;
                }
                let connection = events.acceptor.accept_nonblocking();
                if events.add_accepted(connection)? {
                    taken += 1;
                    after_accepting(wait, &mut events, taken.is_multiple_of(rearm.unwrap_or(1)))?;
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
