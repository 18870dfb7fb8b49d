//! The counts behind the columns: what they hold, what they leave out, and that two independent counts agree.

use acceptlab::lab::evidence::columns::{self, Formula, Sample};
use acceptlab::lab::record::{self, Row};
use acceptlab::report::WorkerReport;

use crate::lab::{Scratch, one_table};
use crate::support::{held, one_after_another, start};

/// Runs one server under connections that come one after another to sleeping workers; the row, and what the table
/// says below it.
pub fn observe(name: &str, server: &str, connections: u32, columns: &str) -> (Row, String) {
    let lesson = one_table(&format!(
        r#"server = [{{ run = "{server}" }}]
load = "loadgen --connections 1 --requests-per-connection 1 --requests {connections} --rate 500"
columns = [{columns}]"#
    ));
    let scratch = Scratch::new(name, &lesson);
    let run = scratch.lab(&["run", "1", "--tables"]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    // What could not be counted is told, and is no gap in the results.
    let check = scratch.lab(&["report", "--check"]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let mut records = record::read_all(&scratch.root.join("experiments/record")).unwrap();
    (records.remove(0).rows.remove(0), String::from_utf8(run.stdout).unwrap())
}

#[track_caller]
pub fn number(column: &str, row: &Row) -> f64 {
    match columns::find(column).unwrap().value {
        Formula::Real(of) => of(Sample { row, baseline: None }).unwrap_or_else(|| panic!("no {column} in {row:?}")),
        _ => panic!("{column} is not a real number"),
    }
}

/// Once for the connection, and once more where its request comes so late that the worker has fallen asleep again.
pub const WITHOUT_A_HERD: f64 = 2.2;

#[test]
fn starting_and_stopping_a_worker_is_in_no_count_of_switches() {
    let (row, _) = observe("births", "prefork --workers 32", 50, "\"switches\"");
    let observed: u64 = row.observed.as_ref().unwrap().total(|counts| Some(counts.voluntary_switches)).unwrap();
    let whole_lives = row.workers_total(|worker| worker.voluntary_switches).unwrap();
    // Each worker is at least woken once more, to be stopped.
    assert!(observed + 32 <= whole_lives, "{observed} of {whole_lives}");
    assert!(number("switches", &row) <= WITHOUT_A_HERD, "{observed} switches for 50 connections");
}

#[test]
fn threads_that_come_and_go_take_their_counts_along_and_the_table_says_so() {
    let (row, table) = observe("threads", "threaded", 50, "\"switches\", \"kernel_wakeups\"");
    assert!(row.observed.as_ref().unwrap().missing.is_some(), "{row:?}");
    assert!(table.contains("switches of whole lives"), "{table}");
    let whole_lives = row.workers_total(|worker| worker.voluntary_switches).unwrap();
    assert_eq!(number("switches", &row), whole_lives as f64 / 50.0);
}

fn sum(workers: &[WorkerReport], of: fn(&WorkerReport) -> u64) -> u64 {
    workers.iter().map(of).sum()
}

#[test]
fn a_worker_that_takes_all_there_is_meets_eagain_once_per_wake_up_and_calls_no_wake_up_empty_for_it() {
    let mut server = start("shared-accept", &["--workers", "4", "--wait", "epoll-edge"]);
    one_after_another(&server, 500);
    let workers = held(server.stop()).workers;
    let (eagain, empty) = (sum(&workers, |w| w.accept_eagain), sum(&workers, |w| w.empty_wakeups));
    let wakeups = sum(&workers, |w| w.wakeups);
    // Each wake-up ends with the look that finds nothing, whether or not it found something before.
    assert_eq!(eagain, wakeups, "{workers:?}");
    assert!(empty < eagain / 2, "{empty} empty wake-ups, {eagain} EAGAIN: {workers:?}");
}
