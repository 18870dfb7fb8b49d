//! A whole `lab run`: all cases of an experiment in blocks, each block holding a run of every case in seeded random
//! order, so that whatever drifts on the machine drifts over all contenders alike. Over a block's minutes a machine
//! can change its speed, so what is compared with a baseline runs directly beside a run of it.

use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::lab::plan::case::Case;
use crate::lab::plan::experiment::Experiment;
use crate::lab::record::fingerprint;
use crate::lab::record::{Header, Writer};
use crate::lab::run::program::{Interrupt, Stop};
use crate::lab::run::runner;
use crate::units::utc_now;

/// What `lab run` was asked for.
pub struct Plan<'a> {
    pub root: &'a Path,
    /// Where the record goes.
    pub records: &'a Path,
    pub experiments: &'a [Experiment],
    pub quick: bool,
    pub seed: u64,
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub rows: usize,
    /// What failed and why, a line each.
    pub failures: Vec<String>,
    pub interrupted: bool,
}

/// Measures everything and records each row when it is finished.
pub fn run(plan: &Plan, interrupt: &Interrupt) -> Result<Outcome, String> {
    let schedules = plan.experiments.iter().map(|experiment| schedule(experiment, plan.quick, plan.seed));
    let runs: Vec<Run> = schedules.flatten().collect();
    let mut planned = BTreeMap::new();
    for run in &runs {
        *planned.entry(run.case.experiment.clone()).or_insert(0) += 1;
    }
    let header = Header {
        date: utc_now(),
        scale: if plan.quick { "quick" } else { "full" }.to_string(),
        seed: plan.seed,
        planned,
        machine: fingerprint::take(plan.root),
    };
    let mut record = Writer::create(plan.records, &header)?;
    let progress = Progress::new(&runs);
    let mut outcome = Outcome { rows: 0, failures: Vec::new(), interrupted: false };
    for Run { case, block, group } in &runs {
        progress.begin(case);
        let mut row = match runner::run(case, *block, interrupt) {
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
        let failure = row.failure.map(|why| format!("{}: FAILED: {why}", describe(case)));
        progress.end(case, failure.as_deref());
        outcome.failures.extend(failure);
    }
    Ok(outcome)
}

/// One run to be made.
pub struct Run {
    pub case: Case,
    pub block: usize,
    /// What it is compared within, see [`crate::lab::record::Row::group`].
    pub group: Option<usize>,
}

/// Every run of an experiment in the order it will be made. The order depends on the experiment and the seed alone,
/// so that the command below a table gives the order which made the table, whatever else ran on that day.
pub fn schedule(experiment: &Experiment, quick: bool, seed: u64) -> Vec<Run> {
    let mut random = fastrand::Rng::with_seed(seed ^ fnv1a(&experiment.name));
    let cases = experiment.cases(quick);
    let blocks = cases.iter().map(|case| case.repeats).max().unwrap_or(0);
    let mut runs = Vec::new();
    for block in 0..blocks {
        let of_block: Vec<&Case> = cases.iter().filter(|case| block < case.repeats).collect();
        let mut groups = groups(&of_block, &mut random);
        random.shuffle(&mut groups);
        for (number, group) in groups.into_iter().enumerate() {
            let number = (group.len() > 1).then_some(number);
            runs.extend(group.into_iter().map(|case| Run { case: case.clone(), block, group: number }));
        }
    }
    runs
}

/// What must run without a pause between: a case, a run of its baseline, and another case with the same baseline,
/// so that each of the two is the baseline's neighbour. What has no baseline is a group of its own.
fn groups<'a>(cases: &[&'a Case], random: &mut fastrand::Rng) -> Vec<Vec<&'a Case>> {
    let mut groups = Vec::new();
    for case in cases {
        if case.baseline.is_none() {
            groups.push(vec![*case]);
        } else if case.baseline == Some(case.index) {
            groups.extend(around(case, cases, random));
        }
    }
    groups
}

