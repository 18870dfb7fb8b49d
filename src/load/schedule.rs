//! WHEN: the moments at which requests are due, as pure arithmetic. No socket, no clock.
//!
//! A closed loop sends whenever a connection is free, so the server's slowness slows the client down too. An
//! open loop has due times that nobody can shift: `due_k = k / rate`, however late request k − 1 was. Several
//! threads share one schedule: of the fixed one, thread t of T takes every k ≡ t (mod T); the Poisson one is
//! split into T independent streams of rate / T, which together are again Poisson with the whole rate
//! (superposition).
//!
//! There is no queue of late requests: the schedule is a cursor, and what lies between the cursor and the
//! clock is the backlog. It costs no memory however long the server stalls.

use std::str::FromStr;

use fastrand::Rng;

use crate::load::args::Think;

/// Requests per second, in millionths, so that due times follow from integers and do not drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    micro_per_s: u64,
}

impl Rate {
    const MICRO: f64 = 1e6;
    /// Due times a tenth of a microsecond apart: nothing sends faster, so more is a slip of the pen.
    const MAX_PER_S: f64 = 1e7;

    pub fn per_s(self) -> f64 {
        self.micro_per_s as f64 / Rate::MICRO
    }

    /// When request k is due, in nanoseconds from the start. Saturates after 584 years.
    fn due_ns(self, k: u64) -> u64 {
        let numerator = u128::from(k) * 1_000_000_000_000_000;
        (numerator / u128::from(self.micro_per_s)).try_into().unwrap_or(u64::MAX)
    }

    /// The first k that is due at `ns` or later.
    fn first_at(self, ns: u64) -> u64 {
        let numerator = u128::from(ns) * u128::from(self.micro_per_s);
        (numerator.div_ceil(1_000_000_000_000_000)).try_into().unwrap_or(u64::MAX)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let per_s: f64 =
            text.parse().map_err(|_| format!("{text:?} is not a number of requests per second"))?;
        if !(1e-6..=Rate::MAX_PER_S).contains(&per_s) {
            return Err(format!("a rate lies between 0.000001 and {} per second", Rate::MAX_PER_S));
        }
        Ok(Rate { micro_per_s: (per_s * Rate::MICRO).round() as u64 })
    }
}

/// What decides the next moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// Whenever a connection is free.
    Closed,
    /// Every 1 / rate seconds.
    Fixed(Rate),
    /// Independent, exponentially distributed gaps; the seed makes them repeatable.
    Poisson(Rate, u64),
}

/// How long a schedule goes on, in nanoseconds from its start.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// End of the warm-up: what is due from here on is measured.
    pub measured_from_ns: u64,
    /// Nothing is due at this moment or later; `u64::MAX` when a number of requests ends the run.
    pub end_ns: u64,
    /// Requests of all threads together that may be due after the warm-up.
    pub requests: u64,
}

/// One thread's share of the schedule.
pub struct Schedule {
    stream: Stream,
    measured_from_ns: u64,
    end_ns: u64,
    /// Measured requests this thread may still take.
    left: u64,
}

enum Stream {
    Closed,
    Fixed {
        rate: Rate,
        k: u64,
        stride: u64,
    },
    /// `due_ns` is kept as f64: after a day its resolution is still 0.02 ns, and rounding does not add up.
    Poisson {
        mean_gap_ns: f64,
        due_ns: f64,
        rng: Rng,
    },
}

impl Schedule {
    /// The schedule before the run has begun: nothing is ever due.
    pub fn nothing() -> Schedule {
        Schedule { stream: Stream::Closed, measured_from_ns: 0, end_ns: 0, left: 0 }
    }

    /// The share of `thread` out of `threads`.
    pub fn new(arrivals: Arrivals, extent: Extent, thread: u64, threads: u64) -> Schedule {
        let (stream, turn) = match arrivals {
            Arrivals::Closed => (Stream::Closed, thread),
            Arrivals::Fixed(rate) => {
                // The first measured request, k0, belongs to thread k0 mod T: shares count from there.
                let k0 = rate.first_at(extent.measured_from_ns) % threads;
                (Stream::Fixed { rate, k: thread, stride: threads }, (thread + threads - k0) % threads)
            }
            Arrivals::Poisson(rate, seed) => (poisson_stream(rate, seed, thread, threads), thread),
        };
        let left = if extent.requests == u64::MAX { u64::MAX } else { share(extent.requests, turn, threads) };
        Schedule { stream, measured_from_ns: extent.measured_from_ns, end_ns: extent.end_ns, left }
    }

