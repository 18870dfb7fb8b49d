//! Node's cluster, without Node: a master that keeps N workers of any program alive that speaks its protocol, an
//! unmodified Node program above all.
//!
//! Who accepts: with `--schedule rr` the master, with `--schedule none` the workers, from the listening socket that it
//! has sent them. Who serves: the program. Who balances: the master, which gives a connection to whoever has been free
//! the longest, free being who has answered for its last one; or, with `none`, the kernel. What is inherited: one end of a
//! Unix socket pair, `NODE_CHANNEL_FD`, for JSON messages and descriptors. What to bind is the program's affair: it calls
//! `listen()`, and Node's library asks the master.
//!
//! A dead worker is replaced at once, and what it was given and has not answered for goes to another; a program that
//! dies again and again is given up.
//!
//! Compare with `master-dispatch.rs` (`--policy acknowledged`: the same with workers of our own, forked and for ever).
//!
//! See it: `cluster --workers 2 -- node experiments/node-cluster.js`, `curl localhost:8080` twice, then `kill -9` the pid
//! in the answer, and `curl` again.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use acceptlab::cluster::{Happening, Master, Restarts, Settings};
use acceptlab::cpu;
use acceptlab::report::ServerReport;
use acceptlab::server::{self, Failure};
use acceptlab::units::{monotonic_ns, parse_duration, parse_positive_duration};
use clap::{Parser, ValueEnum};

const AFTER_HELP: &str = "\
PROGRAM is started N times with NODE_CHANNEL_FD, NODE_UNIQUE_ID (counts all that were ever
started) and WORKER_ID (0 to N-1) in its environment. For Node that makes it a worker of a
cluster: its TCP listen() goes to the master. Unix sockets and UDP are refused (ENOTSUP).

The first line on standard output is `ready ADDR:PORT`, when every worker listens. Standard error
has an event a line, as JSON, and what the workers write. SIGTERM or Ctrl-C disconnects the workers,
lets them finish, and prints one JSON document, in which what only the program knows (requests,
errors, and with `none` connections) is 0. The status is 1 when the program was given up and its
last worker is gone.";

/// Keeps N workers of a Node program alive, and gives them connections or their listening socket
#[derive(Parser)]
#[command(name = "cluster", version, after_help = AFTER_HELP)]
struct Args {
    /// Worker processes [default: the CPUs this process may use]
    #[arg(long, value_name = "N", default_value_t = cpu::allowed().len(), hide_default_value = true,
          value_parser = parse_workers)]
    workers: usize,

    /// Who accepts
    #[arg(long, value_enum, default_value_t = Schedule::Rr)]
    schedule: Schedule,

    /// Give up when more restarts than this would be needed...
    #[arg(long, value_name = "N", default_value_t = 10)]
    max_restarts: usize,

    /// ...within this time
    #[arg(long, value_name = "DUR", default_value = "60s", value_parser = parse_positive_duration)]
    within: Duration,

    /// Kill a worker that has not left this long after it was disconnected
    #[arg(long, value_name = "DUR", default_value = "5s", value_parser = parse_duration)]
    kill_timeout: Duration,

    /// The program and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Schedule {
    /// The master, which passes each connection to the worker that has been free the longest
    Rr,
    /// The workers: they share the listening socket
    None,
}

fn parse_workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(workers) if (1..=1 << 20).contains(&workers) => Ok(workers),
        _ => Err("a cluster has 1 to 1048576 workers".to_owned()),
    }
}

fn main() -> ExitCode {
    server::finish(serve(Args::parse()))
}

fn serve(args: Args) -> Result<ServerReport, Failure> {
    let Args { workers, schedule, kill_timeout, program, .. } = args;
    let mut restarts = Restarts::new(args.max_restarts, args.within);
    let mut master = Master::start("cluster", Settings { command_line: program, workers, kill_timeout })?;
    while let Some(happening) = master.next_happening()? {
        match happening {
            Happening::Query(worker, query) => match schedule {
                Schedule::Rr => master.keep(worker, &query),
                Schedule::None => master.share(worker, &query),
            },
            Happening::Connection(handle, connection) => {
                let longest_free = master.free(handle)[0];
                master.pass(handle, connection, longest_free);
            }
            Happening::Ready(address) => server::ready(address)?,
            Happening::Exit(number) if restarts.allow(monotonic_ns()) => master.restart(number),
            Happening::Exit(_) => master.give_up(),
        }
    }
    master.stop()
}
