//! 白银 silver: idle connections in one epoll, N threads for those that have a request.
//!
//! Who accepts: the main thread. Who serves: the first of N threads that is free, one request at a time; then the
//! thread puts the connection back into the epoll. Who balances: the queue; whoever is free takes the next. What is
//! inherited: nothing, because threads share everything. Apache's event MPM and gunicorn's gthread are made so: a
//! client that is idle, sends slowly or does not read its answer holds a descriptor and no thread, so 8 threads keep
//! 1,000 connections. When the queue is full the main thread waits: it accepts nothing, and requests wait in their
//! sockets.
//!
//! Compare with `thread-pool.rs` (a thread belongs to its connection until the end) and `event-driven.rs` (no threads).
//!
//! See it: `idle-busy --workers 8`, then `loadgen --connections 1000 --duration 5s http://127.0.0.1:8080/`; with
//! `thread-pool --workers 8` all but eight clients wait for an answer until their time-out.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::report::{AcceptCounts, ServerReport};
use acceptlab::server::connection::SharedBuffers;
use acceptlab::server::poller::{Event, Poller};
use acceptlab::server::threads::{WorkerThreads, send};
use acceptlab::server::{self, Failure, Listener, QueueArgs, Scoreboard, Worker, has_given_up, termination};
use acceptlab::sys::process::Usage;
use clap::Parser;

/// Idle connections in one epoll, N threads for those that have a request
#[derive(Parser)]
#[command(name = "idle-busy", version)]
struct Args {
    #[command(flatten)]
    pool: QueueArgs,
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse().pool))
}

fn run(QueueArgs { queue, workers: args }: &QueueArgs) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(&args.server)?.nonblocking()?;
    let address = listener.address();
    let scoreboard = Scoreboard::create("idle-busy", args.workers, args.server.scoreboard.as_deref())?;
    termination::shut_listener_when_stopping(&listener)?;
    let mut poller = Poller::new(listener, args.server.idle_timeout)?;

    let threads = WorkerThreads::default();
    let (queue, busy) = crossbeam_channel::bounded(*queue);
    for id in 0..args.workers {
        let (busy, idle) = (busy.clone(), poller.connections.clone());
        threads.spawn(id, &args.server, Worker::new(id, &args.server, &scoreboard), move |worker| {
            let mut buffers = SharedBuffers::default();
            for connection in busy {
                idle.serve(connection, worker, &mut buffers);
            }
            Ok(())
        })?;
    }
    drop(busy);
    server::ready(address)?;

    let mut accepts = AcceptCounts::default();
    while let Some(event) = poller.next_event()? {
        match event {
            Event::New => poller.accept(&mut accepts)?,
            Event::Ready(connection) => {
                if !send(&queue, connection, has_given_up) {
                    break;
                }
            }
        }
    }

    drop(queue);
    threads.wait_for_end()?;
    Ok(scoreboard.report(address, Some(Usage::of_thread())).with_accepts(accepts))
}