    /// Takes the next request if it is due by `now_ns`, and says when it was due.
    pub fn take(&mut self, now_ns: u64) -> Option<u64> {
        let due_ns = self.next_due_ns(now_ns).filter(|&due_ns| due_ns <= now_ns)?;
        if due_ns >= self.measured_from_ns && self.left != u64::MAX {
            self.left -= 1;
        }
        self.stream.advance();
        Some(due_ns)
    }

    /// When the next request is due; `None` when there will be none.
    pub fn next_due_ns(&self, now_ns: u64) -> Option<u64> {
        let due_ns = self.stream.due_ns(now_ns);
        let spent = due_ns >= self.measured_from_ns && self.left == 0;
        (due_ns < self.end_ns && !spent).then_some(due_ns)
    }

    /// From `end_ns` on nothing is due any more; what was due before stays due.
    pub fn end_at(&mut self, end_ns: u64) {
        self.end_ns = self.end_ns.min(end_ns);
    }
}

impl Stream {
    fn due_ns(&self, now_ns: u64) -> u64 {
        match self {
            Stream::Closed => now_ns,
            Stream::Fixed { rate, k, .. } => rate.due_ns(*k),
            Stream::Poisson { due_ns, .. } => due_ns.round() as u64,
        }
    }

    fn advance(&mut self) {
        match self {
            Stream::Closed => {}
            Stream::Fixed { k, stride, .. } => *k += *stride,
            Stream::Poisson { mean_gap_ns, due_ns, rng } => *due_ns += exponential(rng) * *mean_gap_ns,
        }
    }
}

fn poisson_stream(rate: Rate, seed: u64, thread: u64, threads: u64) -> Stream {
    let mut root = Rng::with_seed(seed);
    let mut rng = root.fork();
    for _ in 0..thread {
        rng = root.fork();
    }
    let mean_gap_ns = 1e9 * threads as f64 / rate.per_s();
    // The first arrival is one gap after the start, like all others: the process has no memory.
    let due_ns = exponential(&mut rng) * mean_gap_ns;
    Stream::Poisson { mean_gap_ns, due_ns, rng }
}

/// A sample of the exponential distribution with mean 1, by inversion (Devroye 1986, section II.2).
fn exponential(rng: &mut Rng) -> f64 {
    // 1 − u lies in (0, 1], so the logarithm is finite.
    -(1.0 - rng.f64()).ln()
}

/// Draws the pauses of users who think.
pub struct Thinker {
    think: Option<Think>,
    rng: Rng,
}

impl Thinker {
    pub fn new(think: Option<Think>, seed: u64, thread: u64) -> Thinker {
        Thinker { think, rng: Rng::with_seed(seed ^ (thread << 32 | 0x7468_696e)) }
    }

    /// Nobody thinks.
    pub fn nothing() -> Thinker {
        Thinker::new(None, 0, 0)
    }

    pub fn pause_ns(&mut self) -> u64 {
        match self.think {
            None => 0,
            Some(Think::Fixed(pause)) => pause.as_nanos() as u64,
            Some(Think::Exponential(mean)) => (mean.as_nanos() as f64 * exponential(&mut self.rng)) as u64,
        }
    }
}

