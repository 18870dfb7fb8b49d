//! 黄金 gold × N: the master passes its listening socket to every worker, once, and the workers accept.
//!
//! Who accepts: every worker, from the one accept queue; with `--master serves` the master as well. Who serves: the one
//! that accepted. Who balances: the kernel, as in `shared-accept`. What is inherited: nothing of the listener: the
//! workers close what the fork has copied, and receive a descriptor of the same socket over a Unix socket (SCM_RIGHTS,
//! unix(7)). It could have gone to a process that is no child.
//!
//! Passing a descriptor does not take it from the sender. So the master has to decide about its own copy, and both
//! decisions are one flag here: it closes the copy, or it is one more worker with the same loop.
//!
//! Compare with `shared-accept.rs` (the socket is inherited) and `master-dispatch.rs` (each connection is passed).
//!
//! See it: `pass-listener --workers 4`, and `ss -ltnp sport = :8080` shows four processes and no master. With
//! `--master serves`, `curl localhost:8080` again and again: sometimes the master answers, as the last worker.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::report::ServerReport;
use acceptlab::server::channel::Channel;
use acceptlab::server::{
    self, EventLoop, Failure, Listener, Scoreboard, SpinArgs, Worker, WorkerPool, WorkersArgs, termination,
};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};

/// The master passes its listening socket to every worker, once, and the workers accept
#[derive(Parser)]
#[command(name = "pass-listener", version)]
struct Args {
    /// What the master does with its own copy
    #[arg(long, value_enum, default_value_t = MasterRole::Closes)]
    master: MasterRole,

    #[command(flatten)]
    spin: SpinArgs,

    #[command(flatten)]
    workers: WorkersArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MasterRole {
    /// Accepts and serves too, as the last of the workers
    Serves,
    /// Closes it, and only supervises
    Closes,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.master == MasterRole::Serves && args.workers.workers == 1 {
        let conflict = "--master serves makes the master one of the workers, so there must be another: --workers 2";
        Args::command().error(ErrorKind::ArgumentConflict, conflict).exit();
    }
    server::finish(run(&args))
}

fn run(&Args { master, spin, workers: ref args }: &Args) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(&args.server)?.nonblocking()?;
    let address = listener.address();
    let mut listener = Some(listener);
    let scoreboard = Scoreboard::create("pass-listener", args.workers, args.server.scoreboard.as_deref())?;

    let mut pool = WorkerPool::new(scoreboard)?;
    for id in 0..args.workers - usize::from(master == MasterRole::Serves) {
        let (ours, mut theirs) = Channel::pair(false)?;
        ours.pass(listener.as_slice()).map_err(|errno| Failure::new("pass the listener", errno))?;
        pool.fork(|ready| {
            listener = None;
            let passed = theirs.receive().map_err(|errno| Failure::new("receive the listener", errno))?;
            let passed = Listener::from_passed(passed)?;
            drop((ours, theirs));
            let mut worker = Worker::start(id, &args.server, &scoreboard)?;
            worker.spin = spin.before_sleep;
            // A master that has closed its copy cannot shut the socket; its SIGTERM makes the workers do it.
            termination::shut_shared_listener_when_stopping(&passed)?;
            let mut events = EventLoop::new(passed, worker)?;
            ready.announce();

            while events.serve_until_connection()? {
                let connection = events.acceptor.accept_nonblocking();
                events.add_accepted(connection)?;
            }
            events.finish().map(drop)
        })?;
    }
    pool.await_ready()?;

    let listener = listener.expect("only a worker gives it up");
    if master == MasterRole::Serves {
        return serve_as_the_last(listener, spin, args, pool);
    }
    drop(listener);
    server::ready(address)?;

    pool.supervise(|| {})?;
    Ok(pool.report(address))
}

/// The master is one more worker: it waits for the same accept queue.
fn serve_as_the_last(
    listener: Listener,
    spin: SpinArgs,
    args: &WorkersArgs,
    mut pool: WorkerPool,
) -> Result<ServerReport, Failure> {
    let address = listener.address();
    let mut worker = Worker::start(args.workers - 1, &args.server, pool.scoreboard())?;
    worker.spin = spin.before_sleep;
    // The signal itself shuts the socket for all of them: a master in the middle of a request could not.
    termination::shut_listener_when_stopping(&listener)?;
    // A worker that dies wakes the master, too.
    let mut events = EventLoop::new(listener.woken_by(pool.signals())?, worker)?;
    server::ready(address)?;

    while events.serve_until_connection()? {
        let connection = events.acceptor.accept_nonblocking();
        if !events.add_accepted(connection)? {
            // The master's other task. When all its children are dead it is the last worker, and serves on.
            pool.reap_dead_after_signal();
        }
    }

    pool.begin_stop();
    events.finish()?.record_usage();
    pool.stop();
    Ok(pool.scoreboard().report(address, None))
}
