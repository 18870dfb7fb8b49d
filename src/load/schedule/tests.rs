use std::time::Duration;

use proptest::prelude::*;

use super::*;

const S: u64 = 1_000_000_000;

fn for_duration(end_ns: u64) -> ScheduleLimits {
    ScheduleLimits { measured_from_ns: 0, end_ns, requests: u64::MAX }
}

fn drain(schedule: &mut Schedule, until_ns: u64) -> Vec<u64> {
    std::iter::from_fn(|| schedule.take(until_ns)).collect()
}

fn rate(text: &str) -> Rate {
    text.parse().unwrap()
}

fn open(profile: Profile, spacing: Spacing, seed: u64) -> Arrivals {
    Arrivals::Open { profile, spacing, seed }
}

fn fixed(text: &str) -> Arrivals {
    open(Profile::Constant(rate(text)), Spacing::Fixed, 1)
}

fn poisson(text: &str, seed: u64) -> Arrivals {
    open(Profile::Constant(rate(text)), Spacing::Poisson, seed)
}

fn ramp(from: &str, to: &str, begin_s: u64, end_s: u64) -> Profile {
    Profile::Ramp { from: rate(from), to: rate(to), begin_ns: begin_s * S, end_ns: end_s * S }
}

/// All that is due, of all threads together, in order.
fn all(arrivals: &Arrivals, limits: ScheduleLimits, threads: u64) -> Vec<u64> {
    let mut due: Vec<u64> =
        (0..threads).flat_map(|t| drain(&mut Schedule::new(arrivals.clone(), limits, t, threads), u64::MAX)).collect();
    due.sort_unstable();
    due
}

/// Kolmogorov's distance between a sorted sample and the exponential distribution with mean 1, held to the
/// critical value for α = 0.001.
#[track_caller]
fn assert_exponential(mut sample: Vec<f64>) {
    sample.sort_by(f64::total_cmp);
    let n = sample.len() as f64;
    let distance = (0..)
        .zip(&sample)
        .map(|(i, gap): (u32, _)| (1.0 - (-gap).exp() - (f64::from(i) + 0.5) / n).abs() + 0.5 / n)
        .fold(0.0, f64::max);
    assert!(distance < 1.95 / n.sqrt(), "KS distance {distance} over {n}");
}

#[test]
fn fixed_due_times_follow_the_closed_formula_without_drift() {
    let mut schedule = Schedule::new(fixed("3"), for_duration(1000 * S), 0, 1);
    let due = drain(&mut schedule, u64::MAX);
    assert_eq!(due.len(), 3000);
    assert_eq!(due[..4], [0, 333_333_333, 666_666_666, S]);
    assert_eq!(due[2997], 999 * S);
}

#[test]
fn lateness_never_shifts_a_due_time() {
    let mut schedule = Schedule::new(fixed("1000"), for_duration(10 * S), 0, 1);
    assert_eq!(schedule.take(0), Some(0));
    // The server stalled for five seconds; the backlog is due when it always was.
    assert_eq!(schedule.take(5 * S), Some(1_000_000));
    assert_eq!(schedule.take(5 * S), Some(2_000_000));
}

#[test]
fn nothing_is_taken_before_it_is_due() {
    let mut schedule = Schedule::new(fixed("10"), for_duration(S), 0, 1);
    assert_eq!(schedule.take(0), Some(0));
    assert_eq!(schedule.take(99_999_999), None);
    assert_eq!(schedule.next_due_ns(0), Some(100_000_000));
    assert_eq!(schedule.take(100_000_000), Some(100_000_000));
}

#[test]
fn threads_together_keep_exactly_the_schedule_of_one() {
    let limits = for_duration(9 * S);
    assert_eq!(all(&fixed("7"), limits, 3), all(&fixed("7"), limits, 1));
}

