//! Repeated runs in one cell: the median and an interval that assumes nothing about the distribution.

/// A median with the interval around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

/// From this many runs on, order statistics can bracket the median with 95 % confidence.
pub const RUNS_FOR_INTERVAL: usize = 6;

/// The median and its 95 % interval from order statistics; with fewer runs than [`RUNS_FOR_INTERVAL`] the smallest
/// and the largest value. `None` when there is nothing.
pub fn summarize(values: &[f64]) -> Option<Summary> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let skip = outside(n);
    Some(Summary { median: median_of_sorted(&sorted)?, low: *sorted.get(skip)?, high: sorted[n - 1 - skip] })
}

fn median_of_sorted(sorted: &[f64]) -> Option<f64> {
    let n = sorted.len();
    let upper = sorted.get(n / 2)?;
    Some(if n % 2 == 1 { *upper } else { (sorted[n / 2 - 1] + upper) / 2.0 })
}

/// How many of n sorted values lie below the interval, and as many above it. Each value is below the true median
/// with probability ½, so [x(k+1), x(n−k)] misses it with probability 2·P(Binomial(n, ½) ≤ k) (Conover, Practical
/// Nonparametric Statistics, ch. 3.2); this is the largest k that keeps the miss within 5 %.
fn outside(n: usize) -> usize {
    let mut probability = 0.5f64.powi(n as i32);
    let mut cumulated = 0.0;
    for k in 0..n {
        cumulated += probability;
        if 2.0 * cumulated > 0.05 {
            return k.saturating_sub(1);
        }
        probability *= (n - k) as f64 / (k + 1) as f64;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_has_the_tabulated_ranks() {
        // n: the rank of the lower end, from the binomial table.
        for (n, rank) in [(6, 1), (8, 1), (9, 2), (11, 2), (12, 3), (15, 4), (20, 6), (25, 8)] {
            assert_eq!(outside(n) + 1, rank, "n = {n}");
        }
    }

    #[test]
    fn few_runs_show_their_extremes() {
        let summary = summarize(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!(summary, Summary { median: 2.0, low: 1.0, high: 3.0 });
        assert_eq!(summarize(&[4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(summarize(&[]), None);
    }
}
