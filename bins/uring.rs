//! 铂金 platinum: N io_uring loops, fed by one shared queue, a socket each, or one acceptor.
//!
//! Who accepts: with `--accept shared` each worker asks one listening socket for all connections to come (a multishot
//! accept), and the kernel gives a new one to the ring that has asked first; with `reuseport` each worker asks a socket
//! of its own; with `handoff` one thread accepts and passes the number of the descriptor to the next worker's ring
//! (IORING_OP_MSG_RING). Who serves: the worker whose ring was told. Who balances: the kernel, its hash, or the
//! acceptor's turn. What is inherited: the listening sockets, as in `shared-accept` and `reuseport`; with `handoff`
//! nothing, because a descriptor's number means something only to threads of one process. A worker that is blocked by
//! its work still gets its turn, and the connections wait for it.
//!
//! While it serves, no worker calls accept, recv, send or close: what a turn of the loop asks for goes to the kernel in
//! one system call, io_uring_enter(2), with which it also waits. So the busier the server, the fewer system calls per
//! request. One call is made beside it: shutdown(2), once for each connection that ends with its answer.
//!
//! Compare with `shared-accept.rs`, `reuseport.rs` and `master-dispatch.rs` (the same three with epoll).
//!
//! See it: `strace -fc target/release/uring --workers 1`, then `loadgen --connections 64 http://127.0.0.1:8080/`, and
//! Ctrl-C: far fewer calls than requests. Who takes each connection: `lab order -- uring --workers 4 --accept shared`.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::sync::{Arc, Weak};
use std::time::Duration;

use acceptlab::console;
use acceptlab::report::{AcceptCounts, ServerReport};
use acceptlab::scoreboard::Count;
use acceptlab::server::threads::WorkerThreads;
use acceptlab::server::{self, Failure, Listener, Scoreboard, SpinArgs, Worker, WorkerPool, WorkersArgs, termination};
use acceptlab::sys::process::Usage;
use acceptlab::sys::signal::{forget_listener, wake_on_termination};
use acceptlab::sys::uring::{ACCEPTED, Uring, explain};
use acceptlab::units::monotonic_ns;
use acceptlab::uring::accept::RingAcceptor;
use acceptlab::uring::{RingLoop, TERMINATION};
use clap::{Parser, ValueEnum};
use crossbeam_channel::{Sender, TrySendError};

/// N io_uring loops, fed by one shared queue, a socket each, or one acceptor
#[derive(Parser)]
#[command(name = "uring", version)]
struct Args {
    /// Where the rings get their connections from
    #[arg(long, value_enum, default_value_t = Accept::Reuseport)]
    accept: Accept,

    #[command(flatten)]
    spin: SpinArgs,

    #[command(flatten)]
    workers: WorkersArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Accept {
    /// One listening socket: all rings ask it
    Shared,
    /// A SO_REUSEPORT socket for each ring
    Reuseport,
    /// One thread accepts, and passes each connection to the next ring
    Handoff,
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse()))
}

fn run(args: &Args) -> Result<ServerReport, Failure> {
    Uring::probe().map_err(|why| Failure::relay(why).advise("the same with epoll: reuseport, shared-accept"))?;
    let WorkersArgs { workers, server } = &args.workers;
    match args.accept {
        Accept::Shared => serve_in_processes(vec![Listener::bind(server)?], args),
        Accept::Reuseport => serve_in_processes(Listener::bind_group(*workers, server)?, args),
        Accept::Handoff => hand_off(args),
    }
}

/// A worker process for each listener, or all on the only one.
fn serve_in_processes(
    mut listeners: Vec<Listener>,
    Args { accept, spin, workers: args }: &Args,
) -> Result<ServerReport, Failure> {
    let address = listeners[0].address();
    let scoreboard = Scoreboard::create("uring", args.workers, args.server.scoreboard.as_deref())?;
    let is_shared = *accept == Accept::Shared;
    let mut pool = WorkerPool::new(scoreboard)?;
    for id in 0..args.workers {
        pool.fork(|ready| {
            let ours = listeners.swap_remove(if is_shared { 0 } else { id }).blocking()?;
            listeners.clear();
            let mut worker = Worker::start(id, &args.server, &scoreboard)?;
            worker.spin = spin.before_sleep;
            if !is_shared {
                termination::shut_listener_when_stopping(&ours)?;
            }
            let mut events = RingLoop::new(&mut worker, wake()?)?;
            ready.announce();

            events.serve(Some(&ours))?;
            events.finish(Some(ours))
        })?;
    }
    pool.await_ready()?;
    server::ready(address)?;

    // Of a group each worker shuts its own; a copy kept open here would keep its queue in the group.
    if !is_shared {
        listeners.clear();
    }
    pool.supervise(|| listeners.iter().for_each(Listener::shut))?;
    Ok(pool.report(address))
}

