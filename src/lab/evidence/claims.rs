//! Claims judged from rows.
//!
//! One run of a case gives one value. Two cases are compared run by run, within a block: the machine may have another
//! speed in the next one. What is compared with the bar is the interval around the median of these values. With fewer
//! runs than [`RUNS_FOR_INTERVAL`](crate::stats::RUNS_FOR_INTERVAL) that is their range, so that a claim is decided
//! only if all runs agree.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::lab::evidence::columns::{self, Sample};
use crate::lab::evidence::{numbers, table};
use crate::lab::plan::claim::{Bar, Basis, Cell, Claim, Comparison, Operation};
use crate::lab::plan::experiment::Experiment;
use crate::lab::record::Row;
use crate::stats::{self, Summary};
use crate::terminal::{Paint, shortened, wrapped};

/// The columns that a verdict's name takes at the beginning of its line.
const NAME_COLUMNS: usize = 10;

/// The columns that the sentence gets at least: in a narrow terminal the numbers make room for it.
const LEAST_OF_A_SENTENCE: usize = 30;

/// Whether a claim is true by the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimVerdict {
    /// The whole interval is within the bar.
    Holds,
    /// None of it is.
    Fails,
    Undecided,
    /// One run has no interval; whether it is within the bar.
    SeenOnce(bool),
    /// Nothing was measured: the reason.
    Skipped(String),
}

impl ClaimVerdict {
    pub fn name(&self) -> &'static str {
        match self {
            ClaimVerdict::Holds => "holds",
            ClaimVerdict::Fails => "fails",
            ClaimVerdict::Undecided => "undecided",
            ClaimVerdict::SeenOnce(_) => "seen once",
            ClaimVerdict::Skipped(_) => "skipped",
        }
    }

    fn painted(&self, text: &str, paint: Paint) -> String {
        match self {
            ClaimVerdict::Holds | ClaimVerdict::SeenOnce(true) => paint.green(text),
            ClaimVerdict::Fails | ClaimVerdict::SeenOnce(false) => paint.red(text),
            ClaimVerdict::Undecided => paint.yellow(text),
            ClaimVerdict::Skipped(_) => text.to_string(),
        }
    }

    fn of(summary: &Summary, runs: usize, bar: &Bar) -> ClaimVerdict {
        if runs == 1 {
            return ClaimVerdict::SeenOnce(bar.contains(summary.median));
        }
        if bar.contains(summary.low) && bar.contains(summary.high) {
            return ClaimVerdict::Holds;
        }
        if summary.high < bar.low || summary.low > bar.high { ClaimVerdict::Fails } else { ClaimVerdict::Undecided }
    }
}

/// A claim with what the rows say about it.
#[derive(Debug, Clone)]
pub struct JudgedClaim<'a> {
    pub claim: &'a Claim,
    pub verdict: ClaimVerdict,
    /// What each run gave, in the bar's unit.
    pub values: Vec<f64>,
    /// The median of `values` and its interval; absent without a value.
    pub summary: Option<Summary>,
    /// The medians of the two numbers of a ratio or a difference.
    pub sides: Option<[f64; 2]>,
}

