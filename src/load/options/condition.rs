//! A condition on the result: `p99<5ms`, `errors>0`. It is text on the command line and a yes or no on a report.

use std::str::FromStr;

use crate::report::{Evenness, Latency, LoadReport, Verdict};
use crate::units::{number, parse_duration, time};

const NAMES: &str = "p50 p90 p99 p99.9 max mean, of response time or with service. connect. first_byte. send_delay. \
                     before them, against a duration like 5ms; or errors timeouts qps censored shed dispersion \
                     max_over_mean cpu_share p_value, against a number; or verdict, against valid, suspect or invalid \
                     (from good to bad)";

type Named<T, const N: usize> = [(&'static str, T); N];

const TIMES: Named<fn(&LoadReport) -> &Latency, 5> = [
    ("", |report| &report.latency_us),
    ("service.", |report| &report.service_us),
    ("connect.", |report| &report.connect_us),
    ("first_byte.", |report| &report.first_byte_us),
    (SEND_DELAY, |report| &report.send_delay_us),
];
const SEND_DELAY: &str = "send_delay.";

/// How many of [`Latency::named`] a condition may name: all but the deviation.
const STATISTICS: usize = 6;

/// `None` where it was not measured. Under a higher load those of [`FALLING`] fall.
const COUNTS: Named<fn(&LoadReport) -> Option<f64>, 9> = [
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

/// The evenness of the connections; absent for one worker or no connection, which shares nothing.
fn shared(report: &LoadReport) -> Option<&Evenness> {
    let connections = report.evenness.as_ref().map(|pair| &pair.connections);
    connections.filter(|evenness| evenness.workers > 1 && evenness.n > 0)
}

const COMPARISONS: Named<fn(f64, f64) -> bool, 6> = [
    ("<", |found, limit| found < limit),
    ("<=", |found, limit| found <= limit),
    (">", |found, limit| found > limit),
    (">=", |found, limit| found >= limit),
    ("==", |found, limit| found == limit),
    ("!=", |found, limit| found != limit),
];

#[derive(Debug, Clone)]
pub struct Condition {
    pub text: String,
    name: String,
    measure: Measure,
    comparison: &'static str,
    compare: fn(f64, f64) -> bool,
    /// Microseconds, for a time; the index in [`Verdict::ALL`], for a verdict.
    limit: f64,
}

#[derive(Debug, Clone, Copy)]
enum Measure {
    /// `statistic` is the index in [`Latency::named`].
    Time {
        times: fn(&LoadReport) -> &Latency,
        statistic: usize,
        is_send_delay: bool,
    },
    Count(fn(&LoadReport) -> Option<f64>),
    Verdict,
}

impl Condition {
    /// Whether it is true of this result. `None`: what it asks for was not measured.
    pub fn holds(&self, report: &LoadReport) -> Option<bool> {
        self.measure.of(report).map(|found| (self.compare)(found, self.limit))
    }

    /// Whether it asks a number that grows with the load to stay small: what holds at low rates and fails at high ones.
    pub fn bounds_the_load(&self) -> bool {
        !FALLING.contains(&self.name.as_str()) && ["<", "<=", "=="].contains(&self.comparison)
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
            Measure::Verdict => Verdict::ALL[found as usize].name().into(),
            Measure::Time { .. } => time(found),
            Measure::Count(_) => number(found),
        };
        format!("{name} is {found}")
    }
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Condition, String> {
        let text = text.trim();
        let shape = || format!("{text:?} is not NAME OP VALUE with one of < <= > >= == !=; names: {NAMES}");
        let at = text.find(['<', '>', '=', '!']).ok_or_else(shape)?;
        let (name, rest) = text.split_at(at);
        let value_at = rest.find(|c| !"<>=!".contains(c)).ok_or_else(shape)?;
        let (comparison, value) = rest.split_at(value_at);
        let (comparison, compare) = find(&COMPARISONS, comparison).ok_or_else(shape)?;
        let name = name.trim();
        let measure = Measure::named(name).ok_or_else(|| format!("{name:?} is not measured; names: {NAMES}"))?;
        let limit = measure.limit(value.trim()).map_err(|why| format!("{text}: {why}"))?;
        Ok(Condition { text: text.into(), name: name.into(), measure, comparison, compare, limit })
    }
}

fn find<T: Copy>(table: &[(&'static str, T)], wanted: &str) -> Option<(&'static str, T)> {
    table.iter().find(|(name, _)| *name == wanted).copied()
}

impl Measure {
    fn named(name: &str) -> Option<Measure> {
        if name == "verdict" {
            return Some(Measure::Verdict);
        }
        if let Some((_, count)) = find(&COUNTS, name) {
            return Some(Measure::Count(count));
        }
        // What is `send_delay.` today was `slip.` once.
        let name = &name.replace("slip.", SEND_DELAY);
        let statistics = &Latency::default().named()[..STATISTICS];
        TIMES.iter().find_map(|&(prefix, times)| {
            let wanted = name.strip_prefix(prefix)?;
            let statistic = statistics.iter().position(|(name, _)| *name == wanted)?;
            Some(Measure::Time { times, statistic, is_send_delay: prefix == SEND_DELAY })
        })
    }

    fn limit(self, value: &str) -> Result<f64, String> {
        match self {
            Measure::Time { .. } => parse_duration(value).map(|limit| limit.as_nanos() as f64 / 1e3),
            Measure::Verdict => (Verdict::ALL.iter().position(|verdict| verdict.name() == value))
                .map(|index| index as f64)
                .ok_or_else(|| format!("{value:?} is not a verdict; they are valid, suspect and invalid")),
            Measure::Count(_) => {
                let number = value.parse().ok().filter(|number: &f64| number.is_finite());
                number.ok_or_else(|| format!("{value:?} is not a number; only times carry a unit"))
            }
        }
    }

    /// In microseconds, if it is a time. `None` where there was nothing to measure: an empty distribution is all zero,
    /// and every real time but a send delay is above that.
    fn of(self, report: &LoadReport) -> Option<f64> {
        match self {
            Measure::Count(count) => count(report),
            Measure::Verdict => report.trust.as_ref().map(|trust| f64::from(trust.verdict as u8)),
            Measure::Time { times, statistic, is_send_delay } => {
                let latency = times(report);
                let is_measured = latency.max > 0.0 || is_send_delay && report.service_us.max > 0.0;
                is_measured.then(|| latency.named()[statistic].1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{DeadlineCounts, EvennessPair, Trust};

    fn condition(text: &str) -> Condition {
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
            ("send_delay.max==0us", true),
        ] {
            assert_eq!(condition(text).holds(&report), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_was_not_measured_cannot_be_decided_and_fails() {
        let report = measured();
        for text in ["connect.p50>1s", "first_byte.max<1s", "shed>0", "dispersion>2", "p_value<0.001"] {
            assert_eq!(condition(text).holds(&report), None, "{text}");
            assert!(condition(text).fails(&report).unwrap().contains("was not measured"), "{text}");
        }
        assert_eq!(condition("p99>5ms").holds(&LoadReport::default()), None);
        let mut report = report;
        report.deadline = Some(DeadlineCounts::default());
        assert_eq!(condition("shed>0").fails(&report), None);
        let evenness = Evenness { workers: 4, n: 100, dispersion: 3.5, ..Evenness::default() };
        report.evenness = Some(EvennessPair { connections: evenness.clone(), requests: evenness });
        assert_eq!(condition("dispersion>2").holds(&report), Some(true));
    }

    #[test]
    fn a_verdict_is_a_condition_too() {
        let mut report = measured();
        assert!(condition("verdict!=valid").fails(&report).unwrap().contains("verdict was not measured"));
        for (verdict, holding) in [
            (Verdict::Valid, ["verdict==valid", "verdict<suspect", "verdict<=valid"]),
            (Verdict::Suspect, ["verdict!=valid", "verdict<invalid", "verdict == suspect"]),
            (Verdict::Invalid, ["verdict!=valid", "verdict==invalid", "verdict>=suspect"]),
        ] {
            report.trust = Some(Trust { verdict, ..Trust::default() });
            for text in holding {
                assert_eq!(condition(text).holds(&report), Some(true), "{text} of {verdict:?}");
            }
        }
        assert_eq!(
            condition("verdict!=valid").fails(&report).unwrap(),
            "fail-if verdict!=valid holds: verdict is invalid"
        );
        assert!(condition("verdict<suspect").bounds_the_load() && !condition("verdict!=valid").bounds_the_load());
        assert!("verdict==good".parse::<Condition>().unwrap_err().contains("valid, suspect and invalid"));
        assert!("verdict>1".parse::<Condition>().is_err() && "errors==valid".parse::<Condition>().is_err());
    }

    #[test]
    fn a_condition_that_holds_says_what_was_found() {
        assert_eq!(condition("p99>5ms").fails(&measured()).unwrap(), "fail-if p99>5ms holds: p99 is 7.20ms");
        assert_eq!(condition("qps < 1e3").fails(&measured()).unwrap(), "fail-if qps < 1e3 holds: qps is 999.5");
        assert_eq!(condition("p99>8ms").fails(&measured()), None);
    }

    #[test]
    fn a_search_needs_a_condition_that_high_rates_break() {
        for good in ["p99<5ms", "errors==0", "send_delay.p50<=1ms", "slip.p50<=1ms", "cpu_share<0.8"] {
            assert!(condition(good).bounds_the_load(), "{good}");
        }
        for bad in ["p99>5ms", "errors!=0", "qps<1000", "p_value<0.1"] {
            assert!(!condition(bad).bounds_the_load(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_condition_is_refused_in_one_line_that_lists_the_names() {
        for bad in ["", "p99", "p99>", ">5ms", "p98>5ms", "p99=>5ms", "p99=5ms", "p99<<5ms", "stdev>1ms", "foo.p99<1ms"]
        {
            let error = bad.parse::<Condition>().unwrap_err();
            assert!(error.contains("p99.9") && error.contains("max_over_mean"), "{bad}: {error}");
            assert!(!error.contains('\n'));
        }
        for bad in ["p99>5", "p99<5 ms", "errors>5ms", "qps<x", "qps<inf", "cpu_share>NaN", "p99>-1ms"] {
            assert!(bad.parse::<Condition>().is_err(), "{bad:?} was accepted");
        }
    }
}
