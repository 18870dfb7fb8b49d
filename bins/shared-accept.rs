//! 黄金 gold × N: N forked workers on one shared listening socket, and seven ways to wait for it.
//!
//! Who accepts: whichever worker comes first of those that were woken; `--wait` decides how many are woken. Who serves:
//! the worker that accepted. Who balances: the order in which the kernel wakes, and the race behind it. What is
//! inherited: the listening socket with its one accept queue. The worker's own epoll is made after the fork;
//! `epoll-shared` is the exception that shows why.
//!
//! With `epoll`, the default, every sleeping worker is woken for each connection, and all but one find nothing:
//! the thundering herd. The `match` in `serve` has the alternatives side by side.
//!
//! Compare with `event-driven.rs` (the same loop, once), `prefork.rs` (`--wait blocking`, and nothing else),
//! `accept-mutex.rs` and `prefork-lock.rs` (a lock before the socket) and `reuseport.rs` (a socket each).
//!
//! See it: `shared-accept --workers 8`, then `loadgen --connections 1 --requests-per-connection 1 --requests 2000
//! http://127.0.0.1:8080/`, and Ctrl-C: `voluntary_switches` of all workers together go far beyond `accepted`. The
//! same again with `--wait epoll-exclusive`. Who takes each connection: `lab order -- shared-accept --workers 4`.

#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use acceptlab::report::ServerReport;
use acceptlab::server::{
    self, EventLoop, Failure, Listener, Scoreboard, Worker, WorkerPool, WorkersArgs, blocking, successor, termination,
    waiting,
};
use acceptlab::sys::epoll::{Epoll, Interest};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};

/// Golden age times N: N workers on one shared listening socket
#[derive(Parser)]
#[command(name = "shared-accept", version)]
struct Args {
    /// How the workers wait for the shared socket
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
    /// Sleep in accept; the kernel wakes one. A worker serves one connection at a time
    Blocking,
    /// Sleep in poll; the kernel wakes all. A worker serves one connection at a time
    Poll,
    /// Sleep in one epoll that all have inherited. A worker serves one connection at a time
    EpollShared,
    /// An epoll each, level-triggered: the kernel wakes all that sleep
    Epoll,
    /// An epoll each, edge-triggered: the kernel wakes all that sleep, once per arrival
    EpollEdge,
    /// An epoll each, EPOLLEXCLUSIVE: the kernel wakes the first registered that sleeps
    EpollExclusive,
    /// As epoll-exclusive, but a worker that has taken K connections registers again, behind the others
    EpollExclusiveRearm,
}

fn main() -> ExitCode {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    // The locks before the socket are programs of their own.
    if successor::take(&mut arguments, "--lock", "accept-mutex") {
        successor::take(&mut arguments, "--wait", "epoll");
        return successor::run("accept-mutex", &[], &arguments);
    }
    for lock in ["fcntl", "flock", "semaphore", "mutex"] {
        if successor::take(&mut arguments, "--lock", lock) {
            successor::take(&mut arguments, "--wait", "blocking");
            return successor::run("prefork-lock", &["--lock", lock], &arguments);
        }
    }
    successor::take(&mut arguments, "--lock", "none");
    let args = Args::parse_from(arguments);
    if args.rearm.is_some() && args.wait != Wait::EpollExclusiveRearm {
        let conflict = "--rearm K goes with --wait epoll-exclusive-rearm only";
        Args::command().error(ErrorKind::ArgumentConflict, conflict).exit();
    }
    server::finish(run(&args))
}

fn run(args: &Args) -> Result<ServerReport, Failure> {
    let (workers, server) = (args.workers.workers, &args.workers.server);
    let listener = Listener::bind(server)?;
    let listener = if args.wait == Wait::Blocking { listener } else { listener.nonblocking()? };
    let address = listener.address();
    // An instance that watches is told of every connection, whether a worker sleeps in it or not.
    let mut epoll = (args.wait == Wait::EpollShared).then(|| waiting::epoll_on(&listener)).transpose()?;
    let scoreboard = Scoreboard::create("shared-accept", workers, server.scoreboard.as_deref())?;

    let mut pool = WorkerPool::new(scoreboard)?;
    for id in 0..workers {
        pool.fork(|ready| {
            let worker = Worker::start(id, server, &scoreboard)?;
            serve(args, &listener, epoll.as_mut(), worker, || ready.announce())
        })?;
    }
    pool.await_ready()?;
    server::ready(address)?;

    pool.supervise(|| listener.shut())?;
    Ok(pool.report(address))
}

