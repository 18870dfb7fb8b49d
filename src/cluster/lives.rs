//! What it takes to keep workers alive, counted: the books behind [`ClusterReport`].

use hdrhistogram::Histogram;

use crate::report::{ClusterReport, Recovery};

/// Names that workers may count by; what else they name is not kept.
const MOST_NAMES: usize = 256;
const LONGEST_NAME: usize = 64;

/// An hour: whose place is vacant for longer is in the books with that.
const LONGEST_US: u64 = 3_600_000_000;

pub struct Lives {
    pub report: ClusterReport,
    recovery_us: Histogram<u64>,
}

impl Default for Lives {
    fn default() -> Lives {
        let recovery_us = Histogram::new_with_max(LONGEST_US, 3).expect("three digits of an hour fit");
        Lives { report: ClusterReport::default(), recovery_us }
    }
}

impl Lives {
    /// A place that was vacant is taken again.
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
