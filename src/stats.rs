//! Statistics that assume little: medians with intervals from order statistics, rank correlation, the distance between
//! distribution functions, extremes of normals.

use statrs::function::gamma::gamma_ur;

use crate::units::over;

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
    let upper = *sorted.get(n / 2)?;
    let median = if n % 2 == 1 { upper } else { (sorted[n / 2 - 1] + upper) / 2.0 };
    Some(Summary { median, low: *sorted.get(skip)?, high: sorted[n - 1 - skip] })
}

/// The middle of the values; `None` when there are none.
pub fn median(values: &[f64]) -> Option<f64> {
    summarize(values).map(|summary| summary.median)
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

/// Two groups of values, with few values between them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TwoModes {
    /// The means of both groups.
    pub low: f64,
    pub high: f64,
    /// The share of the values that are in the lower group.
    pub low_share: f64,
}

/// Two modes, if the values have them. Then their median may lie where no value is, and says nothing.
///
/// The sorted values are split into two groups so that the variance within the groups is smallest. There are two modes
/// when
///
/// - at most 15 % of the variance is within the groups, so at least 85 % is between them;
/// - each group has at least a sixth of the values;
/// - the mean of the higher group is at least 5 % above that of the lower;
/// - there are at least 16 values: fewer would look like two groups by chance too often.
///
/// The share between the groups is η of Otsu, IEEE Trans. SMC 9 (1979). A normal distribution, which has one mode, has
/// 2/π = 0.64 of its variance between its halves, a uniform distribution 0.75.
pub fn two_modes(values: &[f64]) -> Option<TwoModes> {
    const FEWEST: usize = 16;
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    if n < FEWEST {
        return None;
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let all = mean(&sorted);
    let variance: f64 = sorted.iter().map(|x| (x - all).powi(2)).sum();
    let between = |at: &usize| {
        let (low, high) = sorted.split_at(*at);
        low.len() as f64 * (mean(low) - all).powi(2) + high.len() as f64 * (mean(high) - all).powi(2)
    };
    let at = (n.div_ceil(6)..=n - n.div_ceil(6)).max_by(|a, b| between(a).total_cmp(&between(b)))?;
    let (low, high) = (mean(&sorted[..at]), mean(&sorted[at..]));
    let are_two = between(&at) >= 0.85 * variance && high >= 1.05 * low && low > 0.0;
    are_two.then_some(TwoModes { low, high, low_share: at as f64 / n as f64 })
}

/// The probability of an X² at least as far out as this one, in both directions: twice the smaller tail of chi-square
/// (Abramowitz & Stegun 26.4.2 and 26.4.19).
pub fn two_sided_chi_square(x: f64, degrees_of_freedom: f64) -> f64 {
    let upper = chi_square_upper_tail(x, degrees_of_freedom);
    2.0 * upper.min(1.0 - upper)
}

/// P(X² ≥ x) of the chi-square distribution.
pub fn chi_square_upper_tail(x: f64, degrees_of_freedom: f64) -> f64 {
    upper_incomplete_gamma(degrees_of_freedom / 2.0, x / 2.0)
}

/// P(X ≤ x) of the sum of `shape` exponential variables with mean 1 (Erlang's distribution).
pub fn gamma_cdf(shape: f64, x: f64) -> f64 {
    if shape == 1.0 { -(-x).exp_m1() } else { 1.0 - upper_incomplete_gamma(shape, x) }
}

/// The largest distance D between the sample's distribution function and `cdf`, and the probability of one at least
/// as large: Q(λ) = 2 Σ (−1)^(j−1) exp(−2j²λ²) with λ = (√n + 0.12 + 0.11/√n)·D (Stephens, J. R. Stat. Soc. B 32
/// (1970); Press et al., Numerical Recipes, 3rd ed., section 14.3.3). The distribution is known, not fitted.
pub fn kolmogorov_smirnov(sorted: &[f64], cdf: impl Fn(f64) -> f64) -> (f64, f64) {
    let n = sorted.len() as f64;
    let distance = (0..).zip(sorted).fold(0.0f64, |most, (i, &x)| {
        let below = cdf(x);
        most.max(below - f64::from(i) / n).max(f64::from(i + 1) / n - below)
    });
    (distance, kolmogorov_tail((n.sqrt() + 0.12 + 0.11 / n.sqrt()) * distance))
}

fn kolmogorov_tail(lambda: f64) -> f64 {
    // Below, the alternating series converges slowly, and the value is 1 to ten digits.
    if lambda < 0.2 {
        return 1.0;
    }
    let term = |j: i32| (-2.0 * f64::from(j * j) * lambda * lambda).exp();
    (2.0 * (1..=100).map(|j| if j % 2 == 1 { term(j) } else { -term(j) }).sum::<f64>()).clamp(0.0, 1.0)
}

/// Spearman's rank correlation: Pearson's, of the ranks; ties share the mean of their ranks.
pub fn spearman(xs: &[f64], ys: &[f64]) -> f64 {
    let (xs, ys) = (ranks(xs), ranks(ys));
    // Ranks of n values have the mean (n + 1)/2, tied or not.
    let mean = (xs.len() as f64 + 1.0) / 2.0;
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in xs.iter().zip(&ys) {
        xy += (x - mean) * (y - mean);
        xx += (x - mean).powi(2);
        yy += (y - mean).powi(2);
    }
    over(xy, (xx * yy).sqrt())
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut at = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = at as f64 + (tied.len() as f64 + 1.0) / 2.0;
        tied.iter().for_each(|&i| ranks[i] = rank);
        at += tied.len();
    }
    ranks
}

