//! 黄金 gold × N: N forked event loops, each with its own SO_REUSEPORT socket, and six ways to choose one.
//!
//! Who accepts: each worker, from its own accept queue. Who serves: the worker that accepted. Who balances: the
//! kernel, when the SYN arrives; `--select` decides how. By default it hashes the client's address and port: evenly
//! over many connections, without looking at who is busy, or stuck. What is inherited: one listening socket per worker,
//! all bound before the first fork, so that no connection meets a group that is still growing. Each worker closes the
//! others', and the parent all of them: a copy kept open would keep its queue in the group, and nobody would ever
//! accept from it. (`live-set` keeps them and has to know why.)
//!
//! `live-set` and `least-loaded` are the two that look at the workers: stop one of four with SIGSTOP, and they send
//! their connections elsewhere. `round-robin` and `least-loaded` need CAP_BPF, the others no privilege.
//!
//! Compare with `shared-accept.rs` (one queue for all).
//!
//! See it: `reuseport --workers 4`, and `ss -ltn sport = :8080` shows four sockets on one port. Who takes each
//! connection: `lab order -- reuseport --workers 4 --select random`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::cpu;
use acceptlab::report::ServerReport;
use acceptlab::server::selector::{LiveSet, SelectorNeeds, classic, extended};
use acceptlab::server::{self, EventLoop, Failure, Listener, Scoreboard, Worker, WorkerPool, WorkersArgs, termination};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};

/// Golden age times N: N event loops, each with a SO_REUSEPORT socket of its own
#[derive(Parser)]
#[command(name = "reuseport", version)]
struct Args {
    /// How the kernel chooses the socket of a new connection
    #[arg(long, value_enum, default_value_t = Select::Hash)]
    select: Select,

    #[command(flatten)]
    workers: WorkersArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Select {
    /// By a hash of both addresses and ports
    Hash,
    /// The worker on the CPU that processes the SYN; for --pin, and no more workers than CPUs
    Cpu,
    /// By chance
    Random,
    /// By chance among the workers that show a sign of life
    LiveSet,
    /// In turn; needs CAP_BPF
    RoundRobin,
    /// The worker with the fewest connections, open or waiting for it; needs CAP_BPF
    LeastLoaded,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let most_workers = match args.select {
        Select::LiveSet => classic::MAX_MEMBERS,
        Select::LeastLoaded => extended::MAX_LOADS,
        _ => usize::MAX,
    };
    if args.workers.workers > most_workers {
        let message = format!("the program of this --select has room for {most_workers} workers");
        Args::command().error(ErrorKind::ValueValidation, message).exit();
    }
    server::finish(run(&args))
}

fn run(args: &Args) -> Result<ServerReport, Failure> {
    let (workers, server) = (args.workers.workers, &args.workers.server);
    let mut listeners = Listener::bind_group(workers, server)?;
    let address = listeners[0].address();
    let scoreboard = Scoreboard::create("reuseport", workers, server.scoreboard.as_deref())?;

    // The group has one program, and any member may attach it; the kernel runs it for each SYN.
    let any = &listeners[0];
    let needs = match args.select {
        // No program. The hash knows neither workers nor CPUs.
        Select::Hash => SelectorNeeds::Nothing,
        // What comes after the SYN is processed there too, and is in that CPU's cache. SO_INCOMING_CPU on each
        // listener would say the same, but groups did not heed it from Linux 4.6 to 6.1 (b261eda84ec1).
        Select::Cpu => {
            classic::attach(any, &classic::by_cpu(&cpu::allowed(), workers))?;
            SelectorNeeds::Nothing
        }
        // The hash gives one client with one port the same worker each time; chance does not.
        Select::Random => {
            classic::attach(any, &classic::random(workers, &[]))?;
            SelectorNeeds::Nothing
        }
        // The same, until the parent sees that a worker shows no sign of life (see the end).
        Select::LiveSet => {
            classic::attach(any, &classic::random(workers, &[]))?;
            SelectorNeeds::Heartbeat
        }
        // A counter in the kernel: exactly even, and as blind as the hash.
        Select::RoundRobin => {
            extended::take_turns(&listeners)?;
            SelectorNeeds::Nothing
        }
        // The kernel counts what it sends to each worker, and each worker what it is done with.
        Select::LeastLoaded => SelectorNeeds::Load(extended::weigh_loads(&listeners)?),
    };

    let mut pool = WorkerPool::new(scoreboard)?;
    for id in 0..workers {
        pool.fork(|ready| {
            let mut worker = Worker::start(id, server, &scoreboard)?;
            worker.heartbeat = needs.of(id, worker.row);
            let ours = listeners.swap_remove(id);
            listeners.clear();
            termination::shut_listener_when_stopping(&ours)?;
            let mut events = EventLoop::new(ours, worker)?;
            ready.announce();

            while events.wait_for_connection()? {
                let connection = events.acceptor.accept_nonblocking();
                events.add_accepted(connection)?;
            }
            events.finish().map(drop)
        })?;
    }

    let live_set = match args.select {
        // Through its copies of the listeners this parent attaches one program after another.
        Select::LiveSet => Some(LiveSet::new(listeners)),
        // Any other closes them: a copy kept open keeps its queue in the group, and nobody accepts from it.
        _ => {
            drop(listeners);
            None
        }
    };
    pool.await_ready()?;
    server::ready(address)?;

    match live_set {
        Some(live_set) => live_set.supervise(&mut pool)?,
        None => pool.supervise(|| {})?,
    }
    Ok(pool.report(address))
}