impl JudgedClaim<'_> {
    pub const HEADERS: [&'static str; 4] = ["claim", "here", "measured", "required"];

    pub fn bar(&self) -> Option<&Bar> {
        self.claim.comparison().map(|comparison| &comparison.bar)
    }

    /// A number in the bar's unit.
    pub fn print(&self, number: f64) -> String {
        match self.claim.comparison() {
            Some(comparison) if comparison.bar_is_in_the_columns_unit() => self.print_side(number),
            _ => numbers::real(number),
        }
    }

    /// A number in the unit of the column.
    pub fn print_side(&self, number: f64) -> String {
        let column = self.claim.comparison().and_then(|comparison| columns::find(&comparison.value.column));
        column.map_or_else(|| numbers::real(number), |column| column.print(number))
    }

    /// The interval, where there is one.
    pub fn interval(&self) -> Option<[f64; 2]> {
        self.summary.filter(|_| self.values.len() > 1).map(|summary| [summary.low, summary.high])
    }

    /// `31.8 [31.7, 31.9]`, or why there is no number.
    pub fn measured(&self) -> String {
        match (&self.summary, &self.verdict) {
            (Some(summary), _) => numbers::spread(summary, |number| self.print(number)),
            (None, ClaimVerdict::Skipped(reason)) => reason.clone(),
            (None, _) => "–".to_string(),
        }
    }

    /// A line of a table below [`JudgedClaim::HEADERS`].
    pub fn cells(&self) -> [String; 4] {
        let bar = self.bar().map_or(String::new(), Bar::to_string);
        [self.claim.says.clone(), self.verdict.name().to_string(), self.measured(), bar]
    }

    /// Why it fails or stays undecided, where it does.
    pub fn why(&self) -> Option<&str> {
        let is_open = matches!(self.verdict, ClaimVerdict::Fails | ClaimVerdict::Undecided);
        self.claim.why.as_deref().filter(|_| is_open)
    }

    /// Whether a reader would ask why, and the lesson does not say it.
    pub fn is_unexplained(&self) -> bool {
        matches!(self.verdict, ClaimVerdict::Fails | ClaimVerdict::Undecided) && self.claim.why.is_none()
    }

    /// One line of at most `width` columns: verdict, sentence, numbers. Where it is too long, the interval is left out,
    /// and then the sentence is cut.
    pub fn line(&self, width: usize, paint: Paint) -> String {
        let name = shortened(&format!("{:<NAME_COLUMNS$}", self.verdict.name()), width);
        let room = width.saturating_sub(name.chars().count());
        let (says, bar, complete) = (&self.claim.says, self.bar_behind(), self.complete());
        let line = if complete.chars().count() <= room {
            complete
        } else {
            let number = self.summary.map_or_else(|| self.measured(), |summary| self.print(summary.median));
            let numbers = format!(": {number}{bar}");
            let left = room.saturating_sub(numbers.chars().count());
            shortened(&(shortened(says, left.max(LEAST_OF_A_SENTENCE)) + &numbers), room)
        };
        self.verdict.painted(&name, paint) + &line
    }

    /// All of it, in as many lines as that needs.
    fn in_full(&self, width: usize, paint: Paint) -> String {
        let name = format!("{:<NAME_COLUMNS$}", self.verdict.name());
        let lines = wrapped(&self.complete(), width.saturating_sub(NAME_COLUMNS), 0);
        self.verdict.painted(&name, paint) + &lines.join(&format!("\n{:NAME_COLUMNS$}", ""))
    }

    fn complete(&self) -> String {
        format!("{}: {}{}", self.claim.says, self.measured(), self.bar_behind())
    }

    fn bar_behind(&self) -> String {
        self.bar().filter(|_| self.summary.is_some()).map_or(String::new(), |bar| format!(" ({bar})"))
    }

    /// As `lab claims --format json` prints it; the contract, section 3, has the keys.
    pub fn json(&self, experiment: &str) -> Value {
        let claim = self.claim;
        let mut object = json!({
            "experiment": experiment, "id": claim.id, "says": claim.says, "source": claim.source,
            "published": claim.published, "measured": self.summary.map(|summary| summary.median),
            "interval": self.interval(), "runs": self.values.len(), "verdict": self.verdict.name(),
            "counted": claim.is_counted, "bar": null, "comparison": null, "unit": null,
        });
        if let Some(bar) = self.bar() {
            let (comparison, number) = match (bar.low.is_finite(), bar.high.is_finite()) {
                (true, false) => (">=", json!(bar.low)),
                (false, _) => ("<=", json!(bar.high)),
                _ => ("within", json!([bar.low, bar.high])),
            };
            object["bar"] = number;
            object["comparison"] = json!(comparison);
            object["unit"] = json!(bar.unit);
        }
        if let ClaimVerdict::Skipped(reason) = &self.verdict {
            object["reason"] = json!(reason);
        }
        if let Some(why) = self.why() {
            object["why"] = json!(why);
        }
        object
    }
}

/// Judges every claim of an experiment from rows, of which those of other experiments are ignored.
pub fn judge<'a>(experiment: &'a Experiment, rows: &[Row]) -> Vec<JudgedClaim<'a>> {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.experiment == experiment.name).collect();
    experiment.claims.iter().map(|claim| judge_one(experiment, claim, &rows)).collect()
}

/// The cases, by index, of which more runs could decide an undecided claim.
pub fn undecided_cases(experiment: &Experiment, rows: &[Row]) -> Vec<usize> {
    let judged = judge(experiment, rows);
    let undecided = judged.iter().filter(|judged| judged.verdict == ClaimVerdict::Undecided);
    let undecided: Vec<&Claim> = undecided.map(|judged| judged.claim).collect();
    let cases = experiment.cases(false).into_iter();
    cases.filter(|case| undecided.iter().any(|claim| claim.uses(case))).map(|case| case.index).collect()
}

