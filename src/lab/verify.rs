//! The experiments as tests: every case once, briefly; the answers must be right and the two books must balance.

use crate::lab::evidence::{books, table};
use crate::lab::plan::experiment::Experiment;
use crate::lab::record::Row;
use crate::lab::run::program::{Interrupt, Stop};
use crate::lab::run::{runner, session};

/// Runs every case and prints a line for each; true when all of them passed.
pub fn run(experiments: &[Experiment], interrupt: &Interrupt) -> Result<bool, Stop> {
    let (mut passed, mut failed) = (0, 0);
    for case in experiments.iter().flat_map(|experiment| experiment.cases(true)) {
        let row = runner::run(&case, 0, interrupt)?;
        let name = session::describe(&case);
        match (&row.skipped, complaint(&row)) {
            (Some(why), _) => println!("skipped  {name}: {why}"),
            (None, None) => {
                passed += 1;
                println!("ok       {name}");
            }
            (None, Some(what)) => {
                failed += 1;
                println!("FAIL     {name}: {what}");
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// The first thing that is wrong with a row.
pub fn complaint(row: &Row) -> Option<String> {
    if row.expects_losses() {
        return row.failure.clone().or_else(|| books::silence(row));
    }
    let error = || table::unexpected_errors(row).first().map(|(what, count)| format!("{what}: {count}"));
    row.failure.clone().or_else(error).or_else(|| books::imbalance(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::evidence::columns::tests::row;
    use crate::report::ClusterReport;

    #[test]
    fn balanced_books_pass() {
        assert_eq!(complaint(&row()), None);
    }

    #[test]
    fn a_lost_connection_a_lost_answer_and_silence_are_found() {
        let mut lost = row();
        lost.load.as_mut().unwrap().connections.established = 101;
        assert!(complaint(&lost).unwrap().contains("established 101"));
        let mut unread = row();
        unread.load.as_mut().unwrap().outside_window.late = 5;
        assert!(complaint(&unread).unwrap().contains("read 101"));
        let mut silent = row();
        let load = silent.load.as_mut().unwrap();
        (load.requests, load.outside_window) = (0, Default::default());
        assert!(complaint(&silent).unwrap().contains("no request"));
    }

    #[test]
    fn a_program_that_counts_nothing_is_believed_under_a_master_alone() {
        let mut row = row();
        let server = row.server.as_mut().unwrap();
        server.workers.iter_mut().for_each(|worker| worker.requests = 0);
        assert!(complaint(&row).unwrap().contains("read 100"));
        row.server.as_mut().unwrap().cluster = Some(ClusterReport::default());
        assert_eq!(complaint(&row), None);
        // What the master has passed it knows.
        row.server.as_mut().unwrap().workers[0].accepted += 1;
        assert!(complaint(&row).unwrap().contains("accepted 101"));
    }

    #[test]
    fn what_the_clients_lose_where_workers_die_is_no_complaint() {
        let mut row = row();
        row.load.as_mut().unwrap().errors.timeout = 3;
        assert!(complaint(&row).is_some());
        row.expect_death = true;
        assert_eq!(complaint(&row), None);
    }

    #[test]
    fn time_outs_are_allowed_only_where_they_were_announced() {
        let mut row = row();
        let load = row.load.as_mut().unwrap();
        load.errors.timeout = 63;
        load.connections.established = 163;
        assert!(complaint(&row).unwrap().contains("without an answer: 63"));
        row.expect_timeouts = true;
        assert_eq!(complaint(&row), None);
    }
}
