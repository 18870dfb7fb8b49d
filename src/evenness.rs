//! How evenly n items fell on k workers, and whether chance alone would have done that.
//!
//! Chi-square, the coefficient of variation and Jain's index are one statistic: X² = n·CV², J = 1 / (1 + CV²). The
//! headline is D = X² / (k − 1), which does not change its meaning with n.

use fastrand::Rng;

use crate::report::{Evenness, EvennessPair};
use crate::stats::{expected_max_of_normals, two_sided_chi_square};

/// The seed of the simulation for small samples: the same counts always get the same p-value.
const SIMULATION_SEED: u64 = 20_170_523;
/// Balls thrown and boxes looked into, which bounds the time, and repetitions, which bound the resolution.
const SIMULATION_STEPS: u64 = 20_000_000;
const SIMULATIONS: std::ops::RangeInclusive<u64> = 200..=10_000;
/// Below this many items per worker chi-square is not a good approximation (Cochran 1954).
const MIN_ITEMS_PER_WORKER: f64 = 5.0;

/// The evenness of connections and of requests, from both counts of each worker; `None` when no worker is known.
pub fn pair(counts: impl IntoIterator<Item = (u64, u64)>) -> Option<EvennessPair> {
    let (connections, requests): (Vec<_>, Vec<_>) = counts.into_iter().unzip();
    (!connections.is_empty()).then(|| EvennessPair { connections: measure(&connections), requests: measure(&requests) })
}

/// Measures the counts of k workers; workers that got nothing must be in it, as zeros.
pub fn measure(counts: &[u64]) -> Evenness {
    let (k, n) = (counts.len(), counts.iter().sum::<u64>());
    if n == 0 || k < 2 {
        // One worker, or nothing to share: perfectly even, as chance would have it.
        let max_over_mean = if n == 0 { 0.0 } else { 1.0 };
        let even = Evenness { p_value: 1.0, jain: 1.0, expected_max_over_mean_if_random: 1.0, ..Evenness::default() };
        return Evenness { workers: k, n, max_over_mean, ..even };
    }
    let mean = n as f64 / k as f64;
    let chi_square = chi_square(counts, mean);
    let cv_square = chi_square / n as f64;
    Evenness {
        workers: k,
        n,
        dispersion: chi_square / (k - 1) as f64,
        p_value: p_value(chi_square, k, n),
        max_over_mean: counts.iter().copied().max().unwrap_or(0) as f64 / mean,
        jain: 1.0 / (1.0 + cv_square),
        cv: cv_square.sqrt(),
        // No correction for "the counts add up to n" belongs here: the deviations (Nᵢ − n/k) / √(n/k) are in the limit
        // Zᵢ − Z̄ for independent standard normals Zᵢ, and E max (Zᵢ − Z̄) = E max Zᵢ, since Z̄ has mean 0.
        expected_max_over_mean_if_random: 1.0 + expected_max_of_normals(k) * (1.0 / mean).sqrt(),
    }
}

pub fn dispersion(counts: &[u64]) -> Option<f64> {
    let (k, n) = (counts.len(), counts.iter().sum::<u64>());
    (n > 0 && k > 1).then(|| chi_square(counts, n as f64 / k as f64) / (k - 1) as f64)
}

fn chi_square(counts: &[u64], mean: f64) -> f64 {
    counts.iter().map(|&count| (count as f64 - mean).powi(2)).sum::<f64>() / mean
}

fn p_value(chi_square: f64, k: usize, n: u64) -> f64 {
    if n as f64 >= MIN_ITEMS_PER_WORKER * k as f64 {
        return two_sided_chi_square(chi_square, (k - 1) as f64);
    }
    let (lower, upper) = simulated_tails(chi_square, k, n);
    (2.0 * lower.min(upper)).min(1.0)
}

