//! Records → RESULTS.md. Between `<!-- lab:begin X -->` and `<!-- lab:end X -->` every character comes from the newest
//! record of experiment X and its lesson. Text outside the markers is not changed.

use std::path::Path;

use crate::lab::evidence::accounting;
use crate::lab::evidence::columns;
use crate::lab::evidence::table::{self, Table, untraced};
use crate::lab::plan::case::TRACED_COLUMNS;
use crate::lab::plan::experiment::Experiment;
use crate::lab::record::{Record, Row, newest};

/// The marked section that describes the machines.
const MACHINES: &str = "machines";

/// A RESULTS.md that does not exist yet.
const SKELETON: &str = "# Results\n\n\
    Written by `lab report` from the records; not one number here was typed. Each section names the command that\n\
    made it, its lesson and its record.\n";

/// The document with every section brought up to date. `records_link` is how RESULTS.md reaches their folder.
pub fn render(document: &str, experiments: &[Experiment], records: &[Record], records_link: &str) -> String {
    let start = if document.is_empty() { SKELETON } else { document };
    let shown: Vec<Option<&Record>> = experiments.iter().map(|experiment| newest(records, &experiment.name)).collect();
    let names: Vec<&str> = experiments.iter().map(|experiment| experiment.name.as_str()).collect();
    let mut document = splice(start, MACHINES, &machines(&shown, records_link), &names);
    for (i, (experiment, record)) in experiments.iter().zip(&shown).enumerate() {
        let section = section(experiment, *record, records_link);
        document = splice(&document, &experiment.name, &section, &names[i + 1..]);
    }
    document
}

/// The tables of one experiment for a terminal.
pub fn for_terminal(experiment: &Experiment, record: &Record) -> String {
    let heading = format!("\n{} · {}\n\n", experiment.name, experiment.title);
    let drawn = tables(experiment, record).iter().map(table::terminal).collect::<Vec<_>>().join("\n");
    heading + &drawn + &incomplete(experiment, record)
}

/// Replaces the text between X's markers. Where there are none, adds them before the first of the `later` sections that is
/// there, else at the end.
fn splice(document: &str, name: &str, body: &str, later: &[&str]) -> String {
    let begin_of = |name: &str| format!("<!-- lab:begin {name} -->");
    let (begin, end) = (begin_of(name), format!("<!-- lab:end {name} -->"));
    let section = format!("{begin}\n{}\n{end}", body.trim_end());
    let found = document.find(&begin).and_then(|from| {
        let to = from + document[from..].find(&end)? + end.len();
        Some((from, to))
    });
    let next = later.iter().find_map(|name| document.find(&begin_of(name)));
    match (found, next) {
        (Some((from, to)), _) => format!("{}{section}{}", &document[..from], &document[to..]),
        (None, Some(next)) => format!("{}{section}\n\n{}", &document[..next], &document[next..]),
        (None, None) => format!("{}\n\n{section}\n", document.trim_end()),
    }
}

fn section(experiment: &Experiment, record: Option<&Record>, records_link: &str) -> String {
    let name = &experiment.name;
    let heading = format!("## {}\n\n{}\n\n", experiment.title, experiment.question);
    let lesson = format!("Lesson: [{name}](experiments/{name}.md)");
    let Some(record) = record else {
        return format!("{heading}{lesson}. Not measured yet: `lab run {name}`.\n");
    };
    let quick = if record.header.scale == "quick" { " --quick" } else { "" };
    let origin = format!(
        "{lesson}. Record: [{file}]({records_link}/{file}). Command: `lab run {name}{quick} --seed {}`.\n\n",
        record.header.seed,
        file = record.file,
    );
    let tables = tables(experiment, record);
    let drawn: Vec<String> = tables.iter().map(table::markdown).collect();
    heading + &origin + &incomplete(experiment, record) + &drawn.join("\n") + &definitions(&tables)
}

