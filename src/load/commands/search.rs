//! Many runs for one answer: the highest rate that holds, and the throughput-latency curve. Chance must not decide: two
//! runs of three that agree do. Nor may the length of a run: a rate a little beyond the capacity needs time to build
//! the queue that shows it, so a run in which response times grow does not hold, and the winner has to hold for three
//! times as long.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::console;
use crate::load::options::condition::Condition;
use crate::load::options::plan::Plan;
use crate::load::options::sweep::Sweep;
use crate::load::run;
use crate::load::run::observers::Observers;
use crate::load::schedule::Rate;
use crate::load::verdict::{self, ACHIEVED_SHARE, BUSY_CLIENT, expected_outstanding};
use crate::report::{Latency, LoadReport, Verdict};
use crate::units::{over, time};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RatePoint {
    pub rate_per_s: f64,
    pub achieved_share: f64,
    /// Whether the condition held at it; absent in a sweep, which has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds: Option<bool>,
    /// It took three times as long, to confirm the answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub confirms: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finding: Option<String>,
    pub report: LoadReport,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    pub sweep: Vec<RatePoint>,
    /// Index of the knee: where throughput over mean response time, the *power*, is largest (Kleinrock, "Power and
    /// deterministic rules of thumb", ICC 1979).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knee: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SearchResult {
    pub condition: String,
    /// The highest rate at which it held in two runs of three and in a longer one, and the lowest above at which it did
    /// not: the answer lies between them.
    pub highest_held_per_s: Option<f64>,
    pub lowest_failed_per_s: Option<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disagreed_at_per_s: Vec<f64>,
    /// What failed was the client: the server may be able to do more.
    pub client_is_limit: bool,
    pub runs: Vec<RatePoint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<String>,
}

/// How one run comes about, so many times as long as was asked for; without a rate in closed loop.
type RunAtRate<'a> = &'a mut dyn FnMut(Option<Rate>, u32) -> Result<LoadReport, String>;
type LogLine<'a> = &'a dyn Fn(&str);

pub fn sweep(plan: &Plan, sweep: &Sweep) -> Result<Curve, String> {
    sweep_with(sweep, &mut |rate, times| measure(plan, rate, times), &log)
}

pub fn find_max(plan: &Plan, condition: &Condition) -> Result<SearchResult, String> {
    let least_per_s = LEAST_REQUESTS / duration(plan).as_secs_f64();
    let mut plan = plan.clone();
    let mut measure_next = |rate, times| {
        let report = measure(&plan, rate, times);
        // The same due times again would be no second opinion.
        plan.pacing.seed = plan.pacing.seed.wrapping_add(1);
        report
    };
    find_max_with(condition, least_per_s, &mut measure_next, &log)
}

fn log(line: &str) {
    console::log(format_args!("loadgen: {line}"));
}

fn measure(plan: &Plan, rate: Option<Rate>, times: u32) -> Result<LoadReport, String> {
    let mut plan = plan.at_rate(rate);
    let duration = duration(&plan) * times;
    plan.window.duration = Some(duration);
    let report = run::run(&plan, Observers::none())?.report;
    let interrupted = report.run.as_ref().is_some_and(|run| run.interrupted);
    if interrupted || report.duration_s < 0.99 * duration.as_secs_f64() {
        return Err("ended early".into());
    }
    Ok(report)
}

fn duration(plan: &Plan) -> Duration {
    plan.window.duration.expect("a search has no number of requests")
}

/// The answer is known to this share of itself.
const PRECISION: f64 = 0.05;
/// The run that confirms the answer is so many times as long; when it fails, the next rate is lower by this share, and
/// by twice as much each time.
const CONFIRM_TIMES: u32 = 3;
const STEP_DOWN: f64 = PRECISION;
/// The fewest requests a run may have to say anything at all.
const LEAST_REQUESTS: f64 = 20.0;

