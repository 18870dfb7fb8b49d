//! The laboratory: experiments in, evidence out.
//!
//! It starts the servers and the load generator of this toolkit (or any server that keeps the contract), collects the
//! two documents they print, and records every run as a row.
//!
//!     cargo build --release --bins
//!     target/release/lab list
//!     target/release/lab run 2 --quick

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use acceptlab::console::{self, Format};
use acceptlab::lab::commands::{self, Output};
use acceptlab::lab::evidence::columns::{self, Column};
use acceptlab::lab::evidence::pages::OutputFolder;
use acceptlab::lab::inspect::{self, Target};
use acceptlab::lab::observe::processes::proc_is_mounted;
use acceptlab::lab::observe::tracepoints::mount_for_ourselves;
use acceptlab::lab::plan::experiment::{self, Experiment};
use acceptlab::lab::plan::manual_values::{Axis, ManualValues};
use acceptlab::lab::program::{Stop, print_until, watch_for_interrupt};
use acceptlab::lab::target::enter_namespace_of;
use acceptlab::lab::{check, order, record, steer, verify, watch};
use acceptlab::units::parse_positive_duration;
use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};
use crossbeam_channel::never;

/// The laboratory: experiments in, evidence out
///
/// An experiment is a file `experiments/NN-name.md`: a lesson, and the matrix of what it measures. A matrix names
/// servers, clients and values; each combination is a case, and each run of a case starts new processes. A finished
/// run is a row in `experiments/record/`, and RESULTS.md and `experiments/results/` are written from the rows.
///
/// Begin with `lab list`, then `lab run 2 --quick`.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The repository: the folder that holds `experiments/`. Found from the current folder upwards.
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the experiments: what each asks and how long it takes.
    List,
    /// Define every column of the tables, and the laws.
    Explain,
    /// Measure, record, write the pages, and print each experiment in a dozen lines
    ///
    /// A full run into the repository's own record needs a clean tree, so that a commit has what was measured.
    ///
    /// Every row is recorded as soon as it is finished. Ctrl-C ends all servers and clients, and the tables are written
    /// from the rows that are there.
    Run {
        /// Experiments by number or name: `2`, `02` or `02-keep-alive-throughput`; all when none is named,
        /// but for the longest (`lab list` says which), which a full run makes only by its name.
        experiment: Vec<String>,
        /// Small values and one repeat: a test that everything works. Do not quote these numbers.
        #[arg(long)]
        quick: bool,
        /// The seed of the random order of the runs; when absent, one is chosen and printed.
        #[arg(long)]
        seed: Option<u64>,
        /// Measure this table only, show it, and record nothing in the repository; may be repeated.
        #[arg(long, value_name = "ID")]
        table: Vec<String>,
        /// The same with these values of an axis, as in `--set workers=1,4,32,64`; may be repeated.
        #[arg(long, value_name = "AXIS=VALUES")]
        set: Vec<Axis>,
        /// Write the record and the pages into this folder instead of the repository.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Print all tables instead of a dozen lines for each experiment.
        #[arg(long)]
        tables: bool,
    },
    /// Write RESULTS.md and a page for each lesson from the newest records, and print each in short
    Report {
        /// Write nothing. Exit with 1 when a page is not what the records give, when no commit of the history has
        /// what a record was measured with, or when a table is incomplete: a planned row is missing, every run of a
        /// case has failed, or a column has no number. Lists the lessons that are stale: the matrix has changed
        /// since, or code that their rows come from.
        #[arg(long)]
        check: bool,
        /// With --check: exit with 1 when a lesson is stale.
        #[arg(long, requires = "check")]
        fresh: bool,
        /// The folder that was given to `lab run --out`.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Print all tables instead of a dozen lines for each experiment.
        #[arg(long)]
        tables: bool,
        /// Also write everything as one HTML page that needs no network and no other file.
        #[arg(long, value_name = "FILE", conflicts_with = "check")]
        html: Option<PathBuf>,
    },
    /// Judge what the lessons say by the newest record of each: holds, fails, or undecided
    ///
    /// A claim holds (or fails) when the whole interval of what was measured is within (or outside) its bar. It is
    /// undecided when the interval contains the bar, seen once when there is a single run, and skipped when there is
    /// none.
    Claims {
        /// Experiments by number or name: `2`, `02` or `02-keep-alive-throughput`; all when none is named.
        experiment: Vec<String>,
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
        /// The folder that was given to `lab run --out`.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Run each case once, briefly, as a test: no error, client and server counted the same, and what a claim counts
    /// is right.
    Verify {
        /// Experiments by number or name: `2`, `02` or `02-keep-alive-throughput`; all when none is named.
        experiment: Vec<String>,
    },
    /// Find the rule by which idle workers take connections that come one after another.
    Order {
        /// Connections to send.
        #[arg(long, value_name = "N", default_value_t = 200)]
        #[arg(value_parser = clap::value_parser!(u32).range(2..=100_000))]
        connections: u32,
        /// Connections per second; between two of them every worker must have time to fall asleep again.
        #[arg(long, value_name = "R", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
        rate: u32,
        /// The server's command line, without --listen.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show the counters of a running server, a bar per worker; it costs the server nothing
    ///
    /// A server's workers keep their counters in memory that they share; --scoreboard gives that
    /// memory a name, and `lab watch` maps it too. In three terminals:
    ///
    ///     shared-accept --workers 4 --scoreboard /dev/shm/herd
    ///     lab watch /dev/shm/herd
    ///     loadgen --requests-per-connection 1 --rate 500 --duration 60s http://127.0.0.1:8080/
    ///
    /// Then the same with `--wait epoll-exclusive`: which workers get the connections now? Stop a
    /// worker with `kill -STOP`: what happens to its connections, and which worker gets new ones?
    #[command(verbatim_doc_comment)]
    Watch {
        /// The file the server was given with --scoreboard.
        path: PathBuf,
        /// Time between two readings; every rate is the mean over this time.
        #[arg(long, value_name = "DUR", default_value = "500ms", value_parser = watch::parse_interval)]
        interval: Duration,
        /// Print the counters as JSON lines, one for the server and one for each worker, and end.
        #[arg(long)]
        once: bool,
    },
    /// Say how any running server accepts, from outside, and what is wrong with it
    ///
    /// It reads /proc and the kernel's tables of sockets; the server is not written to and not stopped, and needs no
    /// counters of its own. A server of your own user needs no root.
    ///
    /// Findings: hung-worker, queue-full, blind-selector, nobody-accepts, herd, uneven, one-acceptor, no-reuseport,
    /// more-workers-than-cpus. Each has its numbers, what to do, and the lesson that explains it.
    Inspect {
        /// What to look at: a process and those it has started, a port, an address, or `unix:PATH`.
        #[arg(value_name = "PID|:PORT|ADDR:PORT", value_parser = Target::parse)]
        target: Target,
        /// How long to look; below 1 s a worker is found to hang only if it is stopped.
        #[arg(long, value_name = "DUR", default_value = "3s", value_parser = parse_positive_duration)]
        duration: Duration,
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
        /// Exit with 3 when there is one of these findings, and with 1 when no worker could be seen; `hung` is short for
        /// hung-worker.
        #[arg(long, value_name = "FINDING,...", value_delimiter = ',', value_parser = inspect::parse_finding)]
        fail_if: Vec<String>,
        /// Look into the network namespace of this process, a container's say.
        #[arg(long, value_name = "PID")]
        netns: Option<i32>,
        /// Show the last seconds again and again, a bar per worker, until `q` or Ctrl-C.
        #[arg(long, conflicts_with_all = ["format", "fail_if", "save", "exact"])]
        watch: bool,
        /// Let the kernel count what each process accepts and how often it is woken: needs CAP_PERFMON, and costs the
        /// whole machine time in every system call.
        #[arg(long)]
        exact: bool,
        /// Also write what was read, before anything was concluded from it, into this file.
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
    },
    /// Choose among the sockets of a running SO_REUSEPORT group, and give the group back at the end
    ///
    /// The server is not changed: a program is attached to its group in the kernel. Ctrl-C gives the
    /// group back; should lab be killed, its watchdog, a second process, does the same.
    ///
    ///     lab steer :8080 --select live-set           a worker that hangs gets no new connection
    ///     lab steer --select live-set -- nginx …      starts the server, and ends with it
    ///
    /// It needs the right to trace the server (ptrace): as its user or root and, where Yama restricts
    /// it, as the process that has started the server. At the start, and when it doubts that a worker
    /// accepts, it makes connections of its own, which send nothing, or an empty line.
    #[command(verbatim_doc_comment)]
    Steer(steer::Options),
    /// Test any server, in any language, against section 1 of the contract
    ///
    /// Six levels: it starts, it answers, it can be measured, HTTP, it is robust, it ends well. The first broken level
    /// ends the check.
    Check {
        /// Go on behind a broken level.
        #[arg(long)]
        all: bool,
        /// The points of this level only.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=check::LEVELS.len() as i64))]
        level: Option<u8>,
        /// This point only; may be repeated.
        #[arg(long, value_name = "POINT", value_parser = a_point(), hide_possible_values = true)]
        only: Vec<String>,
        /// Print what the contract says about this point.
        #[arg(long, value_name = "POINT", value_parser = a_point(), hide_possible_values = true)]
        explain: Option<String>,
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
        /// The server's command line, without --listen.
        #[arg(last = true, required_unless_present = "explain")]
        command: Vec<String>,
    },
}

fn a_point() -> PossibleValuesParser {
    check::points().into_iter().map(|point| point.id).into()
}

/// The status of a program that did its work and found what it was told to fail for, as of `loadgen --fail-if`.
const FOUND: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::Steer(options) = arguments.command {
        return steer::run(options).map_or_else(|why| console::end(Err(format!("lab: {why}"))), ExitCode::from);
    }
    let failure = if matches!(arguments.command, Command::Inspect { .. }) { FOUND } else { 1 };
    match run(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(failure),
        // 128 + SIGINT, as shells report it.
        Err(Stop::Interrupted) => ExitCode::from(130),
        Err(Stop::Failed(line)) => {
            console::log_last(format_args!("lab: {line}"));
            ExitCode::from(1)
        }
    }
}

