//! WHEN: the moments at which requests are due, as pure arithmetic. No socket, no clock.
//!
//! A closed loop sends whenever a connection is free, so the server's slowness slows the client down too. An
//! open loop has due times that nobody can shift, however late request k − 1 was. They are one formula:
//!
//! ```text
//! due_k = Λ⁻¹(x_k)     Λ(t): how many requests the profile wants until t, the integral of its rate
//!
//! profile    constant   Λ(t) = R·t
//!            ramp       A·t in the warm-up, then A·s + (B − A)·s² / 2D after s of its D seconds
//! spacing    fixed      x_k = k
//!            burst:N    x_k = ⌊k / N⌋·N
//!            poisson    x_k = the sum of k + 1 exponential steps of mean 1: a unit Poisson process in the time
//!                       Λ(t) is one with the rate of the profile (Çınlar 1975, Introduction to Stochastic
//!                       Processes, 4.7)
//! ```
//!
//! A replay has its due times from a file. Several threads share one schedule: thread t of T takes every
//! k ≡ t (mod T); the Poisson one is split into T independent streams of rate / T, which together are again
//! Poisson with the whole rate (superposition).
//!
//! There is no queue of late requests: the schedule is a cursor, and what lies between the cursor and the
//! clock is the backlog. It costs no memory however long the server stalls.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use crate::units::parse_positive_duration;

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
#[derive(Debug, Clone, PartialEq)]
pub enum Arrivals {
    /// Whenever a connection is free.
    Closed,
    /// At moments of their own; the seed makes random ones repeatable.
    Open { profile: Profile, spacing: Spacing, seed: u64 },
    /// At these nanoseconds from the start of the warm-up; they never go back.
    Replay(Arc<[u64]>),
}

/// The rate over time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Profile {
    Constant(Rate),
    /// `from` until `begin_ns`, then in a straight line to `to` at `end_ns`, and nothing any more.
    Ramp {
        from: Rate,
        to: Rate,
        begin_ns: u64,
        end_ns: u64,
    },
}

/// The gaps of an open loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    Fixed,
    Poisson,
    /// So many at once; never 0.
    Burst(u32),
}

impl FromStr for Spacing {
    type Err = String;

    fn from_str(text: &str) -> Result<Spacing, String> {
        match (text, text.strip_prefix("burst:").map(str::parse)) {
            ("fixed", _) => Ok(Spacing::Fixed),
            ("poisson", _) => Ok(Spacing::Poisson),
            (_, Some(Ok(size @ 1..))) => Ok(Spacing::Burst(size)),
            _ => Err("arrivals are fixed, poisson, or burst:N with N at least 1".into()),
        }
    }
}

impl Profile {
    /// Λ⁻¹(k) for a whole k: in integers where the rate does not change.
    fn due_ns(self, k: u64) -> u64 {
        match self {
            Profile::Constant(rate) => rate.due_ns(k),
            Profile::Ramp { from, begin_ns, .. } => {
                let flat_ns = from.due_ns(k);
                if flat_ns <= begin_ns { flat_ns } else { self.due_ns_of(k as f64) }
            }
        }
    }

    /// Λ⁻¹(x); `u64::MAX` for never. In f64, whose error grows with the time t and with the ratio of the rates
    /// when they fall: a few 2⁻⁵³ · t · max(1, A / B). Within a day, and to a tenth of the rate, that is less than
    /// the nanosecond to which the result is rounded; and it does not add up, since each x has its own.
    fn due_ns_of(self, x: f64) -> u64 {
        match self {
            Profile::Constant(rate) => (x / rate.per_s() * 1e9).round() as u64,
            Profile::Ramp { from, to, begin_ns, end_ns } => {
                let (a, b) = (from.per_s(), to.per_s());
                let begin_s = begin_ns as f64 / 1e9;
                let wanted = x - a * begin_s;
                if wanted <= 0.0 {
                    return (x / a * 1e9).round() as u64;
                }
                let ramp_s = (end_ns - begin_ns) as f64 / 1e9;
                if wanted >= (a + b) / 2.0 * ramp_s {
                    return u64::MAX;
                }
                // The root of a·s + slope·s² / 2 = wanted in the form that subtracts nothing from almost the same,
                // and that holds for a slope of zero too.
                let slope = (b - a) / ramp_s;
                let s = 2.0 * wanted / (a + (a * a + 2.0 * slope * wanted).max(0.0).sqrt());
                begin_ns + (s * 1e9).round() as u64
            }
        }
    }
}

