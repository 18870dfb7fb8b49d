//! The experiments as tests: every case once, briefly. The answers must be right, and client and server must have counted
//! the same.

use crate::console;
use crate::lab::evidence::accounting::complaint;
use crate::lab::plan::case::Case;
use crate::lab::plan::experiment::Experiment;
use crate::lab::program::{Interrupt, Stop, print_until};
use crate::lab::run::one_case;

/// Runs every case and prints a line for each; true when all of them passed.
pub fn run(experiments: &[Experiment], interrupt: &Interrupt) -> Result<bool, Stop> {
    let cases: Vec<Case> = experiments.iter().flat_map(|experiment| experiment.cases(true)).collect();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for case in &cases {
        let row = match one_case::run(case, 0, interrupt) {
            Err(Stop::Interrupted) => {
                let (done, all) = (passed + failed + skipped, cases.len());
                console::log(format_args!("interrupted after {done} of {all} cases, {failed} failed"));
                return Err(Stop::Interrupted);
            }
            row => row?,
        };
        let line = match (&row.skipped, complaint(&row)) {
            (Some(why), _) => {
                skipped += 1;
                format!("skipped  {case}: {why}\n")
            }
            (None, None) => {
                passed += 1;
                format!("ok       {case}\n")
            }
            (None, Some(what)) => {
                failed += 1;
                format!("FAIL     {case}: {what}\n")
            }
        };
        print_until(interrupt, &line)?;
    }
    print_until(interrupt, &format!("{passed} passed, {failed} failed, {skipped} skipped\n"))?;
    Ok(failed == 0)
}
