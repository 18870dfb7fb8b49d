//! A condition on the result: `p99<5ms`, `errors>0`. It is text on the command line and a yes or no on a report.

use std::fmt;
use std::str::FromStr;

use crate::report::{Evenness, Latency, LoadReport, Verdict};
use crate::units::{number, parse_duration, time};

/// What can be asked for, as the error tells it.
const NAMES: &str = "p50 p90 p99 p99.9 max mean, of response time or with service. connect. first_byte. slip. before \
                     them, against a duration like 5ms; or errors timeouts qps censored shed dispersion max_over_mean \
                     cpu_share p_value, against a number; or verdict, against valid, suspect or invalid (from good to bad)";

/// One comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    text: String,
    measure: Measure,
    comparison: Comparison,
    /// Microseconds, for a time; the place among them, for a verdict.
    bar: f64,
}

impl Gate {
    /// Whether it is true of this result. `None`: what it asks for was not measured.
    pub fn holds(&self, report: &LoadReport) -> Option<bool> {
        self.measure.of(report).map(|found| self.comparison.holds(found, self.bar))
    }

    /// Whether it asks a number that grows with the load to stay small: what holds at low rates and fails at high ones.
    pub fn bounds_the_load(&self) -> bool {
        let falls = matches!(self.measure, Measure::Qps | Measure::PValue);
        !falls && matches!(self.comparison, Comparison::Less | Comparison::AtMost | Comparison::Equal)
    }

    /// Why a `--fail-if` fails this result, in words; `None` when it does not. What cannot be decided fails: a gate
    /// that nobody can see closed is no gate.
    pub fn fails(&self, report: &LoadReport) -> Option<String> {
        match self.holds(report) {
            Some(false) => None,
            Some(true) => Some(format!("fail-if {self} holds: {}", self.finding(report))),
            None => Some(format!("fail-if {self} cannot be decided: {}", self.finding(report))),
        }
    }

    /// `p99 is 7.20ms`.
    pub fn finding(&self, report: &LoadReport) -> String {
        let name = self.measure.name();
        match self.measure.of(report) {
            Some(place) if self.measure == Measure::Verdict => {
                let (word, _) =
                    VERDICTS.into_iter().find(|(_, verdict)| rank(*verdict) == place).unwrap_or_default();
                format!("{name} is {word}")
            }
            Some(us) if self.measure.is_time() => format!("{name} is {}", time(us)),
            Some(found) => format!("{name} is {}", number(found)),
            None => format!("{name} was not measured"),
        }
    }
}

/// As it stood on the command line.
impl fmt::Display for Gate {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Gate, String> {
        let text = text.trim();
        let shape = || format!("{text:?} is no NAME OP VALUE with one of < <= > >= == !=; names: {NAMES}");
        let at = text.find(['<', '>', '=', '!']).ok_or_else(shape)?;
        let (name, rest) = text.split_at(at);
        let value_at = rest.find(|c| !"<>=!".contains(c)).ok_or_else(shape)?;
        let (comparison, value) = rest.split_at(value_at);
        let comparison = Comparison::named(comparison).ok_or_else(shape)?;
        let measure = Measure::named(name.trim())
            .ok_or_else(|| format!("{:?} is nothing that is measured; names: {NAMES}", name.trim()))?;
        let bar = measure.bar(value.trim()).map_err(|why| format!("{text}: {why}"))?;
        Ok(Gate { text: text.into(), measure, comparison, bar })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Less,
    AtMost,
    More,
    AtLeast,
    Equal,
    Unequal,
}

impl Comparison {
    fn named(text: &str) -> Option<Comparison> {
        Some(match text {
            "<" => Comparison::Less,
            "<=" => Comparison::AtMost,
            ">" => Comparison::More,
            ">=" => Comparison::AtLeast,
            "==" => Comparison::Equal,
            "!=" => Comparison::Unequal,
            _ => return None,
        })
    }

    fn holds(self, found: f64, bar: f64) -> bool {
        match self {
            Comparison::Less => found < bar,
            Comparison::AtMost => found <= bar,
            Comparison::More => found > bar,
            Comparison::AtLeast => found >= bar,
            Comparison::Equal => found == bar,
            Comparison::Unequal => found != bar,
        }
    }
}

/// A number of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measure {
    Time(Clock, Statistic),
    Errors,
    Timeouts,
    Qps,
    Censored,
    Shed,
    Dispersion,
    MaxOverMean,
    CpuShare,
    PValue,
    Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    Response,
    Service,
    Connect,
    FirstByte,
    Slip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Statistic {
    P50,
    P90,
    P99,
    P99_9,
    Max,
    Mean,
}

/// Names and what they stand for: reading and writing must agree.
const CLOCKS: [(&str, Clock); 5] = [
    ("", Clock::Response),
    ("service.", Clock::Service),
    ("connect.", Clock::Connect),
    ("first_byte.", Clock::FirstByte),
    ("slip.", Clock::Slip),
];
const STATISTICS: [(&str, Statistic); 6] = [
    ("p50", Statistic::P50),
    ("p90", Statistic::P90),
    ("p99", Statistic::P99),
    ("p99.9", Statistic::P99_9),
    ("max", Statistic::Max),
    ("mean", Statistic::Mean),
];
const NUMBERS: [(&str, Measure); 10] = [
    ("errors", Measure::Errors),
    ("timeouts", Measure::Timeouts),
    ("qps", Measure::Qps),
    ("censored", Measure::Censored),
    ("shed", Measure::Shed),
    ("dispersion", Measure::Dispersion),
    ("max_over_mean", Measure::MaxOverMean),
    ("cpu_share", Measure::CpuShare),
    ("p_value", Measure::PValue),
    ("verdict", Measure::Verdict),
];
/// As the report writes them.
const VERDICTS: [(&str, Verdict); 3] =
    [("valid", Verdict::Valid), ("suspect", Verdict::Suspect), ("invalid", Verdict::Invalid)];

/// The worse, the more.
fn rank(verdict: Verdict) -> f64 {
    f64::from(verdict as u8)
}

impl Measure {
    fn named(name: &str) -> Option<Measure> {
        let numbers = NUMBERS.into_iter().map(|(name, measure)| (name.to_string(), measure));
        let times = CLOCKS.into_iter().flat_map(|(prefix, clock)| {
            STATISTICS.map(|(name, statistic)| (format!("{prefix}{name}"), Measure::Time(clock, statistic)))
        });
        numbers.chain(times).find(|(known, _)| known == name).map(|(_, measure)| measure)
    }

