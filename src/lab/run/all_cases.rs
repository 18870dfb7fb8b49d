//! A whole `lab run`: all runs of the chosen experiments, one after another, each recorded as soon as it is finished.

use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::console;
use crate::lab::plan::blocks::{Run, estimate, schedule};
use crate::lab::plan::case::Case;
use crate::lab::plan::experiment::Experiment;
use crate::lab::program::{Interrupt, Stop};
use crate::lab::record::content::{self, Content};
use crate::lab::record::{Header, Writer, fingerprint};
use crate::lab::run::one_case;
use crate::units::utc_now;

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub rows: usize,
    pub planned: usize,
    /// What failed and why, a line each.
    pub failures: Vec<String>,
    pub interrupted: bool,
}

/// Measures everything and records each row in the folder `records` when it is finished; `root` is the repository.
pub fn run(
    root: &Path,
    records: &Path,
    experiments: &[Experiment],
    quick: bool,
    seed: u64,
    interrupt: &Interrupt,
) -> Result<Outcome, String> {
    let schedules = experiments.iter().map(|experiment| schedule(experiment, quick, seed));
    let runs: Vec<Run> = schedules.flatten().collect();
    let mut planned = BTreeMap::new();
    for run in &runs {
        *planned.entry(run.case.experiment.clone()).or_insert(0) += 1;
    }
    let header = Header {
        date: utc_now(),
        scale: if quick { "quick" } else { "full" }.to_string(),
        seed,
        planned,
        content: Content::now(root, experiments),
        by_hand: experiments.iter().find_map(|experiment| experiment.by_hand.clone()),
        machine: fingerprint::take(root, content::commit(root, experiments)),
    };
    let mut record = Writer::create(records, &header)?;
    let progress = ProgressDisplay::new(&runs);
    let mut outcome = Outcome { rows: 0, planned: runs.len(), failures: Vec::new(), interrupted: false };
    for Run { case, block, group } in &runs {
        progress.bar.set_message(case.to_string());
        let mut row = match one_case::run(case, *block, interrupt) {
            Ok(row) => row,
            Err(Stop::Interrupted) => {
                outcome.interrupted = true;
                break;
            }
            Err(Stop::Failed(why)) => return Err(why),
        };
        row.group = *group;
        record.line(&row)?;
        outcome.rows += 1;
        let failure = row.failure.map(|why| format!("{case}: FAILED: {why}"));
        progress.end(case, failure.as_deref());
        outcome.failures.extend(failure);
    }
    Ok(outcome)
}

/// `3:07 min`.
pub fn minutes(time: Duration) -> String {
    format!("{}:{:02} min", time.as_secs() / 60, time.as_secs() % 60)
}

/// A bar that advances by estimated time, so that its remaining time is the run's; plain lines without a terminal.
struct ProgressDisplay {
    bar: ProgressBar,
    plain: bool,
}

impl ProgressDisplay {
    fn new(runs: &[Run]) -> ProgressDisplay {
        let total = estimate(runs);
        console::log(format_args!("{} runs, about {}", runs.len(), minutes(total)));
        let plain = !stderr().is_terminal();
        let target = if plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(total.as_millis() as u64), target);
        let style = ProgressStyle::with_template("{bar:30} {eta} left  {wide_msg}");
        bar.set_style(style.expect("the template names known fields only"));
        ProgressDisplay { bar, plain }
    }

    fn end(&self, case: &Case, failure: Option<&str>) {
        self.bar.inc(case.estimate.as_millis() as u64);
        if self.plain {
            console::log(failure.map_or(case.to_string(), str::to_string));
        } else if let Some(failure) = failure {
            self.bar.println(failure);
        }
    }
}
