//! The experiments as tests: every case once, briefly. The answers must be right, and client and server must have counted
//! the same.

use crate::console;
use crate::lab::evidence::accounting::first_error;
use crate::lab::plan::case::Case;
use crate::lab::plan::experiment::Experiment;
use crate::lab::program::{Interrupt, Stop, print_until};
use crate::lab::run::one_case;

/// Runs every case and prints a line for each; true when all of them passed.
pub fn run(experiments: &[Experiment], interrupt: &Interrupt) -> Result<bool, Stop> {
    let cases: Vec<Case> = experiments.iter().flat_map(|experiment| experiment.cases(true)).collect();
    let [mut passed, mut failed, mut skipped] = [0; 3];
    let mut verify = |case: &Case| {
        let row = one_case::run(case, 0, interrupt)?;
        let (count, line) = match (&row.skipped, first_error(&row)) {
            (Some(why), _) => (&mut skipped, format!("skipped  {case}: {why}\n")),
            (None, None) => (&mut passed, format!("ok       {case}\n")),
            (None, Some(what)) => (&mut failed, format!("FAIL     {case}: {what}\n")),
        };
        *count += 1;
        print_until(interrupt, &line)
    };
    let end = cases.iter().try_for_each(&mut verify);
    let counts = format!("{passed} passed, {failed} failed, {skipped} skipped");
    if let Err(Stop::Interrupted) = end {
        console::log(format_args!("interrupted: of {} cases {counts}", cases.len()));
    }
    end?;
    print_until(interrupt, &(counts + "\n"))?;
    Ok(failed == 0)
}