#[test]
fn a_number_of_requests_counts_from_the_end_of_the_warm_up() {
    let limits = ScheduleLimits { measured_from_ns: S, end_ns: u64::MAX, requests: 11 };
    for threads in 1..=5 {
        let due: Vec<u64> = all(&fixed("10"), limits, threads).into_iter().filter(|&due| due >= S).collect();
        let expected: Vec<u64> = (10..21).map(|k| k * S / 10).collect();
        assert_eq!(due, expected, "{threads} threads");
    }
}

#[test]
fn a_closed_loop_always_has_a_request_until_its_end() {
    let mut schedule = Schedule::new(Arrivals::Closed, for_duration(S), 0, 1);
    assert_eq!(schedule.take(17), Some(17));
    assert_eq!(schedule.take(S - 1), Some(S - 1));
    assert_eq!(schedule.take(S), None);
}

#[test]
fn a_closed_loop_spends_its_number_of_requests_after_the_warm_up_only() {
    let limits = ScheduleLimits { measured_from_ns: 100, end_ns: u64::MAX, requests: 3 };
    let mut first = Schedule::new(Arrivals::Closed, limits, 0, 2);
    assert_eq!(drain_closed(&mut first, [1, 50, 100, 101, 102]), [1, 50, 100, 101]);
    let mut second = Schedule::new(Arrivals::Closed, limits, 1, 2);
    assert_eq!(drain_closed(&mut second, [99, 100, 101, 102]), [99, 100]);
}

fn drain_closed<const N: usize>(schedule: &mut Schedule, moments: [u64; N]) -> Vec<u64> {
    moments.into_iter().filter_map(|now| schedule.take(now)).collect()
}

#[test]
fn an_ended_schedule_keeps_what_was_due_before_its_end() {
    let mut schedule = Schedule::new(fixed("10"), for_duration(10 * S), 0, 1);
    schedule.end_at(S / 4);
    assert_eq!(drain(&mut schedule, u64::MAX), [0, S / 10, S / 5]);
}

#[test]
fn poisson_gaps_are_exponential_by_mean_variance_and_kolmogorov_smirnov() {
    for threads in [1, 4] {
        let due = all(&poisson("1000", 42), for_duration(100 * S), threads);
        let gaps: Vec<f64> = due.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / 1e6).collect();
        let n = gaps.len() as f64;
        let mean = gaps.iter().sum::<f64>() / n;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / n;
        // Five standard errors: 1/√n for the mean, √(8/n) for the variance of an exponential.
        assert!((mean - 1.0).abs() < 5.0 / n.sqrt(), "mean {mean}");
        assert!((variance - 1.0).abs() < 5.0 * (8.0 / n).sqrt(), "variance {variance}");
        assert_exponential(gaps);
    }
}

#[test]
fn a_ramped_poisson_process_is_a_unit_one_in_the_time_of_its_integral() {
    for (from, to, threads) in [("200", "3000", 1), ("3000", "10", 1), ("500", "2000", 3)] {
        let due = all(&open(ramp(from, to, 2, 22), Spacing::Poisson, 7), for_duration(22 * S), threads);
        let (a, b) = (rate(from).per_s(), rate(to).per_s());
        let wanted = |ns: u64| {
            let t = ns as f64 / 1e9;
            let s = (t - 2.0).max(0.0);
            a * t.min(2.0) + a * s + (b - a) * s * s / 40.0
        };
        assert_exponential(due.windows(2).map(|pair| wanted(pair[1]) - wanted(pair[0])).collect());
        let (n, total) = (due.len() as f64, wanted(22 * S));
        assert!((n - total).abs() < 5.0 * total.sqrt(), "{n} due, {total} expected");
    }
}

