//! 白银 silver: N threads started beforehand, all blocking in accept on one socket, with or without a mutex around it.
//!
//! Who accepts: every thread, or with `--lock mutex` the one that holds the mutex. Who serves: the thread that
//! accepted, one connection at a time. Who balances: the kernel, which wakes one of the sleepers per connection; with
//! the mutex the order in which waiting threads get it. What is inherited: nothing, because threads share everything;
//! the main thread only waits for the end. With M threads and N seconds per request the server answers M/N requests per
//! second.
//!
//! With the mutex it is row 7 of the nine designs that Stevens, Fenner and Rudoff compare (*UNIX Network Programming*
//! 1, figure 30.1, whose rows begin with 0, and section 30.11); `thread-pool` is row 8. A lock within one process costs
//! a system call only when somebody waits for it.
//!
//! Compare with `prefork.rs` (processes instead of threads), `prefork-lock.rs` (a lock between processes) and
//! `thread-pool.rs` (one thread accepts for the others).
//!
//! See it: `prethreaded --workers 3 --work block:1s`, and three `curl localhost:8080` at once: three answers after 1 s,
//! from three workers of one pid. `lab order -- prethreaded --workers 4 --lock mutex`.

#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use acceptlab::report::ServerReport;
use acceptlab::server::threads::WorkerThreads;
use acceptlab::server::{self, Failure, Listener, Scoreboard, Worker, WorkersArgs, blocking, termination};
use acceptlab::sys::process::Usage;
use clap::{Parser, ValueEnum};

/// N threads started beforehand, all blocking in accept on one socket, with or without a mutex around it
#[derive(Parser)]
#[command(name = "prethreaded", version)]
struct Args {
    /// What lets one thread at a time wait for the socket
    #[arg(long, value_enum, default_value_t = LockKind::None)]
    lock: LockKind,

    #[command(flatten)]
    workers: WorkersArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum LockKind {
    /// Nothing: all wait, and the kernel wakes one
    None,
    /// A mutex within the process
    Mutex,
}

fn main() -> ExitCode {
    let args = Args::parse();
    server::finish(run(args.lock, &args.workers))
}

fn run(lock: LockKind, args: &WorkersArgs) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(&args.server)?;
    let address = listener.address();
    let scoreboard = Scoreboard::create("prethreaded", args.workers, args.server.scoreboard.as_deref())?;
    termination::shut_sockets_when_stopping(&listener)?;

    let socket = listener.into_shared()?;
    let lock = match lock {
        LockKind::None => None,
        LockKind::Mutex => Some(Arc::new(Mutex::new(()))),
    };
    let threads = WorkerThreads::default();
    for id in 0..args.workers {
        let (lock, socket) = (lock.clone(), socket.clone());
        threads.spawn(id, &args.server, Worker::new(id, &args.server, &scoreboard), move |worker| {
            while let Some(connection) = accept_in_turn(lock.as_deref(), &socket, worker)? {
                blocking::serve(connection, worker);
            }
            Ok(())
        })?;
    }
    server::ready(address)?;

    threads.wait_for_end()?;
    Ok(scoreboard.report(address, Some(Usage::of_thread())))
}

/// The next connection; with a lock the thread waits for its turn, and holds the lock until it has one. `None` when the
/// server is to stop.
fn accept_in_turn(lock: Option<&Mutex<()>>, socket: &OwnedFd, worker: &Worker) -> Result<Option<OwnedFd>, Failure> {
    // What it guards is the kernel's: a thread that panicked with it has left nothing half done.
    let _turn = lock.map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner));
    blocking::accept_beside_others(socket, worker)
}