/// What the columns of an experiment mean, each once, in the order in which a reader meets them.
fn definitions(tables: &[Table]) -> String {
    let mut text = String::new();
    for (header, definition) in tables.iter().flat_map(|table| &table.definitions) {
        let line = format!("- **{header}**: {definition}\n");
        if !text.contains(&line) {
            text += &line;
        }
    }
    if text.is_empty() { text } else { format!("\n### The columns\n\n{text}") }
}

fn tables(experiment: &Experiment, record: &Record) -> Vec<Table> {
    let rows_of = |id: &str| -> Vec<&Row> {
        record.rows.iter().filter(|row| row.experiment == experiment.name && row.table == id).collect()
    };
    experiment.matrix.tables.iter().map(|spec| table::of(spec, &rows_of(&spec.id))).collect()
}

/// Why the report is incomplete, a line each: an experiment has no record, a row is missing that was planned or that the
/// matrix asks for, every run of a case failed, or a column has not one number. (A case of which some runs failed has its
/// numbers, and a note below the table.)
pub fn gaps(experiments: &[Experiment], records: &[Record]) -> Vec<String> {
    let of_one = |experiment: &Experiment| match newest(records, &experiment.name) {
        Some(record) => gaps_of(experiment, record),
        None => vec![format!("{}: not measured", experiment.name)],
    };
    experiments.iter().flat_map(of_one).collect()
}

fn gaps_of(experiment: &Experiment, record: &Record) -> Vec<String> {
    let rows: Vec<&Row> = record.rows.iter().filter(|row| row.experiment == experiment.name).collect();
    let mut gaps = Vec::new();
    let planned = record.header.planned.get(&experiment.name).copied().unwrap_or_default();
    if rows.len() != planned {
        gaps.push(format!("{}: {} of {planned} rows", experiment.name, rows.len()));
    }
    for case in experiment.cases(record.header.scale == "quick") {
        let is_its = |row: &&&Row| row.table == case.table.id && row.coordinates == case.coordinates;
        let runs: Vec<&&Row> = rows.iter().filter(is_its).collect();
        if runs.len() < case.repeats {
            gaps.push(format!("{}: {} of {} runs", case, runs.len(), case.repeats));
        }
        let failures: Vec<&String> = runs.iter().filter_map(|row| row.failure.as_ref()).collect();
        if let Some(why) = failures.last().filter(|_| failures.len() == runs.len()) {
            gaps.push(format!("{case}: every run failed: {why}"));
        }
    }
    if record.header.scale == "quick" {
        // A quick run is a test as well.
        let is_new = |row: &&&Row| row.failure.is_none() && row.skipped.is_none();
        let error = |row: &&Row| Some(format!("{} {}: {}", row.table, row.label, accounting::first_error(row)?));
        gaps.extend(rows.iter().filter(is_new).filter_map(error));
    }
    gaps.extend(empty_columns(experiment, record, &rows));
    gaps
}

/// Columns that print – in every line, unless a program is not installed, a privilege is missing, or the kernel's
/// tracepoints are not available: the rows and the notes say so.
fn empty_columns(experiment: &Experiment, record: &Record, rows: &[&Row]) -> Vec<String> {
    let mut found = Vec::new();
    for (spec, table) in experiment.matrix.tables.iter().zip(tables(experiment, record)) {
        // A skipped line has no number, and a line that is compared with it has no ratio. The other lines have.
        let is_skipped = |line: &Vec<String>| line.iter().any(|cell| cell.starts_with("skipped: "));
        let skips = rows.iter().any(|row| row.table == spec.id && row.skipped.is_some());
        let lines: Vec<&Vec<String>> = table.cells.iter().filter(|line| !is_skipped(line)).collect();
        if skips && (lines.is_empty() || !spec.baseline.is_empty()) {
            continue;
        }
        let place = format!("{} {}", experiment.name, spec.id);
        let is_untraced = rows.iter().any(|row| row.table == spec.id && untraced(row).is_some());
        let needs_traces = |header: &str| {
            let mut columns = TRACED_COLUMNS.iter().filter_map(|name| columns::find(name));
            columns.any(|column| column.header() == header)
        };
        let is_empty = |column: usize| lines.iter().all(|line| line[column] == "–");
        let headers = table.headers.iter().enumerate().filter(|(column, _)| is_empty(*column));
        let headers = headers.filter(|(_, header)| !(is_untraced && needs_traces(header)));
        found.extend(headers.map(|(_, header)| format!("{place}: no number in the column {header:?}")));
        if table.traces.iter().any(|(_, lines)| lines.is_empty()) {
            found.push(format!("{place}: a trace without a line"));
        }
    }
    found
}