/// The shares of uniform multinomial draws with X² at most and at least as large as the observed one. Each
/// counts the observation itself as one more draw, so that no p-value is zero (Davison & Hinkley 1997,
/// equation 4.11).
fn simulated_tails(observed: f64, k: usize, n: u64) -> (f64, f64) {
    let mut rng = Rng::with_seed(SIMULATION_SEED);
    let draws = (SIMULATION_STEPS / (n + k as u64)).clamp(*SIMULATIONS.start(), *SIMULATIONS.end());
    let mean = n as f64 / k as f64;
    let mut counts = vec![0; k];
    let (mut lower, mut upper) = (1u64, 1u64);
    for _ in 0..draws {
        counts.fill(0);
        (0..n).for_each(|_| counts[rng.usize(..k)] += 1);
        let drawn = chi_square(&counts, mean);
        // Equal values of X² must compare equal whatever the order of summation.
        let tolerance = 1e-9 * (1.0 + observed);
        lower += u64::from(drawn <= observed + tolerance);
        upper += u64::from(drawn >= observed - tolerance);
    }
    let total = (draws + 1) as f64;
    (lower as f64 / total, upper as f64 / total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::chi_square_upper_tail;

    fn assert_near(actual: f64, expected: f64, tolerance: f64) {
        assert!((actual - expected).abs() <= tolerance, "{actual} is not {expected} ± {tolerance}");
    }

    #[test]
    fn round_robin_has_dispersion_zero_and_is_too_even_for_chance() {
        let even = measure(&[500, 500, 500, 500]);
        assert_eq!((even.workers, even.n), (4, 2000));
        assert_eq!((even.dispersion, even.max_over_mean, even.jain, even.cv), (0.0, 1.0, 1.0, 0.0));
        assert_eq!(even.p_value, 0.0);
    }

    #[test]
    fn a_worked_example_comes_out_as_by_hand() {
        // Mean 100; X² = (20² + 10² + 10² + 20²) / 100 = 10; CV² = 10 / 400.
        let measured = measure(&[120, 110, 90, 80]);
        assert_near(measured.dispersion, 10.0 / 3.0, 1e-12);
        assert_near(measured.cv, 0.025f64.sqrt(), 1e-12);
        assert_near(measured.jain, 1.0 / 1.025, 1e-12);
        assert_near(measured.max_over_mean, 1.2, 1e-12);
        // P(X² ≥ 10) with 3 degrees of freedom is 0.018566.
        assert_near(measured.p_value, 2.0 * 0.018566, 1e-5);
        assert_near(measured.expected_max_over_mean_if_random, 1.10294, 1e-5);
    }

    #[test]
    fn a_pile_up_is_seen_even_in_a_small_sample() {
        let pile = measure(&[9, 0, 0, 0]);
        assert_near(pile.dispersion, 9.0, 1e-12);
        assert!(pile.p_value < 0.001, "{}", pile.p_value);
    }

    #[test]
    fn small_samples_get_the_exact_probability_by_simulation() {
        // Two items on two workers: X² is 0 or 2, each with probability one half; both tails reach 1.
        assert_eq!(measure(&[1, 1]).p_value, 1.0);
        // Four items on four workers all different: probability 4!/4⁴ = 0.09375, and nothing is more even.
        assert_near(measure(&[1, 1, 1, 1]).p_value, 2.0 * 0.09375, 0.02);
        // Three items on one of three workers: probability 3/27.
        assert_near(measure(&[3, 0, 0]).p_value, 2.0 / 9.0, 0.02);
    }

    #[test]
    fn the_p_value_of_the_simulation_agrees_with_chi_square_where_both_hold() {
        for chi_square in [2.0, 7.0, 12.0] {
            let (_, simulated) = simulated_tails(chi_square, 8, 2000);
            assert_near(simulated, chi_square_upper_tail(chi_square, 7.0), 0.02);
        }
    }

    #[test]
    fn random_counts_have_uniform_p_values_and_dispersion_one() {
        let mut rng = Rng::with_seed(7);
        let (mut rejected, mut dispersion) = (0, 0.0);
        for _ in 0..2000 {
            let measured = measure(&random_counts(&mut rng, 8, 1000));
            rejected += u32::from(measured.p_value < 0.05);
            dispersion += measured.dispersion / 2000.0;
        }
        // Five standard deviations of the binomial around 100, and of the mean of D around 1.
        assert!((51..=149).contains(&rejected), "{rejected} of 2000 rejected at 5 %");
        assert_near(dispersion, 1.0, 5.0 * (2.0f64 / 7.0 / 2000.0).sqrt());
    }

    #[test]
    fn max_over_mean_of_random_counts_is_what_the_formula_expects() {
        let mut rng = Rng::with_seed(11);
        for k in [2, 4] {
            let (n, runs) = (2_000, 4_000);
            let mean: f64 =
                (0..runs).map(|_| measure(&random_counts(&mut rng, k, n)).max_over_mean / f64::from(runs)).sum();
            let expected = measure(&vec![n / k as u64; k]).expected_max_over_mean_if_random;
            // Five standard errors; a factor √(1 − 1/k) too many would be 29 % and 13 %.
            assert_near((mean - 1.0) / (expected - 1.0), 1.0, 0.06);
        }
    }

    #[test]
    fn one_worker_or_nothing_at_all_is_no_surprise() {
        let alone = measure(&[42]);
        assert_eq!((alone.dispersion, alone.p_value, alone.max_over_mean), (0.0, 1.0, 1.0));
        let nothing = measure(&[0, 0]);
        assert_eq!((nothing.n, nothing.p_value, nothing.max_over_mean), (0, 1.0, 0.0));
        assert_eq!(measure(&[]).workers, 0);
    }

    fn random_counts(rng: &mut Rng, k: usize, n: u64) -> Vec<u64> {
        let mut counts = vec![0; k];
        (0..n).for_each(|_| counts[rng.usize(..k)] += 1);
        counts
    }
}