#[test]
fn a_ramp_reaches_each_request_when_the_integral_of_its_rate_does() {
    for (from, to) in [("100", "1000"), ("1000", "10"), ("50", "50.000001"), ("300", "300")] {
        let due = all(&open(ramp(from, to, 1, 5), Spacing::Fixed, 1), for_duration(5 * S), 1);
        let (a, b) = (rate(from).per_s(), rate(to).per_s());
        // The trapezoid rule, exact on straight lines if it steps on the corner at one second.
        let (mut wanted, mut t) = (0.0, 0.0);
        let per_s = |t: f64| if t <= 1.0 { a } else { a + (b - a) * (t - 1.0) / 4.0 };
        for (k, &due_ns) in (0u32..).zip(&due) {
            let due_s = due_ns as f64 / 1e9;
            for next in [1.0, due_s] {
                if next > t && next <= due_s {
                    wanted += (per_s(t) + per_s(next)) / 2.0 * (next - t);
                    t = next;
                }
            }
            // Due times are whole nanoseconds.
            assert!((wanted - f64::from(k)).abs() < 2e-9 * a.max(b) + 1e-9, "{from} to {to}: {k} at {due_s}");
        }
        let total = a + (a + b) / 2.0 * 4.0;
        assert_eq!(due.len() as f64, total.ceil(), "{from} to {to}");
    }
}

#[test]
fn a_ramp_begins_after_the_warm_up_and_is_exact_until_then() {
    let ramped = all(&open(ramp("3", "30", 2, 6), Spacing::Fixed, 1), for_duration(6 * S), 1);
    let constant = all(&fixed("3"), for_duration(2 * S), 1);
    assert_eq!(ramped[..constant.len()], constant);
    assert!(ramped[constant.len() + 2] < 3 * S, "the rate rises after the warm-up");
}

#[test]
fn after_the_end_of_a_ramp_nothing_is_due_even_if_the_schedule_goes_on() {
    let limits = for_duration(u64::MAX);
    for spacing in [Spacing::Fixed, Spacing::Poisson, Spacing::Burst(5)] {
        let due = all(&open(ramp("100", "1", 0, 3), spacing, 1), limits, 2);
        assert!(due.iter().all(|&due| due <= 3 * S) && due.len() > 100, "{}", due.len());
    }
}

#[test]
fn bursts_come_at_the_moments_of_every_nth_fixed_request() {
    let burst = open(Profile::Constant(rate("10")), Spacing::Burst(4), 1);
    let due = all(&burst, for_duration(S), 1);
    let at = |ms: u64| [ms * 1_000_000; 4];
    assert_eq!(due, [at(0), at(400), at(800)].concat());
    // Of a number of requests, those of the first burst after the warm-up count first.
    let limits = ScheduleLimits { measured_from_ns: S / 10, end_ns: u64::MAX, requests: 6 };
    for threads in 1..=5 {
        let expected = [&at(0)[..], &at(400), &at(800)[..2]].concat();
        assert_eq!(all(&burst, limits, threads), expected, "{threads} threads");
    }
}

#[test]
fn a_replay_is_due_when_its_file_says_and_never_again() {
    let arrivals = Arrivals::Replay(parse_replay("0\n0\n0.5\n2\n").unwrap());
    let mut schedule = Schedule::new(arrivals.clone(), for_duration(u64::MAX), 0, 1);
    assert_eq!(drain(&mut schedule, S), [0, 0, S / 2]);
    assert_eq!(schedule.next_due_ns(S), Some(2 * S));
    assert_eq!(schedule.take(3 * S), Some(2 * S));
    assert_eq!(schedule.next_due_ns(3 * S), None);
    assert_eq!(all(&arrivals, for_duration(2 * S), 3), [0, 0, S / 2]);
}

#[test]
fn a_replay_file_has_comments_and_empty_lines_and_errors_with_their_line() {
    assert_eq!(*parse_replay("# times\n\n 0.25 # first\r\n1\n1\n1e1").unwrap(), [S / 4, S, S, 10 * S]);
    for (text, why) in [
        ("", "no times"),
        ("# nothing\n\n", "no times"),
        ("1\n# a\n0.5\n", "line 3: 0.5 is earlier"),
        ("0.1\nsoon\n", "line 2: \"soon\" is not a time"),
        ("-1", "line 1: \"-1\" is not a time"),
        ("NaN", "line 1"),
        ("inf", "line 1"),
        ("1e300", "line 1"),
        ("1e11", "line 1: 1e11 s are more than five centuries"),
    ] {
        let error = parse_replay(text).unwrap_err();
        assert!(error.contains(why) && !error.contains('\n'), "{text:?}: {error}");
    }
}