/// An interrupted run says so.
fn incomplete(experiment: &Experiment, record: &Record) -> String {
    let rows = record.rows.iter().filter(|row| row.experiment == experiment.name).count();
    let planned = record.header.planned.get(&experiment.name).copied().unwrap_or(rows);
    if rows == planned {
        return String::new();
    }
    format!("**The run was interrupted after {rows} of {planned} rows.**\n\n")
}

/// Each record that is shown, once, with its machine.
fn machines(shown: &[Option<&Record>], records_link: &str) -> String {
    let mut text = "## Machines\n".to_string();
    let mut described: Vec<&str> = Vec::new();
    for record in shown.iter().flatten() {
        if !described.contains(&record.file.as_str()) {
            described.push(&record.file);
            text += &machine(record, records_link);
        }
    }
    if described.is_empty() { text + "\nNothing was measured yet.\n" } else { text }
}

fn machine(record: &Record, records_link: &str) -> String {
    let (header, machine) = (&record.header, &record.header.machine);
    let pairs = |map: &std::collections::BTreeMap<String, String>| {
        map.iter().map(|(key, value)| format!("{key} = {value}")).collect::<Vec<_>>().join("; ")
    };
    let steal: u64 = record.rows.iter().map(|row| row.machine.steal_ticks).sum();
    let cpus: Vec<String> = machine.allowed_cpus.iter().map(usize::to_string).collect();
    let mut text = format!(
        "\n[{file}]({records_link}/{file}): {} run of {}, seed {}, in blocks of all cases in random order.\n\n",
        header.scale,
        header.date,
        header.seed,
        file = record.file,
    );
    for (what, value) in [
        ("kernel", machine.kernel.clone()),
        ("CPU", format!("{}; allowed: {}", machine.cpu, cpus.join(", "))),
        ("memory", format!("{} MiB", machine.memory_mib)),
        ("mitigations", pairs(&machine.mitigations)),
        ("sysctls", pairs(&machine.sysctls)),
        ("open files", format!("{} per process, as {}", machine.open_files, machine.user)),
        ("built by", format!("{}, {} profile, commit {}", machine.rustc, machine.profile, machine.commit)),
        ("steal", format!("{steal} ticks during the rows")),
    ] {
        text += &format!("- {what}: {value}\n");
    }
    text
}

/// Where RESULTS.md and its records are.
pub struct Place {
    pub results: std::path::PathBuf,
    pub records: std::path::PathBuf,
    link: &'static str,
}

impl Place {
    /// In the repository, or in the folder given with `--out`.
    pub fn new(root: &Path, out: Option<&Path>) -> Place {
        let (folder, link) = out.map_or((root, "experiments/record"), |folder| (folder, "record"));
        Place { results: folder.join("RESULTS.md"), records: folder.join(link), link }
    }