/// What part number `i` gets when `total` is dealt out one by one to `parts`.
pub fn share(total: u64, i: u64, parts: u64) -> u64 {
    total / parts + u64::from(i < total % parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn for_duration(end_ns: u64) -> Extent {
        Extent { measured_from_ns: 0, end_ns, requests: u64::MAX }
    }

    fn drain(schedule: &mut Schedule, until_ns: u64) -> Vec<u64> {
        std::iter::from_fn(|| schedule.take(until_ns)).collect()
    }

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
    }

    #[test]
    fn fixed_due_times_follow_the_closed_formula_without_drift() {
        let mut schedule = Schedule::new(Arrivals::Fixed(rate("3")), for_duration(1000 * S), 0, 1);
        let due = drain(&mut schedule, u64::MAX);
        assert_eq!(due.len(), 3000);
        assert_eq!(due[..4], [0, 333_333_333, 666_666_666, S]);
        assert_eq!(due[2997], 999 * S);
    }

    #[test]
    fn lateness_never_shifts_a_due_time() {
        let mut schedule = Schedule::new(Arrivals::Fixed(rate("1000")), for_duration(10 * S), 0, 1);
        assert_eq!(schedule.take(0), Some(0));
        // The server stalled for five seconds; the backlog is due when it always was.
        assert_eq!(schedule.take(5 * S), Some(1_000_000));
        assert_eq!(schedule.take(5 * S), Some(2_000_000));
    }

    #[test]
    fn nothing_is_taken_before_it_is_due() {
        let mut schedule = Schedule::new(Arrivals::Fixed(rate("10")), for_duration(S), 0, 1);
        assert_eq!(schedule.take(0), Some(0));
        assert_eq!(schedule.take(99_999_999), None);
        assert_eq!(schedule.next_due_ns(0), Some(100_000_000));
        assert_eq!(schedule.take(100_000_000), Some(100_000_000));
    }

    #[test]
    fn threads_together_keep_exactly_the_schedule_of_one() {
        let alone =
            drain(&mut Schedule::new(Arrivals::Fixed(rate("7")), for_duration(9 * S), 0, 1), u64::MAX);
        let mut together: Vec<u64> = (0..3)
            .flat_map(|t| {
                drain(&mut Schedule::new(Arrivals::Fixed(rate("7")), for_duration(9 * S), t, 3), u64::MAX)
            })
            .collect();
        together.sort_unstable();
        assert_eq!(alone, together);
    }

    #[test]
    fn a_number_of_requests_counts_from_the_end_of_the_warm_up() {
        let extent = Extent { measured_from_ns: S, end_ns: u64::MAX, requests: 11 };
        for threads in 1..=5 {
            let mut due: Vec<u64> = (0..threads)
                .flat_map(|t| {
                    drain(&mut Schedule::new(Arrivals::Fixed(rate("10")), extent, t, threads), u64::MAX)
                })
                .filter(|&due| due >= S)
                .collect();
            due.sort_unstable();
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
        let extent = Extent { measured_from_ns: 100, end_ns: u64::MAX, requests: 3 };
        let mut first = Schedule::new(Arrivals::Closed, extent, 0, 2);
        assert_eq!(drain_closed(&mut first, [1, 50, 100, 101, 102]), [1, 50, 100, 101]);
        let mut second = Schedule::new(Arrivals::Closed, extent, 1, 2);
        assert_eq!(drain_closed(&mut second, [99, 100, 101, 102]), [99, 100]);
    }

    fn drain_closed<const N: usize>(schedule: &mut Schedule, moments: [u64; N]) -> Vec<u64> {
        moments.into_iter().filter_map(|now| schedule.take(now)).collect()
    }

    #[test]
    fn an_ended_schedule_keeps_what_was_due_before_its_end() {
        let mut schedule = Schedule::new(Arrivals::Fixed(rate("10")), for_duration(10 * S), 0, 1);
        schedule.end_at(S / 4);
        assert_eq!(drain(&mut schedule, u64::MAX), [0, S / 10, S / 5]);
    }

    #[test]
    fn poisson_gaps_are_exponential_by_mean_variance_and_kolmogorov_smirnov() {
        for threads in [1, 4] {
            let arrivals = Arrivals::Poisson(rate("1000"), 42);
            let mut due: Vec<u64> = (0..threads)
                .flat_map(|t| {
                    drain(&mut Schedule::new(arrivals, for_duration(100 * S), t, threads), u64::MAX)
                })
                .collect();
            due.sort_unstable();
            let mut gaps: Vec<f64> = due.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / 1e6).collect();
            let n = gaps.len() as f64;
            let mean = gaps.iter().sum::<f64>() / n;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / n;
            // Five standard errors: 1/√n for the mean, √(8/n) for the variance of an exponential.
            assert!((mean - 1.0).abs() < 5.0 / n.sqrt(), "mean {mean}");
            assert!((variance - 1.0).abs() < 5.0 * (8.0 / n).sqrt(), "variance {variance}");
            gaps.sort_by(f64::total_cmp);
            let distance = gaps
                .iter()
                .enumerate()
                .map(|(i, gap)| (1.0 - (-gap).exp() - (i as f64 + 0.5) / n).abs() + 0.5 / n)
                .fold(0.0, f64::max);
            // The critical value for α = 0.001 (Kolmogorov's distribution).
            assert!(distance < 1.95 / n.sqrt(), "KS distance {distance} over {n} gaps");
        }
    }

    #[test]
    fn a_seed_repeats_its_poisson_schedule_and_another_does_not() {
        let due = |seed, thread| {
            let arrivals = Arrivals::Poisson(rate("100"), seed);
            drain(&mut Schedule::new(arrivals, for_duration(S), thread, 2), u64::MAX)
        };
        assert_eq!(due(1, 0), due(1, 0));
        assert_ne!(due(1, 0), due(2, 0));
        assert_ne!(due(1, 0), due(1, 1));
    }

    #[test]
    fn rates_that_are_zero_negative_or_absurd_are_refused() {
        for bad in ["0", "-1", "NaN", "inf", "1e300", "fast", ""] {
            assert!(bad.parse::<Rate>().is_err(), "{bad:?} was accepted");
        }
        assert_eq!(rate("0.5").per_s(), 0.5);
    }
}
