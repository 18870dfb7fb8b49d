//! A whole `lab run`: all runs of the chosen experiments, one after another, each recorded as soon as it is finished. A
//! lesson whose claims are undecided then gets further blocks.

use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::console;
use crate::lab::plan::blocks::{FURTHER, Run, estimate, further_block, schedule};
use crate::lab::plan::case::Case;
use crate::lab::plan::experiment::Experiment;
use crate::lab::program::{Interrupt, Stop};
use crate::lab::record::content::{self, Content};
use crate::lab::record::{Header, Row, Writer, fingerprint};
use crate::lab::run::one_case;
use crate::units::utc_now;

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub struct RecordingResult {
    pub rows: usize,
    pub planned: usize,
    /// What failed and why, a line each.
    pub failures: Vec<String>,
    pub interrupted: bool,
}

/// The cases, by index, that would help to decide something; the rows are those of the experiment so far.
pub type Undecided = fn(&Experiment, &[Row]) -> Vec<usize>;

/// Measures everything and records each row in the folder `records` when it is finished; `root` is the repository. A
/// quick run has no further blocks.
pub fn run(
    root: &Path,
    records: &Path,
    experiments: &[Experiment],
    quick: bool,
    seed: u64,
    undecided: Undecided,
    interrupt: &Interrupt,
) -> Result<RecordingResult, String> {
    let schedules: Vec<Vec<Run>> = experiments.iter().map(|experiment| schedule(experiment, quick, seed)).collect();
    let names = experiments.iter().map(|experiment| experiment.name.clone());
    let planned: BTreeMap<String, usize> = names.zip(schedules.iter().map(Vec::len)).collect();
    let header = Header {
        date: utc_now(),
        scale: if quick { "quick" } else { "full" }.to_string(),
        seed,
        planned,
        content: Content::now(root, experiments),
        by_hand: experiments.iter().find_map(|experiment| experiment.manual_values.clone()),
        machine: fingerprint::take(root, content::commit(root, experiments)),
    };
    let planned = schedules.iter().map(Vec::len).sum();
    let mut recorder = Recorder {
        writer: Writer::create(records, &header)?,
        progress: ProgressDisplay::new(&schedules.concat()),
        outcome: RecordingResult { rows: 0, planned, failures: Vec::new(), interrupted: false },
        interrupt,
    };
    for (experiment, runs) in experiments.iter().zip(&schedules) {
        let measured = match quick {
            true => recorder.measure(runs).map(drop),
            false => recorder.measure_until_decided(experiment, runs, seed, undecided),
        };
        match measured {
            Ok(()) => {}
            Err(Stop::Interrupted) => {
                recorder.outcome.interrupted = true;
                break;
            }
            Err(Stop::Failed(why)) => {
                let RecordingResult { rows, planned, .. } = recorder.outcome;
                return Err(format!("{why}; {rows} of {planned} rows are recorded: `lab report` shows them"));
            }
        }
    }
    Ok(recorder.outcome)
}

struct Recorder<'a> {
    writer: Writer,
    progress: ProgressDisplay,
    outcome: RecordingResult,
    interrupt: &'a Interrupt,
}

impl Recorder<'_> {
    fn measure(&mut self, runs: &[Run]) -> Result<Vec<Row>, Stop> {
        let mut rows = Vec::new();
        for Run { case, block, group, is_further } in runs {
            self.progress.bar.set_message(case.to_string());
            let mut row = one_case::run(case, *block, self.interrupt)?;
            row.group = *group;
            row.is_further = *is_further;
            self.writer.line(&row)?;
            self.outcome.rows += 1;
            let failure = row.failure.as_ref().map(|why| format!("{case}: FAILED: {why}"));
            self.progress.end(case, failure.as_deref());
            self.outcome.failures.extend(failure);
            rows.push(row);
        }
        Ok(rows)
    }

    fn measure_until_decided(
        &mut self,
        experiment: &Experiment,
        runs: &[Run],
        seed: u64,
        undecided: Undecided,
    ) -> Result<(), Stop> {
        let mut rows = self.measure(runs)?;
        let mut left = FURTHER;
        for number in 0.. {
            let wanted = undecided(experiment, &rows);
            let block = further_block(experiment, &wanted, number, seed);
            let Some(rest) = left.checked_sub(estimate(&block)).filter(|_| !block.is_empty()) else { break };
            left = rest;
            self.progress.bar.inc_length(estimate(&block).as_millis() as u64);
            rows.extend(self.measure(&block)?);
        }
        Ok(())
    }
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
