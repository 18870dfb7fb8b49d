//! Distributions of times: HDR histograms in nanoseconds. Recording allocates nothing up to the time that the table was
//! made for, and makes it larger for what is longer: nothing is cut off.

use hdrhistogram::Histogram;

use crate::report::Latency;

#[derive(Clone)]
pub struct Times {
    counts: Histogram<u64>,
    max_ns: u64,
}

/// Three digits from the first nanosecond to an hour: 300 KiB, for all requests of a thread.
impl Default for Times {
    fn default() -> Times {
        Times::with(1, 3_600_000_000_000, Times::DIGITS)
    }
}

impl Times {
    /// From 1 µs to a minute: three digits take 140 KiB, two 20 KiB, one 3 KiB.
    pub fn with_digits(digits: u8) -> Times {
        Times::with(1_000, 60_000_000_000, digits)
    }

    const DIGITS: u8 = 3;

    fn with(low_ns: u64, high_ns: u64, digits: u8) -> Times {
        let mut counts = Histogram::new_with_bounds(low_ns, high_ns, digits).expect("constant bounds are valid");
        counts.auto(true);
        Times { counts, max_ns: 0 }
    }

    pub fn record(&mut self, ns: u64) {
        self.counts.record(ns).expect("the table grows");
        self.max_ns = self.max_ns.max(ns);
    }

    /// Both must have been made for the same purpose.
    pub fn add(&mut self, other: &Times) {
        self.counts.add(&other.counts).expect("the table grows");
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    pub fn count(&self) -> u64 {
        self.counts.len()
    }

    /// One that was read from a file; `None` unless it has our resolution, since adding another would move its counts.
    pub fn from_histogram(mut histogram: Histogram<u64>) -> Option<Times> {
        let is_ours = (histogram.low(), histogram.sigfig()) == (1, Times::DIGITS);
        histogram.auto(true);
        is_ours.then(|| Times { max_ns: histogram.max(), counts: histogram })
    }

    pub fn histogram(&self) -> &Histogram<u64> {
        &self.counts
    }

    /// In microseconds, as the report has them. The maximum has three digits whatever the resolution, and no percentile
    /// is above it: the same requests have the same maximum for a worker, a second and the whole run.
    pub fn latency(&self) -> Latency {
        if self.counts.is_empty() {
            return Latency::default();
        }
        let max_us = self.quantile_us(1.0);
        Latency {
            p50: self.quantile_us(0.50),
            p90: self.quantile_us(0.90),
            p99: self.quantile_us(0.99),
            p99_9: self.quantile_us(0.999),
            max: max_us,
            mean: (self.counts.mean() / 1e3).min(max_us),
            stdev: self.counts.stdev() / 1e3,
        }
    }

    /// So many of the times are at most this; 0 when there is none.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        // 2¹¹ values of each power of two have places in three digits.
        let unresolved_bits = (u64::BITS - self.max_ns.leading_zeros()).saturating_sub(11);
        let max_ns = self.max_ns | ((1 << unresolved_bits) - 1);
        self.counts.value_at_quantile(quantile).min(max_ns) as f64 / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() <= expected * 1.001e-3, "{actual} is not {expected} to three digits");
    }

    #[test]
    fn percentiles_of_known_samples_come_back_to_three_digits() {
        let mut times = Times::default();
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
            let mut times = Times::default();
            times.record(ns);
            assert_close(times.latency().p50, ns as f64 / 1e3);
        }
    }

    #[test]
    fn merging_equals_recording_into_one() {
        let (mut a, mut b, mut both) = (Times::default(), Times::default(), Times::default());
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
    fn times_beyond_every_table_are_the_same_figure_in_each() {
        for ns in [65_000_000_000, 65 * 60_000_000_000, 1 << 50] {
            let tables = [Times::default, || Times::with_digits(3), || Times::with_digits(2), || Times::with_digits(1)];
            let latencies = tables.map(|new| {
                let (mut times, mut other) = (new(), new());
                other.record(ns);
                times.record(1_000_000);
                times.add(&other);
                times.latency()
            });
            for latency in latencies {
                assert_close(latency.max, ns as f64 / 1e3);
                assert_eq!((latency.p99, latency.max), (latencies[0].p99, latencies[0].max));
            }
        }
    }

    #[test]
    fn the_maximum_is_the_one_that_a_histogram_file_says() {
        for ns in [1, 2_047, 2_048, 123_456, 98_765_432_101, 1 << 45] {
            let mut times = Times::default();
            times.record(ns);
            assert_eq!(times.latency().max, times.histogram().max() as f64 / 1e3, "{ns}");
        }
    }

    #[test]
    fn nothing_measured_is_all_zero() {
        assert_eq!(Times::default().latency(), Latency::default());
    }
}
