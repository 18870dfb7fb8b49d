//! The experiments as tests: every case once, briefly. The answers must be right, client and server must have counted
//! the same, and a claim that counts something exact must be true.

use crate::console;
use crate::lab::evidence::accounting::first_error;
use crate::lab::evidence::claims::{ClaimVerdict, JudgedClaim, judge};
use crate::lab::plan::case::Case;
use crate::lab::plan::experiment::Experiment;
use crate::lab::program::{Interrupt, Stop, print_until};
use crate::lab::record::Row;
use crate::lab::run::one_case;

/// Runs every case and prints a line for each, and then one for each claim; true when all of them passed.
pub fn run(experiments: &[Experiment], interrupt: &Interrupt) -> Result<bool, Stop> {
    let cases: Vec<Case> = experiments.iter().flat_map(|experiment| experiment.cases(true)).collect();
    let mut tally = OutcomeCounts::default();
    let mut rows: Vec<Row> = Vec::new();
    let mut verify = |case: &Case| {
        let row = one_case::run(case, 0, interrupt)?;
        let outcome = match (&row.skipped, first_error(&row)) {
            (Some(why), _) => TestOutcome::Skipped(why.clone()),
            (None, None) => TestOutcome::Passed,
            (None, Some(what)) => TestOutcome::Failed(what),
        };
        rows.push(row);
        print_until(interrupt, &tally.line(&case.to_string(), outcome))
    };
    let end = cases.iter().try_for_each(&mut verify);
    if let Err(Stop::Interrupted) = end {
        console::log(format_args!("interrupted: of {} cases {tally}", cases.len()));
    }
    end?;
    for experiment in experiments {
        for judged in judge(experiment, &rows).iter().filter(|judged| judged.claim.is_counted) {
            let name = format!("{}: {}", experiment.name, judged.claim.says);
            print_until(interrupt, &tally.line(&name, asserted(judged)))?;
        }
    }
    print_until(interrupt, &format!("{tally}\n"))?;
    Ok(tally.failed == 0)
}

enum TestOutcome {
    Passed,
    Failed(String),
    Skipped(String),
}

#[derive(Default)]
struct OutcomeCounts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl OutcomeCounts {
    fn line(&mut self, name: &str, outcome: TestOutcome) -> String {
        let (count, line) = match outcome {
            TestOutcome::Passed => (&mut self.passed, format!("ok       {name}\n")),
            TestOutcome::Failed(what) => (&mut self.failed, format!("FAIL     {name}: {what}\n")),
            TestOutcome::Skipped(why) => (&mut self.skipped, format!("skipped  {name}: {why}\n")),
        };
        *count += 1;
        line
    }
}

impl std::fmt::Display for OutcomeCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// A count that is exact needs no second run.
fn asserted(judged: &JudgedClaim) -> TestOutcome {
    match &judged.verdict {
        ClaimVerdict::Skipped(reason) => TestOutcome::Skipped(reason.clone()),
        ClaimVerdict::Holds | ClaimVerdict::SeenOnce(true) => TestOutcome::Passed,
        _ => {
            let bar = judged.bar().map_or(String::new(), |bar| format!(", and the bar is {bar}"));
            TestOutcome::Failed(format!("it is {}{bar}", judged.measured()))
        }
    }
}