/// Reads due times: a line each, in seconds, none earlier than the one before it; `#` begins a comment.
///
/// # Errors
/// The first line that is none of that, with its number; or that there is no time at all.
pub fn parse_replay(text: &str) -> Result<Arc<[u64]>, String> {
    let mut due_ns: Vec<u64> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let time = line.split('#').next().unwrap_or("").trim();
        if time.is_empty() {
            continue;
        }
        let wrong = |why: String| Err(format!("line {number}: {why}"));
        let Some(ns) = time.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok()) else {
            return wrong(format!("{time:?} is no time in seconds, like 0.25"));
        };
        let Ok(ns) = u64::try_from(ns.as_nanos()) else {
            return wrong(format!("{time} s are more than five centuries"));
        };
        if due_ns.last().is_some_and(|&last| ns < last) {
            return wrong(format!("{time} is earlier than the time before it; sort the file (sort -g)"));
        }
        due_ns.push(ns);
    }
    if due_ns.is_empty() {
        Err("no times in it; it needs a line for each request".into())
    } else {
        Ok(due_ns.into())
    }
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
    /// Requests that have a number: each due time follows from it alone.
    Numbered {
        sequence: Sequence,
        k: u64,
        stride: u64,
        due_ns: u64,
    },
    /// `x` is kept as f64: after a day at 10⁷ per second a step is rounded by a hundredth of a nanosecond.
    Poisson {
        profile: Profile,
        x: f64,
        mean_step: f64,
        rng: Rng,
        due_ns: u64,
    },
}

/// All requests of all threads, by number.
enum Sequence {
    Profile { profile: Profile, at_once: u64 },
    Replay(Arc<[u64]>),
}

impl Sequence {
    fn due_ns(&self, k: u64) -> u64 {
        match self {
            Sequence::Profile { profile, at_once: 1 } => profile.due_ns(k),
            Sequence::Profile { profile, at_once } => profile.due_ns(k / at_once * at_once),
            Sequence::Replay(due_ns) => due_ns.get(k as usize).copied().unwrap_or(u64::MAX),
        }
    }