/// E_k, the expected maximum of k independent standard normals (Harter 1961 tabulates it: 1.03, 1.42, 1.77
/// for k = 4, 8, 16): ∫ over the positive axis of (1 − Φᵏ) minus ∫ over the negative one of Φᵏ.
pub fn expected_max_of_normals(k: usize) -> f64 {
    // The integrand is even, smooth and vanishes: there the trapezoid rule converges exponentially. Beyond 9
    // it is below 10⁻¹⁴ for every k up to the largest number of workers.
    const STEP: f64 = 0.01;
    const STEPS: usize = 900;
    let k = k as f64;
    let integrand = |x: f64| {
        let upper = 0.5 * upper_incomplete_gamma(0.5, x * x / 2.0);
        // 1 − Φ(x)ᵏ − Φ(−x)ᵏ, without the loss of digits where Φ(x) is near 1.
        -(k * (-upper).ln_1p()).exp_m1() - upper.powf(k)
    };
    let inner: f64 = (1..STEPS).map(|i| integrand(i as f64 * STEP)).sum();
    STEP * (inner + 0.5 * (integrand(0.0) + integrand(STEP * STEPS as f64)))
}

/// The regularised upper incomplete gamma function Q(a, x), which is 1 up to 0.
fn upper_incomplete_gamma(a: f64, x: f64) -> f64 {
    if x > 0.0 { gamma_ur(a, x).clamp(0.0, 1.0) } else { 1.0 }
}

