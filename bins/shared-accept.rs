//! 黄金 gold × N: N forked workers on one shared listening socket, seven ways to wait for it and five locks before it.
//!
//! Who accepts: whichever worker comes first of those that were woken; `--wait` decides how many are woken, and with
//! `--lock` only the one that has the lock waits at all. Who serves: the worker that accepted. Who balances: the
//! order in which the kernel wakes, and the race behind it; with a lock, the order in which the lock goes on.
//! What is inherited: the listening socket with its one accept queue. The worker's own epoll is made after the fork;
//! `epoll-shared` is the exception that shows why.
//!
//! With `epoll`, the default, every sleeping worker is woken for each connection, and all but one find nothing:
//! the thundering herd. The `match` in `serve` has the alternatives side by side. Before kernels could wake one
//! sleeper alone, servers put a lock before the socket, so that one worker slept there and the others at the lock:
//! the `match` in `lock` has those (Stevens, figure 30.1), and nginx had the accept mutex.
//!
//! Compare with `event-driven.rs` (the same loop, once), `prefork.rs` (`--wait blocking`, and nothing else) and
//! `reuseport.rs` (a socket each).
//!
//! See it: `shared-accept --workers 8`, then `loadgen --connections 1 --requests-per-connection 1 --requests 2000
//! http://127.0.0.1:8080/`, and Ctrl-C: `voluntary_switches` of all workers together go far beyond `accepted`. The
//! same again with `--wait epoll-exclusive`. Who takes each connection: `lab order -- shared-accept --workers 4`.

#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use acceptlab::report::ServerReport;
use acceptlab::server::{
    self, AcceptMutex, Crew, EventLoop, Failure, Listener, Lock, Scoreboard, Worker, WorkersArgs, blocking,
    termination, waiting,
};
use acceptlab::sys::epoll::{Epoll, Interest};
use acceptlab::units::parse_duration;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};

/// Golden age times N: N workers on one shared listening socket
#[derive(Parser)]
#[command(name = "shared-accept", version)]
struct Args {
    /// How the workers wait for the shared socket [default: epoll; blocking with a lock that is waited for]
    #[arg(long, value_enum)]
    wait: Option<Wait>,

    /// What lets one worker at a time wait for the shared socket
    #[arg(long, value_enum, default_value_t = Locking::None)]
    lock: Locking,

    /// With --lock accept-mutex: who has not got it tries again after this long at most [default: 500ms, as in nginx]
    #[arg(long, value_name = "DUR", value_parser = parse_retry)]
    retry: Option<Duration>,

    /// With --wait epoll-exclusive-rearm: go to the end of the line after every K-th connection [default: 1]
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
    /// An epoll each, level-triggered: the kernel wakes all who sleep
    Epoll,
    /// An epoll each, edge-triggered: the kernel wakes all who sleep, once per arrival
    EpollEdge,
    /// An epoll each, EPOLLEXCLUSIVE: the kernel wakes the first registered who sleeps
    EpollExclusive,
    /// The same, and who has taken K connections registers anew, behind the others
    EpollExclusiveRearm,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Locking {
    /// Everybody waits for the socket
    None,
    /// A record lock on a file, fcntl(2): the process's
    Fcntl,
    /// A lock on a file, flock(2): the open file's, so that each worker opens it for itself
    Flock,
    /// A System V semaphore, taken and given with SEM_UNDO
    Semaphore,
    /// A pthread mutex in shared memory, robust: the next is told when its holder has died
    Mutex,
    /// nginx's: a mutex that is only tried; who has it watches the socket, the others serve and try again
    AcceptMutex,
}

impl Args {
    fn wait(&self) -> Wait {
        self.wait.unwrap_or(match self.lock {
            Locking::None | Locking::AcceptMutex => Wait::Epoll,
            _ => Wait::Blocking,
        })
    }

    /// What goes together is decided here.
    fn misfit(&self) -> Option<&'static str> {
        if self.rearm.is_some() && self.wait() != Wait::EpollExclusiveRearm {
            return Some("--rearm K goes with --wait epoll-exclusive-rearm alone");
        }
        if self.retry.is_some() && self.lock != Locking::AcceptMutex {
            return Some("--retry DUR goes with --lock accept-mutex alone");
        }
        match self.lock {
            Locking::None => None,
            // Its holder sleeps for its connections at the same time, so it needs an epoll. nginx's is
            // level-triggered, because who has the mutex takes one connection and leaves the others.
            Locking::AcceptMutex => {
                (self.wait() != Wait::Epoll).then_some("--lock accept-mutex goes with --wait epoll alone")
            }
            // An event loop that slept for a lock would leave its connections unserved meanwhile.
            _ => (self.wait() != Wait::Blocking)
                .then_some("a --lock that is waited for goes with --wait blocking alone"),
        }
    }
}

fn parse_retry(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        duration if duration.is_zero() => Err("a worker that tries without a pause does nothing else".into()),
        duration => Ok(duration),
    }
}

/// nginx's `accept_mutex_delay` where nothing else is configured.
const RETRY: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(message) = args.misfit() {
        Args::command().error(ErrorKind::ArgumentConflict, message).exit();
    }
    server::finish(run(&args))
}