fn serve(
    args: &Args,
    listener: &Listener,
    shared_epoll: Option<&mut Epoll>,
    worker: Worker,
    ready: impl FnOnce(),
) -> Result<(), Failure> {
    let exclusive = Interest::EPOLLIN | Interest::EPOLLEXCLUSIVE;
    match (args.wait, shared_epoll) {
        // In accept the kernel wakes exclusively: one sleeper per connection, the one that has slept longest.
        (Wait::Blocking, _) => one_at_a_time(listener, worker, ready, |worker| blocking::accept(listener, worker)),
        // poll(2) puts every caller on the socket's wait queue, none of them exclusively.
        (Wait::Poll, _) => one_at_a_time(listener, worker, ready, |worker| {
            blocking::accept_after(|| waiting::poll(listener), listener, worker)
        }),
        // One epoll instance waits on the socket, and a worker that sleeps on the instance is woken exclusively; but it
        // reports a level, so the next sleeper is woken too until the queue has been emptied.
        (Wait::EpollShared, Some(epoll)) => {
            one_at_a_time(listener, worker, ready, |worker| blocking::accept_after(|| epoll.sleep(), listener, worker))
        }
        (Wait::EpollShared, None) => unreachable!("it is made for this way of waiting"),
        // Each epoll has an entry of its own on the socket's wait queue, and the kernel wakes all of them.
        (Wait::Epoll, _) => many_at_a_time(listener, Interest::EPOLLIN, worker, ready, |events| {
            events.add_accepted(listener.accept_nonblocking()).map(drop)
        }),
        // An edge is reported once: a connection that a worker leaves in the queue stays there until the next arrives.
        (Wait::EpollEdge, _) => {
            many_at_a_time(listener, Interest::EPOLLIN | Interest::EPOLLET, worker, ready, |events| {
                while events.add_accepted(listener.accept_nonblocking())? {}
                Ok(())
            })
        }
        // The entry is exclusive, and keeps the place in the queue that it took when it was registered.
        (Wait::EpollExclusive, _) => many_at_a_time(listener, exclusive, worker, ready, |events| {
            events.add_accepted(listener.accept_nonblocking()).map(drop)
        }),
        // The kernel wakes from the head of the wait queue, so a worker that leaves it and returns is woken last.
        (Wait::EpollExclusiveRearm, _) => {
            let mut taken = 0;
            many_at_a_time(listener, exclusive, worker, ready, |events| {
                taken += u64::from(events.add_accepted(listener.accept_nonblocking())?);
                if taken >= args.rearm.unwrap_or(1) {
                    taken = 0;
                    events.rearm()?;
                }
                Ok(())
            })
        }
    }
}

/// A worker that waits only for the listener cannot wait for its connections, too, so it serves each to its end.
fn one_at_a_time(
    listener: &Listener,
    mut worker: Worker,
    ready: impl FnOnce(),
    mut next: impl FnMut(&Worker) -> Result<Option<OwnedFd>, Failure>,
) -> Result<(), Failure> {
    termination::shut_connections_when_stopping(listener)?;
    ready();
    while let Some(connection) = next(&worker)? {
        blocking::serve(connection, &mut worker);
    }
    Ok(())
}

/// A worker with an epoll of its own sleeps for the listener and its connections at once.
fn many_at_a_time<'a>(
    listener: &'a Listener,
    interest: Interest,
    worker: Worker,
    ready: impl FnOnce(),
    mut take: impl FnMut(&mut EventLoop<&'a Listener>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut events = EventLoop::watching(listener, interest, worker)?;
    ready();
    while events.wait_for_connection()? {
        take(&mut events)?;
    }
    events.finish().map(drop)
}