proptest! {
    #[test]
    fn threads_together_are_one_whatever_is_numbered(
        (from, to) in (1u64..2_000_000_000, 1u64..2_000_000_000),
        size in 1u32..9,
        threads in 1u64..7,
        (begin_ns, length_ns) in (0..S, 1..S),
        requests in prop_oneof![Just(u64::MAX), 0u64..300],
        is_ramp: bool,
    ) {
        let (from, to) = (Rate { micro_per_s: from }, Rate { micro_per_s: to });
        let end_ns = begin_ns + length_ns;
        let profile =
            if is_ramp { Profile::Ramp { from, to, begin_ns, end_ns } } else { Profile::Constant(from) };
        let burst = open(profile, Spacing::Burst(size), 1);
        let limits = ScheduleLimits { measured_from_ns: begin_ns, end_ns, requests };
        let alone = all(&burst, limits, 1);
        prop_assert_eq!(&alone, &all(&burst, limits, threads));
        prop_assert!(alone.iter().filter(|&&due| due >= begin_ns).count() as u64 <= requests);
        // Replayed, the same moments are the same schedule.
        if !alone.is_empty() {
            let replay = Arrivals::Replay(alone.clone().into());
            prop_assert_eq!(&alone, &all(&replay, limits, threads));
        }
    }

    #[test]
    fn due_times_never_go_back(
        (from, to) in (1u64..10_000_000_000_000, 1u64..10_000_000_000_000),
        (begin_ns, length_ns, k) in (0..100_000 * S, 1..100_000 * S, 0u64..1_000_000_000_000),
    ) {
        let (from, to) = (Rate { micro_per_s: from }, Rate { micro_per_s: to });
        let ramp = Profile::Ramp { from, to, begin_ns, end_ns: begin_ns + length_ns };
        prop_assert!(ramp.due_ns(k) <= ramp.due_ns(k + 1));
    }
}

#[test]
fn a_seed_repeats_its_poisson_schedule_and_another_does_not() {
    let due = |seed, thread| drain(&mut Schedule::new(poisson("100", seed), for_duration(S), thread, 2), u64::MAX);
    assert_eq!(due(1, 0), due(1, 0));
    assert_ne!(due(1, 0), due(2, 0));
    assert_ne!(due(1, 0), due(1, 1));
}

#[test]
fn users_think_as_long_as_they_were_told_to() {
    let ms = Duration::from_millis;
    assert_eq!(Thinker::new(None, 1, 0).pause_ns(), 0);
    assert_eq!(Thinker::new(Some(Think { mean: ms(20), is_exponential: false }), 1, 0).pause_ns(), 20_000_000);
    let pauses = |seed, thread| -> Vec<f64> {
        let mut thinker = Thinker::new(Some(Think { mean: ms(20), is_exponential: true }), seed, thread);
        (0..100_000).map(|_| thinker.pause_ns() as f64 / 20e6).collect()
    };
    assert_eq!(pauses(3, 1), pauses(3, 1));
    assert_ne!(pauses(3, 1), pauses(3, 2));
    assert_ne!(pauses(3, 1), pauses(4, 1));
    assert_exponential(pauses(3, 0));
}

#[test]
fn rates_that_are_zero_negative_or_absurd_are_refused() {
    for bad in ["0", "-1", "NaN", "inf", "1e300", "fast", ""] {
        assert!(bad.parse::<Rate>().is_err(), "{bad:?} was accepted");
    }
    assert_eq!(rate("0.5").per_s(), 0.5);
}