/// Each of them in full, in lines that break at `width` columns.
pub fn in_full(judged: &[JudgedClaim], width: usize, paint: Paint) -> Vec<String> {
    judged.iter().map(|judged| judged.in_full(width, paint)).collect()
}

fn judge_one<'a>(experiment: &Experiment, claim: &'a Claim, rows: &[&Row]) -> JudgedClaim<'a> {
    let nothing = |reason: String| JudgedClaim {
        claim,
        verdict: ClaimVerdict::Skipped(reason),
        values: Vec::new(),
        summary: None,
        sides: None,
    };
    let comparison = match &claim.basis {
        Basis::Measured(comparison) => comparison,
        Basis::Nothing(reason) => return nothing(reason.clone()),
    };
    match measure(experiment, comparison, rows) {
        Err(reason) => nothing(reason),
        Ok((values, sides)) => match stats::summarize(&values) {
            None => nothing("the two rows have no block in common, or the divisor is 0".to_string()),
            Some(summary) => {
                let verdict = ClaimVerdict::of(&summary, values.len(), &comparison.bar);
                JudgedClaim { claim, verdict, values, summary: Some(summary), sides }
            }
        },
    }
}

/// What each run gave, and the medians of the two numbers that are compared.
fn measure(
    experiment: &Experiment,
    comparison: &Comparison,
    rows: &[&Row],
) -> Result<(Vec<f64>, Option<[f64; 2]>), String> {
    let value = values_of_runs(experiment, &comparison.value, rows)?;
    let scaled = |numbers: Vec<f64>| numbers.into_iter().map(|number| comparison.scale * number).collect();
    let Some((operation, other)) = &comparison.other else {
        return Ok((scaled(value.iter().map(|value| value.number).collect()), None));
    };
    let other = values_of_runs(experiment, other, rows)?;
    Ok((scaled(paired(&value, &other, *operation)), Some([median(&value), median(&other)])))
}

/// One number of one run.
#[derive(Debug, Clone, Copy, PartialEq)]
struct RunValue {
    block: usize,
    group: Option<usize>,
    number: f64,
}

/// The number of every run of a cell that has one, or why there is none.
fn values_of_runs(experiment: &Experiment, cell: &Cell, rows: &[&Row]) -> Result<Vec<RunValue>, String> {
    let spec = experiment.matrix.tables.iter().find(|spec| spec.id == cell.table);
    let column = columns::find(&cell.column);
    let (spec, column) = spec.zip(column).expect("the claim was checked when the file was read");
    let of_table: Vec<&Row> = rows.iter().copied().filter(|row| row.table == cell.table).collect();
    let runs: Vec<&Row> = of_table.iter().copied().filter(|row| cell.is_at(&row.table, &row.coordinates)).collect();
    let complete = runs.iter().filter(|row| row.failure.is_none() && row.skipped.is_none());
    let value = |row: &&Row| {
        let number = column.number(Sample { row, baseline: table::baseline(spec, &of_table, row) })?;
        Some(RunValue { block: row.block, group: row.group, number })
    };
    let values_of_runs: Vec<RunValue> = complete.filter_map(value).filter(|value| value.number.is_finite()).collect();
    if !values_of_runs.is_empty() {
        return Ok(values_of_runs);
    }
    let reason = runs.iter().find_map(|row| row.skipped.clone().or(row.failure.as_ref().map(|why| failed(why))));
    let coordinates: Vec<String> = cell.coordinates.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let place = format!("table {}, {}", cell.table, coordinates.join(", "));
    Err(reason.unwrap_or_else(|| match runs.len() {
        0 => format!("not measured: {place}"),
        _ => format!("no run has this number: {}, {place}", cell.column),
    }))
}

fn failed(why: &str) -> String {
    format!("every run failed: {why}")
}

/// One number per block that has both: from runs directly beside each other if there are such runs (a baseline runs
/// several times in a block), otherwise from the medians within the block.
fn paired(values: &[RunValue], others: &[RunValue], operation: Operation) -> Vec<f64> {
    let combine = |a: f64, b: f64| match operation {
        Operation::Over => (b != 0.0).then(|| a / b),
        Operation::Minus => Some(a - b),
    };
    let of_block = |values_of_runs: &[RunValue], block: usize| -> Vec<RunValue> {
        values_of_runs.iter().copied().filter(|value| value.block == block).collect()
    };
    let blocks: BTreeSet<usize> = values.iter().map(|value| value.block).collect();
    let one = |block: usize| {
        let (values, others) = (of_block(values, block), of_block(others, block));
        let beside = |value: &RunValue| {
            let other = others.iter().find(|other| value.group.is_some() && other.group == value.group)?;
            combine(value.number, other.number)
        };
        let beside: Vec<f64> = values.iter().filter_map(beside).collect();
        if values.is_empty() || others.is_empty() {
            return None;
        }
        stats::median(&beside).or_else(|| combine(median(&values), median(&others)))
    };
    blocks.into_iter().filter_map(one).collect()
}

