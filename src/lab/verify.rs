//! The experiments as tests: every case once, briefly. The answers must be right, and client and server must have counted
//! the same.

use crate::lab::evidence::accounting::complaint;
use crate::lab::plan::experiment::Experiment;
use crate::lab::run::one_case;
use crate::lab::run::program::{Interrupt, Stop};

/// Runs every case and prints a line for each; true when all of them passed.
pub fn run(experiments: &[Experiment], interrupt: &Interrupt) -> Result<bool, Stop> {
    let (mut passed, mut failed) = (0, 0);
    for case in experiments.iter().flat_map(|experiment| experiment.cases(true)) {
        let row = one_case::run(&case, 0, interrupt)?;
        match (&row.skipped, complaint(&row)) {
            (Some(why), _) => println!("skipped  {case}: {why}"),
            (None, None) => {
                passed += 1;
                println!("ok       {case}");
            }
            (None, Some(what)) => {
                failed += 1;
                println!("FAIL     {case}: {what}");
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}
