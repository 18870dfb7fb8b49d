//! 黄金 gold × N: Node's cluster without Node: a master that keeps N workers of any program alive.
//!
//! A program is one of our servers that is one process, an unmodified Node program, or any other that speaks the
//! protocol of Node's cluster.
//!
//! Who accepts: with `--schedule rr` the master, with `--schedule none` the workers, from the listening socket that it
//! has sent them. Who serves: the program. Who balances: with `rr` the master, by `--policy` (src/server/policy.rs),
//! among the workers that are free, which are those that have answered for their last connection; with `none` the
//! kernel. What is inherited: one end of a Unix socket pair, `NODE_CHANNEL_FD`, for JSON messages and descriptors. The
//! program decides what to bind: it calls `listen()`, and its library asks the master.
//!
//! A worker that dies or says that it will end has a successor at once, one that hangs if asked for (`--hang-timeout`);
//! the connections that it was given and has not answered for go to another. A reload replaces all, one by one. A
//! program that dies again and again is given up.
//!
//! Compare with `master-dispatch.rs` (`--policy acknowledged`: the same with workers that the master forks itself, and
//! never replaces).
//!
//! See it: `cluster --workers 2 -- event-driven`, `curl localhost:8080` twice, then `kill -9` the pid in the answer and
//! `curl` again; `kill -USR2` one worker (it says that it ends); `kill -HUP` the master (a reload). The same with
//! `-- node experiments/node-cluster.js`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::cluster::{
    AcceptingProcess, CtlArgs, Master, MasterArgs, MasterEvent, Restarts, SupervisionArgs, ctl, remind_of_dashes,
};
use acceptlab::console;
use acceptlab::report::ServerReport;
use acceptlab::server::policy::{Choice, Policy};
use acceptlab::server::{self, Failure};
use acceptlab::units::monotonic_ns;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

const AFTER_HELP: &str = "\
PROGRAM is started N times with NODE_CHANNEL_FD, NODE_UNIQUE_ID (counts all processes that were
ever started) and WORKER_ID (0 to N-1) in its environment. For Node, and for our servers that are
one process, that makes it a worker of a cluster: its listen() goes to the master. A Node program
may listen on a port, a Unix socket, an abstract one, or a descriptor that the master was started
with; UDP is refused (ENOTSUP). Where it has an inspector (--inspect, NODE_OPTIONS), each worker has
the next port: 9230, 9231, ...

The first line on standard output is `ready ADDR:PORT` (`ready unix:PATH` where the program has no
port), when every worker listens, or has lived for --listen-timeout without. Standard error has an
event a line, as JSON, and what the workers write, with their number and the time. Lines that are
not read, or find no room, are dropped and counted; nothing waits for a reader.

SIGTERM, SIGINT (Ctrl-C) and SIGQUIT disconnect the workers, let them finish, and print one JSON
document, in which what only the program knows is 0 for a Node program. SIGHUP replaces all workers,
one by one (but of a terminal that is closed it ends the cluster). SIGUSR1 opens --log and --events
anew, and so does a reload. SIGTSTP and SIGCONT stop the master and let it go on; the workers go on
meanwhile. Other signals that would end a program are ignored, SIGUSR2 among them.
A program that was given up ends the cluster when its last worker is gone, with status 1.

Messages of a Node program: process.send({act: 'suicide'}) asks for a successor before it ends;
{act: 'count', queries: 1} is added up in the document; others become events. With --notify it
receives {act: 'notify', path, value}.";

/// Node's cluster without Node: a master that keeps N workers of any program alive
#[derive(Parser)]
#[command(name = "cluster", version, after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
#[command(subcommand_negates_reqs = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    /// Who accepts
    #[arg(long, value_enum, default_value_t = SchedulingPolicy::Rr)]
    schedule: SchedulingPolicy,

    /// With rr: which of the free workers gets the next connection [default: acknowledged]
    #[arg(long, value_enum)]
    policy: Option<Policy>,

    #[command(flatten)]
    supervision: SupervisionArgs,

    #[command(flatten)]
    master: Option<MasterArgs>,
}

#[derive(Subcommand)]
enum Command {
    /// Ask a running master to do something
    Ctl(CtlArgs),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SchedulingPolicy {
    /// The master, which passes each connection to a free worker
    Rr,
    /// The workers: they share the listening socket
    None,
}

fn main() -> ExitCode {
    let mut args = Args::try_parse().unwrap_or_else(|error| remind_of_dashes(error).exit());
    match (args.command.take(), args.master.take()) {
        (Some(Command::Ctl(order)), _) => match ctl::order(&order) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                console::log_last(failure);
                ExitCode::FAILURE
            }
        },
        (None, Some(master)) if args.schedule == SchedulingPolicy::Rr || args.policy.is_none() => {
            server::finish(serve(args, master))
        }
        _ => {
            let conflict = "--policy goes with --schedule rr: of a shared socket the kernel chooses";
            Args::command().error(ErrorKind::ArgumentConflict, conflict).exit()
        }
    }
}

fn serve(args: Args, master: MasterArgs) -> Result<ServerReport, Failure> {
    let policy = args.policy.unwrap_or(Policy::Acknowledged);
    let acceptor =
        if args.schedule == SchedulingPolicy::Rr { AcceptingProcess::Master } else { AcceptingProcess::Worker };
    // A client is sent to the worker that knows it, even if that has to finish something first.
    let most_unanswered = if policy == Policy::Sticky { 16 } else { 1 };
    let mut choice = Choice::by(policy);
    let mut restarts = Restarts::default();
    let mut master = Master::start("cluster", master, args.supervision, most_unanswered)?;
    while let Some(event) = master.next_event()? {
        match event {
            MasterEvent::Listen(worker, query) => master.sockets.listen(worker, &query, acceptor, &mut master.workers),
            MasterEvent::Connection(socket, connection) => {
                let free = master.sockets.free(socket);
                let numbers = free.iter().map(|&(_, number)| number);
                let load = |number| master.workers.load(number);
                let (next, _) = free[choice.next(numbers, master.workers.wanted, load, &connection)];
                master.sockets.pass(socket, connection, next, &mut master.workers);
            }
            MasterEvent::Ready(address) => {
                if let Err(failure) = server::print_ready(address) {
                    master.workers.log.log_failure(failure);
                }
            }
            MasterEvent::Vacant(vacancy) => {
                match restarts.allow(&master.workers.supervision, monotonic_ns(), vacancy.has_served) {
                    Some(pause) => master.restart(vacancy.number, pause),
                    None => master.give_up(),
                }
            }
        }
    }
    master.stop()
}