/// The shares of workers that are asked in a fixed order, the first that is free: worker i gets what overflows from
/// those before it, a·(B(i−1, a) − B(i, a)) with B Erlang's loss formula and `load` a in Erlangs.
pub fn ordered_shares(workers: usize, load: f64) -> Vec<f64> {
    let mut blocked = 1.0;
    let mut shares = Vec::new();
    for n in 1..=workers {
        let next = load * blocked / (n as f64 + load * blocked);
        shares.push(blocked - next);
        blocked = next;
    }
    let all: f64 = shares.iter().sum();
    if all > 0.0 { shares.iter().map(|share| share / all).collect() } else { shares }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

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

    #[test]
    fn two_modes_are_two_separate_groups_of_some_size() {
        let noisy = |centre: f64, count: usize| (0..count).map(move |i| centre * (1.0 + 0.01 * (i % 5) as f64));
        let both: Vec<f64> = noisy(135.0, 12).chain(noisy(180.0, 8)).collect();
        let modes = two_modes(&both).unwrap();
        assert!((modes.low - 137.7).abs() < 1.0 && (modes.high - 183.0).abs() < 1.0, "{modes:?}");
        assert_eq!(modes.low_share, 0.6);
        let outlier: Vec<f64> = noisy(135.0, 19).chain([400.0]).collect();
        let close: Vec<f64> = noisy(100.0, 10).chain(noisy(100.5, 10)).collect();
        let even: Vec<f64> = (100..140).map(f64::from).collect();
        for one in [outlier, close, even, both[..15].to_vec(), vec![7.0; 20], Vec::new()] {
            assert_eq!(two_modes(&one), None, "{one:?}");
        }
    }

    #[test]
    fn one_mode_is_seldom_taken_for_two() {
        let mut rng = Rng::with_seed(4);
        let taken = (0..1000).filter(|_| {
            // A sum of twelve uniform values is nearly normal.
            let one = |rng: &mut Rng| 100.0 + 10.0 * (0..12).map(|_| rng.f64()).sum::<f64>();
            two_modes(&(0..24).map(|_| one(&mut rng)).collect::<Vec<f64>>()).is_some()
        });
        let taken = taken.count();
        assert!(taken <= 10, "{taken} of 1000");
    }

    #[test]
    fn upper_tails_match_the_published_critical_values_of_chi_square() {
        // NIST/SEMATECH e-Handbook, section 1.3.6.7.4: (degrees of freedom, upper tail, critical value).
        for (degrees_of_freedom, tail, critical) in [
            (1.0, 0.05, 3.841),
            (3.0, 0.10, 6.251),
            (3.0, 0.05, 7.815),
            (3.0, 0.001, 16.266),
            (7.0, 0.05, 14.067),
            (7.0, 0.95, 2.167),
            (10.0, 0.99, 2.558),
            (15.0, 0.01, 30.578),
            (100.0, 0.05, 124.342),
            (100.0, 0.99, 70.065),
        ] {
            assert_near(chi_square_upper_tail(critical, degrees_of_freedom), tail, tail * 2e-3);
        }
    }

    #[test]
    fn two_degrees_of_freedom_are_the_exponential_distribution() {
        for x in [1e-6, 0.1, 1.0, 5.0, 50.0] {
            assert_near(chi_square_upper_tail(x, 2.0), (-x / 2.0).exp(), 1e-13);
        }
    }

    #[test]
    fn the_expected_maximum_of_normals_matches_the_tables() {
        // Harter, Biometrika 48 (1961), table 1; k = 2 is 1/√π.
        for (k, expected) in [(1, 0.0), (2, 0.56419), (4, 1.02938), (8, 1.42360), (16, 1.76599), (100, 2.50759)] {
            assert_near(expected_max_of_normals(k), expected, 1e-5);
        }
    }

    #[test]
    fn both_tails_of_chi_square_count() {
        // NIST/SEMATECH e-Handbook, section 1.3.6.7.4, 7 degrees of freedom: upper tails 0.05 and 0.95.
        assert_near(two_sided_chi_square(14.067, 7.0), 0.1, 1e-3);
        assert_near(two_sided_chi_square(2.167, 7.0), 0.1, 1e-3);
        assert!(two_sided_chi_square(0.0, 7.0) < 1e-12);
    }

    #[test]
    fn the_tail_of_kolmogorov_is_as_tabulated() {
        // Smirnov, Ann. Math. Stat. 19 (1948): critical values 1.2238, 1.3581, 1.6276, 1.9495.
        for (lambda, tail) in [(1.2238, 0.1), (1.3581, 0.05), (1.6276, 0.01), (1.9495, 0.001)] {
            assert!((kolmogorov_tail(lambda) / tail - 1.0).abs() < 2e-3, "{lambda}");
        }
        assert_eq!(kolmogorov_tail(0.0), 1.0);
    }

    #[test]
    fn rank_correlation_comes_out_as_by_hand() {
        assert_eq!(spearman(&[1.0, 2.0, 3.0, 4.0], &[10.0, 20.0, 30.0, 1e9]), 1.0);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
        // d = 0, 1, -1, so 1 - 6·2/(3·8) = 0.5.
        assert!((spearman(&[1.0, 2.0, 3.0], &[1.0, 3.0, 2.0]) - 0.5).abs() < 1e-12);
        assert_eq!(ranks(&[5.0, 1.0, 5.0]), [2.5, 1.0, 2.5]);
        assert_eq!(spearman(&[1.0, 2.0], &[7.0, 7.0]), 0.0);
    }

    #[test]
    fn p_values_of_true_samples_are_uniform() {
        let mut rng = Rng::with_seed(9);
        for summed in [1, 4] {
            let rejected = (0..1000).filter(|_| {
                let gap = |rng: &mut Rng| (0..summed).map(|_| -(1.0 - rng.f64()).ln()).sum::<f64>();
                let mut sample: Vec<f64> = (0..200).map(|_| gap(&mut rng)).collect();
                sample.sort_by(f64::total_cmp);
                kolmogorov_smirnov(&sample, |x| gamma_cdf(f64::from(summed), x)).1 < 0.05
            });
            let rejected = rejected.count();
            // Five standard deviations of the binomial.
            assert!((16..=84).contains(&rejected), "{rejected} of 1000 rejected at 5 %");
        }
    }

    fn assert_near(actual: f64, expected: f64, tolerance: f64) {
        assert!((actual - expected).abs() <= tolerance, "{actual} is not {expected}");
    }

    #[test]
    fn waiters_in_a_fixed_order_share_by_erlangs_formula() {
        // At little load the first gets nearly all; at 4.26 Erlangs fifteen share as in Stevens' figure 30.2.
        assert!(ordered_shares(4, 0.05)[0] > 0.95);
        let fifteen = ordered_shares(15, 4.26);
        assert!((fifteen[0] - 1006.0 / 5011.0).abs() < 0.02, "{fifteen:?}");
        assert!(fifteen.windows(2).all(|pair| pair[0] > pair[1]), "{fifteen:?}");
        assert!((fifteen.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }
}