/// The groups of one baseline.
fn around<'a>(baseline: &'a Case, cases: &[&'a Case], random: &mut fastrand::Rng) -> Vec<Vec<&'a Case>> {
    let is_compared = |case: &&&Case| case.baseline == Some(baseline.index) && case.index != baseline.index;
    let mut compared: Vec<&Case> = cases.iter().filter(is_compared).copied().collect();
    if compared.is_empty() {
        return vec![vec![baseline]];
    }
    random.shuffle(&mut compared);
    let mut groups = Vec::new();
    for pair in compared.chunks(2) {
        let mut group = pair.to_vec();
        // Alone it runs on either side of the baseline.
        group.insert(if pair.len() == 2 { 1 } else { random.usize(..=1) }, baseline);
        groups.push(group);
    }
    groups
}

/// 64-bit FNV-1a, written out because the standard library's hashes may change with its version.
fn fnv1a(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// How long all of it should take.
pub fn estimate(runs: &[Run]) -> Duration {
    runs.iter().map(|run| run.case.estimate).sum()
}

pub fn minutes_and_seconds(time: Duration) -> (u64, u64) {
    (time.as_secs() / 60, time.as_secs() % 60)
}

/// A bar that advances by estimated time, so that its remaining time is the run's; plain lines without a terminal.
struct Progress {
    bar: ProgressBar,
    plain: bool,
}

impl Progress {
    fn new(runs: &[Run]) -> Progress {
        let total = estimate(runs);
        let (minutes, seconds) = minutes_and_seconds(total);
        eprintln!("{} runs, about {minutes}:{seconds:02} min", runs.len());
        let plain = !stderr().is_terminal();
        let target = if plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(total.as_millis() as u64), target);
        let style = ProgressStyle::with_template("{bar:30} {eta} left  {wide_msg}");
        bar.set_style(style.expect("the template names known fields only"));
        Progress { bar, plain }
    }

    fn begin(&self, case: &Case) {
        self.bar.set_message(describe(case));
    }

    fn end(&self, case: &Case, failure: Option<&str>) {
        self.bar.inc(case.estimate.as_millis() as u64);
        if self.plain {
            eprintln!("{}", failure.map_or(describe(case), str::to_string));
        } else if let Some(failure) = failure {
            self.bar.println(failure);
        }
    }
}

/// Experiment, table and what distinguishes the case.
pub fn describe(case: &Case) -> String {
    format!("{} {}: {} < {}", case.experiment, case.table, case.server, case.client)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan::experiment::tests::parse_lesson;

    fn plan(name: &str, baseline: &str) -> Vec<Run> {
        let table = format!(
            "server = [{{ run = \"a\" }}, {{ run = \"b\" }}, {{ run = \"c\" }}, {{ run = \"d\" }}]\n\
             load = \"loadgen -c {{c}}\"\naxes = {{ c = [1, 2] }}\ncolumns = []\nrepeats = 3\n{baseline}"
        );
        let experiment = Experiment { name: name.to_string(), ..parse_lesson(&table).unwrap() };
        schedule(&experiment, false, 1)
    }

    fn order(runs: &[Run]) -> Vec<(usize, usize)> {
        runs.iter().map(|run| (run.block, run.case.index)).collect()
    }

    #[test]
    fn each_block_holds_one_run_of_every_case() {
        let runs = order(&plan("01-x", ""));
        for block in 0..3 {
            let of_block = &runs[block * 8..][..8];
            let mut cases: Vec<usize> = of_block.iter().map(|(_, case)| *case).collect();
            assert!(of_block.iter().all(|(of, _)| *of == block));
            cases.sort();
            assert_eq!(cases, (0..8).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_compared_runs_directly_beside_its_baseline() {
        let runs = plan("01-x", "baseline = { server = \"b\" }");
        let is_baseline = |run: &Run| run.case.baseline == Some(run.case.index);
        // Three of four servers in each of two lines: six runs, and two baselines for each line.
        assert_eq!(runs.len(), 3 * (6 + 4));
        for (i, run) in runs.iter().enumerate().filter(|(_, run)| !is_baseline(run)) {
            let beside = [i.checked_sub(1), Some(i + 1)].into_iter().flatten();
            let its_own = |other: &Run| {
                let place = |run: &Run| (run.block, run.group, run.case.baseline);
                is_baseline(other) && place(other) == place(run)
            };
            assert!(run.group.is_some());
            assert_eq!(beside.filter_map(|i| runs.get(i)).filter(|other| its_own(other)).count(), 1);
        }
    }

    #[test]
    fn seed_and_experiment_decide_the_order() {
        let here = order(&plan("01-x", ""));
        assert_eq!(here, order(&plan("01-x", "")));
        assert_ne!(here, order(&plan("02-x", "")));
        assert_eq!(fnv1a("a"), 0xaf63_dc4c_8601_ec8c);
    }
}
