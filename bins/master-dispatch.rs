//! 黄金 gold × N: the master accepts and passes every connection to a worker of its choice.
//!
//! Who accepts: the master. Who serves: the event loop of the worker that was given the connection. Who balances:
//! the master, by `--policy` (`src/server/policy.rs` has the policies side by side). What is inherited: one end of a
//! Unix socket pair; the workers give the listening socket up at once. A connection travels as SCM_RIGHTS: the worker
//! gets a descriptor of its own, the master closes its copy. Node's cluster works like `--policy acknowledged`.
//!
//! Compare with `pass-listener.rs` (the listening socket travels, once), `shared-accept.rs` (no middleman) and
//! `thread-pool.rs` (the same idea inside one process).
//!
//! See it: `master-dispatch --workers 4`, and `curl localhost:8080` again and again: worker 1, 2, 3, 0, 1, ... With
//! `--policy first-free` it is always worker 0.

#![forbid(unsafe_code)]

mod moved;

use std::process::ExitCode;

use acceptlab::report::ServerReport;
use acceptlab::server::channel::{Channel, connections_per_message};
use acceptlab::server::dispatch::{self, Dispatcher};
use acceptlab::server::policy::{Choice, Policy};
use acceptlab::server::{self, EventLoop, Failure, Listener, Scoreboard, SpinArgs, Worker, WorkerPool, WorkersArgs};
use clap::Parser;

/// The master accepts and passes every connection to a worker of its choice
#[derive(Parser)]
#[command(name = "master-dispatch", version)]
struct Args {
    /// Which worker gets the next connection
    #[arg(long, value_enum, default_value_t = Policy::RoundRobin)]
    policy: Policy,

    #[command(flatten)]
    spin: SpinArgs,

    #[command(flatten)]
    workers: WorkersArgs,
}

fn main() -> ExitCode {
    let args = Args::parse_from(moved::arguments());
    server::finish(run(&args))
}

fn run(Args { policy, spin, workers: args }: &Args) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(&args.server)?.nonblocking()?;
    let address = listener.address();
    let mut listener = Some(listener);
    let scoreboard = Scoreboard::create("master-dispatch", args.workers, args.server.scoreboard.as_deref())?;

    let mut pool = WorkerPool::new(scoreboard)?;
    let mut channels = Vec::new();
    for id in 0..args.workers {
        let (ours, theirs) = Channel::pair(*policy == Policy::Acknowledged)?;
        channels.push(ours);
        pool.fork(|ready| {
            // These are the master's. A worker that kept these ends of the channels would never see the end of its
            // own channel; one that kept the listener would keep the port open.
            channels.clear();
            listener = None;
            let mut worker = Worker::start(id, &args.server, &scoreboard)?;
            worker.spin = spin.before_sleep;
            let mut events = EventLoop::new(theirs, worker)?.taking_at_once(connections_per_message(args.workers));
            ready.announce();

            while events.serve_until_connection()? {
                dispatch::take_message(&mut events)?;
            }
            // These connections are accepted, and the master has closed its copies: no other process can answer them.
            // Where the master waits for an acknowledgement it still has a copy, and the worker refuses them.
            dispatch::take_or_refuse_rest(&mut events)?;
            events.finish().map(drop)
        })?;
    }
    pool.await_ready()?;

    let listener = listener.expect("only a worker gives it up");
    let mut dispatcher = Dispatcher::new(listener, channels, scoreboard, &pool)?;
    dispatcher.spin = spin.before_sleep;
    server::ready(address)?;

    let mut choice = Choice::by(*policy);
    while dispatcher.wait(&mut pool)? {
        // Connections for one worker travel in one message: a burst costs a system call per worker.
        while let Some(connection) = dispatcher.next_connection()? {
            // A worker is free when it is alive and has room in its channel; where workers acknowledge, it must also
            // have acknowledged all that it was given. So a worker that hangs gets no more once its channel is full.
            let free = dispatcher.free();
            let load = |i| dispatcher.load(i);
            let next = free[choice.next(free.iter().copied(), args.workers, load, &connection)];
            dispatcher.give(connection, next);
        }
        dispatcher.pass();
    }

    let accepts = dispatcher.accepts();
    // This closes the listener and the channels: nothing more is accepted, and each worker finds its channel's end.
    drop(dispatcher);
    pool.stop();
    Ok(pool.report(address).with_accepts(accepts))
}
