//! What is missing in the evidence: rows that were planned, runs that all failed, columns without one number, claims
//! that fail without a reason.

use crate::lab::evidence::accounting;
use crate::lab::evidence::claims::judge;
use crate::lab::evidence::columns;
use crate::lab::evidence::lesson::{rows_of, tables};
use crate::lab::evidence::table::untraced;
use crate::lab::plan::case::TRACED_COLUMNS;
use crate::lab::plan::experiment::Experiment;
use crate::lab::record::{Record, Row, newest};

/// Why the report is incomplete, a line each: an experiment has no record, a row is missing that was planned or that
/// the matrix asks for, every run of a case failed, a column has not one number, or a claim fails and nobody says why.
/// (A case of which some runs failed has its numbers, and a note below the table.)
pub fn missing(experiments: &[Experiment], records: &[Record]) -> Vec<String> {
    let of_one = |experiment: &Experiment| match newest(records, &experiment.name) {
        Some(record) => missing_in(experiment, record),
        None => vec![format!("{}: not measured", experiment.name)],
    };
    experiments.iter().flat_map(of_one).collect()
}

fn missing_in(experiment: &Experiment, record: &Record) -> Vec<String> {
    let rows: Vec<&Row> = rows_of(record, &experiment.name).collect();
    let mut missing = Vec::new();
    let planned = record.header.planned.get(&experiment.name).copied().unwrap_or_default();
    if rows.len() < planned {
        missing.push(format!("{}: {} of {planned} rows", experiment.name, rows.len()));
    }
    // A record of another matrix has other cases. The lesson is stale then, and `origin` says so.
    let is_of_this_matrix = record.header.content.matrices.get(&experiment.name) == Some(&experiment.measured_hash);
    for case in experiment.cases(record.header.scale == "quick") {
        let is_its = |row: &&&Row| row.table == case.table.id && row.coordinates == case.coordinates;
        let runs: Vec<&&Row> = rows.iter().filter(is_its).collect();
        if is_of_this_matrix && runs.len() < case.repeats {
            missing.push(format!("{}: {} of {} runs", case, runs.len(), case.repeats));
        }
        let failures: Vec<&String> = runs.iter().filter_map(|row| row.failure.as_ref()).collect();
        if let Some(why) = failures.last().filter(|_| failures.len() == runs.len()) {
            missing.push(format!("{case}: every run failed: {why}"));
        }
    }
    if record.header.scale == "quick" {
        // A quick run is a test as well.
        let is_new = |row: &&&Row| row.failure.is_none() && row.skipped.is_none();
        let error = |row: &&Row| Some(format!("{} {}: {}", row.table, row.label, accounting::first_error(row)?));
        missing.extend(rows.iter().filter(is_new).filter_map(error));
    }
    missing.extend(empty_columns(experiment, record, &rows));
    let judged = judge(experiment, &record.rows);
    let unexplained = judged.iter().filter(|judged| judged.is_unexplained());
    missing.extend(unexplained.map(|judged| {
        let (name, id, verdict) = (&experiment.name, &judged.claim.id, judged.verdict.name());
        format!("{name}: the claim {id} is {verdict:?} and has no `why`")
    }));
    missing
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
        // Rows that are missing have been named one by one.
        let has_rows = rows.iter().any(|row| row.table == spec.id);
        if !has_rows || skips && (lines.is_empty() || !spec.baseline.is_empty()) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::evidence::lesson::tests::{experiment, record};

    /// A record in which nothing is missing.
    fn complete() -> Record {
        let mut record = record(1);
        record.rows[0].coordinates = experiment().cases(true)[0].coordinates.clone();
        record
    }

    /// What is missing once the record has been spoilt.
    fn missing_after(spoil: fn(&mut Record)) -> String {
        let mut record = complete();
        spoil(&mut record);
        missing(&[experiment()], &[record]).join("\n")
    }

    #[test]
    fn in_a_complete_record_nothing_is_missing() {
        assert_eq!(missing_after(|_| ()), "");
    }

    #[test]
    fn everything_that_is_missing_is_found() {
        let interrupted = missing_after(|record| *record.header.planned.get_mut("02-keep-alive").unwrap() = 2);
        assert_eq!(interrupted, "02-keep-alive: 1 of 2 rows");
        let other_case = missing_after(|record| record.rows[0].coordinates.clear());
        assert!(other_case.starts_with("02-keep-alive t: sync") && other_case.ends_with("0 of 1 runs"));
        let failed = missing_after(|record| record.rows[0].failure = Some("sync ended".to_string()));
        assert!(failed.contains("every run failed: sync ended"), "{failed}");
        let silent = missing_after(|record| record.rows[0].load = None);
        assert_eq!(silent, "02-keep-alive t: no number in the column \"requests/s\"");
        assert_eq!(missing(&[experiment()], &[]), ["02-keep-alive: not measured"]);
    }

    #[test]
    fn a_quick_run_is_also_a_test_that_both_sides_counted_the_same() {
        let lost = missing_after(|record| record.rows[0].load.as_mut().unwrap().connections.established += 1);
        assert!(lost.contains("t prefork --workers 3: the client established 101 connections"), "{lost}");
    }

    #[test]
    fn a_client_that_is_not_installed_is_not_missing() {
        let skipped = missing_after(|record| {
            (record.rows[0].load, record.rows[0].skipped) = (None, Some("not installed".to_string()));
        });
        assert_eq!(skipped, "");
    }
}