fn sweep_with(sweep: &Sweep, measure: RunAtRate, say: LogLine) -> Result<Curve, String> {
    let mut curve = Curve::default();
    for &per_s in &sweep.rates_per_s {
        match measure(Some(rate(per_s)?), 1) {
            Ok(report) => curve.sweep.push(RatePoint::of(per_s, report, None)),
            Err(error) if curve.sweep.is_empty() => return Err(error),
            Err(error) => {
                curve.ended_by = Some(error);
                break;
            }
        }
        say(&format!("{per_s:.0}/s: {}", curve.sweep[curve.sweep.len() - 1].summary()));
    }
    let power = |point: &RatePoint| point.report.qps / point.report.latency_us.mean.max(1e-3);
    let best = curve.sweep.iter().enumerate().max_by(|(_, a), (_, b)| power(a).total_cmp(&power(b)));
    // At the edge it may lie beyond.
    curve.knee = best.map(|(i, _)| i).filter(|&i| i > 0 && i + 1 < curve.sweep.len());
    Ok(curve)
}

/// From half of what a closed loop reaches up or down by factors of two until the answer is enclosed, then by halves
/// of the interval.
fn find_max_with(
    condition: &Condition,
    least_per_s: f64,
    measure: RunAtRate,
    say: LogLine,
) -> Result<SearchResult, String> {
    say("closed loop, to know where to begin");
    let closed_loop = measure(None, 1)?;
    if closed_loop.requests == 0 {
        return Err("find a rate that holds: the server answered nothing".into());
    }
    let found = SearchResult { condition: condition.text.clone(), ..SearchResult::default() };
    let mut search = Search { condition, least_per_s, measure, say, found };
    let done = search.run((closed_loop.qps / 2.0).max(least_per_s)).and_then(|()| search.confirm());
    search.found.ended_by = done.err();
    Ok(search.found)
}

struct Search<'a> {
    condition: &'a Condition,
    least_per_s: f64,
    measure: RunAtRate<'a>,
    say: LogLine<'a>,
    found: SearchResult,
}

impl Search<'_> {
    fn run(&mut self, mut next_per_s: f64) -> Result<(), String> {
        loop {
            match (self.found.highest_held_per_s, self.found.lowest_failed_per_s) {
                (Some(held), Some(failed)) if failed - held <= PRECISION * held => return Ok(()),
                (Some(held), Some(failed)) => next_per_s = (held + failed) / 2.0,
                // Faster than anything sends.
                (Some(held), None) if rate(2.0 * held).is_err() => {
                    self.found.client_is_limit = true;
                    return Ok(());
                }
                (Some(held), None) => next_per_s = 2.0 * held,
                (None, Some(failed)) if failed <= self.least_per_s => return Ok(()),
                (None, Some(failed)) => next_per_s = (failed / 2.0).max(self.least_per_s),
                (None, None) => {}
            }
            if self.holds(next_per_s)? {
                self.found.highest_held_per_s = Some(next_per_s);
            } else {
                self.found.lowest_failed_per_s = Some(next_per_s);
            }
        }
    }

    /// Goes down from the answer until it holds for longer than a queue can hide.
    fn confirm(&mut self) -> Result<(), String> {
        let mut step = STEP_DOWN;
        while let Some(per_s) = self.found.highest_held_per_s {
            let point = self.measure_at(per_s, CONFIRM_TIMES)?;
            if point.holds == Some(true) {
                return Ok(());
            }
            self.found.client_is_limit = point.client_is_limit();
            self.found.lowest_failed_per_s = Some(per_s);
            let next_per_s = per_s * (1.0 - step);
            self.found.highest_held_per_s = (step < 1.0 && next_per_s >= self.least_per_s).then_some(next_per_s);
            step *= 2.0;
        }
        Ok(())
    }

    fn holds(&mut self, per_s: f64) -> Result<bool, String> {
        let (mut held, mut failed, mut client_failed) = (0, 0, 0);
        while held < 2 && failed < 2 {
            let point = self.measure_at(per_s, 1)?;
            if point.holds == Some(true) {
                held += 1;
            } else {
                failed += 1;
                client_failed += u32::from(point.client_is_limit());
            }
        }
        if held > 0 && failed > 0 {
            self.found.disagreed_at_per_s.push(per_s);
        }
        if failed >= 2 {
            self.found.client_is_limit = client_failed >= 2;
        }
        Ok(held >= 2)
    }

    fn measure_at(&mut self, per_s: f64, times: u32) -> Result<&RatePoint, String> {
        let report = (self.measure)(Some(rate(per_s)?), times)?;
        let point = RatePoint { confirms: times > 1, ..RatePoint::of(per_s, report, Some(self.condition)) };
        let holds = if point.holds == Some(true) { "holds" } else { "fails" };
        let longer = if point.confirms { format!(" for {times} times as long") } else { String::new() };
        (self.say)(&format!("{per_s:.1}/s {holds}{longer}: {}", point.summary()));
        self.found.runs.push(point);
        Ok(&self.found.runs[self.found.runs.len() - 1])
    }
}

