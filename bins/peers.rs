//! 黄金 gold × N: reuseport whose workers pass a new connection on to one that has fewer.
//!
//! Who accepts: each worker, from its own accept queue. Who serves: the worker that accepted, or the one that it has
//! passed the connection on to. Who balances: the kernel's hash, and then the worker that accepted. Its rule: of two
//! others, chosen at random, the one with fewer open connections gets it, if it has fewer than we have. What is
//! inherited: a listening socket for each worker, and an inbox for each, a Unix socket pair. A worker keeps its own
//! socket, its own inbox and the sending ends of all inboxes: N + 2 descriptors in each of N workers.
//!
//! To look at two costs the same whatever N is, and is nearly as even as to look at all: the power of two choices (M.
//! Mitzenmacher, IEEE Transactions on Parallel and Distributed Systems 12(10), 2001). HAProxy compares two threads for
//! each connection (`tune.listener.multi-queue`), Envoy all of them, under a lock (`exact_balance`). As in Envoy the
//! sender counts the connection as open at the receiver, so what waits in an inbox counts, too.
//!
//! A connection is passed once at most. An inbox that is full takes no other, nor does that of a worker that stops or
//! is dead: then the worker that has accepted serves. A worker that hangs is passed connections until it has as many as
//! the others. These wait for it, and so do those in its accept queue.
//!
//! Compare with `reuseport.rs` (no second choice) and `master-dispatch.rs` (a master makes the only choice).
//!
//! See it: `peers --workers 4`, then `loadgen --connections 64 --duration 5s http://127.0.0.1:8080/`: D of the
//! connections per worker is near 0; with `reuseport` it is near 1. In the report of `peers`, `wakeups` −
//! `empty_wakeups` − `accepted` of all workers together is how many connections were passed on.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use acceptlab::report::ServerReport;
use acceptlab::scoreboard::Count;
use acceptlab::server::accept::Acceptor;
use acceptlab::server::channel::Channel;
use acceptlab::server::{
    self, EventLoop, Failure, Listener, Scoreboard, SpinArgs, Worker, WorkerPool, WorkersArgs, termination,
};
use clap::Parser;
use fastrand::Rng;
use nix::errno::Errno;

/// Reuseport whose workers pass a new connection on to one that has fewer
#[derive(Parser)]
#[command(name = "peers", version)]
struct Args {
    #[command(flatten)]
    spin: SpinArgs,

    #[command(flatten)]
    workers: WorkersArgs,
}

/// Where the connections of a worker come from.
struct Sources {
    listener: Listener,
    inbox: Channel,
}

impl AsFd for Sources {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Acceptor for Sources {
    fn second_descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.inbox.as_fd())
    }
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse()))
}

fn run(Args { spin, workers: args }: &Args) -> Result<ServerReport, Failure> {
    let mut listeners = Listener::bind_group(args.workers, &args.server)?;
    let address = listeners[0].address();
    let (mut outboxes, mut inboxes) = (Vec::new(), Vec::new());
    for _ in 0..args.workers {
        let (outbox, inbox) = Channel::pair(false)?;
        outboxes.push(outbox);
        inboxes.push(inbox);
    }
    let scoreboard = Scoreboard::create("peers", args.workers, args.server.scoreboard.as_deref())?;

    let mut pool = WorkerPool::new(scoreboard)?;
    for id in 0..args.workers {
        pool.fork(|ready| {
            let sources = Sources { listener: listeners.swap_remove(id), inbox: inboxes.swap_remove(id) };
            // With a copy kept open a dead worker's queue would stay in the group, and its inbox would take more.
            listeners.clear();
            inboxes.clear();
            let mut worker = Worker::start(id, &args.server, &scoreboard)?;
            worker.spin = spin.before_sleep;
            termination::shut_listener_when_stopping(&sources.listener)?;
            let mut events = EventLoop::new(sources, worker)?;
            let mut peers = Peers { id, scoreboard, outboxes: &outboxes, random: Rng::new() };
            ready.announce();

            while events.serve_until_connection()? {
                if events.is_about_second() {
                    let passed = peers.receive(&mut events.acceptor.inbox);
                    events.add_accepted(passed)?;
                } else {
                    let accepted = events.acceptor.listener.accept_nonblocking();
                    // What was passed is closed here: the peer has a copy.
                    if !accepted.as_ref().is_ok_and(|connection| peers.pass(connection)) {
                        events.add_accepted(accepted)?;
                    }
                }
            }
            // From now on others serve what they would pass to us. What they have passed, nobody else can answer.
            events.acceptor.inbox.shut();
            while let passed @ (Ok(_) | Err(Errno::EMFILE)) = peers.receive(&mut events.acceptor.inbox) {
                events.add_accepted(passed)?;
            }
            events.finish().map(drop)
        })?;
    }
    drop((listeners, inboxes, outboxes));
    pool.await_ready()?;
    server::ready(address)?;

    // Each worker's own handler shuts its listener.
    pool.supervise(|| {})?;
    Ok(pool.report(address))
}

/// The workers as one of them sees them.
struct Peers<'a> {
    id: usize,
    scoreboard: Scoreboard,
    outboxes: &'a [Channel],
    random: Rng,
}

impl Peers<'_> {
    /// True: a peer has it. False: it is ours to serve.
    fn pass(&mut self, connection: &OwnedFd) -> bool {
        let Some(peer) = self.less_busy() else { return false };
        let row = self.scoreboard.row(peer);
        // Before it is on its way: the next worker that compares must not find fewer than there are.
        row.add(Count::Active, 1);
        let is_passed = self.outboxes[peer].pass(&[connection]).is_ok();
        if !is_passed {
            // Full, shut or dead. If it is dead, its row may have been set to zero meanwhile.
            row.lose_open_connection();
        }
        is_passed
    }

    /// The less busy of two others, chosen at random, if it has fewer connections than we. With as many as we have, to
    /// pass would cost something and even out nothing.
    fn less_busy(&mut self) -> Option<usize> {
        let others = self.outboxes.len() - 1;
        if others == 0 {
            return None;
        }
        let first = self.random.usize(1..=others);
        // Another than the first, unless there is only one.
        let second = 1 + (first + self.random.usize(..(others - 1).max(1))) % others;
        let drawn = [first, second].map(|after_us| (self.id + after_us) % self.outboxes.len());
        let (peer, open) = self.scoreboard.least_busy(drawn)?;
        (open < self.scoreboard.row(self.id).get(Count::Active)).then_some(peer)
    }

    /// The next connection that a peer has passed. It has counted it as open here; from now on the event loop counts
    /// it. EMFILE: it was lost.
    fn receive(&self, inbox: &mut Channel) -> nix::Result<OwnedFd> {
        let passed = inbox.receive();
        if matches!(passed, Ok(_) | Err(Errno::EMFILE)) {
            self.scoreboard.row(self.id).subtract(Count::Active, 1);
        }
        passed
    }
}
