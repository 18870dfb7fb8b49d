//! lab: experiments in, tables out. It starts the servers and the load generator of this toolkit (or any server
//! that follows the contract), collects the two documents they print, and keeps every row.
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
use acceptlab::lab::run::all_cases::{self, Outcome, Plan};
use acceptlab::lab::{check, order, record, verify, watch};
use clap::{Parser, Subcommand, ValueEnum};
use crossbeam_channel::never;

/// The laboratory: experiments in, tables out.
///
/// An experiment is a file `experiments/NN-name.md`: a lesson and the matrix of what it measures. Each run of a
/// case uses fresh processes; each row is kept in `experiments/record/`; RESULTS.md is written from the rows.
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
    /// The experiments, what they ask and how long they take.
    List,
    /// The columns of the tables and the laws, with their definitions.
    Explain,
    /// Measure, record, and write the tables. Ctrl-C ends everything it started and keeps the finished rows.
    Run {
        /// `2`, `02` or `02-keep-alive-throughput`; all when none is named.
        experiment: Vec<String>,
        /// Small values and one repeat: does everything work? The numbers are not for quoting.
        #[arg(long)]
        quick: bool,
        /// Decides the order of the runs; drawn and printed when absent.
        #[arg(long)]
        seed: Option<u64>,
        /// Put the record and RESULTS.md here instead of into the repository.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Write RESULTS.md and print the tables from the newest record of each experiment.
    Report {
        /// Change nothing; exit with 1 when RESULTS.md is not what the records give, or when a table lacks
        /// something: rows that were planned, rows that did not fail, a number in each column.
        #[arg(long)]
        check: bool,
        /// Where `lab run --out` put them.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Run each case once, briefly, as a test: right answers, balanced books.
    Verify {
        /// `2`, `02` or `02-keep-alive-throughput`; all when none is named.
        experiment: Vec<String>,
    },
    /// Who takes connections that come one after another to idle workers, and by which rule.
    Order {
        /// Connections to send.
        #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..=100_000))]
        connections: u32,
        /// Connections per second: slow enough that every worker has fallen asleep again.
        #[arg(long, value_name = "R", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
        rate: u32,
        /// The server's command line, without --listen.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// A running server's counters, live: a bar per worker. It costs the server nothing
    ///
    /// A server's workers keep their counters in memory that they share; --scoreboard gives that
    /// memory a name, and `lab watch` maps it too. In three terminals:
    ///
    ///     shared-accept --workers 4 --scoreboard /dev/shm/herd
    ///     lab watch /dev/shm/herd
    ///     loadgen --requests-per-connection 1 --rate 500 --duration 60s http://127.0.0.1:8080/
    ///
    /// Then the same with `--wait epoll-exclusive`: who gets the connections now? Stop a worker
    /// with `kill -STOP`: what becomes of its connections, and who gets the new ones?
    #[command(verbatim_doc_comment)]
    Watch {
        /// The file the server was given with --scoreboard.
        path: PathBuf,
        /// Time between two looks; all rates are those of the time between.
        #[arg(long, value_name = "DUR", default_value = "500ms", value_parser = watch::parse_interval)]
        interval: Duration,
        /// Print the counters as JSON lines, one for the server and one for each worker, and end.
        #[arg(long)]
        once: bool,
    },
    /// Judge any server, in any language, against section 1 of the contract.
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
        Command::Watch { path, interval, .. } => {
            watch::run(&path, interval, &watch_for_interrupt()).map(|()| true)
        }
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
            let (minutes, seconds) = all_cases::minutes_and_seconds(estimate(&runs));
            text +=
                &format!("  {scale}: {cases} cases, {} runs, about {minutes}:{seconds:02} min\n", runs.len());
        }
        text.push('\n');
    }
    text
}

fn explain() -> String {
    let line = |column: &Column| format!("  {}: {}: {}\n", column.name, column.header(), column.definition());
    let lines: String = columns::COLUMNS.iter().map(line).collect();
    format!("Columns (name in a matrix: header: definition)\n\n{lines}\n{}\n", law::EXPLANATION)
}

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
    let plan = Plan { root, records: &place.records, experiments: &chosen, quick, seed };
    let outcome = all_cases::run(&plan, interrupt)?;
    let reported = report(&place, &all, &chosen, false, interrupt);
    // Again, where it is not lost above the tables.
    outcome.failures.iter().for_each(console::log);
    let failed = outcome.failures.len();
    let Outcome { rows, planned, interrupted, .. } = outcome;
    let end = if interrupted {
        format!("interrupted after {rows} of {planned} rows")
    } else {
        format!("{rows} rows")
    };
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
            count => {
                Err(format!("the tables are incomplete in {count} places; `lab run` measures again").into())
            }
        };
    }
    std::fs::write(&place.results, then).map_err(|error| format!("write {results}: {error}"))?;
    let newest =
        |experiment: &Experiment| Some(for_terminal(experiment, record::newest(&records, &experiment.name)?));
    print_until(interrupt, &chosen.iter().filter_map(newest).collect::<String>()).map(|()| true)
}

fn print(text: &str) -> Result<bool, Stop> {
    print_until(&never(), text).map(|()| true)
}
