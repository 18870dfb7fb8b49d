//! The laboratory: experiments in, evidence out.
//!
//! It starts the servers and the load generator of this toolkit (or any server that keeps the contract), collects the
//! two documents they print, and records every run as a row.
//!
//!     cargo build --release --bins
//!     target/release/lab list
//!     target/release/lab run 2 --quick

#![forbid(unsafe_code)]

use std::io::stdout;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use acceptlab::console;
use acceptlab::lab::evidence::answer::outdated;
use acceptlab::lab::evidence::claims::{self, Judged, undecided_cases};
use acceptlab::lab::evidence::columns::{self, Column};
use acceptlab::lab::evidence::gaps::gaps;
use acceptlab::lab::evidence::html;
use acceptlab::lab::evidence::lesson::{self, Lesson};
use acceptlab::lab::evidence::origin;
use acceptlab::lab::evidence::pages::Place;
use acceptlab::lab::evidence::summary;
use acceptlab::lab::evidence::table;
use acceptlab::lab::observe::processes::proc_is_mounted;
use acceptlab::lab::observe::tracepoints::mount_for_ourselves;
use acceptlab::lab::plan::blocks::{FURTHER, estimate, schedule};
use acceptlab::lab::plan::by_hand::{Axis, ByHand};
use acceptlab::lab::plan::experiment::{self, Experiment};
use acceptlab::lab::plan::law;
use acceptlab::lab::program::{Interrupt, Stop, print_until, watch_for_interrupt};
use acceptlab::lab::record::Record;
use acceptlab::lab::record::content;
use acceptlab::lab::run::all_cases::{self, Outcome};
use acceptlab::lab::{check, order, record, verify, watch};
use acceptlab::terminal::{self, Paint, wrapped};
use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand, ValueEnum};
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
        /// Experiments by number or name: `2`, `02` or `02-keep-alive-throughput`; all when none is named.
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
        /// what a record was measured with, or when a table is incomplete: a planned row is missing, every run of a case
        /// has failed, or a column has no number. Lists the lessons that are stale: `src/`, `bins/` or the matrix have
        /// changed since.
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
    /// undecided when the interval contains the bar, seen once when there is a single run, and skipped when there is none.
    Claims {
        /// Experiments by number or name: `2`, `02` or `02-keep-alive-throughput`; all when none is named.
        experiment: Vec<String>,
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
        /// The folder that was given to `lab run --out`.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Run each case once, briefly, as a test: no error, client and server counted the same, and what a claim counts is right.
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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn a_point() -> PossibleValuesParser {
    check::points().into_iter().map(|point| point.id).into()
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
        Command::Run { experiment, quick, seed, table, set, out, tables } => {
            proc_is_mounted()?;
            mount_for_ourselves();
            let interrupt = watch_for_interrupt();
            let (root, all) = load(root)?;
            let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
            let (root, out) = (absolute(&root)?, out.as_deref().map(absolute).transpose()?);
            enter(&root)?;
            let by_hand = ByHand { tables: table, axes: set };
            if !by_hand.is_empty() {
                let chosen = experiment::select(all, &experiment)?;
                return measure_by_hand(&root, &chosen, &by_hand, quick, seed, out.as_deref(), &interrupt);
            }
            let output = Output { out, tables, html: None };
            measure(&root, all, &experiment, quick, seed, &output, &interrupt)
        }
        Command::Report { check, fresh, out, tables, html } => {
            let (root, experiments) = load(root)?;
            match check {
                true => Ok(check_report(&root, out.as_deref(), &experiments, fresh)?),
                false => report(&root, &Output { out, tables, html }, &experiments, &experiments, &never()),
            }
        }
        Command::Claims { experiment, format, out } => {
            let (root, all) = load(root)?;
            let records = record::read_all(&Place::new(&root, out.as_deref()).records())?;
            print(&claims(&experiment::select(all, &experiment)?, &records, format))
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
        Command::Check { explain: Some(point), .. } => print(&check::explain(&point).expect("clap knows the points")),
        Command::Check { all, level, only, format, command, .. } => {
            proc_is_mounted()?;
            let options = check::Options { level: level.map(usize::from), only, all, json: format == Format::Json };
            check::run(&command, &options, &watch_for_interrupt())
        }
    }
}

/// Where a report goes, and what of it is printed.
struct Output {
    /// The repository where there is none.
    out: Option<PathBuf>,
    tables: bool,
    html: Option<PathBuf>,
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

fn list(experiments: &[Experiment]) -> String {
    let mut text = String::new();
    let further = format!(", and up to {} s more while a claim is undecided", FURTHER.as_secs());
    for experiment in experiments {
        text += &format!("{}  {}\n  {}\n", experiment.name, experiment.title, experiment.question);
        for (scale, quick) in [("full", false), ("--quick", true)] {
            let (cases, runs) = (experiment.cases(quick).len(), schedule(experiment, quick, 0));
            let time = all_cases::minutes(estimate(&runs));
            let more = if quick || experiment.claims.is_empty() { String::new() } else { further.clone() };
            text += &format!("  {scale}: {cases} cases, {} runs, about {time}{more}\n", runs.len());
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
    format!(
        "Columns (the name in a matrix: the header in a table)\n\n{lines}\n{}\n\nGLOSSARY.md explains the words.\n",
        law::EXPLANATION
    )
}

/// Of explanations, in columns of a terminal.
const WIDTH: usize = 100;

fn measure(
    root: &Path,
    all: Vec<Experiment>,
    words: &[String],
    quick: bool,
    seed: u64,
    output: &Output,
    interrupt: &Interrupt,
) -> Result<bool, Stop> {
    let chosen = experiment::select(all.clone(), words)?;
    let place = Place::new(root, output.out.as_deref());
    if output.out.is_none() && !quick {
        require_a_commit(root, &all)?;
    }
    console::log(format_args!("seed {seed}"));
    let outcome = all_cases::run(root, &place.records(), &chosen, quick, seed, undecided_cases, interrupt)?;
    // After an interrupt the tables of the finished rows are still printed; a second one ends the lab at once.
    let until = if outcome.interrupted { never() } else { interrupt.clone() };
    let reported = report(root, output, &all, &chosen, &until);
    let is_whole = conclude(&outcome, &format!("see {}", place.results().display()))?;
    reported.map(|_| is_whole)
}

/// How a measurement ended, and whether nothing failed.
fn conclude(outcome: &Outcome, shown: &str) -> Result<bool, Stop> {
    // Again, where it is not lost above the tables.
    outcome.failures.iter().for_each(console::log);
    let Outcome { rows, planned, interrupted, failures } = outcome;
    let end = if *interrupted { format!("interrupted after {rows} of {planned} rows") } else { format!("{rows} rows") };
    console::log_last(format_args!("{end}, {} failed; {shown}", failures.len()));
    if *interrupted { Err(Stop::Interrupted) } else { Ok(failures.is_empty()) }
}

/// A part of an experiment, or values of one's own: the tables are printed, and the rows are kept with `--out` only.
fn measure_by_hand(
    root: &Path,
    chosen: &[Experiment],
    by_hand: &ByHand,
    quick: bool,
    seed: u64,
    out: Option<&Path>,
    interrupt: &Interrupt,
) -> Result<bool, Stop> {
    let [experiment] = chosen else {
        return Err(format!("{by_hand} is about one experiment; name it: lab run NN {by_hand}").into());
    };
    let narrowed = [by_hand.narrow(experiment)?];
    let scratch = std::env::temp_dir().join(format!("acceptlab-by-hand-{}", std::process::id()));
    let records = Place::new(root, Some(out.unwrap_or(&scratch))).records();
    console::log(format_args!("seed {seed}"));
    let outcome = all_cases::run(root, &records, &narrowed, quick, seed, |_, _| Vec::new(), interrupt);
    let measured = outcome.and_then(|outcome| Ok((outcome, record::read_all(&records)?)));
    if out.is_none() {
        // What is left of it is in the folder for temporary files.
        let _ = std::fs::remove_dir_all(&scratch);
    }
    let (outcome, records) = measured?;
    let newest = records.last().expect("it has just been written");
    let drawn = lesson::tables(&narrowed[0], newest).iter().map(table::terminal).collect::<Vec<_>>().join("\n");
    let until = if outcome.interrupted { never() } else { interrupt.clone() };
    let (name, title) = (&experiment.name, &experiment.title);
    print_until(&until, &format!("\n{name} · {title}, by hand: {by_hand}\n\n{drawn}\n"))?;
    let kept = out.map_or("nothing is recorded; --out DIR keeps the rows".to_string(), |out| {
        format!("the rows are in {}", out.display())
    });
    conclude(&outcome, &kept)
}

/// What `lab claims` prints.
fn claims(experiments: &[Experiment], records: &[Record], format: Format) -> String {
    let rows = |name: &str| record::newest(records, name).map_or(&[][..], |record| &record.rows);
    let judged = experiments.iter().map(|experiment| (experiment, claims::judge(experiment, rows(&experiment.name))));
    if format == Format::Json {
        let documents = judged
            .flat_map(|(experiment, judged)| judged.iter().map(|it| it.json(&experiment.name)).collect::<Vec<_>>());
        return serde_json::Value::from_iter(documents).to_string() + "\n";
    }
    let (width, paint) = (terminal::width(&stdout()), Paint::on(&stdout()));
    let section = |(experiment, judged): (&Experiment, Vec<Judged>)| {
        let lines = claims::lines(&judged, width, paint).join("\n");
        if lines.is_empty() { lines } else { format!("{}\n{lines}\n", paint.bold(&experiment.name)) }
    };
    judged.map(section).collect()
}

/// A number in RESULTS.md leads to code that the history has.
fn require_a_commit(root: &Path, experiments: &[Experiment]) -> Result<(), String> {
    let remedy = "commit first, or record elsewhere with --out DIR";
    let dirty = content::dirty(root, experiments);
    if !dirty.is_empty() {
        return Err(format!("not as the commit has them: {}; {remedy}", dirty.join(", ")));
    }
    content::older_than_its_source(root).map_or(Ok(()), Err)
}

/// Brings the pages and the numbers in the lessons up to date with the records, and prints what the chosen experiments
/// gave. With a folder of its own the repository stays as it is.
fn report(
    root: &Path,
    output: &Output,
    all: &[Experiment],
    chosen: &[Experiment],
    interrupt: &Interrupt,
) -> Result<bool, Stop> {
    let place = Place::new(root, output.out.as_deref());
    let records = record::read_all(&place.records())?;
    place.write(&place.pages(all, &records))?;
    let outdated = if output.out.is_none() { outdated(root, all, &records)? } else { Vec::new() };
    for (path, text) in outdated {
        std::fs::write(&path, text).map_err(|error| format!("write {}: {error}", path.display()))?;
    }
    if let Some(path) = &output.html {
        let page = html::page(&Lesson::all(all, &records));
        std::fs::write(path, page).map_err(|error| format!("write {}: {error}", path.display()))?;
    }
    let lessons = chosen.iter().map(|experiment| Lesson::of(experiment, &records));
    let measured: Vec<Lesson> = lessons.filter(|lesson| lesson.record.is_some()).collect();
    let text = if output.tables { measured.iter().map(tables).collect() } else { in_short(&measured, &place) };
    print_until(interrupt, &text).map(|()| true)
}

/// A dozen lines for each lesson; after several lessons the pictures that show what it is all about, and where to read on.
fn in_short(lessons: &[Lesson], place: &Place) -> String {
    let (width, paint) = (terminal::width(&stdout()), Paint::on(&stdout()));
    let mut lines: Vec<String> = Vec::new();
    for lesson in lessons {
        lines.push(String::new());
        lines.extend(summary::of(lesson, width, paint));
    }
    if lessons.len() > 1 {
        lines.extend(summary::headlines(lessons, width, paint));
        lines.push(format!(
            "\nRead on: {}; all tables here: lab report --tables; in a browser: lab report --html report.html",
            place.results().display()
        ));
    }
    lines.join("\n") + "\n"
}

/// The tables of one lesson, and its claims.
fn tables(lesson: &Lesson) -> String {
    let (width, paint) = (terminal::width(&stdout()), Paint::on(&stdout()));
    let heading = format!("\n{} · {}\n\n", lesson.experiment.name, lesson.experiment.title);
    let drawn = lesson.tables.iter().map(table::terminal).collect::<Vec<_>>().join("\n");
    let claims = claims::lines(&lesson.judged, width, paint);
    let lines = lesson.incomplete().into_iter().chain(claims).map(|line| line + "\n");
    heading + &drawn + &lines.collect::<String>()
}

/// Whether the pages are what the records give, and the records what the code gives.
fn check_report(root: &Path, out: Option<&Path>, all: &[Experiment], fresh: bool) -> Result<bool, String> {
    let place = Place::new(root, out);
    let records = record::read_all(&place.records())?;
    let differences = place.differences(&place.pages(all, &records));
    let (gaps, origins) = (gaps(all, &records), origin::judge(root, all, &records));
    let lines =
        differences.iter().chain(&gaps).chain(&origins.unsearched).chain(&origins.stale).chain(&origins.unknown);
    lines.for_each(console::log);
    if !gaps.is_empty() {
        return Err(format!("the tables are incomplete in {} places; `lab run` measures again", gaps.len()));
    }
    if !differences.is_empty() {
        return Err(format!("{} pages differ; `lab report` rewrites them", differences.len()));
    }
    let lessons = if out.is_none() { outdated(root, all, &records)? } else { Vec::new() };
    if let Some((path, _)) = lessons.first() {
        let path = path.display();
        return Err(format!("the numbers in {path} are not what the records give; `lab report` rewrites them"));
    }
    if !origins.unknown.is_empty() {
        return Err("a record was measured with what no commit has".to_string());
    }
    let is_fresh = origins.stale.is_empty() && origins.unsearched.is_none();
    if fresh && !is_fresh {
        return Err("not every record is known to be fresh; measure again from a commit".to_string());
    }
    Ok(true)
}

fn print(text: &str) -> Result<bool, Stop> {
    print_until(&never(), text).map(|()| true)
}
