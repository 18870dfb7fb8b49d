//! A condition on the result: `p99<5ms`, `errors>0`. It is text on the command line and a yes or no on a report.

use std::str::FromStr;

use crate::report::{Evenness, Latency, LoadReport, Verdict};
use crate::units::{number, parse_duration, time};

const NAMES: &str = "p50 p90 p99 p99.9 max mean, of response time or with service. connect. first_byte. slip. before \
                     them, against a duration like 5ms; or errors timeouts qps censored shed dispersion max_over_mean \
                     cpu_share p_value, against a number; or verdict, against valid, suspect or invalid (from good to bad)";

type Table<T, const N: usize> = [(&'static str, T); N];

const TIMES: Table<fn(&LoadReport) -> &Latency, 5> = [
    ("", |report| &report.latency_us),
    ("service.", |report| &report.service_us),
    ("connect.", |report| &report.connect_us),
    ("first_byte.", |report| &report.first_byte_us),
    (SLIP, |report| &report.slip_us),
];
const SLIP: &str = "slip.";

/// Of [`Latency::named`]: all but the deviation.
const STATISTICS: usize = 6;

/// `None` where it was not measured. Under a higher load those of [`FALLING`] fall.
const COUNTS: Table<fn(&LoadReport) -> Option<f64>, 9> = [
    ("errors", |report| Some(report.errors.total() as f64)),
    ("timeouts", |report| Some(report.errors.timeout as f64)),
    ("qps", |report| Some(report.qps)),
    ("censored", |report| Some(report.censored as f64)),
    ("shed", |report| report.deadline.map(|deadline| deadline.shed as f64)),
    ("dispersion", |report| shared(report).map(|evenness| evenness.dispersion)),
    ("max_over_mean", |report| shared(report).map(|evenness| evenness.max_over_mean)),
    ("p_value", |report| shared(report).map(|evenness| evenness.p_value)),
    ("cpu_share", |report| Some(report.client.cpu_share)),
];
const FALLING: [&str; 2] = ["qps", "p_value"];

/// From good to bad, as the report writes them.
const VERDICTS: Table<Verdict, 3> =
    [("valid", Verdict::Valid), ("suspect", Verdict::Suspect), ("invalid", Verdict::Invalid)];

/// Of the connections; one worker, or no connection, shares nothing.
fn shared(report: &LoadReport) -> Option<&Evenness> {
    let connections = report.evenness.as_ref().map(|pair| &pair.connections);
    connections.filter(|evenness| evenness.workers > 1 && evenness.n > 0)
}

const COMPARISONS: Table<fn(f64, f64) -> bool, 6> = [
    ("<", |found, bar| found < bar),
    ("<=", |found, bar| found <= bar),
    (">", |found, bar| found > bar),
    (">=", |found, bar| found >= bar),
    ("==", |found, bar| found == bar),
    ("!=", |found, bar| found != bar),
];

#[derive(Debug, Clone)]
pub struct Gate {
    pub text: String,
    name: String,
    measure: Measure,
    comparison: usize,
    /// Microseconds, for a time; the index in [`VERDICTS`], for a verdict.
    bar: f64,
}

/// By index in the tables above.
#[derive(Debug, Clone, Copy)]
enum Measure {
    Time(usize, usize),
    Count(usize),
    Verdict,
}

impl Gate {
    /// Whether it is true of this result. `None`: what it asks for was not measured.
    pub fn holds(&self, report: &LoadReport) -> Option<bool> {
        let (_, holds) = COMPARISONS[self.comparison];
        self.measure.of(report).map(|found| holds(found, self.bar))
    }

    /// Whether it asks a number that grows with the load to stay small: what holds at low rates and fails at high ones.
    pub fn bounds_the_load(&self) -> bool {
        !FALLING.contains(&self.name.as_str()) && ["<", "<=", "=="].contains(&COMPARISONS[self.comparison].0)
    }

    /// What cannot be decided fails: otherwise a run without the number would pass.
    pub fn fails(&self, report: &LoadReport) -> Option<String> {
        let how = match self.holds(report) {
            Some(false) => return None,
            Some(true) => "holds",
            None => "cannot be decided",
        };
        Some(format!("fail-if {} {how}: {}", self.text, self.finding(report)))
    }

    /// `p99 is 7.20ms`.
    pub fn finding(&self, report: &LoadReport) -> String {
        let name = &self.name;
        let Some(found) = self.measure.of(report) else { return format!("{name} was not measured") };
        let found = match self.measure {
            Measure::Verdict => VERDICTS[found as usize].0.into(),
            Measure::Time(..) => time(found),
            Measure::Count(_) => number(found),
        };
        format!("{name} is {found}")
    }
}

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Gate, String> {
        let text = text.trim();
        let shape = || format!("{text:?} is not NAME OP VALUE with one of < <= > >= == !=; names: {NAMES}");
        let at = text.find(['<', '>', '=', '!']).ok_or_else(shape)?;
        let (name, rest) = text.split_at(at);
        let value_at = rest.find(|c| !"<>=!".contains(c)).ok_or_else(shape)?;
        let (comparison, value) = rest.split_at(value_at);
        let comparison = index(&COMPARISONS, comparison).ok_or_else(shape)?;
        let name = name.trim();
        let measure = Measure::named(name).ok_or_else(|| format!("{name:?} is not measured; names: {NAMES}"))?;
        let bar = measure.bar(value.trim()).map_err(|why| format!("{text}: {why}"))?;
        Ok(Gate { text: text.into(), name: name.into(), measure, comparison, bar })
    }
}

fn index<T>(table: &[(&str, T)], wanted: &str) -> Option<usize> {
    table.iter().position(|(name, _)| *name == wanted)
}

impl Measure {
    fn named(name: &str) -> Option<Measure> {
        let of_times = |(clock, (prefix, _)): (usize, &(&str, _))| {
            let statistics = &Latency::default().named()[..STATISTICS];
            Some(Measure::Time(clock, index(statistics, name.strip_prefix(prefix)?)?))
        };
        let count = index(&COUNTS, name).map(Measure::Count);
        let verdict = (name == "verdict").then_some(Measure::Verdict);
        count.or(verdict).or_else(|| TIMES.iter().enumerate().find_map(of_times))
    }

    fn bar(self, value: &str) -> Result<f64, String> {
        match self {
            Measure::Time(..) => parse_duration(value).map(|bar| bar.as_nanos() as f64 / 1e3),
            Measure::Verdict => index(&VERDICTS, value)
                .map(|place| place as f64)
                .ok_or_else(|| format!("{value:?} is not a verdict; they are valid, suspect and invalid")),
            Measure::Count(_) => {
                let number = value.parse().ok().filter(|number: &f64| number.is_finite());
                number.ok_or_else(|| format!("{value:?} is not a number; only times carry a unit"))
            }
        }
    }

    /// In microseconds, if it is a time. `None` where there was nothing to measure: an empty distribution is all zero, and
    /// every real time but a slip is above that.
    fn of(self, report: &LoadReport) -> Option<f64> {
        match self {
            Measure::Count(count) => (COUNTS[count].1)(report),
            Measure::Verdict => report.trust.as_ref().map(|trust| f64::from(trust.verdict as u8)),
            Measure::Time(clock, statistic) => {
                let (prefix, latency) = (TIMES[clock].0, (TIMES[clock].1)(report));
                let is_measured = latency.max > 0.0 || prefix == SLIP && report.service_us.max > 0.0;
                is_measured.then(|| latency.named()[statistic].1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{DeadlineCounts, EvennessPair, Trust};

    fn gate(text: &str) -> Gate {
        text.parse().unwrap()
    }

    fn measured() -> LoadReport {
        let mut report = LoadReport { qps: 999.5, censored: 2, ..LoadReport::default() };
        let times = Latency { p50: 100.0, p90: 900.0, p99: 7200.0, p99_9: 9e6, max: 9e6, mean: 250.0, stdev: 1.0 };
        report.latency_us = times;
        report.service_us = Latency { p99: 5000.0, ..times };
        report.errors.timeout = 3;
        report.errors.read.insert("eof".into(), 4);
        report
    }

    #[test]
    fn every_comparison_says_what_it_says() {
        let report = measured();
        for (text, expected) in [
            ("p99>5ms", true),
            ("p99 > 7.2ms", false),
            ("p99>=7.2ms", true),
            ("p99<7.2ms", false),
            ("p99<=7200us", true),
            ("p99==7.2ms", true),
            ("p99!=7.2ms", false),
            ("service.p99<=5ms", true),
            ("p99.9>8s", true),
            ("mean<1ms", true),
            ("errors>6", true),
            ("timeouts==3", true),
            ("qps<1000", true),
            ("censored != 2", false),
            ("cpu_share>0.9", false),
            ("slip.max==0us", true),
        ] {
            assert_eq!(gate(text).holds(&report), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_was_not_measured_cannot_be_decided_and_fails() {
        let report = measured();
        for text in ["connect.p50>1s", "first_byte.max<1s", "shed>0", "dispersion>2", "p_value<0.001"] {
            assert_eq!(gate(text).holds(&report), None, "{text}");
            assert!(gate(text).fails(&report).unwrap().contains("was not measured"), "{text}");
        }
        assert_eq!(gate("p99>5ms").holds(&LoadReport::default()), None);
        let mut report = report;
        report.deadline = Some(DeadlineCounts::default());
        assert_eq!(gate("shed>0").fails(&report), None);
        let evenness = Evenness { workers: 4, n: 100, dispersion: 3.5, ..Evenness::default() };
        report.evenness = Some(EvennessPair { connections: evenness.clone(), requests: evenness });
        assert_eq!(gate("dispersion>2").holds(&report), Some(true));
    }

    #[test]
    fn a_verdict_is_a_condition_too() {
        let mut report = measured();
        assert!(gate("verdict!=valid").fails(&report).unwrap().contains("verdict was not measured"));
        for (verdict, holding) in [
            (Verdict::Valid, ["verdict==valid", "verdict<suspect", "verdict<=valid"]),
            (Verdict::Suspect, ["verdict!=valid", "verdict<invalid", "verdict == suspect"]),
            (Verdict::Invalid, ["verdict!=valid", "verdict==invalid", "verdict>=suspect"]),
        ] {
            report.trust = Some(Trust { verdict, ..Trust::default() });
            for text in holding {
                assert_eq!(gate(text).holds(&report), Some(true), "{text} of {verdict:?}");
            }
        }
        assert_eq!(gate("verdict!=valid").fails(&report).unwrap(), "fail-if verdict!=valid holds: verdict is invalid");
        assert!(gate("verdict<suspect").bounds_the_load() && !gate("verdict!=valid").bounds_the_load());
        assert!("verdict==good".parse::<Gate>().unwrap_err().contains("valid, suspect and invalid"));
        assert!("verdict>1".parse::<Gate>().is_err() && "errors==valid".parse::<Gate>().is_err());
    }

    #[test]
    fn a_gate_that_holds_says_what_was_found() {
        assert_eq!(gate("p99>5ms").fails(&measured()).unwrap(), "fail-if p99>5ms holds: p99 is 7.20ms");
        assert_eq!(gate("qps < 1e3").fails(&measured()).unwrap(), "fail-if qps < 1e3 holds: qps is 999.5");
        assert_eq!(gate("p99>8ms").fails(&measured()), None);
    }

    #[test]
    fn a_search_needs_a_condition_that_high_rates_break() {
        for good in ["p99<5ms", "errors==0", "slip.p50<=1ms", "cpu_share<0.8"] {
            assert!(gate(good).bounds_the_load(), "{good}");
        }
        for bad in ["p99>5ms", "errors!=0", "qps<1000", "p_value<0.1"] {
            assert!(!gate(bad).bounds_the_load(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_gate_is_refused_in_one_line_that_lists_the_names() {
        for bad in ["", "p99", "p99>", ">5ms", "p98>5ms", "p99=>5ms", "p99=5ms", "p99<<5ms", "stdev>1ms", "foo.p99<1ms"]
        {
            let error = bad.parse::<Gate>().unwrap_err();
            assert!(error.contains("p99.9") && error.contains("max_over_mean"), "{bad}: {error}");
            assert!(!error.contains('\n'));
        }
        for bad in ["p99>5", "p99<5 ms", "errors>5ms", "qps<x", "qps<inf", "cpu_share>NaN", "p99>-1ms"] {
            assert!(bad.parse::<Gate>().is_err(), "{bad:?} was accepted");
        }
    }
}