    /// RESULTS.md as it is, and as it should be.
    pub fn now_and_then(&self, experiments: &[Experiment], records: &[Record]) -> (String, String) {
        let now = std::fs::read_to_string(&self.results).unwrap_or_default();
        let then = render(&now, experiments, records, self.link);
        (now, then)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::evidence::columns::tests::row;
    use crate::lab::plan::experiment::tests::parse_lesson;
    use crate::lab::record::Header;

    fn experiment() -> Experiment {
        parse_lesson("server = [{ run = \"sync\" }]\nload = \"loadgen\"\ncolumns = [\"qps\"]").unwrap()
    }

    fn record(planned: usize) -> Record {
        let mut row = row();
        (row.experiment, row.table) = ("02-keep-alive".to_string(), "t".to_string());
        let header = Header {
            scale: "quick".to_string(),
            seed: 7,
            planned: [("02-keep-alive".to_string(), planned)].into(),
            ..Header::default()
        };
        Record { file: "x-quick.jsonl".to_string(), header, rows: vec![row] }
    }

    #[test]
    fn rendering_twice_changes_nothing_and_keeps_what_people_wrote() {
        let once = render("", &[experiment()], &[record(1)], "record");
        let annotated = once.replace("# Results\n", "# Results\n\nA word of caution.\n");
        let twice = render(&annotated, &[experiment()], &[record(1)], "record");
        assert_eq!(twice, annotated);
        assert!(once.contains("| prefork --workers 3 | 90 |"), "{once}");
    }

    #[test]
    fn a_new_lesson_comes_before_those_that_follow_it() {
        let later = render("", &[experiment()], &[record(1)], "record");
        let first = Experiment { name: "00-first".to_string(), ..experiment() };
        let both = render(&later, &[first, experiment()], &[record(1)], "record");
        let place = |name: &str| both.find(&format!("<!-- lab:begin {name} -->")).unwrap();
        assert!(place("machines") < place("00-first") && place("00-first") < place("02-keep-alive"), "{both}");
    }

    #[test]
    fn a_tampered_number_does_not_survive() {
        let honest = render("", &[experiment()], &[record(1)], "record");
        let tampered = honest.replace("| 90 |", "| 99 |");
        assert_ne!(tampered, honest);
        assert_eq!(render(&tampered, &[experiment()], &[record(1)], "record"), honest);
    }

    #[test]
    fn a_section_says_how_it_was_made_and_whether_it_is_complete() {
        let text = render("", &[experiment()], &[record(2)], "record");
        assert!(text.contains("`lab run 02-keep-alive --quick --seed 7`"), "{text}");
        assert!(text.contains("interrupted after 1 of 2 rows"), "{text}");
    }

    /// A record in which nothing is missing.
    fn complete() -> Record {
        let mut record = record(1);
        record.rows[0].coordinates = experiment().cases(true)[0].coordinates.clone();
        record
    }

    /// What is missing once the record has been spoilt.
    fn gaps_after(spoil: fn(&mut Record)) -> String {
        let mut record = complete();
        spoil(&mut record);
        gaps(&[experiment()], &[record]).join("\n")
    }

    #[test]
    fn a_complete_record_has_no_gap() {
        assert_eq!(gaps_after(|_| ()), "");
    }

    #[test]
    fn every_kind_of_gap_is_found() {
        let interrupted = gaps_after(|record| *record.header.planned.get_mut("02-keep-alive").unwrap() = 2);
        assert_eq!(interrupted, "02-keep-alive: 1 of 2 rows");
        let other_case = gaps_after(|record| record.rows[0].coordinates.clear());
        assert!(other_case.starts_with("02-keep-alive t: sync") && other_case.ends_with("0 of 1 runs"));
        let failed = gaps_after(|record| record.rows[0].failure = Some("sync ended".to_string()));
        assert!(failed.contains("every run failed: sync ended"), "{failed}");
        let silent = gaps_after(|record| record.rows[0].load = None);
        assert_eq!(silent, "02-keep-alive t: no number in the column \"requests/s\"");
        assert_eq!(gaps(&[experiment()], &[]), ["02-keep-alive: not measured"]);
    }

    #[test]
    fn a_quick_run_is_also_a_test_that_both_sides_counted_the_same() {
        let lost = gaps_after(|record| record.rows[0].load.as_mut().unwrap().connections.established += 1);
        assert!(lost.contains("t prefork --workers 3: the client established 101 connections"), "{lost}");
    }

    #[test]
    fn a_client_that_is_not_installed_is_no_gap() {
        let skipped = gaps_after(|record| {
            (record.rows[0].load, record.rows[0].skipped) = (None, Some("not installed".to_string()));
        });
        assert_eq!(skipped, "");
    }

    #[test]
    fn an_experiment_without_a_record_says_so() {
        let text = render("", &[experiment()], &[], "record");
        assert!(text.contains("Not measured yet: `lab run 02-keep-alive`"), "{text}");
    }
}
