//! In which order the runs of an experiment are made: in blocks, each with a run of every case in seeded random order,
//! so that a change of the machine's speed meets all servers alike. A machine can change its speed within a block, too;
//! therefore a run that is compared with a baseline stands directly beside a run of it.
//!
//! The matrix says how many blocks there are at least. Further ones hold the cases that an undecided claim needs, as
//! long as [`FURTHER`] allows: repeats are spent where they can decide something.

use std::time::Duration;

use crate::lab::plan::case::Case;
use crate::lab::plan::experiment::{Experiment, fnv1a};

/// How much time of a lesson further blocks may take.
pub const FURTHER: Duration = Duration::from_secs(15);

/// One run to be made.
#[derive(Clone)]
pub struct Run {
    pub case: Case,
    pub block: usize,
    /// Runs of a block with the same number stand directly beside each other: a baseline and what is compared with it.
    pub group: Option<usize>,
    /// Beyond the matrix' own repeats.
    pub is_further: bool,
}

/// Every run of an experiment in order. The order depends only on the experiment and the seed, so that the command
/// below a table repeats the order of that table, whatever other experiments ran in the same record.
pub fn schedule(experiment: &Experiment, quick: bool, seed: u64) -> Vec<Run> {
    let cases = experiment.cases(quick);
    let of_block = |block| -> Vec<Run> {
        let of_block: Vec<&Case> = cases.iter().filter(|case| block < case.repeats).collect();
        one_block(&experiment.name, &of_block, block, seed)
    };
    (0..fewest_blocks(&cases)).flat_map(of_block).collect()
}

fn fewest_blocks(cases: &[Case]) -> usize {
    cases.iter().map(|case| case.repeats).max().unwrap_or(0)
}

/// The `number`th block beyond those of the schedule: the cases at these indices, and what they are compared with.
pub fn further_block(experiment: &Experiment, wanted: &[usize], number: usize, seed: u64) -> Vec<Run> {
    let cases = experiment.cases(false);
    let is_wanted = |case: &Case| wanted.contains(&case.index);
    let is_compared = |case: &Case| cases.iter().any(|other| is_wanted(other) && other.baseline == Some(case.index));
    let of_block: Vec<&Case> = cases.iter().filter(|case| is_wanted(case) || is_compared(case)).collect();
    let runs = one_block(&experiment.name, &of_block, fewest_blocks(&cases) + number, seed);
    runs.into_iter().map(|run| Run { is_further: true, ..run }).collect()
}

/// A run of each of these cases; the order depends only on the experiment, the block and the seed.
fn one_block(experiment: &str, cases: &[&Case], block: usize, seed: u64) -> Vec<Run> {
    // Another seed for the clients of each block, so that repeats are not the same arrivals again. Within a block all
    // servers meet the same arrivals, which makes their comparison sharper (common random numbers: Law, Simulation
    // Modeling, ch. 11.2).
    let hash = fnv1a(&format!("{experiment} {seed} {block}"));
    let client_seed = hash % 1_000_000;
    let mut random = fastrand::Rng::with_seed(hash);
    let mut groups = groups(cases, &mut random);
    random.shuffle(&mut groups);
    let mut runs = Vec::new();
    for (number, group) in groups.into_iter().enumerate() {
        let number = (group.len() > 1).then_some(number);
        let seeded = |case: &Case| Case { client: case.client.with_seed(client_seed), ..case.clone() };
        runs.extend(group.into_iter().map(|case| Run { case: seeded(case), block, group: number, is_further: false }));
    }
    runs
}

/// Runs that follow each other directly: a case, a run of its baseline, and another case with the same baseline, so
/// that each of the two is the baseline's neighbour. A case without a baseline is a group of its own.
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
        // A single case runs on either side of the baseline, by chance.
        group.insert(if pair.len() == 2 { 1 } else { random.usize(..=1) }, baseline);
        groups.push(group);
    }
    groups
}

/// How long all of it should take.
pub fn estimate(runs: &[Run]) -> Duration {
    runs.iter().map(|run| run.case.estimate).sum()
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
    fn a_run_that_is_compared_stands_directly_beside_its_baseline() {
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
    fn a_repeat_has_other_arrivals_and_a_block_the_same() {
        let table =
            "server = [{ run = \"a\" }, { run = \"b\" }]\nload = \"loadgen --rate 9 --arrivals poisson\"\ncolumns = []";
        let runs = |seed| schedule(&parse_lesson(table).unwrap(), false, seed);
        let clients =
            |seed| -> Vec<String> { runs(seed).iter().map(|run| run.case.client.text().to_string()).collect() };
        let blocks: Vec<Vec<String>> = clients(1).chunks(2).map(<[String]>::to_vec).collect();
        assert!(blocks.iter().all(|block| block[0] == block[1] && block[0].contains("--seed ")), "{blocks:?}");
        let different: std::collections::BTreeSet<&String> = blocks.iter().map(|block| &block[0]).collect();
        assert_eq!(different.len(), blocks.len());
        assert_eq!(clients(1), clients(1));
        assert_ne!(clients(1), clients(2));
    }

    #[test]
    fn a_further_block_holds_what_is_wanted_and_what_it_is_compared_with() {
        let table = "server = [{ run = \"a\" }, { run = \"b\" }, { run = \"c\" }]\nload = \"loadgen\"\ncolumns = []\n\
                     repeats = 3\nbaseline = { server = \"b\" }";
        let runs = further_block(&parse_lesson(table).unwrap(), &[2], 1, 7);
        let mut cases: Vec<usize> = runs.iter().map(|run| run.case.index).collect();
        cases.sort();
        assert_eq!(cases, [1, 2]);
        assert!(runs.iter().all(|run| run.block == 4 && run.group == Some(0) && run.is_further));
    }

    #[test]
    fn seed_and_experiment_decide_the_order() {
        let here = order(&plan("01-x", ""));
        assert_eq!(here, order(&plan("01-x", "")));
        assert_ne!(here, order(&plan("02-x", "")));
    }
}