    fn name(self) -> String {
        let Measure::Time(clock, statistic) = self else {
            return name_of(&NUMBERS, self).into();
        };
        format!("{}{}", name_of(&CLOCKS, clock), name_of(&STATISTICS, statistic))
    }

    fn is_time(self) -> bool {
        matches!(self, Measure::Time(..))
    }

    fn bar(self, value: &str) -> Result<f64, String> {
        if self.is_time() {
            return parse_duration(value).map(|bar| bar.as_nanos() as f64 / 1e3);
        }
        if self == Measure::Verdict {
            let known = VERDICTS.into_iter().find(|(word, _)| *word == value);
            let unknown = || format!("{value:?} is no verdict; they are valid, suspect and invalid");
            return known.map(|(_, verdict)| rank(verdict)).ok_or_else(unknown);
        }
        let number = value.parse().ok().filter(|number: &f64| number.is_finite());
        number.ok_or_else(|| format!("{value:?} is not a number; only times carry a unit"))
    }

    /// In microseconds, if it is a time. `None` where there was nothing to measure.
    fn of(self, report: &LoadReport) -> Option<f64> {
        let connections = || report.evenness.as_ref().map(|pair| &pair.connections);
        // One worker, or no connection: nothing to share.
        let shared = |pick: fn(&Evenness) -> f64| {
            connections().filter(|evenness| evenness.workers > 1 && evenness.n > 0).map(pick)
        };
        match self {
            Measure::Time(clock, statistic) => clock.of(report).map(|latency| statistic.of(latency)),
            Measure::Errors => Some(report.errors.total() as f64),
            Measure::Timeouts => Some(report.errors.timeout as f64),
            Measure::Qps => Some(report.qps),
            Measure::Censored => Some(report.censored as f64),
            Measure::Shed => report.deadline.map(|book| book.shed as f64),
            Measure::Dispersion => shared(|evenness| evenness.dispersion),
            Measure::MaxOverMean => shared(|evenness| evenness.max_over_mean),
            Measure::CpuShare => Some(report.client.cpu_share),
            Measure::PValue => shared(|evenness| evenness.p_value),
            Measure::Verdict => report.trust.as_ref().map(|trust| rank(trust.verdict)),
        }
    }
}

fn name_of<T: Copy + PartialEq>(names: &[(&'static str, T)], wanted: T) -> &'static str {
    names.iter().find(|(_, value)| *value == wanted).map_or("", |(name, _)| name)
}

impl Clock {
    /// `None` where no time was taken: an empty distribution is all zero, and every real time but a slip is above
    /// that.
    fn of(self, report: &LoadReport) -> Option<&Latency> {
        let latency = match self {
            Clock::Response => &report.latency_us,
            Clock::Service => &report.service_us,
            Clock::Connect => &report.connect_us,
            Clock::FirstByte => &report.first_byte_us,
            Clock::Slip => &report.slip_us,
        };
        let zero_is_real = self == Clock::Slip && report.service_us.max > 0.0;
        (latency.max > 0.0 || zero_is_real).then_some(latency)
    }
}

impl Statistic {
    fn of(self, latency: &Latency) -> f64 {
        match self {
            Statistic::P50 => latency.p50,
            Statistic::P90 => latency.p90,
            Statistic::P99 => latency.p99,
            Statistic::P99_9 => latency.p99_9,
            Statistic::Max => latency.max,
            Statistic::Mean => latency.mean,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{DeadlineBook, EvennessPair, Trust};

    fn gate(text: &str) -> Gate {
        text.parse().unwrap()
    }

    fn measured() -> LoadReport {
        let mut report = LoadReport { qps: 999.5, censored: 2, ..LoadReport::default() };
        let times =
            Latency { p50: 100.0, p90: 900.0, p99: 7200.0, p99_9: 9e6, max: 9e6, mean: 250.0, stdev: 1.0 };
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
        report.deadline = Some(DeadlineBook::default());
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
        assert_eq!(
            gate("verdict!=valid").fails(&report).unwrap(),
            "fail-if verdict!=valid holds: verdict is invalid"
        );
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
        for bad in [
            "",
            "p99",
            "p99>",
            ">5ms",
            "p98>5ms",
            "p99=>5ms",
            "p99=5ms",
            "p99<<5ms",
            "stdev>1ms",
            "foo.p99<1ms",
        ] {
            let error = bad.parse::<Gate>().unwrap_err();
            assert!(error.contains("p99.9") && error.contains("max_over_mean"), "{bad}: {error}");
            assert!(!error.contains('\n'));
        }
        for bad in ["p99>5", "p99<5 ms", "errors>5ms", "qps<x", "qps<inf", "cpu_share>NaN", "p99>-1ms"] {
            assert!(bad.parse::<Gate>().is_err(), "{bad:?} was accepted");
        }
    }
}
