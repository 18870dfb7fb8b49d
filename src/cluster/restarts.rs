//! How many restarts are too many, and how soon the next may be: a program that cannot run is not started for ever. How
//! far a reload has come. And what it takes to keep workers alive, counted: the numbers of [`ClusterReport`].

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::args::SupervisionArgs;
use super::poller::UniqueId;
use crate::report::{ClusterReport, Recovery};

/// The pauses do not grow beyond this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub struct Restarts {
    at_ns: VecDeque<u64>,
    /// How many in a row have ended before they served: such a program is given up however slowly it fails.
    failures: usize,
}

impl Restarts {
    /// One more, at this time of CLOCK_MONOTONIC, for a worker that has served or not: after which pause. `None`: it
    /// would be one too many within the time, or in a row for workers that have never served.
    pub fn allow(&mut self, args: &SupervisionArgs, now_ns: u64, has_served: bool) -> Option<Duration> {
        let within_ns = args.within.as_nanos() as u64;
        self.failures = if has_served { 0 } else { self.failures + 1 };
        while self.at_ns.front().is_some_and(|&at_ns| at_ns + within_ns <= now_ns) {
            self.at_ns.pop_front();
        }
        if self.at_ns.len() >= args.max_restarts || self.failures > args.max_restarts {
            return None;
        }
        let doublings = self.at_ns.len().min(20) as u32;
        self.at_ns.push_back(now_ns);
        Some((args.backoff * 2u32.pow(doublings)).min(LONGEST_PAUSE))
    }
}

/// One worker after another is replaced, the new one working before the old one is asked to leave, and the next not
/// touched before the old one has left. So there is never one too few, and never more than one too many.
#[derive(Default)]
pub struct RollingReload {
    /// A worker that was started later is new already.
    pub since_ns: u64,
    pub left: VecDeque<usize>,
    /// The worker that is being replaced, and its successor until that works.
    pub old: Option<UniqueId>,
    pub candidate: Option<UniqueId>,
    pub replaced: usize,
    /// Old workers that did not leave in time.
    pub killed: BTreeSet<UniqueId>,
    pub clients: Vec<u64>,
    /// What was in force before, and is again where no worker was replaced.
    pub before: Option<SupervisionArgs>,
    /// It was asked for once more meanwhile, perhaps for yet another version: what was in force then.
    pub again: Option<SupervisionArgs>,
}

impl RollingReload {
    /// The old one was asked to leave, and the next is replaced when it has left.
    pub fn waits_for(&self, id: UniqueId) -> bool {
        self.old == Some(id) && self.candidate.is_none()
    }
}

/// Names that workers may count by; further names are not kept.
const MOST_NAMES: usize = 256;
const LONGEST_NAME: usize = 64;

/// An hour. A number without a worker for longer is recorded as that.
const LONGEST_US: u64 = 3_600_000_000;

pub struct RestartCounts {
    pub report: ClusterReport,
    recovery_us: Histogram<u64>,
}

impl Default for RestartCounts {
    fn default() -> RestartCounts {
        let recovery_us = Histogram::new_with_max(LONGEST_US, 3).expect("three digits of an hour fit");
        RestartCounts { report: ClusterReport::default(), recovery_us }
    }
}

impl RestartCounts {
    pub fn recovered(&mut self, after_ns: u64) {
        self.recovery_us.saturating_record(after_ns / 1000);
    }

    pub fn count(&mut self, name: &str, n: f64) {
        let counts = &mut self.report.counts;
        if counts.contains_key(name) || (counts.len() < MOST_NAMES && name.len() <= LONGEST_NAME) {
            *counts.entry(name.to_owned()).or_default() += n;
        }
    }

    pub fn report(&self) -> ClusterReport {
        let ms = |us: u64| us as f64 / 1e3;
        let recovery = Recovery {
            count: self.recovery_us.len(),
            p50: ms(self.recovery_us.value_at_quantile(0.5)),
            max: ms(self.recovery_us.max()),
        };
        ClusterReport { recovery_ms: Some(recovery).filter(|r| r.count > 0), ..self.report.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At most so many restarts within 10 ns, the first after a pause.
    fn args(max_restarts: usize, pause: &str) -> SupervisionArgs {
        let most = max_restarts.to_string();
        let options = ["--max-restarts", &most, "--backoff", pause].map(str::to_owned);
        SupervisionArgs { within: Duration::from_nanos(10), ..SupervisionArgs::parse(&options).unwrap() }
    }

    #[test]
    fn so_many_are_allowed_within_the_time_and_others_later() {
        let (args, mut restarts) = (args(2, "0s"), Restarts::default());
        assert_eq!(
            [0, 5, 9, 10, 11, 15].map(|at_ns| restarts.allow(&args, at_ns, true).is_some()),
            [true, true, false, true, false, true]
        );
        let none = SupervisionArgs { max_restarts: 0, ..args };
        assert_eq!(Restarts::default().allow(&none, 0, true), None);
    }

    #[test]
    fn workers_that_never_serve_are_given_up_however_slowly_they_fail() {
        let (args, mut restarts) = (args(2, "0s"), Restarts::default());
        let allowed = [(0, false), (100, false), (200, true), (300, false), (400, false), (500, false)]
            .map(|(at_ns, has_served)| restarts.allow(&args, at_ns, has_served).is_some());
        assert_eq!(allowed, [true, true, true, true, true, false]);
    }

    #[test]
    fn the_pauses_double_up_to_a_bound_and_begin_anew_after_a_quiet_while() {
        let (args, mut restarts) = (args(100, "1s"), Restarts::default());
        let pauses = [0, 0, 0, 0, 0, 0, 0, 20].map(|at_ns| restarts.allow(&args, at_ns, true).unwrap().as_secs());
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 1]);
    }
}
