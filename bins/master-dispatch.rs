//! 黄金 gold × N: the master accepts and passes every connection to a worker of its choice.
//!
//! Who accepts: the master. Who serves: the event loop of the worker that was given the connection. Who balances:
//! the master, by `--policy` (`src/server/policy.rs` has the policies side by side). What is inherited: one end of a
//! Unix socket pair; the workers give the listening socket up at once. A connection travels as SCM_RIGHTS: the worker
//! gets a descriptor of its own, the master closes its copy. Node's cluster works like `--policy acknowledged`.
//!
//! With `--pass listener` it is the listening socket itself that travels, once per worker, and the workers accept:
//! then the kernel balances, as in `shared-accept`. The master closes its copy, or goes on and serves as well.
//!
//! Compare with `shared-accept.rs` (no middleman) and `thread-pool.rs` (the same idea inside one process).
//!
//! See it: `master-dispatch --workers 4`, and `curl localhost:8080` again and again: worker 1, 2, 3, 0, 1, ... With
//! `--policy first-free` it is always worker 0; with `--pass listener --master serves` sometimes the master.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::report::ServerReport;
use acceptlab::server::channel::connections_per_message;
use acceptlab::server::{
    self, Channel, Choice, Crew, Dispatcher, EventLoop, Failure, Listener, Policy, Scoreboard, Worker,
    WorkersArgs, dispatch, termination,
};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};

/// Golden age times N: the master passes to the workers every connection it accepts, or its listening socket
#[derive(Parser)]
#[command(name = "master-dispatch", version)]
struct Args {
    /// Which worker gets the next connection [default: round-robin]
    #[arg(long, value_enum)]
    policy: Option<Policy>,

    /// What the master passes to the workers
    #[arg(long, value_enum, default_value_t = Pass::Connection)]
    pass: Pass,

    /// With --pass listener: what the master does with its own copy [default: closes]
    #[arg(long, value_enum)]
    master: Option<Master>,

