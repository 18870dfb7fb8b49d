//! 黄金 gold × N: Node's cluster, without Node: a master that keeps N workers alive, of any program that speaks its
//! protocol: one of our servers, or an unmodified Node program.
//!
//! Who accepts: with `--schedule rr` the master, with `--schedule none` the workers, from the listening socket that it
//! has sent them. Who serves: the program. Who balances: the master, by `--policy` (src/server/policy.rs), among those who
//! are free, which is who has answered for its last connection; or, with `none`, the kernel. What is inherited: one end of
//! a Unix socket pair, `NODE_CHANNEL_FD`, for JSON messages and descriptors. What to bind is the program's affair: it calls
//! `listen()`, and its library asks the master.
//!
//! A worker that dies or says that it will end has a successor at once, one that hangs if asked for (`--hang-timeout`), and
//! what it was given and has not answered for goes to another; a reload replaces all, one by one; a program that dies again
//! and again is given up.
//!
//! Compare with `master-dispatch.rs` (`--policy acknowledged`: the same with workers of our own, forked and for ever).
//!
//! See it: `cluster --workers 2 -- event-driven`, `curl localhost:8080` twice, then `kill -9` the pid in the answer and
//! `curl` again; `kill -USR2` one (it says that it ends); `kill -HUP` the master (a reload). The same with
//! `-- node experiments/node-cluster.js`.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use acceptlab::cluster::{CtlArgs, Happening, Master, MasterArgs, Restarts, ctl, remind_of_dashes};
use acceptlab::report::ServerReport;
use acceptlab::server::{self, Choice, Failure, Policy};
use acceptlab::units::{monotonic_ns, parse_duration, parse_positive_duration};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

const AFTER_HELP: &str = "\
PROGRAM is started N times with NODE_CHANNEL_FD, NODE_UNIQUE_ID (counts all that were ever
started) and WORKER_ID (0 to N-1) in its environment. For Node, and for our servers that are one
process, that makes it a worker of a cluster: its listen() goes to the master. A Node program may
listen on a port, a Unix socket or a descriptor that the master was started with; UDP is refused
(ENOTSUP).

The first line on standard output is `ready ADDR:PORT` (`ready unix:PATH` where the program has no
port), when every worker listens. Standard error has an event a line, as JSON, and what the
workers write, with their number and the time. SIGHUP replaces all workers, one by one (but of a
terminal that is closed it ends the cluster). SIGTERM or Ctrl-C disconnects the workers, lets them
finish, and prints one JSON document, in which what only the program knows is 0 for a Node program.
A program that was given up ends it when its last worker is gone, with status 1.

Messages of a Node program: process.send({act: 'suicide'}) asks for a successor before it ends;
{act: 'count', queries: 1} is added up in the document; others are told as events. With --notify
it hears {act: 'notify', path, value}.";

/// Keeps N workers of a program alive, and gives them connections or their listening socket
#[derive(Parser)]
#[command(name = "cluster", version, after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
#[command(subcommand_negates_reqs = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    /// Who accepts
    #[arg(long, value_enum, default_value_t = Schedule::Rr)]
    schedule: Schedule,

    /// With rr: which of the free workers gets the next connection [default: acknowledged]
    #[arg(long, value_enum)]
    policy: Option<Policy>,

    /// Give up when more restarts than this would be needed, or more in a row have never listened...
    #[arg(long, value_name = "N", default_value_t = 10)]
    max_restarts: usize,

    /// ...within this time
    #[arg(long, value_name = "DUR", default_value = "60s", value_parser = parse_positive_duration)]
    within: Duration,

    /// Wait so long before a restart, and twice as long, up to 30 s, before each that follows within that time
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = parse_duration)]
    backoff: Duration,

    #[command(flatten)]
    master: Option<MasterArgs>,
}

#[derive(Subcommand)]
enum Command {
    /// Ask a running master to do something
    Ctl(CtlArgs),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Schedule {
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
                eprintln!("{failure}");
                ExitCode::FAILURE
            }
        },
        (None, Some(master)) if args.schedule == Schedule::Rr || args.policy.is_none() => {
            server::finish(serve(args, master))
        }
        _ => {
            let misfit = "--policy goes with --schedule rr: of a shared socket the kernel chooses";
            Args::command().error(ErrorKind::ArgumentConflict, misfit).exit()
        }
    }
}

fn serve(args: Args, master: MasterArgs) -> Result<ServerReport, Failure> {
    let policy = args.policy.unwrap_or(Policy::Acknowledged);
    let (mut choice, is_sticky) = (Choice::by(policy), policy == Policy::Sticky);
    let mut restarts = Restarts::new(args.max_restarts, args.within, args.backoff);
    let mut master = Master::start("cluster", master)?;
    while let Some(happening) = master.next_happening()? {
        match happening {
            Happening::Query(worker, query) => match args.schedule {
                Schedule::Rr => master.keep(worker, &query),
                Schedule::None => master.share(worker, &query),
            },
            Happening::Connection(handle, connection) => {
                // A client is sent to the worker that knows it, even if that has to finish something first.
                let living = is_sticky.then(|| master.living(handle));
                let eligible = living.as_deref().unwrap_or(master.free(handle));
                let numbers = eligible.iter().map(|&(_, number)| number);
                let load = |number| master.load(number);
                let (next, _) = eligible[choice.next(numbers, master.workers(), load, &connection)];
                master.pass(handle, connection, next);
            }
            Happening::Ready(address) => server::print_ready(address)?,
            Happening::Vacant { number, has_served } => match restarts.allow(monotonic_ns(), has_served) {
                Some(pause) => master.restart(number, pause),
                None => master.give_up(),
            },
        }
    }
    master.stop()
}
