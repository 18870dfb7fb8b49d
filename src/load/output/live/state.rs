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
pub struct LiveState {
    pub configuration: Configuration,
    pub seed: u64,
    pub phase: Phase,
    pub now: IntervalReport,
    /// Response times since the measurement began; all zero until they are known.
    pub so_far: Latency,
    /// The requests of the measurement, and of the warm-up while that lasts.
    pub requests: u64,
    pub seconds: f64,
    pub highest_rate: f64,
    /// The errors of the whole run.
    pub errors: u64,
    pub rates: Rates,
    /// The shares by the worker's number: connections of the whole run, requests like `requests`.
    pub workers: BTreeMap<u32, WorkerShare>,
}

impl LiveState {
    pub fn new(configuration: Configuration, seed: u64) -> LiveState {
        let workers = (0..configuration.workers).map(|worker| (worker, WorkerShare::default())).collect();
        LiveState { configuration, seed, workers, ..LiveState::default() }
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
