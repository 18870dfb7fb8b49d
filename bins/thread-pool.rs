//! 白银 silver: one acceptor, a bounded queue, N worker threads.
//!
//! Who accepts: the main thread. Who serves: the first of N threads that is free, one connection at a time. Who
//! balances: the queue; whoever is free takes the next. What is inherited: nothing, because threads share everything,
//! as in `threaded`, and above all the queue. It is bounded: when it is full the acceptor waits, connections wait in
//! the kernel's accept queue, and no memory grows. That is back-pressure. With M workers and N seconds per request the
//! server answers M/N requests per second.
//!
//! Compare with `threaded.rs` (as many threads as connections) and `prefork.rs` (the kernel's queue alone).
//!
//! See it: `thread-pool --workers 2 --work block:1s`, then `loadgen --connections 6 --requests-per-connection 1
//! --requests 20 http://127.0.0.1:8080/`: two requests per second, and a response time of three seconds.

#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use acceptlab::report::{AcceptCounts, ServerReport};
use acceptlab::scoreboard::Count;
use acceptlab::server::{self, Failure, Listener, Scoreboard, Worker, WorkersArgs, blocking, termination, worker};
use acceptlab::sys::process::Usage;
use clap::Parser;
use crossbeam_channel::{SendTimeoutError, Sender};

/// One acceptor, a bounded queue, N worker threads
#[derive(Parser)]
#[command(name = "thread-pool", version)]
struct Args {
    /// Connections that may wait for a thread before the acceptor stops accepting
    #[arg(long, value_name = "N", default_value_t = 128)]
    queue: usize,

    #[command(flatten)]
    workers: WorkersArgs,
}

/// How long the acceptor may sleep on a full queue before it checks whether the server is to stop.
const CHECK_EVERY: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let args = Args::parse();
    server::finish(run(args.queue, &args.workers))
}

fn run(queue: usize, args: &WorkersArgs) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(&args.server)?;
    let address = listener.address();
    let scoreboard = Scoreboard::create("thread-pool", args.workers, args.server.scoreboard.as_deref())?;
    termination::shut_sockets_when_stopping(&listener)?;

    // Nothing is ever sent: the channel ends when the last thread that holds `alive` has ended.
    let (alive, all_gone) = crossbeam_channel::bounded::<()>(0);
    let (queue, waiting) = crossbeam_channel::bounded(queue);
    for id in 0..args.workers {
        let mut worker = Worker::new(id, &args.server, &scoreboard);
        let (alive, pin, waiting) = (alive.clone(), args.server.pin.then_some(id), waiting.clone());
        let spawned = thread::Builder::new().stack_size(blocking::STACK_BYTES).spawn(move || {
            let _held_until_the_end = alive;
            worker::pin_or_log(pin);
            for connection in waiting {
                worker.count(Count::Wakeups);
                blocking::serve(connection, &mut worker);
            }
            worker.record_thread_usage();
        });
        spawned.map_err(|error| {
            Failure::new(format_args!("spawn worker {id}"), error).advise("start fewer with --workers")
        })?;
    }
    drop((alive, waiting));
    server::ready(address)?;

    let mut accepts = AcceptCounts::default();
    while let Some(connection) = blocking::accept_for_a_thread(&listener, &mut accepts)? {
        if !hand_over(&queue, connection) {
            break;
        }
    }

    drop(queue);
    termination::wait_for_threads(&all_gone);
    Ok(scoreboard.report(address, Some(Usage::of_thread())).with_accepts(accepts))
}

/// Waits for room in the queue: the back-pressure. False when the server is to stop instead.
fn hand_over(queue: &Sender<OwnedFd>, mut connection: OwnedFd) -> bool {
    loop {
        match queue.send_timeout(connection, CHECK_EVERY) {
            Ok(()) => return true,
            // No signal interrupts this wait, so it checks by itself.
            Err(SendTimeoutError::Timeout(back)) if !server::is_stopping() => connection = back,
            Err(_) => return false,
        }
    }
}