    /// The first k that is due at `ns` or later: due times never go back, so halving finds it.
    fn first_at(&self, ns: u64) -> u64 {
        let (mut low, mut high) = (0, u64::MAX);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.due_ns(middle) < ns {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

impl Schedule {
    /// The schedule before the run has begun: nothing is ever due.
    pub fn nothing() -> Schedule {
        Schedule { stream: Stream::Closed, measured_from_ns: 0, end_ns: 0, left: 0 }
    }

    /// The share of `thread` out of `threads`.
    pub fn new(arrivals: Arrivals, extent: Extent, thread: u64, threads: u64) -> Schedule {
        let stream = Stream::new(arrivals, thread, threads);
        let turn = match &stream {
            // The first measured request, k0, belongs to thread k0 mod T: shares count from there.
            Stream::Numbered { sequence, .. } => {
                let k0 = sequence.first_at(extent.measured_from_ns) % threads;
                (thread + threads - k0) % threads
            }
            Stream::Closed | Stream::Poisson { .. } => thread,
        };
        let left =
            if extent.requests == u64::MAX { u64::MAX } else { nth_part(extent.requests, turn, threads) };
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
    fn new(arrivals: Arrivals, thread: u64, threads: u64) -> Stream {
        let numbered = |sequence: Sequence| {
            let due_ns = sequence.due_ns(thread);
            Stream::Numbered { sequence, k: thread, stride: threads, due_ns }
        };
        match arrivals {
            Arrivals::Closed => Stream::Closed,
            Arrivals::Replay(due_ns) => numbered(Sequence::Replay(due_ns)),
            Arrivals::Open { profile, spacing, seed } => match spacing {
                Spacing::Fixed => numbered(Sequence::Profile { profile, at_once: 1 }),
                Spacing::Burst(size) => numbered(Sequence::Profile { profile, at_once: u64::from(size) }),
                Spacing::Poisson => {
                    let rng = nth_fork(seed, thread);
                    let mean_step = threads as f64;
                    let mut stream = Stream::Poisson { profile, x: 0.0, mean_step, rng, due_ns: 0 };
                    // The first arrival is one gap after the start, like all others: the process has no memory.
                    stream.advance();
                    stream
                }
            },
        }
    }

    fn due_ns(&self, now_ns: u64) -> u64 {
        match self {
            Stream::Closed => now_ns,
            Stream::Numbered { due_ns, .. } | Stream::Poisson { due_ns, .. } => *due_ns,
        }
    }

    fn advance(&mut self) {
        match self {
            Stream::Closed => {}
            Stream::Numbered { sequence, k, stride, due_ns } => {
                *k += *stride;
                *due_ns = sequence.due_ns(*k);
            }
            Stream::Poisson { profile, x, mean_step, rng, due_ns } => {
                *x += exponential(rng) * *mean_step;
                *due_ns = profile.due_ns_of(*x);
            }
        }
    }
}

/// The pause of a user between an answer and the next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Think {
    Fixed(Duration),
    /// With this mean.
    Exponential(Duration),
}

impl Think {
    pub fn mean(self) -> Duration {
        match self {
            Think::Fixed(mean) | Think::Exponential(mean) => mean,
        }
    }
}

impl FromStr for Think {
    type Err = String;

    fn from_str(text: &str) -> Result<Think, String> {
        match text.strip_prefix("exp:") {
            Some(mean) => Ok(Think::Exponential(parse_positive_duration(mean)?)),
            None => Ok(Think::Fixed(parse_positive_duration(text)?)),
        }
    }
}

/// One thread's users: how long each pauses, one answer after the other.
pub struct Thinker {
    think: Option<Think>,
    rng: Rng,
}

impl Thinker {
    /// The same seed gives the same pauses, in the order in which a thread's users ask for them. Without a `think`
    /// they are all zero.
    pub fn new(think: Option<Think>, seed: u64, thread: u64) -> Thinker {
        // Another seed than the arrivals have, or long gaps and long pauses would come together.
        Thinker { think, rng: nth_fork(!seed, thread) }
    }

    /// Nobody thinks.
    pub fn nothing() -> Thinker {
        Thinker::new(None, 0, 0)
    }

    /// The next pause.
    pub fn pause_ns(&mut self) -> u64 {
        match self.think {
            None => 0,
            Some(Think::Fixed(pause)) => pause.as_nanos() as u64,
            Some(Think::Exponential(mean)) => {
                (exponential(&mut self.rng) * mean.as_nanos() as f64).round() as u64
            }
        }
    }
}

/// A random stream of its own for each thread.
fn nth_fork(seed: u64, thread: u64) -> Rng {
    let mut root = Rng::with_seed(seed);
    let mut rng = root.fork();
    for _ in 0..thread {
        rng = root.fork();
    }
    rng
}

/// A sample of the exponential distribution with mean 1, by inversion (Devroye 1986, section II.2).
fn exponential(rng: &mut Rng) -> f64 {
    // 1 − u lies in (0, 1], so the logarithm is finite.
    -(1.0 - rng.f64()).ln()
}

/// What part number `i` gets when `total` is dealt out one by one to `parts`.
pub fn nth_part(total: u64, i: u64, parts: u64) -> u64 {
    total / parts + u64::from(i < total % parts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
    fn all(arrivals: &Arrivals, extent: Extent, threads: u64) -> Vec<u64> {
        let mut due: Vec<u64> = (0..threads)
            .flat_map(|t| drain(&mut Schedule::new(arrivals.clone(), extent, t, threads), u64::MAX))
            .collect();
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
        let extent = for_duration(9 * S);
        assert_eq!(all(&fixed("7"), extent, 3), all(&fixed("7"), extent, 1));
    }

    #[test]
    fn a_number_of_requests_counts_from_the_end_of_the_warm_up() {
        let extent = Extent { measured_from_ns: S, end_ns: u64::MAX, requests: 11 };
        for threads in 1..=5 {
            let due: Vec<u64> =
                all(&fixed("10"), extent, threads).into_iter().filter(|&due| due >= S).collect();
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
                assert!(
                    (wanted - f64::from(k)).abs() < 2e-9 * a.max(b) + 1e-9,
                    "{from} to {to}: {k} at {due_s}"
                );
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
        let extent = for_duration(u64::MAX);
        for spacing in [Spacing::Fixed, Spacing::Poisson, Spacing::Burst(5)] {
            let due = all(&open(ramp("100", "1", 0, 3), spacing, 1), extent, 2);
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
        let extent = Extent { measured_from_ns: S / 10, end_ns: u64::MAX, requests: 6 };
        for threads in 1..=5 {
            let expected = [&at(0)[..], &at(400), &at(800)[..2]].concat();
            assert_eq!(all(&burst, extent, threads), expected, "{threads} threads");
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
            ("0.1\nsoon\n", "line 2: \"soon\" is no time"),
            ("-1", "line 1: \"-1\" is no time"),
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
            let extent = Extent { measured_from_ns: begin_ns, end_ns, requests };
            let alone = all(&burst, extent, 1);
            prop_assert_eq!(&alone, &all(&burst, extent, threads));
            prop_assert!(alone.iter().filter(|&&due| due >= begin_ns).count() as u64 <= requests);
            // Replayed, the same moments are the same schedule.
            if !alone.is_empty() {
                let replay = Arrivals::Replay(alone.clone().into());
                prop_assert_eq!(&alone, &all(&replay, extent, threads));
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
        let due = |seed, thread| {
            drain(&mut Schedule::new(poisson("100", seed), for_duration(S), thread, 2), u64::MAX)
        };
        assert_eq!(due(1, 0), due(1, 0));
        assert_ne!(due(1, 0), due(2, 0));
        assert_ne!(due(1, 0), due(1, 1));
    }

    #[test]
    fn users_think_as_long_as_they_were_told_to() {
        let ms = Duration::from_millis;
        assert_eq!(Thinker::new(None, 1, 0).pause_ns(), 0);
        assert_eq!(Thinker::new(Some(Think::Fixed(ms(20))), 1, 0).pause_ns(), 20_000_000);
        let pauses = |seed, thread| -> Vec<f64> {
            let mut thinker = Thinker::new(Some(Think::Exponential(ms(20))), seed, thread);
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
}