    #[command(flatten)]
    workers: WorkersArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pass {
    /// Each connection, when it has been accepted
    Connection,
    /// The listening socket, once: the workers accept
    Listener,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Master {
    /// Accepts and serves too, as the last of the workers
    Serves,
    /// Closes it, and only supervises
    Closes,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let misfit = match (args.pass, args.policy, args.master) {
        (Pass::Listener, Some(_), _) => {
            "--policy goes with --pass connection: of a passed listener the kernel chooses"
        }
        (Pass::Connection, _, Some(_)) => "--master goes with --pass listener alone",
        (_, _, Some(Master::Serves)) if args.workers.workers == 1 => {
            "--master serves makes the master one of the workers, so there must be another: --workers 2"
        }
        (Pass::Connection, ..) => return server::finish(pass_connections(&args)),
        (Pass::Listener, ..) => return server::finish(pass_listener(&args)),
    };
    Args::command().error(ErrorKind::ArgumentConflict, misfit).exit()
}

fn pass_connections(args: &Args) -> Result<ServerReport, Failure> {
    let (workers, server) = (args.workers.workers, &args.workers.server);
    let policy = args.policy.unwrap_or(Policy::RoundRobin);
    let acknowledge = policy == Policy::Acknowledged;
    let listener = Listener::bind(server)?.nonblocking()?;
    let address = listener.address();
    let mut listener = Some(listener);
    let scoreboard = Scoreboard::create("master-dispatch", workers, server.scoreboard.as_deref())?;

    let mut crew = Crew::new(scoreboard)?;
    let mut channels = Vec::new();
    for id in 0..workers {
        let (ours, theirs) = Channel::pair(acknowledge)?;
        channels.push(ours);
        crew.fork(|ready| {
            // The master's: a worker that kept these ends would never see its channel's end, and one that kept the
            // listener would keep the port open.
            channels.clear();
            listener = None;
            let worker = Worker::start(id, server, &scoreboard)?;
            let mut events = EventLoop::new(theirs, worker)?.taking_at_once(connections_per_message(workers));
            ready.say();

            while events.wait_for_connection()? {
                dispatch::take_message(&mut events)?;
            }
            // What the master has passed is accepted, and nobody else can answer it, unless the master waits to hear.
            dispatch::take_or_refuse_rest(&mut events)?;
            events.finish().map(drop)
        })?;
    }
    crew.await_ready()?;
    let listener = listener.expect("only a worker gives it up");
    let mut dispatcher = Dispatcher::new(listener, channels, scoreboard, &crew)?;
    server::ready(address)?;

    let mut choice = Choice::by(policy);
    while dispatcher.wait(&mut crew)? {
        // All that are ready now, those for one worker in one message.
        while let Some(connection) = dispatcher.next_connection()? {
            // Of those who are alive, with room in their channel and, where they acknowledge, with nothing to
            // acknowledge. So a worker that hangs is passed over once its channel is full.
            let free = dispatcher.free();
            let load = |i| dispatcher.load(i);
            let next = free[choice.next(free.iter().copied(), workers, load, &connection)];
            dispatcher.give(connection, next);
        }
        dispatcher.pass();
    }
    // Nobody new is taken, and the workers find the ends of their channels.
    let accepts = dispatcher.accepts();
    drop(dispatcher);
    crew.stop();
    Ok(crew.report(address).with_accepts(accepts))
}

fn pass_listener(args: &Args) -> Result<ServerReport, Failure> {
    let (workers, server) = (args.workers.workers, &args.workers.server);
    let master_serves = args.master == Some(Master::Serves);
    let mut listener = Some(Listener::bind(server)?.nonblocking()?);
    let address = listener.as_ref().map(Listener::address).expect("just bound");
    let scoreboard = Scoreboard::create("master-dispatch", workers, server.scoreboard.as_deref())?;

    let mut crew = Crew::new(scoreboard)?;
    for id in 0..workers - usize::from(master_serves) {
        let (ours, mut theirs) = Channel::pair(false)?;
        ours.pass(listener.as_slice()).map_err(|errno| Failure::new("pass the listener", errno))?;
        crew.fork(|ready| {
            // What the fork has copied is given up; what the master has sent is another descriptor of the same
            // socket. It could have gone to a process that is no child.
            listener = None;
            let passed = theirs.receive().map_err(|errno| Failure::new("receive the listener", errno))?;
            drop((ours, theirs));
            let worker = Worker::start(id, server, &scoreboard)?;
            let passed = Listener::from_passed(passed)?;
            // A master that has closed its copy cannot shut the socket; its SIGTERM makes the workers do it.
            termination::shuts_listener_of_all(&passed)?;
            let mut events = EventLoop::new(passed, worker)?;
            ready.say();
            while events.wait_for_connection()? {
                let connection = events.acceptor.accept_nonblocking();
                events.adopt(connection)?;
            }
            events.finish().map(drop)
        })?;
    }
    crew.await_ready()?;
    let listener = listener.expect("only a worker gives it up");
    if !master_serves {
        drop(listener);
        server::ready(address)?;
        crew.supervise(|| {})?;
        return Ok(crew.report(address));
    }

    // One socket, one accept queue, and the master is one more who is woken for it.
    // The signal itself shuts the socket for all of them: a master in the middle of a request could not.
    termination::shuts_listener(&listener)?;
    let worker = Worker::start(workers - 1, server, &scoreboard)?;
    let mut events = EventLoop::new(listener, worker)?;
    server::ready(address)?;
    while events.wait_for_connection()? {
        let connection = events.acceptor.accept_nonblocking();
        events.adopt(connection)?;
        // It still has children to look after; without them it is the last worker, and serves on.
        crew.reap_dead();
    }
    crew.begin_stop();
    events.finish()?.settle_process();
    crew.stop();
    Ok(scoreboard.report(address, None))
}
