//! 铂金 platinum: a task for each connection, on N threads that steal tasks, or on a runtime in each thread.
//!
//! Who accepts: a task, on the thread that runs it (`wakeups` shows which); with `--runtime per-core` such a task in
//! each thread, which has a SO_REUSEPORT socket of its own. Who serves: the connection's task, in steps, each on the
//! thread that runs it; after an `await` that may be another thread. The first that takes a step counts the connection
//! as `accepted`, and each the `requests` that it answers. Who balances: a thread that has nothing to do; it steals
//! half of another's ready tasks. With `per-core` nobody moves a connection from the thread that the kernel's hash has
//! chosen, as in actix and ntex. What is inherited: nothing, because threads share everything.
//!
//! Stealing repairs an uneven accept, but only for tasks that are ready and wait in a queue. One epoll serves all
//! threads, and one of them waits in it. When its wait returns a single request it runs that task, and wakes no other
//! thread to wait in its place: work that blocks (`block`, `spin`; there is no spawn_blocking) then keeps an idle
//! thread from receiving the next request. A `wait` is a timer, in steps of 1 ms, and the thread serves others
//! meanwhile.
//!
//! Work stealing: Blumofe and Leiserson (J. ACM 46(5), 1999); tokio's own: https://tokio.rs/blog/2019-10-scheduler.
//!
//! Compare with `event-driven.rs` (one thread, steps without `await`), `reuseport.rs` (`per-core` with processes) and
//! `idle-busy.rs` (one epoll for several threads, and a queue).
//!
//! See it: `tokio --workers 2 --work block:5ms`, then `loadgen --connections 64 --rate 300 --duration 5s
//! http://127.0.0.1:8080/` and Ctrl-C: both workers have the same number of `requests`, whatever they have `accepted`.
//! With `--runtime per-core` a worker with more `accepted` has more `requests`. With `--rate 100` both threads sleep
//! now and then, and the slowest answers of the one runtime take several times 5 ms.

#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::pin::pin;
use std::process::{ExitCode, exit};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use acceptlab::console;
use acceptlab::report::ServerReport;
use acceptlab::server::blocking::STACK_BYTES;
use acceptlab::server::connection::Step;
use acceptlab::server::tasks::{self, AsyncAcceptor, AsyncConnection};
use acceptlab::server::threads::{WorkerThreads, try_threads};
use acceptlab::server::{self, Failure, Listener, Scoreboard, Worker, WorkersArgs, termination};
use acceptlab::sys::process::Usage;
use clap::{Parser, ValueEnum};
use tokio::io::Interest;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::task::yield_now;

/// A task for each connection, on N threads that steal tasks, or on a runtime in each thread
#[derive(Parser)]
#[command(name = "tokio", version)]
struct Args {
    /// Which threads may run a task
    #[arg(long, value_enum, default_value_t = Runtime::Stealing)]
    runtime: Runtime,

    #[command(flatten)]
    workers: WorkersArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Runtime {
    /// Any: one listening socket, and a thread that has nothing to do steals tasks of another
    Stealing,
    /// The one that accepted the connection: each has a runtime and a SO_REUSEPORT socket of its own
    PerCore,
}

fn main() -> ExitCode {
    let args = Args::parse();
    server::finish(match args.runtime {
        Runtime::Stealing => steal(&args.workers),
        Runtime::PerCore => serve_per_core(&args.workers),
    })
}

/// One runtime with a thread for each worker.
fn steal(args: &WorkersArgs) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(&args.server)?.nonblocking()?;
    let address = listener.address();
    let scoreboard = Scoreboard::create("tokio", args.workers, args.server.scoreboard.as_deref())?;
    termination::shut_sockets_when_stopping(&listener)?;

    try_threads(args.workers)?;
    let (pin, workers) = (args.server.pin, args.workers);
    let workers = (0..workers).rev().map(|id| (id, Worker::new(id, &args.server, &scoreboard)));
    let workers = Mutex::new(workers.collect::<Vec<_>>());
    let runtime = Builder::new_multi_thread()
        .worker_threads(args.workers)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .on_thread_start(move || {
            if let Some((id, worker)) = workers.lock().unwrap_or_else(PoisonError::into_inner).pop() {
                tasks::enter(worker, pin.then_some(id));
            }
        })
        .on_thread_stop(tasks::leave)
        .build()
        .map_err(|error| Failure::new("start the runtime", error))?;
    server::ready(address)?;

    // Nothing is ever sent: the channel ends with the task.
    let (alive, all_gone) = crossbeam_channel::bounded::<()>(0);
    runtime.spawn(async move {
        if let Err(failure) = serve(listener).await {
            console::log_last(failure);
            exit(1);
        }
        drop(alive);
    });
    termination::wait_for_signal()?;
    termination::wait_for_threads(&all_gone);
    // A thread that is blocked by its work is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(scoreboard.report(address, Some(Usage::of_thread())))
}

/// A thread for each worker, and in it a runtime.
fn serve_per_core(args: &WorkersArgs) -> Result<ServerReport, Failure> {
    let listeners = Listener::bind_group(args.workers, &args.server)?;
    let address = listeners[0].address();
    let scoreboard = Scoreboard::create("tokio", args.workers, args.server.scoreboard.as_deref())?;
    listeners.iter().try_for_each(termination::shut_sockets_when_stopping)?;

    let threads = WorkerThreads::default();
    for (id, listener) in listeners.into_iter().enumerate() {
        let (worker, pin) = (Worker::new(id, &args.server, &scoreboard), args.server.pin.then_some(id));
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(format_args!("start runtime {id}"), error))?;
        threads.spawn_thread(format_args!("worker {id}"), move || {
            tasks::enter(worker, pin);
            runtime.block_on(serve(listener))?;
            tasks::leave();
            Ok(())
        })?;
    }
    server::ready(address)?;

    threads.wait_for_end()?;
    Ok(scoreboard.report(address, Some(Usage::of_thread())))
}

/// Accepts, and gives each connection a task. Returns when the server is to stop, and all of them have ended.
async fn serve(listener: Listener) -> Result<(), Failure> {
    // Nothing is ever sent: the channel ends when the last task that holds `open` has ended.
    let (open, mut all_closed) = mpsc::channel::<()>(1);
    accept(listener, open).await?;
    all_closed.recv().await;
    Ok(())
}

async fn accept(listener: Listener, open: mpsc::Sender<()>) -> Result<(), Failure> {
    let mut acceptor = AsyncAcceptor::new(listener)?;
    while let Some(socket) = acceptor.accept().await? {
        let open = open.clone();
        tokio::spawn(async move {
            converse(socket).await;
            drop(open);
        });
    }
    Ok(())
}

/// One connection, to its end. After each `await` another thread may go on with it.
async fn converse(socket: OwnedFd) {
    let Some(mut connection) = AsyncConnection::new(socket) else { return };
    let mut timer = pin!(connection.timer());
    connection.ready(Interest::READABLE, timer.as_mut()).await;
    loop {
        match connection.step() {
            Step::AwaitInput | Step::Linger => connection.ready(Interest::READABLE, timer.as_mut()).await,
            Step::AwaitOutput => connection.ready(Interest::WRITABLE, timer.as_mut()).await,
            Step::AwaitWork(cost) => connection.wait(cost.duration(), timer.as_mut()).await,
            Step::Yield => yield_now().await,
            Step::Close { lost } => return connection.close(lost),
        }
    }
}
