//! What it takes to keep workers alive, counted: the numbers of [`ClusterReport`].

use hdrhistogram::Histogram;

use crate::report::{ClusterReport, Recovery};

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
    /// A number that had no worker has one that serves again.
    pub fn recovered(&mut self, after_ns: u64) {
        self.recovery_us.saturating_record(after_ns / 1000);
    }

    /// A worker has counted something by this name.
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
