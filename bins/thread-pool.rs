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

use std::process::ExitCode;

use acceptlab::report::{AcceptCounts, ServerReport};
use acceptlab::scoreboard::Count;
use acceptlab::server::threads::{WorkerThreads, send};
use acceptlab::server::{self, Failure, Listener, QueueArgs, Scoreboard, Worker, blocking, is_stopping, termination};
use acceptlab::sys::process::Usage;
use clap::Parser;

/// One acceptor, a bounded queue, N worker threads
#[derive(Parser)]
#[command(name = "thread-pool", version)]
struct Args {
    #[command(flatten)]
    pool: QueueArgs,
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse().pool))
}

fn run(QueueArgs { queue, workers: args }: &QueueArgs) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(&args.server)?;
    let address = listener.address();
    let scoreboard = Scoreboard::create("thread-pool", args.workers, args.server.scoreboard.as_deref())?;
    termination::shut_sockets_when_stopping(&listener)?;

    let threads = WorkerThreads::default();
    let (queue, accepted) = crossbeam_channel::bounded(*queue);
    for id in 0..args.workers {
        let accepted = accepted.clone();
        threads.spawn(id, &args.server, Worker::new(id, &args.server, &scoreboard), |worker| {
            for connection in accepted {
                worker.count(Count::Wakeups);
                blocking::serve(connection, worker);
            }
            Ok(())
        })?;
    }
    drop(accepted);
    server::ready(address)?;

    let mut accepts = AcceptCounts::default();
    while let Some(connection) = blocking::accept_for_a_thread(&listener, &mut accepts)? {
        if !send(&queue, connection, is_stopping) {
            break;
        }
    }

    drop(queue);
    threads.wait_for_end()?;
    Ok(scoreboard.report(address, Some(Usage::of_thread())).with_accepts(accepts))
}