impl RatePoint {
    fn of(per_s: f64, report: LoadReport, condition: Option<&Condition>) -> RatePoint {
        let achieved_share = achieved_share(per_s, &report);
        let (is_served, drifts) = (achieved_share >= ACHIEVED_SHARE, verdict::DRIFT.failed(&report).is_some());
        let holds = condition.map(|condition| is_served && !drifts && condition.holds(&report) == Some(true));
        let finding = condition.map(|condition| match (is_served, drifts) {
            (false, _) => format!("only {:.1} % answered in time", achieved_share * 100.0),
            (true, true) => format!("{}, but its rate or response time drifts", condition.finding(&report)),
            (true, false) => condition.finding(&report),
        });
        RatePoint { rate_per_s: per_s, achieved_share, holds, finding, confirms: false, report }
    }

    /// The checks that it did not pass, in the words of the verdict: `suspect: send_delay, steal`.
    fn failed_checks(&self) -> String {
        let Some(trust) = self.report.trust.as_ref().filter(|trust| trust.verdict != Verdict::Valid) else {
            return String::new();
        };
        let failed = trust.checks.iter().filter(|check| check.verdict != Verdict::Valid);
        let names: Vec<&str> = failed.map(|check| check.name.as_str()).collect();
        format!("{}: {}", trust.verdict.name(), names.join(", "))
    }

    fn client_is_limit(&self) -> bool {
        let Some(trust) = &self.report.trust else { return self.report.client.cpu_share > BUSY_CLIENT };
        // A client that polls is always busy, and the rule knows that.
        trust.verdict == Verdict::Invalid || verdict::CPU.failed(&self.report).is_some()
    }

    fn summary(&self) -> String {
        let finding = self.finding.as_ref().map_or(String::new(), |finding| format!("{finding}; "));
        let LoadReport { qps, latency_us, errors, .. } = &self.report;
        let (p50, p99, errors) = (time(latency_us.p50), time(latency_us.p99), errors.total());
        format!("{finding}{qps:.1}/s answered, p50 {p50}, p99 {p99}, {errors} errors")
    }
}

/// Of what was due, the share that was answered in the window, or was rightly outstanding at its end: the median, since
/// a queue that grows has a mean as long as it likes.
fn achieved_share(per_s: f64, report: &LoadReport) -> f64 {
    let offered_per_s = report.offered_per_s.unwrap_or(per_s);
    let due = offered_per_s * report.duration_s;
    let outstanding = expected_outstanding(offered_per_s, report.latency_us.p50, report.duration_s);
    // One more, since the window may begin and end between two due times.
    over(report.requests as f64 + outstanding + 1.0, due).min(1.0)
}

fn rate(per_s: f64) -> Result<Rate, String> {
    format!("{per_s:.6}").parse()
}

impl Curve {
    pub fn render(&self) -> String {
        let remark = |i| if Some(i) == self.knee { "knee".into() } else { String::new() };
        let knee = match self.knee.map(|i| self.sweep[i].rate_per_s) {
            Some(per_s) => format!("The knee, where throughput over mean response time is largest: {per_s:.0}/s."),
            None => "No knee: throughput over mean response time is largest at an end of the sweep.".into(),
        };
        let end = self.ended_by.as_ref().map_or(String::new(), |why| format!("The sweep is not complete: {why}.\n"));
        format!("{}\n{knee}\n{end}", table(&self.sweep, remark))
    }
}

impl SearchResult {
    pub fn render(&self) -> String {
        let held = |i: usize| {
            let RatePoint { holds, confirms, finding, .. } = &self.runs[i];
            let longer = if *confirms { ", for longer" } else { "" };
            match (*holds, finding) {
                (Some(true), _) => format!("holds{longer}"),
                (_, finding) => format!("fails{longer}: {}", finding.as_deref().unwrap_or("unknown")),
            }
        };
        format!("{}\n{}\n", table(&self.runs, held), self.answer())
    }

