//! What `lab list`, `explain`, `run`, `report` and `claims` do: experiments are measured, records judged and drawn,
//! pages written and compared.

use std::io::stdout;
use std::path::{Path, PathBuf};

use crossbeam_channel::never;

use crate::console;
use crate::failure::Failure;
use crate::lab::evidence::answer::outdated;
use crate::lab::evidence::claims::{self, JudgedClaim, undecided_cases};
use crate::lab::evidence::columns::{self, Column};
use crate::lab::evidence::completeness::missing;
use crate::lab::evidence::html;
use crate::lab::evidence::lesson::{self, Lesson};
use crate::lab::evidence::origin;
use crate::lab::evidence::pages::{OutputFolder, replace};
use crate::lab::evidence::summary;
use crate::lab::evidence::table;
use crate::lab::plan::blocks::{FURTHER, estimate, schedule};
use crate::lab::plan::experiment::{self, Experiment};
use crate::lab::plan::law;
use crate::lab::plan::manual_values::ManualValues;
use crate::lab::program::{Interrupt, Stop, print_until};
use crate::lab::record::content;
use crate::lab::record::{self, Record};
use crate::lab::run::all_cases::{self, RecordingResult};
use crate::terminal::{self, Paint, wrapped};

/// Where a report goes, and what of it is printed.
pub struct Output {
    /// The repository where there is none.
    pub out: Option<PathBuf>,
    pub tables: bool,
    pub html: Option<PathBuf>,
}

pub fn list(experiments: &[Experiment]) -> String {
    let mut text = String::new();
    let further = format!(", and up to {} s more while a claim is undecided", FURTHER.as_secs());
    for experiment in experiments {
        text += &format!("{}  {}\n  {}\n", experiment.name, experiment.title, experiment.question);
        for (scale, quick) in [("full", false), ("--quick", true)] {
            let (cases, runs) = (experiment.cases(quick).len(), schedule(experiment, quick, 0));
            let time = all_cases::minutes(estimate(&runs));
            let more = if quick || experiment.claims.is_empty() { String::new() } else { further.clone() };
            let named = if !quick && experiment.matrix.only_named { "; only where it is named" } else { "" };
            text += &format!("  {scale}: {cases} cases, {} runs, about {time}{more}{named}\n", runs.len());
        }
        text.push('\n');
    }
    text
}

pub fn explain() -> String {
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

/// The width of explanations, in columns of a terminal.
const WIDTH: usize = 100;

pub fn measure(
    root: &Path,
    all: Vec<Experiment>,
    words: &[String],
    quick: bool,
    seed: u64,
    output: &Output,
    interrupt: &Interrupt,
) -> Result<bool, Stop> {
    let mut chosen = experiment::select(all.clone(), words)?;
    if words.is_empty() && !quick {
        chosen.retain(|experiment| !experiment.matrix.only_named);
    }
    let place = OutputFolder::new(root, output.out.as_deref());
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
fn conclude(outcome: &RecordingResult, shown: &str) -> Result<bool, Stop> {
    // Again, where it is not lost above the tables.
    outcome.failures.iter().for_each(console::log);
    let RecordingResult { rows, planned, interrupted, failures } = outcome;
    let end = if *interrupted { format!("interrupted after {rows} of {planned} rows") } else { format!("{rows} rows") };
    console::log_last(format_args!("{end}, {} failed; {shown}", failures.len()));
    if *interrupted { Err(Stop::Interrupted) } else { Ok(failures.is_empty()) }
}

/// A part of an experiment, or values of one's own: the tables are printed, and the rows are kept with `--out` only.
pub fn measure_values(
    root: &Path,
    chosen: &[Experiment],
    manual_values: &ManualValues,
    quick: bool,
    seed: u64,
    out: Option<&Path>,
    interrupt: &Interrupt,
) -> Result<bool, Stop> {
    let [experiment] = chosen else {
        return Err(format!("{manual_values} is about one experiment; name it: lab run NN {manual_values}").into());
    };
    let narrowed = [manual_values.narrow(experiment)?];
    let scratch = std::env::temp_dir().join(format!("acceptlab-by-hand-{}", std::process::id()));
    let records = OutputFolder::new(root, Some(out.unwrap_or(&scratch))).records();
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
    print_until(&until, &format!("\n{name} · {title}, by hand: {manual_values}\n\n{drawn}\n"))?;
    let kept = out.map_or("nothing is recorded; --out DIR keeps the rows".to_string(), |out| {
        format!("the rows are in {}", out.display())
    });
    conclude(&outcome, &kept)
}

/// What `lab claims` prints.
pub fn claims(experiments: &[Experiment], records: &[Record], as_json: bool) -> String {
    let rows = |name: &str| record::newest(records, name).map_or(&[][..], |record| &record.rows);
    let judged = experiments.iter().map(|experiment| (experiment, claims::judge(experiment, rows(&experiment.name))));
    if as_json {
        let documents = judged
            .flat_map(|(experiment, judged)| judged.iter().map(|it| it.json(&experiment.name)).collect::<Vec<_>>());
        return serde_json::Value::from_iter(documents).to_string() + "\n";
    }
    let (width, paint) = (terminal::width(&stdout()), Paint::on(&stdout()));
    let section = |(experiment, judged): (&Experiment, Vec<JudgedClaim>)| {
        let lines = claims::in_full(&judged, width, paint).join("\n");
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
pub fn report(
    root: &Path,
    output: &Output,
    all: &[Experiment],
    chosen: &[Experiment],
    interrupt: &Interrupt,
) -> Result<bool, Stop> {
    let place = OutputFolder::new(root, output.out.as_deref());
    let records = record::read_all(&place.records())?;
    place.write(&place.pages(all, &records))?;
    let outdated = if output.out.is_none() { outdated(root, all, &records)? } else { Vec::new() };
    for (path, text) in outdated {
        replace(&path, &text)?;
    }
    if let Some(path) = &output.html {
        let page = html::page(&Lesson::all(all, &records));
        let failed = |error| String::from(Failure::new(format_args!("write {}", path.display()), error));
        std::fs::write(path, page).map_err(failed)?;
    }
    let lessons = chosen.iter().map(|experiment| Lesson::of(experiment, &records));
    let measured: Vec<Lesson> = lessons.filter(|lesson| lesson.record.is_some()).collect();
    let text = if output.tables { measured.iter().map(tables).collect() } else { in_short(&measured, &place) };
    print_until(interrupt, &text).map(|()| true)
}

/// A dozen lines for each lesson; after several lessons the pictures that show what it is all about, and where to read
/// on.
fn in_short(lessons: &[Lesson], place: &OutputFolder) -> String {
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
    let claims = claims::in_full(&lesson.judged, width, paint);
    let lines = lesson.incomplete().into_iter().chain(claims).map(|line| line + "\n");
    heading + &drawn + &lines.collect::<String>()
}

/// Whether the pages are what the records give, and the records what the code gives.
pub fn check_report(root: &Path, out: Option<&Path>, all: &[Experiment], fresh: bool) -> Result<bool, String> {
    let place = OutputFolder::new(root, out);
    let records = record::read_all(&place.records())?;
    let differences = place.differences(&place.pages(all, &records));
    let (missing, origins) = (missing(all, &records), origin::judge(root, all, &records));
    let lines =
        differences.iter().chain(&missing).chain(&origins.unsearched).chain(&origins.stale).chain(&origins.unknown);
    lines.for_each(console::log);
    if !missing.is_empty() {
        return Err(format!("the tables are incomplete in {} places; `lab run` measures again", missing.len()));
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