/// Whether all went well.
fn run(arguments: Arguments) -> Result<bool, Stop> {
    let root = arguments.root;
    match arguments.command {
        Command::List => print(&commands::list(&load(root)?.1)),
        Command::Explain => print(&commands::explain()),
        Command::Run { experiment, quick, seed, table, set, out, tables } => {
            proc_is_mounted()?;
            mount_for_ourselves();
            let interrupt = watch_for_interrupt();
            let (root, all) = load(root)?;
            let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
            let (root, out) = (absolute(&root)?, out.as_deref().map(absolute).transpose()?);
            enter(&root)?;
            let values = ManualValues { tables: table, axes: set };
            if !values.is_empty() {
                let chosen = experiment::select(all, &experiment)?;
                return commands::measure_values(&root, &chosen, &values, quick, seed, out.as_deref(), &interrupt);
            }
            let output = Output { out, tables, html: None };
            commands::measure(&root, all, &experiment, quick, seed, &output, &interrupt)
        }
        Command::Report { check, fresh, out, tables, html } => {
            let (root, experiments) = load(root)?;
            match check {
                true => Ok(commands::check_report(&root, out.as_deref(), &experiments, fresh)?),
                false => commands::report(&root, &Output { out, tables, html }, &experiments, &experiments, &never()),
            }
        }
        Command::Claims { experiment, format, out } => {
            let (root, all) = load(root)?;
            let records = record::read_all(&OutputFolder::new(&root, out.as_deref()).records())?;
            let chosen = experiment::select(all, &experiment)?;
            print(&commands::claims(&chosen, &records, format == Format::Json))
        }
        Command::Verify { experiment } => {
            proc_is_mounted()?;
            let interrupt = watch_for_interrupt();
            let (root, all) = load(root)?;
            enter(&root)?;
            verify::run(&experiment::select(all, &experiment)?, &interrupt)
        }
        Command::Order { connections, rate, command } => {
            proc_is_mounted()?;
            let interrupt = watch_for_interrupt();
            let order = order::observe(&command, connections, rate, &interrupt)?;
            print_until(&interrupt, &order.render()).map(|()| true)
        }
        Command::Watch { path, once: true, .. } => Ok(watch::print_once(&path).map(|()| true)?),
        Command::Watch { path, interval, .. } => watch::run(&path, interval, &watch_for_interrupt()).map(|()| true),
        Command::Inspect { target, duration, format, fail_if, netns, watch, exact, save } => {
            proc_is_mounted()?;
            netns.map_or(Ok(()), enter_namespace_of)?;
            if exact {
                mount_for_ourselves();
            }
            let interrupt = watch_for_interrupt();
            if watch {
                return inspect::watch::run(target, duration, &interrupt).map(|()| true);
            }
            let json = format == Format::Json;
            inspect::run(inspect::Options { target, duration, json, exact, fail_if, save }, &interrupt)
        }
        Command::Steer(_) => unreachable!("main has run it"),
        Command::Check { explain: Some(point), .. } => print(&check::explain(&point).expect("clap knows the points")),
        Command::Check { all, level, only, format, command, .. } => {
            proc_is_mounted()?;
            let options = check::Options { level: level.map(usize::from), only, all, json: format == Format::Json };
            check::run(&command, &options, &watch_for_interrupt())
        }
    }
}

/// The command lines of a matrix are written for the repository's folder.
fn enter(root: &Path) -> Result<(), String> {
    std::env::set_current_dir(root).map_err(|error| format!("enter {}: {error}", root.display()))
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("find {}: {error}", path.display()))
}

/// The repository and its experiments.
fn load(root: Option<PathBuf>) -> Result<(PathBuf, Vec<Experiment>), String> {
    let here = std::env::current_dir().map_err(|error| format!("find the current folder: {error}"))?;
    let holding = here.ancestors().find(|folder| folder.join("experiments").is_dir());
    let root = root.or(holding.map(Path::to_path_buf)).unwrap_or(here);
    let experiments = experiment::load_all(&root, |name| columns::find(name).map(Column::kind))?;
    Ok((root, experiments))
}

fn print(text: &str) -> Result<bool, Stop> {
    print_until(&never(), text).map(|()| true)
}