    pub fn answer(&self) -> String {
        let client = if self.client_is_limit { " There the client is the limit, not the server." } else { "" };
        let end = self.ended_by.as_ref().map_or(String::new(), |why| format!(" The search is not complete: {why}."));
        let answer = match (self.highest_held_per_s, self.lowest_failed_per_s) {
            (Some(held), Some(failed)) => {
                format!("holds at {held:.1}/s and fails at {failed:.1}/s: the highest rate lies between.")
            }
            (Some(held), None) => format!("holds at {held:.1}/s, and no rate was found at which it does not."),
            (None, Some(failed)) => format!("never holds, not even at {failed:.1}/s."),
            (None, None) => "has not been tried.".into(),
        };
        let rates: Vec<String> = self.disagreed_at_per_s.iter().map(|per_s| format!("{per_s:.1}/s")).collect();
        let noise = match rates.join(", ") {
            rates if rates.is_empty() => rates,
            rates => format!(" At {rates} one run of three disagreed with the others: noise."),
        };
        format!("{} {answer}{client}{noise}{end}", self.condition)
    }
}

fn table(points: &[RatePoint], remark: impl Fn(usize) -> String) -> String {
    let mut text = String::from("   offered/s  answered/s       p50       p99     p99.9    errors\n");
    for (i, point) in points.iter().enumerate() {
        let RatePoint { rate_per_s, report, .. } = point;
        let Latency { p50, p99, p99_9, .. } = report.latency_us;
        let times = [p50, p99, p99_9].map(|us| format!("{:>10}", time(us))).concat();
        let remarks = [remark(i), point.failed_checks()].into_iter().filter(|text| !text.is_empty());
        let remarks: String = remarks.map(|text| format!("  {text}")).collect();
        let (qps, errors) = (report.qps, report.errors.total());
        text += &format!("{rate_per_s:>12.1}{qps:>12.1}{times}{errors:>10}{remarks}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Check, Trust};

    /// A server with this capacity, whose response time grows like 1/(1 − ρ), and a client that can send this much.
    fn answered(rate: Option<Rate>, capacity: f64, client: f64) -> LoadReport {
        let offered = rate.map_or(f64::INFINITY, Rate::per_s);
        let qps = offered.min(capacity).min(client);
        let p99 = if offered >= capacity.min(client) { 1e6 } else { 1000.0 / (1.0 - offered / capacity) };
        let mut report = LoadReport {
            qps,
            requests: qps as u64,
            duration_s: 1.0,
            offered_per_s: rate.map(Rate::per_s),
            latency_us: Latency { p50: p99 / 3.0, p99, mean: p99 / 3.0, max: p99, ..Latency::default() },
            ..LoadReport::default()
        };
        report.client.cpu_share = if offered >= client { 1.0 } else { 0.5 };
        report
    }

    fn found(condition: &str, measure: RunAtRate) -> SearchResult {
        find_max_with(&condition.parse().unwrap(), 20.0, measure, &|_| {}).unwrap()
    }

    #[test]
    fn the_highest_rate_is_enclosed_within_five_per_cent() {
        // 1000/(1 − ρ) < 5000 up to ρ = 0.8.
        for capacity in [100.0, 1000.0, 77_777.0] {
            let found = found("p99<5ms", &mut |rate, _| Ok(answered(rate, capacity, 1e9)));
            let (held, failed) = (found.highest_held_per_s.unwrap(), found.lowest_failed_per_s.unwrap());
            assert!(held < 0.8 * capacity && 0.8 * capacity <= failed && failed - held <= 0.05 * held, "{found:?}");
            assert!(!found.client_is_limit && found.ended_by.is_none());
            assert!(found.runs.len() <= 18, "{} runs", found.runs.len());
            assert!(found.render().contains("fails at"));
        }
    }

    #[test]
    fn a_rate_that_holds_only_for_a_moment_is_stepped_down_from() {
        // In a short run the queue beyond 1000/s does not show; in a long one it does.
        let found =
            found("p99<5ms", &mut |rate, times| Ok(answered(rate, if times > 1 { 1000.0 } else { 1300.0 }, 1e9)));
        let (held, failed) = (found.highest_held_per_s.unwrap(), found.lowest_failed_per_s.unwrap());
        assert!(held < 800.0 && failed >= 800.0, "{}", found.render());
        assert!(found.runs.iter().filter(|run| run.confirms).count() > 1);
        assert!(found.render().contains("holds, for longer\n") && found.render().contains("fails, for longer: "));
        // And one that never holds for long never holds.
        let found =
            self::found("p99<5ms", &mut |rate, times| Ok(answered(rate, if times > 1 { 1.0 } else { 1000.0 }, 1e9)));
        assert_eq!(found.highest_held_per_s, None);
        assert!(found.answer().contains("never holds"));
    }

    #[test]
    fn a_run_whose_response_times_grow_does_not_hold() {
        let condition: Condition = "p99<5ms".parse().unwrap();
        let mut report = answered(Some(rate(500.0).unwrap()), 1000.0, 1e9);
        assert_eq!(RatePoint::of(500.0, report.clone(), Some(&condition)).holds, Some(true));
        let drift = Check { name: "drift".into(), verdict: Verdict::Suspect, reason: String::new() };
        report.trust = Some(Trust { verdict: Verdict::Suspect, checks: vec![drift] });
        let point = RatePoint::of(500.0, report, Some(&condition));
        assert_eq!((point.holds, point.failed_checks().as_str()), (Some(false), "suspect: drift"));
    }

    #[test]
    fn one_bad_run_in_three_decides_nothing() {
        let mut runs = 0;
        let found = found("p99<5ms", &mut |rate, _| {
            runs += 1;
            // Every third is disturbed.
            Ok(answered(rate, if runs % 3 == 0 { 100.0 } else { 1000.0 }, 1e9))
        });
        assert!(found.highest_held_per_s.unwrap() < 800.0 && found.lowest_failed_per_s.unwrap() > 600.0, "{found:?}");
        assert!(!found.disagreed_at_per_s.is_empty() && found.answer().contains("disagreed"));
    }

    #[test]
    fn a_condition_that_never_holds_is_said_to() {
        let found = found("p99<10us", &mut |rate, _| Ok(answered(rate, 1000.0, 1e9)));
        assert_eq!((found.highest_held_per_s, found.lowest_failed_per_s), (None, Some(20.0)));
        assert!(found.answer().contains("never holds, not even at 20.0/s"), "{}", found.answer());
    }

    #[test]
    fn where_the_client_gives_up_first_it_says_so() {
        let found = found("p99<5ms", &mut |rate, _| Ok(answered(rate, 1e6, 5000.0)));
        assert!(found.highest_held_per_s.unwrap() < 5000.0 && found.client_is_limit);
        assert!(found.answer().contains("client is the limit"));
    }

    #[test]
    fn a_rate_that_is_not_served_does_not_hold_whatever_its_latency() {
        let found = found("errors==0", &mut |rate, _| Ok(answered(rate, 1000.0, 1e9)));
        let held = found.highest_held_per_s.unwrap();
        assert!((940.0..1100.0).contains(&held), "{held}");
    }

    #[test]
    fn a_server_that_dies_leaves_what_is_known() {
        let mut runs = 0;
        let dies = |rate, _: u32| {
            runs += 1;
            if runs > 6 {
                Err("connect 127.0.0.1:1: connection refused".into())
            } else {
                Ok(answered(rate, 1000.0, 1e9))
            }
        };
        let found = found("p99<5ms", &mut { dies });
        assert_eq!(found.runs.len(), 5);
        assert!(found.highest_held_per_s.is_some() && found.answer().contains("not complete: connect"));
        assert!(find_max_with(&"p99<5ms".parse().unwrap(), 20.0, &mut |_, _| Err("gone".into()), &|_| {}).is_err());
    }

    #[test]
    fn a_sweep_finds_the_knee_and_survives_its_end() {
        let sweep: Sweep = "100..1000".parse().unwrap();
        let curve = sweep_with(&sweep, &mut |rate, _| Ok(answered(rate, 1000.0, 1e9)), &|_| {}).unwrap();
        assert_eq!(curve.sweep.len(), 10);
        // ρ(1 − ρ) is largest at one half (Kleinrock's result for M/M/1).
        assert_eq!(curve.knee, Some(4));
        assert!(curve.render().lines().nth(5).unwrap().ends_with("knee"), "{}", curve.render());
        let mut runs = 0;
        let mut two = |rate, _: u32| {
            runs += 1;
            if runs > 2 { Err("ended early".to_string()) } else { Ok(answered(rate, 1000.0, 1e9)) }
        };
        let curve = sweep_with(&sweep, &mut two, &|_| {}).unwrap();
        assert!(curve.sweep.len() == 2 && curve.render().contains("not complete: ended early"));
    }
}
