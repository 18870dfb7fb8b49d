//! 白银 silver: N threads, of which one waits for all connections; it hands on the role and serves what it got.
//!
//! Who accepts: the leader, whichever of N threads that is. It has the one epoll, for the listening socket and all
//! connections, and takes out one connection that has a request. Who serves: the same thread, after it has promoted a
//! follower to be the leader: it unlocks the mutex that is the role. Then it puts the connection back and becomes a
//! follower, asleep at the mutex. Who balances: the order in which the kernel wakes those who sleep at the mutex, and a
//! race: a thread that comes back may take the role before the one that was woken. What is inherited: nothing, because
//! threads share everything. There is no queue and no request changes hands; what is handed on is the role. When
//! requests are already there the leader does not sleep, and on one CPU it takes the role again before the follower
//! that it has woken runs: few switches. But a thread that is interrupted while it serves keeps its connection waiting,
//! until a leader that never sleeps has used up its time slice.
//!
//! Schmidt and others called this leader/followers (Pattern-Oriented Software Architecture 2, 2000).
//!
//! Compare with `idle-busy.rs` (one thread always waits, and hands on the connection) and `prefork-lock.rs` (the lock
//! is around accept only).
//!
//! See it: `leader-follower --workers 8`, then `loadgen --connections 64 --duration 5s http://127.0.0.1:8080/` and
//! Ctrl-C: compare `voluntary_switches` and `requests` of all workers with those of `idle-busy --workers 8`.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use acceptlab::report::ServerReport;
use acceptlab::server::connection::SharedBuffers;
use acceptlab::server::poller::{Event, Poller, ReadyConnection};
use acceptlab::server::threads::WorkerThreads;
use acceptlab::server::{self, Failure, Listener, Scoreboard, Worker, WorkersArgs, termination};
use clap::Parser;

/// N threads, of which one waits for all connections; it hands on the role and serves what it got
#[derive(Parser)]
#[command(name = "leader-follower", version)]
struct Args {
    #[command(flatten)]
    workers: WorkersArgs,
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse().workers))
}

fn run(args: &WorkersArgs) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(&args.server)?.nonblocking()?;
    let address = listener.address();
    let scoreboard = Scoreboard::create("leader-follower", args.workers, args.server.scoreboard.as_deref())?;
    termination::shut_listener_when_stopping(&listener)?;
    let poller = Poller::new(listener, args.server.idle_timeout)?;
    let connections = poller.connections.clone();
    // The thread that holds the lock is the leader.
    let role = Arc::new(Mutex::new(poller));

    let threads = WorkerThreads::default();
    for id in 0..args.workers {
        let (role, connections) = (role.clone(), connections.clone());
        threads.spawn(id, &args.server, Worker::new(id, &args.server, &scoreboard), move |worker| {
            let mut buffers = SharedBuffers::default();
            while let Some(connection) = lead(&role, worker)? {
                connections.serve(connection, worker, &mut buffers);
            }
            Ok(())
        })?;
    }
    server::ready(address)?;

    threads.wait_for_end()?;
    Ok(scoreboard.report(address, None))
}

/// Waits for the role, and with it for a connection that is to be served; the return promotes the next leader. `None`
/// when the server is to stop.
fn lead(role: &Mutex<Poller<Listener>>, worker: &Worker) -> Result<Option<ReadyConnection>, Failure> {
    // A leader that panicked has left the poller as it was between two calls.
    let mut poller = role.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some(event) = poller.next_event()? {
        match event {
            Event::New => {
                let connection = poller.acceptor.accept_nonblocking();
                poller.add_accepted(connection, |count| worker.count(count))?;
            }
            Event::Ready(connection) => return Ok(Some(connection)),
        }
    }
    Ok(None)
}
