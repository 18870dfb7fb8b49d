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

use acceptlab::console;
use acceptlab::lab::evidence::columns::{self, Column};
use acceptlab::lab::evidence::report::{Place, for_terminal, gaps};
use acceptlab::lab::observe::processes::proc_is_mounted;
use acceptlab::lab::observe::tracepoints::mount_for_ourselves;
use acceptlab::lab::plan::blocks::{estimate, schedule};
use acceptlab::lab::plan::experiment::{self, Experiment};
use acceptlab::lab::plan::law;
use acceptlab::lab::program::{Interrupt, Stop, print_until, watch_for_interrupt};
use acceptlab::lab::run::all_cases::{self, Outcome};
use acceptlab::lab::{check, order, record, verify, watch};
use acceptlab::terminal::wrapped;
use clap::{Parser, Subcommand, ValueEnum};
use crossbeam_channel::never;

/// The laboratory: experiments in, evidence out
///
/// An experiment is a file `experiments/NN-name.md`: a lesson, and the matrix of what it measures. A matrix names
/// servers, clients and values; each combination is a case, and each run of a case starts new processes. A finished
/// run is a row in `experiments/record/`, and RESULTS.md is written from the rows.
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
    /// Measure, record, and write the tables
    ///
    /// Every row is recorded as soon as it is finished. Ctrl-C ends all servers and clients, and the tables are written
    /// from the rows that are there.
    Run {
        /// Experiments by number or name: `2`, `02` or `02-keep-alive-throughput`; all when none is named.
        experiment: Vec<String>,
        /// Small values and one repeat: a test that everything works. Do not quote these numbers.
        #[arg(long)]
        quick: bool,
        /// The seed of the random order of the runs; when absent, one is chosen and printed.
        #[arg(long)]
        seed: Option<u64>,
        /// Write the record and RESULTS.md into this folder instead of the repository.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Write RESULTS.md and print the tables from the newest record of each experiment.
    Report {
        /// Write nothing. Exit with 1 when RESULTS.md is not what the records give, or when a table is incomplete: a
        /// planned row is missing, every run of a case has failed, or a column has no number.
        #[arg(long)]
        check: bool,
        /// The folder that was given to `lab run --out`.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Run each case once, briefly, as a test: no error, and client and server counted the same.
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
    /// Test any server, in any language, point by point against section 1 of the contract.
    Check {
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
        /// The server's command line, without --listen.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
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
        Command::List => print(&list(&load(root)?.1)),
        Command::Explain => print(&explain()),
        Command::Run { experiment, quick, seed, out } => {
            proc_is_mounted()?;
            mount_for_ourselves();
            let interrupt = watch_for_interrupt();
            let (root, all) = load(root)?;
            let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
            let (root, out) = (absolute(&root)?, out.as_deref().map(absolute).transpose()?);
            enter(&root)?;
            measure(&root, all, &experiment, quick, seed, out.as_deref(), &interrupt)
        }
        Command::Report { check, out } => {
            let (root, experiments) = load(root)?;
            report(&Place::new(&root, out.as_deref()), &experiments, &experiments, check, &never())
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
        Command::Check { format, command } => {
            proc_is_mounted()?;
            check::run(&command, format == Format::Json, &watch_for_interrupt())
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
    let experiments = experiment::load_all(&root, |name| columns::find(name).is_some())?;
    Ok((root, experiments))
}

fn list(experiments: &[Experiment]) -> String {
    let mut text = String::new();
    for experiment in experiments {
        text += &format!("{}  {}\n  {}\n", experiment.name, experiment.title, experiment.question);
        for (scale, quick) in [("full", false), ("--quick", true)] {
            let (cases, runs) = (experiment.cases(quick).len(), schedule(experiment, quick, 0));
            let time = all_cases::minutes(estimate(&runs));
            text += &format!("  {scale}: {cases} cases, {} runs, about {time}\n", runs.len());
        }
        text.push('\n');
    }
    text
}

fn explain() -> String {
    let line = |column: &Column| {
        let name = format!("  {}: {}\n", column.name, column.header());
        name + &wrapped(&format!("      {}", column.definition()), WIDTH, 6).join("\n") + "\n"
    };
    let lines: String = columns::COLUMNS.iter().map(line).collect();
    format!("Columns (the name in a matrix: the header in a table)\n\n{lines}\n{}\n", law::EXPLANATION)
}

/// Of explanations, in columns of a terminal.
const WIDTH: usize = 100;

fn measure(
    root: &Path,
    all: Vec<Experiment>,
    words: &[String],
    quick: bool,
    seed: u64,
    out: Option<&Path>,
    interrupt: &Interrupt,
) -> Result<bool, Stop> {
    let chosen = experiment::select(all.clone(), words)?;
    let place = Place::new(root, out);
    console::log(format_args!("seed {seed}"));
    let outcome = all_cases::run(root, &place.records, &chosen, quick, seed, interrupt)?;
    // After an interrupt the tables of the finished rows are still printed; a second one ends the lab at once.
    let until = if outcome.interrupted { never() } else { interrupt.clone() };
    let reported = report(&place, &all, &chosen, false, &until);
    // Again, where it is not lost above the tables.
    outcome.failures.iter().for_each(console::log);
    let failed = outcome.failures.len();
    let Outcome { rows, planned, interrupted, .. } = outcome;
    let end = if interrupted { format!("interrupted after {rows} of {planned} rows") } else { format!("{rows} rows") };
    console::log_last(format_args!("{end}, {failed} failed; tables in {}", place.results.display()));
    if interrupted {
        return Err(Stop::Interrupted);
    }
    reported.map(|_| failed == 0)
}

/// Brings RESULTS.md up to date with the records and prints the tables of the chosen experiments.
fn report(
    place: &Place,
    all: &[Experiment],
    chosen: &[Experiment],
    check: bool,
    interrupt: &Interrupt,
) -> Result<bool, Stop> {
    let records = record::read_all(&place.records)?;
    let (now, then) = place.now_and_then(all, &records);
    let results = place.results.display();
    if check {
        if now != then {
            return Err(format!("{results} is not what the records give; `lab report` rewrites it").into());
        }
        let gaps = gaps(all, &records);
        gaps.iter().for_each(console::log);
        return match gaps.len() {
            0 => Ok(true),
            count => Err(format!("the tables are incomplete in {count} places; `lab run` measures again").into()),
        };
    }
    std::fs::write(&place.results, then).map_err(|error| format!("write {results}: {error}"))?;
    let newest = |experiment: &Experiment| Some(for_terminal(experiment, record::newest(&records, &experiment.name)?));
    print_until(interrupt, &chosen.iter().filter_map(newest).collect::<String>()).map(|()| true)
}

fn print(text: &str) -> Result<bool, Stop> {
    print_until(&never(), text).map(|()| true)
}