/// Worker threads, whose rings this thread gives the connections to, one after another.
fn hand_off(Args { spin, workers: args, .. }: &Args) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(&args.server)?;
    let address = listener.address();
    let scoreboard = Scoreboard::create("uring", args.workers, args.server.scoreboard.as_deref())?;
    let termination = wake()?;
    termination::shut_listener_when_stopping(&listener)?;

    let threads = WorkerThreads::default();
    let (announce, announced) = crossbeam_channel::bounded(args.workers);
    for id in 0..args.workers {
        let announce = announce.clone();
        let mut worker = Worker::new(id, &args.server, &scoreboard);
        worker.spin = spin.before_sleep;
        threads.spawn(id, &args.server, worker, move |worker| {
            let failed = serve_passed(id, worker, termination, &announce).err();
            // Before it was ready the main thread waits for this, and fails with it; after that nobody takes it.
            let unread = failed.and_then(|failure| announce.try_send(Err(failure)).err());
            if let Some(Err(failure)) = unread.map(TrySendError::into_inner) {
                console::log(failure.advise(format_args!("worker {id} serves no more")));
            }
            Ok(())
        })?;
    }
    drop(announce);
    let mut rings = Vec::new();
    for outcome in announced.iter().take(args.workers) {
        rings.push(outcome?);
    }
    drop(announced);
    rings.sort_unstable_by_key(|ring: &WorkerRing| ring.id);
    server::ready(address)?;

    let accepts = pass_connections(&listener, termination, &rings)?;
    drop(listener);
    threads.wait_for_end()?;
    Ok(scoreboard.report(address, Some(Usage::of_thread())).with_accepts(accepts))
}

/// Where a worker's connections are passed to.
struct WorkerRing {
    id: usize,
    ring: OwnedFd,
    /// Gone with the worker's thread: a ring that nobody looks at takes connections without an error.
    alive: Weak<()>,
}

type Announced = Result<WorkerRing, Failure>;

/// What a worker's thread does: it tells where its ring is, and serves what is passed there.
fn serve_passed(
    id: usize,
    worker: &mut Worker,
    termination: BorrowedFd,
    announce: &Sender<Announced>,
) -> Result<(), Failure> {
    let mut events = RingLoop::new(worker, termination)?;
    let ring = events.ring().as_fd().try_clone_to_owned();
    let ring = ring.map_err(|error| Failure::new("copy the descriptor of a ring", error))?;
    let alive = Arc::new(());
    // The main thread takes as many as there are workers.
    let _ = announce.send(Ok(WorkerRing { id, ring, alive: Arc::downgrade(&alive) }));
    events.serve(None)?;
    events.finish(None)
}

/// What the main thread does: it accepts through a ring of its own, and gives each connection to the next worker.
fn pass_connections(
    listener: &Listener,
    termination: BorrowedFd,
    rings: &[WorkerRing],
) -> Result<AcceptCounts, Failure> {
    let (mut acceptor, mut accepts) = (RingAcceptor::default(), AcceptCounts::default());
    let mut ring = Uring::new(1, 4096, Vec::new()).map_err(|errno| Failure::relay(explain(errno)))?;
    ring.watch(termination, TERMINATION);
    let mut turns = rings.iter().cycle();
    let mut next_alive = || turns.by_ref().take(rings.len()).find(|ring| ring.alive.strong_count() > 0);
    while !server::is_stopping() && !acceptor.is_shut() {
        acceptor.ask(&mut ring, listener.as_fd());
        let pause = acceptor.due_ns().map(|due_ns| Duration::from_nanos(due_ns.saturating_sub(monotonic_ns())));
        ring.wait(pause).map_err(|errno| Failure::new("wait for the ring", errno))?;
        while let Some(completion) = ring.next_completion() {
            // Any other tells that it is time to stop, or that a worker's ring is gone, and its connection with it.
            if completion.token != ACCEPTED {
                continue;
            }
            let accepted = acceptor.take(&mut ring, completion, |count| accepts.count(count))?;
            let Some(connection) = accepted else { continue };
            accepts.count(Count::Accepted);
            match next_alive() {
                Some(worker) => ring.pass(worker.ring.as_fd(), connection),
                None if server::is_stopping() => {}
                None => return Err(Failure::relay("no worker is left".to_owned())),
            }
        }
    }
    forget_listener();
    Ok(accepts)
}

/// What becomes readable when the server is to stop.
fn wake() -> Result<BorrowedFd<'static>, Failure> {
    wake_on_termination().map_err(|errno| Failure::new("handle SIGTERM", errno))
}
