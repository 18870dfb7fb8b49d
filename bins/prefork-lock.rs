//! 青铜 bronze: prefork with a lock around accept, four kinds of it.
//!
//! Who accepts: the worker that holds the lock. Who serves: the same one, after it has given the lock back. Who
//! balances: the order in which waiting workers get the lock. What is inherited: the listening socket, and the lock.
//!
//! Before kernels could wake one sleeper of many, every connection woke all who slept in `accept`, and servers put a
//! lock before it (Stevens, Fenner, Rudoff, *UNIX Network Programming* 1, section 30.7 and figure 30.1). Linux wakes
//! one, so today the lock costs its calls and buys nothing. All four are given back by the kernel when the holder dies.
//!
//! Compare with `prefork.rs`: the difference is the lock. `accept-mutex.rs` has a lock that is only tried.
//!
//! See it: `prefork-lock --workers 4 --lock semaphore`, and `lab order -- prefork-lock --workers 4 --lock mutex`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::report::ServerReport;
use acceptlab::server::lock::Lock;
use acceptlab::server::{self, Failure, Listener, Scoreboard, Worker, WorkerPool, WorkersArgs, blocking, termination};
use clap::{Parser, ValueEnum};

/// Prefork with a lock around accept, four kinds of it
#[derive(Parser)]
#[command(name = "prefork-lock", version)]
struct Args {
    /// What lets one worker at a time wait for the shared socket
    #[arg(long, value_enum, default_value_t = LockKind::Fcntl)]
    lock: LockKind,

    #[command(flatten)]
    workers: WorkersArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum LockKind {
    /// A record lock on a file, fcntl(2): the process's
    Fcntl,
    /// A lock on a file, flock(2): the open file's, so that each worker opens it for itself
    Flock,
    /// A System V semaphore, taken and given with SEM_UNDO
    Semaphore,
    /// A pthread mutex in shared memory, robust: the next worker that takes it gets EOWNERDEAD when the holder has died
    Mutex,
}

fn main() -> ExitCode {
    let args = Args::parse();
    server::finish(run(args.lock, &args.workers))
}

fn run(lock: LockKind, args: &WorkersArgs) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(&args.server)?;
    let address = listener.address();
    let mut lock = match lock {
        // The portable one: two system calls per connection. Now and then a release wakes more than the next worker,
        // so with many of them the switches grow again.
        LockKind::Fcntl => Lock::fcntl(),
        // Like fcntl. But workers with an inherited descriptor would all hold it at once (`Lock::join`).
        LockKind::Flock => Lock::flock(),
        // First come, first served: the workers rotate, as in plain accept, for two more calls. What a killed server
        // leaves, the next removes.
        LockKind::Semaphore => Lock::semaphore(),
        // No system call unless somebody waits. The first worker that comes after the release has it, even one that
        // never slept.
        LockKind::Mutex => Lock::mutex(),
    }?;
    let scoreboard = Scoreboard::create("prefork-lock", args.workers, args.server.scoreboard.as_deref())?;

    let mut pool = WorkerPool::new(scoreboard)?;
    for id in 0..args.workers {
        pool.fork(|ready| {
            let mut worker = Worker::start(id, &args.server, &scoreboard)?;
            lock.join()?;
            termination::shut_connections_when_stopping(&listener)?;
            ready.announce();

            while let Some(connection) = lock.hold(|| blocking::accept(&listener, &worker))? {
                blocking::serve(connection, &mut worker);
            }
            Ok(())
        })?;
    }
    pool.await_ready()?;
    server::ready(address)?;

    // All processes share the socket: when the parent shuts it, no worker can accept from it any more.
    pool.supervise(|| listener.shut())?;
    Ok(pool.report(address))
}