fn run(args: &Args) -> Result<ServerReport, Failure> {
    let (workers, server) = (args.workers.workers, &args.workers.server);
    let listener = Listener::bind(server)?;
    let listener = if args.wait() == Wait::Blocking { listener } else { listener.nonblocking()? };
    let address = listener.address();
    let scoreboard = Scoreboard::create("shared-accept", workers, server.scoreboard.as_deref())?;
    let mut shared = Shared {
        lock: lock(args.lock)?,
        accept_mutex: match args.lock {
            Locking::AcceptMutex => Some(AcceptMutex::new(args.retry.unwrap_or(RETRY))?),
            _ => None,
        },
        // An instance that watches is told of every connection, whether somebody sleeps in it or not.
        epoll: match args.wait() {
            Wait::EpollShared => Some(waiting::epoll_on(&listener)?),
            _ => None,
        },
        listener,
    };

    let mut crew = Crew::new(scoreboard)?;
    for id in 0..workers {
        crew.fork(|ready| {
            let worker = Worker::start(id, server, &scoreboard)?;
            shared.lock.join()?;
            serve(args, &mut shared, worker, || ready.say())
        })?;
    }
    crew.await_ready()?;
    server::ready(address)?;

    crew.supervise(|| shared.listener.shut())?;
    Ok(crew.report(address))
}

/// What the workers have in common, made before the fork.
struct Shared {
    listener: Listener,
    lock: Lock,
    accept_mutex: Option<AcceptMutex>,
    epoll: Option<Epoll>,
}

/// What the workers sleep for instead of the socket. In all of them the kernel lets the next in when the holder dies.
fn lock(locking: Locking) -> Result<Lock, Failure> {
    match locking {
        Locking::None | Locking::AcceptMutex => Ok(Lock::None),
        // The portable one: two system calls per connection. Now and then a release wakes more than the next worker,
        // so with many of them the switches grow again.
        Locking::Fcntl => Lock::fcntl(),
        // The same in both. But workers with an inherited descriptor would all hold it at once (`Lock::join`).
        Locking::Flock => Lock::flock(),
        // First come, first served: the workers rotate, as in plain accept, for two more calls. What a killed server
        // leaves, the next removes.
        Locking::Semaphore => Lock::semaphore(),
        // No system call unless somebody waits. Whoever comes first after the release has it, also one who never slept.
        Locking::Mutex => Lock::mutex(),
    }
}

fn serve(args: &Args, shared: &mut Shared, worker: Worker, ready: impl FnOnce()) -> Result<(), Failure> {
    let Shared { listener, lock, accept_mutex, epoll } = shared;
    let listener: &Listener = listener;
    let exclusive = Interest::EPOLLIN | Interest::EPOLLEXCLUSIVE;
    match (args.wait(), accept_mutex, epoll) {
        // In accept the kernel wakes exclusively: one sleeper per connection, who has slept longest. With a lock there
        // is one sleeper: take it, accept, give it back, and only then serve.
        (Wait::Blocking, ..) => {
            one_at_a_time(listener, worker, ready, |worker| lock.hold(|| blocking::accept(listener, worker)))
        }
        // poll(2) puts every caller on the socket's wait queue, none of them exclusively.
        (Wait::Poll, ..) => one_at_a_time(listener, worker, ready, |worker| {
            blocking::accept_after(|| waiting::poll(listener), listener, worker)
        }),
        // One epoll instance sleeps on the socket, and who sleeps on the instance is woken exclusively; but it
        // reports a level, so the next sleeper is woken too until the queue has been emptied.
        (Wait::EpollShared, _, Some(epoll)) => one_at_a_time(listener, worker, ready, |worker| {
            blocking::accept_after(|| epoll.sleep(), listener, worker)
        }),
        (Wait::EpollShared, ..) => unreachable!("it is made for this way of waiting"),
        // Who has the mutex watches the socket, takes one connection, and gives it back before serving: somebody else
        // may accept the next meanwhile.
        (Wait::Epoll, Some(mutex), _) => {
            let mut events = EventLoop::new(listener, worker)?;
            ready();
            while events.wait_for_turn(mutex)? {
                let accepted = listener.accept_nonblocking();
                mutex.give()?;
                events.adopt(accepted)?;
            }
            events.finish().map(drop)
        }
        // Each epoll has an entry of its own on the socket's wait queue, and the kernel tells all of them.
        (Wait::Epoll, ..) => many_at_a_time(listener, Interest::EPOLLIN, worker, ready, |events| {
            events.adopt(listener.accept_nonblocking()).map(drop)
        }),
        // An edge is told once: who leaves a connection in the queue leaves it there until the next arrives.
        (Wait::EpollEdge, ..) => {
            many_at_a_time(listener, Interest::EPOLLIN | Interest::EPOLLET, worker, ready, |events| {
                while events.adopt(listener.accept_nonblocking())? {}
                Ok(())
            })
        }
        // The entry is exclusive, and keeps the place in the queue that it took when it was registered.
        (Wait::EpollExclusive, ..) => many_at_a_time(listener, exclusive, worker, ready, |events| {
            events.adopt(listener.accept_nonblocking()).map(drop)
        }),
        // Wake-ups begin at the head of the line, so who leaves it and comes back is the last to be woken.
        (Wait::EpollExclusiveRearm, ..) => {
            let mut taken = 0;
            many_at_a_time(listener, exclusive, worker, ready, |events| {
                taken += u64::from(events.adopt(listener.accept_nonblocking())?);
                if taken >= args.rearm.unwrap_or(1) {
                    taken = 0;
                    events.rearm()?;
                }
                Ok(())
            })
        }
    }
}

/// A worker that sleeps for the listener alone cannot sleep for its connections too, so it serves each to its end.
fn one_at_a_time(
    listener: &Listener,
    mut worker: Worker,
    ready: impl FnOnce(),
    mut next: impl FnMut(&Worker) -> Result<Option<OwnedFd>, Failure>,
) -> Result<(), Failure> {
    termination::shuts_connections(listener)?;
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
