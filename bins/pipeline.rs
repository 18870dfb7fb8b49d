//! 白银 silver: four stages, each with threads and a bounded queue: accept, read, work, write.
//!
//! Who accepts: the main thread, the first stage; it only accepts. Who serves: a thread reads from all connections with
//! one epoll until a request is whole, the first of N threads that is free does its work, and a last thread formats the
//! answer and sends it. Who balances: the queue before the work; whoever is free takes the next. What is inherited:
//! nothing, because threads share everything. Each queue has room for `--queue N`, and a stage that finds the next
//! queue full waits: pressure goes back from stage to stage until connections wait in the kernel's accept queue and
//! requests in their sockets. At the end each stage ends the next, from the front to the back, after its last request.
//!
//! A request changes threads twice, and its connection has done so once before. For that a stage does one thing only,
//! and `top -H` shows which stage is the limit. The workers of the report are the threads of the third stage: they have
//! done the work of the `requests`, although the last stage sends the answers. What the other stages use is the
//! master's. An answer that the client does not read goes back to the reading stage. What that refuses, such as bad
//! input, counts for worker 0.
//!
//! Welsh, Culler and Brewer called this SEDA, a staged event-driven architecture (SOSP 2001).
//!
//! Compare with `half-sync.rs` (two halves: the threads that work also send, and the reading thread also accepts).
//!
//! See it: `pipeline --workers 2 --queue 4 --work block:100ms`, then `loadgen --connections 100 --duration 5s
//! http://127.0.0.1:8080/`, and in another terminal `ss -tn sport = :8080`: the requests wait in Recv-Q.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::report::{AcceptCounts, ServerReport};
use acceptlab::server::accepted_queue::{AcceptedQueue, accepted_queue};
use acceptlab::server::connection::SharedBuffers;
use acceptlab::server::poller::{Event, Poller, WaitingRequest};
use acceptlab::server::threads::{WorkerThreads, send};
use acceptlab::server::{
    self, Failure, Listener, QueueArgs, Scoreboard, Worker, blocking, has_given_up, is_stopping, termination,
};
use acceptlab::sys::process::Usage;
use clap::Parser;
use crossbeam_channel::{Sender, bounded};

/// Four stages, each with threads and a bounded queue: accept, read, work, write
#[derive(Parser)]
#[command(name = "pipeline", version)]
struct Args {
    #[command(flatten)]
    stages: QueueArgs,
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse().stages))
}

fn run(QueueArgs { queue, workers: args }: &QueueArgs) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(&args.server)?;
    let address = listener.address();
    let scoreboard = Scoreboard::create("pipeline", args.workers, args.server.scoreboard.as_deref())?;
    termination::shut_sockets_when_stopping(&listener)?;

    let (to_read, accepted) = accepted_queue(*queue)?;
    let (to_work, requests) = bounded::<WaitingRequest>(*queue);
    let (to_write, done) = bounded(*queue);
    let poller = Poller::new(accepted, args.server.idle_timeout)?;
    let connections = poller.connections.clone();
    let worker = |id| Worker::new(id, &args.server, &scoreboard);

    let threads = WorkerThreads::default();
    let (account, accounts) = bounded(2);
    let (mut reader, of_reader) = (worker(0), account.clone());
    threads.spawn_thread("reading stage", move || {
        read(poller, &mut reader, to_work)?;
        let _ = of_reader.send(Usage::of_thread());
        Ok(())
    })?;
    for id in 0..args.workers {
        let (requests, to_write) = (requests.clone(), to_write.clone());
        threads.spawn(id, &args.server, worker(id), move |_| {
            for request in requests {
                request.cost.spend(has_given_up);
                if !send(&to_write, (id, request), has_given_up) {
                    break;
                }
            }
            Ok(())
        })?;
    }
    let workers: Vec<Worker> = (0..args.workers).map(worker).collect();
    threads.spawn_thread("writing stage", move || {
        let mut buffers = SharedBuffers::default();
        for (id, request) in done {
            connections.answer(request, &workers[id], &mut buffers);
        }
        let _ = account.send(Usage::of_thread());
        Ok(())
    })?;
    drop((requests, to_write));
    server::ready(address)?;

    let mut accepts = AcceptCounts::default();
    while let Some(connection) = blocking::accept_for_a_loop(&listener, &mut accepts)? {
        if !to_read.send(connection, is_stopping) {
            break;
        }
    }

    drop(to_read);
    threads.wait_for_end()?;
    let stages = accounts.try_iter().fold(Usage::of_thread(), |all, stage| all + stage);
    Ok(scoreboard.report(address, Some(stages)).with_accepts(accepts))
}

/// The reading stage: it ends when nothing is open any more, and with it the queue.
fn read(
    mut poller: Poller<AcceptedQueue>,
    reader: &mut Worker,
    to_work: Sender<WaitingRequest>,
) -> Result<(), Failure> {
    // Whatever a request costs, the next stage does it.
    reader.is_free_during = |_| true;
    let mut buffers = SharedBuffers::default();
    while let Some(event) = poller.next_event()? {
        match event {
            Event::New => {
                let connection = poller.acceptor.take();
                // The stage before has counted it.
                poller.add_accepted(connection, |_| {})?;
            }
            Event::Ready(connection) => {
                let request = poller.connections.read(connection, reader, &mut buffers);
                // Nobody takes it when every thread has panicked, or the server gives up.
                if request.is_some_and(|request| !send(&to_work, request, has_given_up)) {
                    break;
                }
            }
        }
    }
    Ok(())
}
