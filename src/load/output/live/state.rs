//! What has been seen of a run so far: intervals go in, and what stays is bounded however long it lasts.

use std::collections::BTreeMap;

use crate::report::{Configuration, IntervalReport, Latency, WorkerShare};
use crate::units::over;

const MOST_WORKERS: u32 = 4096;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    WarmUp,
    Measurement,
    LastAnswers,
}

impl Phase {
    pub fn in_words(self) -> &'static str {
        ["warming up", "measuring", "last answers"][self as usize]
    }
}

#[derive(Debug, Default)]
pub struct State {
    pub configuration: Configuration,
    pub seed: u64,
    pub phase: Phase,
    pub now: IntervalReport,
    /// Response times since the measurement began; all zero until they are known.
    pub so_far: Latency,
    /// Of the measurement, and of the warm-up while that lasts.
    pub requests: u64,
    pub seconds: f64,
    pub highest_rate: f64,
    /// Of the whole run.
    pub errors: u64,
    pub rates: Rates,
    /// By the worker's number. Connections of the whole run, requests like `requests`.
    pub workers: BTreeMap<u32, WorkerShare>,
}

impl State {
    pub fn new(configuration: Configuration, seed: u64) -> State {
        let workers = (0..configuration.workers).map(|worker| (worker, WorkerShare::default())).collect();
        State { configuration, seed, workers, ..State::default() }
    }

    /// Warm-up and measurement together; unknown where a number of requests ends the run.
    pub fn end_s(&self) -> Option<f64> {
        self.configuration.duration_s.map(|duration_s| self.configuration.warmup_s + duration_s)
    }

    pub fn add(&mut self, interval: &IntervalReport) {
        let before = self.phase;
        self.phase = match interval.measured {
            true => Phase::Measurement,
            false if before == Phase::WarmUp => Phase::WarmUp,
            false => Phase::LastAnswers,
        };
        if before != self.phase && interval.measured {
            (self.requests, self.seconds, self.highest_rate) = (0, 0.0, 0.0);
            self.workers.values_mut().for_each(|share| share.requests = 0);
        }
        if self.phase != Phase::LastAnswers {
            self.requests += interval.requests;
            self.seconds += interval.to_s - interval.from_s;
            self.highest_rate = self.highest_rate.max(interval.qps);
        }
        self.errors += interval.errors;
        self.rates.push(interval.qps);
        for (worker, gained) in &interval.workers {
            let Some(worker) = worker.parse().ok().filter(|&worker| worker < MOST_WORKERS) else { continue };
            let share: &mut WorkerShare = self.workers.entry(worker).or_default();
            share.connections += gained.connections;
            share.requests += gained.requests;
        }
        self.now = interval.clone();
    }

    pub fn average_rate(&self) -> f64 {
        over(self.requests as f64, self.seconds)
    }

    pub fn progress(&self) -> Option<f64> {
        let by_time = self.end_s().map(|end_s| self.now.to_s / end_s);
        let measured = if self.phase == Phase::WarmUp { 0 } else { self.requests };
        let by_count = self.configuration.requests.map(|all| measured as f64 / all as f64);
        by_time.or(by_count).map(|share| share.clamp(0.0, 1.0))
    }
}

/// The rate from the first interval to the last: sums of so many each, at most [`Rates::MOST`]. When they are full, two
/// become one.
#[derive(Debug, Default)]
pub struct Rates {
    sums: Vec<(f64, u32)>,
    doublings: u32,
}

impl Rates {
    const MOST: usize = 512;

    pub fn push(&mut self, rate: f64) {
        match self.sums.last_mut().filter(|(_, count)| count >> self.doublings == 0) {
            Some(last) => *last = sum(&[*last, (rate, 1)]),
            None => self.sums.push((rate, 1)),
        }
        if self.sums.len() == Rates::MOST {
            self.sums = self.sums.chunks(2).map(sum).collect();
            self.doublings += 1;
        }
    }

    pub fn columns(&self, width: usize) -> Vec<f64> {
        let (n, width) = (self.sums.len(), width.min(self.sums.len()));
        let column = |i| sum(&self.sums[i * n / width..(i + 1) * n / width]);
        (0..width).map(column).map(|(sum, count)| sum / f64::from(count)).collect()
    }
}

fn sum(parts: &[(f64, u32)]) -> (f64, u32) {
    parts.iter().fold((0.0, 0), |(sum, count), (more, by)| (sum + more, count + by))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn interval(number: u32, measured: bool, requests: u64) -> IntervalReport {
        let share = |connections, requests| WorkerShare { connections, requests, latency_us: None };
        let latency_us =
            Latency { p50: 251.0, p90: 280.0, p99: 612.0, p99_9: 1_270.0, max: 4_310.0, ..Latency::default() };
        IntervalReport {
            from_s: f64::from(number) / 10.0,
            to_s: f64::from(number + 1) / 10.0,
            measured,
            requests,
            qps: requests as f64 * 10.0,
            connections_open: 64,
            connections_requested: 64,
            latency_us,
            workers: [("0".into(), share(1, requests / 4)), ("10".into(), share(0, 3 * requests / 4))].into(),
            ..IntervalReport::default()
        }
    }

    #[test]
    fn the_measurement_begins_with_new_sums_and_the_last_answers_do_not_count() {
        let mut state = State::new(Configuration { duration_s: Some(0.4), workers: 2, ..Configuration::default() }, 1);
        for (number, measured, requests) in [(0, false, 400), (1, true, 800), (2, true, 400), (3, false, 4)] {
            state.add(&interval(number, measured, requests));
        }
        assert_eq!((state.phase, state.requests, state.highest_rate), (Phase::LastAnswers, 1200, 8000.0));
        assert!((state.average_rate() - 6000.0).abs() < 1e-6);
        // Worker 1 was announced and never met.
        let connections: Vec<u64> = state.workers.values().map(|share| share.connections).collect();
        assert_eq!(connections, [4, 0, 0]);
        assert_eq!(state.workers[&10].requests, 900 + 3);
        assert_eq!(state.progress(), Some(1.0));
    }

    #[test]
    fn a_day_of_intervals_needs_no_more_room_than_a_minute() {
        let mut rates = Rates::default();
        for i in 0..864_000 {
            rates.push(f64::from(i));
        }
        assert!(rates.sums.len() < Rates::MOST);
        let columns = rates.columns(80);
        assert_eq!(columns.len(), 80);
        assert!(columns.is_sorted() && columns[0] < 10_000.0 && columns[79] > 850_000.0, "{columns:?}");
    }
}
