//! What decides when requests are due: rate, profile and spacing, or the moments of a file.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Requests per second, in millionths, so that due times follow from integers and do not drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub(super) micro_per_s: u64,
}

impl Rate {
    const MICRO: f64 = 1e6;
    /// Due times a tenth of a microsecond apart: nothing sends faster, so more is a typing error.
    const MAX_PER_S: f64 = 1e7;

    pub fn per_s(self) -> f64 {
        self.micro_per_s as f64 / Rate::MICRO
    }

    /// When request k is due, in nanoseconds from the start. Saturates after 584 years.
    fn due_ns(self, k: u64) -> u64 {
        let numerator = u128::from(k) * 1_000_000_000_000_000;
        (numerator / u128::from(self.micro_per_s)).try_into().unwrap_or(u64::MAX)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let per_s: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of requests per second"))?;
        if !(1e-6..=Rate::MAX_PER_S).contains(&per_s) {
            return Err(format!("a rate lies between 0.000001 and {} per second", Rate::MAX_PER_S));
        }
        Ok(Rate { micro_per_s: (per_s * Rate::MICRO).round() as u64 })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Arrivals {
    Closed,
    /// At moments of their own; the seed makes random ones repeatable.
    Open {
        profile: Profile,
        spacing: Spacing,
        seed: u64,
    },
    /// At these nanoseconds from the start of the warm-up; they never go back.
    Replay(Arc<[u64]>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Profile {
    Constant(Rate),
    /// `from` until `begin_ns`, then in a straight line to `to` at `end_ns`, and nothing any more.
    Ramp {
        from: Rate,
        to: Rate,
        begin_ns: u64,
        end_ns: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    Fixed,
    Poisson,
    /// So many at once; never 0.
    Burst(u32),
}

impl FromStr for Spacing {
    type Err = String;

    fn from_str(text: &str) -> Result<Spacing, String> {
        match (text, text.strip_prefix("burst:").map(str::parse)) {
            ("fixed", _) => Ok(Spacing::Fixed),
            ("poisson", _) => Ok(Spacing::Poisson),
            (_, Some(Ok(size @ 1..))) => Ok(Spacing::Burst(size)),
            _ => Err("arrivals are fixed, poisson, or burst:N with N at least 1".into()),
        }
    }
}

impl Profile {
    /// Λ⁻¹(k) for a whole k: in integers where the rate does not change.
    pub(super) fn due_ns(self, k: u64) -> u64 {
        match self {
            Profile::Constant(rate) => rate.due_ns(k),
            Profile::Ramp { from, begin_ns, .. } => {
                let flat_ns = from.due_ns(k);
                if flat_ns <= begin_ns { flat_ns } else { self.due_ns_of(k as f64) }
            }
        }
    }

    /// Λ⁻¹(x); `u64::MAX` for never. In f64, whose error grows with the time t and with the ratio of the rates
    /// when they fall: a few 2⁻⁵³ · t · max(1, A / B). Within a day, and to a tenth of the rate, that is less than
    /// the nanosecond to which the result is rounded; and it does not add up, since each x has its own.
    pub(super) fn due_ns_of(self, x: f64) -> u64 {
        match self {
            Profile::Constant(rate) => (x / rate.per_s() * 1e9).round() as u64,
            Profile::Ramp { from, to, begin_ns, end_ns } => {
                let (a, b) = (from.per_s(), to.per_s());
                let begin_s = begin_ns as f64 / 1e9;
                let wanted = x - a * begin_s;
                if wanted <= 0.0 {
                    return (x / a * 1e9).round() as u64;
                }
                let ramp_s = (end_ns - begin_ns) as f64 / 1e9;
                if wanted >= (a + b) / 2.0 * ramp_s {
                    return u64::MAX;
                }
                // The root of a·s + slope·s² / 2 = wanted in the form that subtracts nothing from almost the same,
                // and that holds for a slope of zero too.
                let slope = (b - a) / ramp_s;
                let s = 2.0 * wanted / (a + (a * a + 2.0 * slope * wanted).max(0.0).sqrt());
                begin_ns + (s * 1e9).round() as u64
            }
        }
    }
}

/// Reads due times: a line each, in seconds, none earlier than the one before it; `#` begins a comment.
pub fn parse_replay(text: &str) -> Result<Arc<[u64]>, String> {
    let mut due_ns: Vec<u64> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let time = line.split('#').next().unwrap_or("").trim();
        if time.is_empty() {
            continue;
        }
        let wrong = |why: String| Err(format!("line {number}: {why}"));
        let Some(ns) = time.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok()) else {
            return wrong(format!("{time:?} is not a time in seconds, like 0.25"));
        };
        let Ok(ns) = u64::try_from(ns.as_nanos()) else {
            return wrong(format!("{time} s are more than five centuries"));
        };
        if due_ns.last().is_some_and(|&last| ns < last) {
            return wrong(format!("{time} is earlier than the time before it; sort the file (sort -g)"));
        }
        due_ns.push(ns);
    }
    if due_ns.is_empty() { Err("no times in it; it needs a line for each request".into()) } else { Ok(due_ns.into()) }
}
