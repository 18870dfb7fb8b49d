//! WHEN: the moments at which requests are due, as pure arithmetic. No socket, no clock.
//!
//! A closed loop sends whenever a connection is free, so the server's slowness slows the client down too. An
//! open loop has due times that do not move, however late request k − 1 was. They are one formula:
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
//! The schedule is a cursor: the requests between the cursor and the clock are late, and need no queue.

mod arrivals;
#[cfg(test)]
mod tests;
mod think;

use std::sync::Arc;

use fastrand::Rng;

pub use arrivals::{Arrivals, Profile, Rate, Spacing, parse_replay};
pub use think::{Think, Thinker};

/// In nanoseconds from the start.
#[derive(Debug, Clone, Copy)]
pub struct ScheduleLimits {
    /// End of the warm-up: what is due from here on is measured.
    pub measured_from_ns: u64,
    /// Nothing is due at this moment or later; `u64::MAX` when a number of requests ends the run.
    pub end_ns: u64,
    /// That may be due after the warm-up, of all threads together; `u64::MAX` when the time ends the run.
    pub requests: u64,
}

/// One thread's share; `requests` is what that thread may still take.
pub struct Schedule {
    stream: ArrivalStream,
    /// When its next request is due; in a closed loop that is due at any time.
    due_ns: u64,
    limits: ScheduleLimits,
}

enum ArrivalStream {
    Closed,
    /// Requests that have a number: each due time follows from it alone.
    Numbered {
        sequence: Sequence,
        k: u64,
        stride: u64,
    },
    /// `x` is kept as f64: after a day at 10⁷ per second a step is rounded by a hundredth of a nanosecond.
    Poisson {
        profile: Profile,
        x: f64,
        mean_step: f64,
        rng: Rng,
    },
}

enum Sequence {
    Profile { profile: Profile, at_once: u64 },
    Replay(Arc<[u64]>),
}

impl Sequence {
    fn due_ns(&self, k: u64) -> u64 {
        match self {
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
    pub fn new(arrivals: Arrivals, limits: ScheduleLimits, thread: u64, threads: u64) -> Schedule {
        let mut stream = ArrivalStream::new(arrivals, thread, threads);
        let turn = match &stream {
            // The first measured request, k0, belongs to thread k0 mod T: shares count from there.
            ArrivalStream::Numbered { sequence, .. } => {
                let k0 = sequence.first_at(limits.measured_from_ns) % threads;
                (thread + threads - k0) % threads
            }
            _ => thread,
        };
        let limits = ScheduleLimits { requests: nth_part(limits.requests, turn, threads), ..limits };
        Schedule { due_ns: stream.next_ns(), stream, limits }
    }

    pub fn take(&mut self, now_ns: u64) -> Option<u64> {
        let due_ns = self.next_due_ns(now_ns).filter(|&due_ns| due_ns <= now_ns)?;
        if due_ns >= self.limits.measured_from_ns {
            self.limits.requests -= 1;
        }
        self.due_ns = self.stream.next_ns();
        Some(due_ns)
    }

    /// When the next request is due; `None` when there will be none.
    pub fn next_due_ns(&self, now_ns: u64) -> Option<u64> {
        let due_ns = if matches!(self.stream, ArrivalStream::Closed) { now_ns } else { self.due_ns };
        let spent = due_ns >= self.limits.measured_from_ns && self.limits.requests == 0;
        (due_ns < self.limits.end_ns && !spent).then_some(due_ns)
    }

    /// From `end_ns` on nothing is due any more; what was due before stays due.
    pub fn end_at(&mut self, end_ns: u64) {
        self.limits.end_ns = self.limits.end_ns.min(end_ns);
    }
}

impl ArrivalStream {
    fn new(arrivals: Arrivals, thread: u64, threads: u64) -> ArrivalStream {
        let numbered = |sequence| ArrivalStream::Numbered { sequence, k: thread, stride: threads };
        let at_once = |profile, at_once| numbered(Sequence::Profile { profile, at_once });
        match arrivals {
            Arrivals::Closed => ArrivalStream::Closed,
            Arrivals::Replay(due_ns) => numbered(Sequence::Replay(due_ns)),
            Arrivals::Open { profile, spacing: Spacing::Fixed, .. } => at_once(profile, 1),
            Arrivals::Open { profile, spacing: Spacing::Burst(size), .. } => at_once(profile, size.into()),
            Arrivals::Open { profile, spacing: Spacing::Poisson, seed } => {
                ArrivalStream::Poisson { profile, x: 0.0, mean_step: threads as f64, rng: rng_of_thread(seed, thread) }
            }
        }
    }

    /// When the next request is due. The first arrival of a Poisson process is one gap after the start, like all
    /// others: the process has no memory.
    fn next_ns(&mut self) -> u64 {
        match self {
            ArrivalStream::Closed => 0,
            ArrivalStream::Numbered { sequence, k, stride } => {
                let due_ns = sequence.due_ns(*k);
                *k += *stride;
                due_ns
            }
            ArrivalStream::Poisson { profile, x, mean_step, rng } => {
                *x += exponential(rng) * *mean_step;
                profile.due_ns_of(*x)
            }
        }
    }
}

fn rng_of_thread(seed: u64, thread: u64) -> Rng {
    let mut root = Rng::with_seed(seed);
    (0..thread).for_each(|_| _ = root.fork());
    root.fork()
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
