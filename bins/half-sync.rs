//! 白银 silver: one event loop reads whole requests, a queue, N threads answer them.
//!
//! Who accepts: the main thread. Who serves: two halves. The asynchronous half is the main thread: one epoll, which
//! reads from all connections until a request is whole. The synchronous half is N threads: each takes a request from
//! the queue, does its work, and sends the answer. Who balances: the queue between the halves; whoever is free takes
//! the next. What is inherited: nothing, because threads share everything. The queue costs a switch when a thread
//! sleeps at it, and it buys that a thread never sees half a request and that the main thread never does the work. When
//! the queue is full the main thread waits: it accepts and reads nothing, and requests wait in their sockets. An answer
//! that the client does not read goes back to the epoll. What the main thread refuses by itself, such as bad input,
//! counts for worker 0.
//!
//! Schmidt and Cranor called this half-sync/half-async (Pattern Languages of Program Design 2, 1996).
//!
//! Compare with `idle-busy.rs` (the threads read, too) and `event-loop.rs` (the loop also answers).
//!
//! See it: `half-sync --workers 2 --work block:100ms`, then `loadgen --connections 1000 --duration 5s
//! http://127.0.0.1:8080/`, and in another terminal `top -H -p $(pidof half-sync)`: the main thread reads for all.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::report::{AcceptCounts, ServerReport};
use acceptlab::server::connection::SharedBuffers;
use acceptlab::server::poller::{Event, Poller, WaitingRequest};
use acceptlab::server::threads::{WorkerThreads, send};
use acceptlab::server::{self, Failure, Listener, QueueArgs, Scoreboard, Worker, has_given_up, termination};
use acceptlab::sys::process::Usage;
use clap::Parser;

/// One event loop reads whole requests, a queue, N threads answer them
#[derive(Parser)]
#[command(name = "half-sync", version)]
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
    let scoreboard = Scoreboard::create("half-sync", args.workers, args.server.scoreboard.as_deref())?;
    termination::shut_listener_when_stopping(&listener)?;
    let mut poller = Poller::new(listener, args.server.idle_timeout)?;

    let threads = WorkerThreads::default();
    let (queue, requests) = crossbeam_channel::bounded::<WaitingRequest>(*queue);
    for id in 0..args.workers {
        let (requests, connections) = (requests.clone(), poller.connections.clone());
        threads.spawn(id, &args.server, Worker::new(id, &args.server, &scoreboard), move |worker| {
            let mut buffers = SharedBuffers::default();
            for request in requests {
                request.cost.spend(has_given_up);
                connections.answer(request, worker, &mut buffers);
            }
            Ok(())
        })?;
    }
    drop(requests);
    server::ready(address)?;

    let mut accepts = AcceptCounts::default();
    let mut reader = Worker::new(0, &args.server, &scoreboard);
    // Whatever a request costs, somebody else does it.
    reader.is_free_during = |_| true;
    let mut buffers = SharedBuffers::default();
    while let Some(event) = poller.next_event()? {
        match event {
            Event::New => poller.accept(&mut accepts)?,
            Event::Ready(connection) => {
                let request = poller.connections.read(connection, &mut reader, &mut buffers);
                // Nobody takes it when every thread has panicked, or the server gives up.
                if request.is_some_and(|request| !send(&queue, request, has_given_up)) {
                    break;
                }
            }
        }
    }

    drop(queue);
    threads.wait_for_end()?;
    Ok(scoreboard.report(address, Some(Usage::of_thread())).with_accepts(accepts))
}