fn median(values_of_runs: &[RunValue]) -> f64 {
    let numbers: Vec<f64> = values_of_runs.iter().map(|value| value.number).collect();
    stats::median(&numbers).expect("there is a value")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::evidence::columns::tests::row;
    use crate::lab::plan::experiment::tests::parse_lesson;

    const TABLE: &str = "server = [{ run = \"sync\" }, { run = \"prefork\" }]\nload = \"loadgen\"\n\
                         columns = [\"qps\", \"share_of_baseline\"]\n[[claim]]\nid = \"x\"\nsays = \"It is fast\"\n";
    const VALUE: &str = "value = { table = \"t\", column = \"qps\", server = \"sync\" }\n";

    fn experiment(claim: &str) -> Experiment {
        parse_lesson(&format!("{TABLE}{claim}")).unwrap()
    }

    /// A run of each server for every block: requests per second.
    fn rows(sync: &[f64], prefork: &[f64]) -> Vec<Row> {
        let one = |server: &str, block: usize, rate: f64| {
            let mut row = row();
            (row.experiment, row.table, row.block) = ("02-keep-alive".to_string(), "t".to_string(), block);
            row.coordinates = [("server", server), ("client", "loadgen")].map(|(a, b)| (a.into(), b.into())).to_vec();
            row.load.as_mut().unwrap().qps = rate;
            row
        };
        let of = |server: &'static str, rates: &[f64]| -> Vec<Row> {
            rates.iter().enumerate().map(|(block, rate)| one(server, block, *rate)).collect()
        };
        [of("sync", sync), of("prefork", prefork)].concat()
    }

    fn verdict(claim: &str, rows: &[Row]) -> ClaimVerdict {
        judge(&experiment(claim), rows)[0].verdict.clone()
    }

    #[test]
    fn a_claim_is_decided_when_the_whole_interval_is_on_one_side_of_the_bar() {
        let claim = |bar: &str| format!("{VALUE}bar = \"{bar} requests/s\"");
        let runs = rows(&[90.0, 100.0, 110.0], &[]);
        assert_eq!(verdict(&claim(">= 90"), &runs), ClaimVerdict::Holds);
        assert_eq!(verdict(&claim(">= 91"), &runs), ClaimVerdict::Undecided);
        assert_eq!(verdict(&claim(">= 111"), &runs), ClaimVerdict::Fails);
        assert_eq!(verdict(&claim("<= 89"), &runs), ClaimVerdict::Fails);
        assert_eq!(verdict(&claim("80..120"), &runs), ClaimVerdict::Holds);
        assert_eq!(verdict(&claim("95..105"), &runs), ClaimVerdict::Undecided);
        assert_eq!(verdict(&claim("111..120"), &runs), ClaimVerdict::Fails);
        // Twelve runs: the interval leaves out the two lowest and the two highest.
        let many: Vec<f64> = (1..=12).map(f64::from).collect();
        assert_eq!(verdict(&claim("3..10"), &rows(&many, &[])), ClaimVerdict::Holds);
        assert_eq!(verdict(&claim("4..10"), &rows(&many, &[])), ClaimVerdict::Undecided);
    }

    #[test]
    fn a_single_run_was_only_seen_once() {
        let claim = format!("{VALUE}bar = \">= 90 requests/s\"");
        assert_eq!(verdict(&claim, &rows(&[95.0], &[])), ClaimVerdict::SeenOnce(true));
        assert_eq!(verdict(&claim, &rows(&[85.0], &[])), ClaimVerdict::SeenOnce(false));
    }

    #[test]
    fn what_was_not_measured_is_skipped_with_its_reason() {
        let reason = |rows: &[Row]| match verdict(&format!("{VALUE}bar = \">= 90 requests/s\""), rows) {
            ClaimVerdict::Skipped(reason) => reason,
            verdict => panic!("{verdict:?}"),
        };
        assert_eq!(reason(&[]), "not measured: table t, server sync, client loadgen");
        let mut runs = rows(&[95.0], &[]);
        runs[0].failure = Some("sync ended".to_string());
        assert_eq!(reason(&runs), "every run failed: sync ended");
        runs[0].skipped = Some("needs CAP_BPF".to_string());
        assert_eq!(reason(&runs), "needs CAP_BPF");
        let mut silent = rows(&[95.0], &[]);
        silent[0].load = None;
        assert!(reason(&silent).starts_with("no run has this number: qps"));
        let skipped = verdict("skipped = \"no design\"", &[]);
        assert_eq!(skipped, ClaimVerdict::Skipped("no design".to_string()));
    }

    #[test]
    fn a_failed_run_does_not_count_beside_others() {
        let mut runs = rows(&[95.0, 5.0], &[]);
        runs[1].failure = Some("sync ended".to_string());
        assert_eq!(verdict(&format!("{VALUE}bar = \">= 90 requests/s\""), &runs), ClaimVerdict::SeenOnce(true));
    }

    fn ratios(rows: &[Row]) -> Vec<f64> {
        let claim = format!("{VALUE}over = {{ server = \"prefork\" }}\nbar = \">= 1 times\"");
        judge(&experiment(&claim), rows)[0].values.clone()
    }

    #[test]
    fn two_rows_are_compared_within_their_block() {
        // The machine was four times as fast in the second block.
        assert_eq!(ratios(&rows(&[100.0, 400.0], &[50.0, 200.0])), [2.0, 2.0]);
        assert_eq!(ratios(&rows(&[100.0, 400.0], &[50.0])), [2.0]);
        assert_eq!(ratios(&rows(&[100.0], &[0.0])), [0.0; 0]);
    }

    #[test]
    fn of_several_runs_in_a_block_those_beside_each_other_are_compared() {
        // Block 0 holds two runs of sync, one of them in the group of prefork's.
        let mut runs = rows(&[100.0, 400.0], &[50.0]);
        for (row, group) in runs.iter_mut().zip([0, 1, 1]) {
            (row.block, row.group) = (0, Some(group));
        }
        assert_eq!(ratios(&runs), [8.0]);
        // In no common group: the median of the block.
        runs[1].group = Some(2);
        runs[2].group = Some(3);
        assert_eq!(ratios(&runs), [5.0]);
    }

    #[test]
    fn a_difference_keeps_the_unit_and_the_medians_of_both_sides() {
        let claim = format!("{VALUE}minus = {{ server = \"prefork\" }}\nbar = \">= 40 requests/s\"");
        let experiment = experiment(&claim);
        let judged = &judge(&experiment, &rows(&[100.0, 110.0], &[50.0, 70.0]))[0];
        assert_eq!((judged.values.as_slice(), judged.sides), (&[50.0, 40.0][..], Some([105.0, 60.0])));
        assert_eq!(judged.verdict, ClaimVerdict::Holds);
    }

    #[test]
    fn a_line_fits_and_keeps_the_numbers_as_long_as_there_is_room() {
        let claim = format!("{VALUE}bar = \">= 90 requests/s\"");
        let experiment = experiment(&claim);
        let judged = judge(&experiment, &rows(&[1000.0, 3000.0], &[]));
        let plain = Paint { has_colour: false };
        let line = |width| judged[0].line(width, plain);
        assert_eq!(line(100), "holds     It is fast: 2,000 [1,000, 3,000] (≥ 90 requests/s)");
        for width in [10, 20, 40, 60] {
            assert!(line(width).chars().count() <= width, "{width}: {}", line(width));
        }
        let in_full = in_full(&judged, 40, plain).join("\n");
        assert_eq!(in_full, "holds     It is fast: 2,000 [1,000,\n          3,000] (≥ 90 requests/s)");
    }

    #[test]
    fn json_has_the_keys_of_the_contract() {
        let claim = format!("{VALUE}bar = \"<= 90 requests/s\"\nwhy = \"slow disk\"");
        let experiment = experiment(&claim);
        let value = judge(&experiment, &rows(&[100.0, 110.0], &[]))[0].json("02-keep-alive");
        assert_eq!(
            value,
            json!({"experiment": "02-keep-alive", "id": "x", "says": "It is fast", "source": null, "published": null,
                   "measured": 105.0, "interval": [100.0, 110.0], "bar": 90.0, "comparison": "<=", "unit": "requests/s",
                   "runs": 2, "verdict": "fails", "counted": false, "why": "slow disk"})
        );
    }
}
