//! Distributions of times: HDR histograms in nanoseconds, three digits, nothing dropped.

use hdrhistogram::Histogram;

use crate::report::Latency;

/// A distribution of times. Recording allocates nothing; its size does not depend on how much was recorded.
#[derive(Clone)]
pub struct Times(Histogram<u64>);

impl Times {
    /// Beyond an hour everything counts as an hour: far above any time-out, and the table stays at 300 KiB.
    const MAX_NS: u64 = 3_600_000_000_000;
    /// Relative resolution 10⁻³, from the first nanosecond on.
    const DIGITS: u8 = 3;

    pub fn new() -> Times {
        Times(Histogram::new_with_bounds(1, Times::MAX_NS, Times::DIGITS).expect("constant bounds are valid"))
    }

    /// Three digits from 1 µs to a minute: half the size, for one of many.
    pub fn of_a_worker() -> Times {
        Times(Histogram::new_with_bounds(1_000, 60_000_000_000, 3).expect("constant bounds are valid"))
    }

    /// Two digits from 1 µs to a minute: small enough to be sent off ten times a second.
    pub fn of_an_interval() -> Times {
        Times(Histogram::new_with_bounds(1_000, 60_000_000_000, 2).expect("constant bounds are valid"))
    }

    /// One digit from 1 µs to a minute: 3 KiB, for one of thousands.
    pub fn of_a_second() -> Times {
        Times(Histogram::new_with_bounds(1_000, 60_000_000_000, 1).expect("constant bounds are valid"))
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    pub fn add(&mut self, other: &Times) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// One that was read from a file; `None` unless it has our bounds, since adding another would move its counts.
    pub fn from_histogram(histogram: Histogram<u64>) -> Option<Times> {
        let bounds = (histogram.low(), histogram.high(), histogram.sigfig());
        (bounds == (1, Times::MAX_NS, Times::DIGITS)).then_some(Times(histogram))
    }

    /// In nanoseconds, as the standard tools read them.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }

    /// In microseconds, as the report has them.
    pub fn latency(&self) -> Latency {
        if self.0.is_empty() {
            return Latency::default();
        }
        let quantile_us = |quantile| self.0.value_at_quantile(quantile) as f64 / 1e3;
        Latency {
            p50: quantile_us(0.50),
            p90: quantile_us(0.90),
            p99: quantile_us(0.99),
            p99_9: quantile_us(0.999),
            max: self.0.max() as f64 / 1e3,
            mean: self.0.mean() / 1e3,
            stdev: self.0.stdev() / 1e3,
        }
    }
}

impl Default for Times {
    fn default() -> Times {
        Times::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(actual: f64, expected: f64) {
        assert!(
            (actual - expected).abs() <= expected * 1.001e-3,
            "{actual} is not {expected} to three digits"
        );
    }

    #[test]
    fn percentiles_of_known_samples_come_back_to_three_digits() {
        let mut times = Times::new();
        // 1 µs, 2 µs, … 10 ms, in an order that is not sorted.
        for i in 0..10_000u64 {
            times.record((i * 7919 % 10_000 + 1) * 1000);
        }
        let latency = times.latency();
        assert_eq!(times.count(), 10_000);
        assert_close(latency.p50, 5000.0);
        assert_close(latency.p90, 9000.0);
        assert_close(latency.p99, 9900.0);
        assert_close(latency.p99_9, 9990.0);
        assert_close(latency.max, 10_000.0);
        assert_close(latency.mean, 5000.5);
        // Of the uniform distribution on 1 … n: √((n² − 1) / 12).
        assert_close(latency.stdev, ((1e8 - 1.0) / 12.0f64).sqrt());
    }

    #[test]
    fn three_digits_hold_from_a_microsecond_to_a_minute() {
        for ns in [1_000, 1_234, 56_789, 987_654, 12_345_678, 1_000_000_007, 60_000_000_000] {
            let mut times = Times::new();
            times.record(ns);
            assert_close(times.latency().p50, ns as f64 / 1e3);
        }
    }

    #[test]
    fn merging_equals_recording_into_one() {
        let (mut a, mut b, mut both) = (Times::new(), Times::new(), Times::new());
        for ns in [5_000, 70_000, 900_000] {
            a.record(ns);
            b.record(ns * 3);
            both.record(ns);
            both.record(ns * 3);
        }
        a.add(&b);
        assert_eq!(a.latency(), both.latency());
    }

    #[test]
    fn what_is_too_long_saturates_and_is_not_dropped() {
        let mut times = Times::new();
        times.record(u64::MAX);
        assert_eq!(times.count(), 1);
        assert_close(times.latency().max, 3600e6);
    }

    #[test]
    fn nothing_measured_is_all_zero() {
        assert_eq!(Times::new().latency(), Latency::default());
    }
}
