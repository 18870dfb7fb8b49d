//! What a request costs: nothing, a wait for I/O, a sleeping worker, a burning CPU, or a mixture of them.
//!
//! `wait` and `block` take the same time; the difference is who is free meanwhile. A `wait` stands for a database
//! query: an event loop sets a timer and serves others. A `block` stands for code that does not give way, like the
//! `sleep(3)` of the texts that this toolkit follows. A worker without an event loop is blocked by both.

use std::str::FromStr;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_nanosleep};

use crate::units::{monotonic_ns, parse_duration, thread_cpu_ns};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    None,
    Wait(Duration),
    Block(Duration),
    /// The worker burns this much CPU time.
    Spin(Duration),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// Cumulative per cent, ending at 100, with the cost up to there.
    shares: Vec<(f64, Cost)>,
}

impl Work {
    pub fn draw(&self, random: &mut fastrand::Rng) -> Cost {
        if let [(_, cost)] = self.shares[..] {
            return cost;
        }
        let point = random.f64() * 100.0;
        self.shares.iter().find(|(up_to, _)| point < *up_to).map_or(Cost::None, |&(_, cost)| cost)
    }

    /// The mean time one request keeps a worker without an event loop, in seconds.
    pub fn mean_s(&self) -> f64 {
        let mut from = 0.0;
        let mut mean = 0.0;
        for &(up_to, cost) in &self.shares {
            mean += (up_to - from) / 100.0 * cost.duration().as_secs_f64();
            from = up_to;
        }
        mean
    }
}

impl Cost {
    pub fn duration(self) -> Duration {
        match self {
            Cost::None => Duration::ZERO,
            Cost::Wait(duration) | Cost::Block(duration) | Cost::Spin(duration) => duration,
        }
    }

    /// Spends the cost in the calling thread, which can do nothing else meanwhile. A sleep or a spin ends early
    /// when `give_up` says so, and a signal makes a sleep ask.
    pub fn spend(self, give_up: fn() -> bool) {
        match self {
            Cost::None => {}
            Cost::Wait(duration) | Cost::Block(duration) => sleep(duration, give_up),
            Cost::Spin(duration) => spin(duration, give_up),
        }
    }
}

/// Sleeps until a point in time, so that signals do not lengthen it. How exactly it wakes is the timer slack's
/// doing (prctl(2), PR_SET_TIMERSLACK), which a worker sets to 1 ns when it starts.
fn sleep(duration: Duration, give_up: fn() -> bool) {
    let until = TimeSpec::from_duration(Duration::from_nanos(monotonic_ns()) + duration);
    let sleep = || clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &until);
    while !give_up() && matches!(sleep(), Err(Errno::EINTR)) {}
}

/// Counts CPU time, not wall-clock time: work that loses the CPU is not done yet.
fn spin(duration: Duration, give_up: fn() -> bool) {
    let until = thread_cpu_ns() + duration.as_nanos() as u64;
    while thread_cpu_ns() < until && !give_up() {
        std::hint::spin_loop();
    }
}

impl FromStr for Work {
    type Err = String;

    fn from_str(text: &str) -> Result<Work, String> {
        if !text.contains('%') {
            return Ok(Work { shares: vec![(100.0, parse_cost(text)?)] });
        }
        let mut shares = Vec::new();
        let mut total = 0.0;
        for part in text.split(',') {
            let (per_cent, cost) =
                part.split_once('%').ok_or_else(|| format!("{part:?} in {text:?} has no per cent"))?;
            let per_cent: f64 = per_cent
                .parse()
                .ok()
                .filter(|share| (0.0..=100.0).contains(share))
                .ok_or_else(|| format!("{per_cent:?} in {text:?} is not a percentage"))?;
            total += per_cent;
            shares.push((total, parse_cost(cost)?));
        }
        if (total - 100.0).abs() > 1e-6 {
            return Err(format!("the shares of {text:?} add up to {total} %, not to 100 %"));
        }
        Ok(Work { shares })
    }
}

fn parse_cost(text: &str) -> Result<Cost, String> {
    let usage =
        || format!("{text:?} is not a kind of work; write none, wait:DUR, block:DUR, spin:DUR or 90%none,10%spin:5ms");
    if text == "none" {
        return Ok(Cost::None);
    }
    let (kind, duration) = text.split_once(':').ok_or_else(usage)?;
    let cost = match kind {
        "wait" => Cost::Wait,
        "block" => Cost::Block,
        "spin" => Cost::Spin,
        _ => return Err(usage()),
    };
    parse_duration(duration).map(cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_read_as_it_is_written() {
        assert_eq!("none".parse(), Ok(Work { shares: vec![(100.0, Cost::None)] }));
        let spin = Cost::Spin(Duration::from_millis(5));
        assert_eq!("90%none,10%spin:5ms".parse(), Ok(Work { shares: vec![(90.0, Cost::None), (100.0, spin)] }));
    }

    #[test]
    fn what_is_no_work_is_refused() {
        for bad in
            ["", "sleep:1s", "wait", "wait:", "wait:3", "50%none", "50%none,60%none", "x%none", "-5%none,105%none"]
        {
            assert!(bad.parse::<Work>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_mixture_is_drawn_in_its_shares() {
        let work: Work = "75%none,25%block:4ms".parse().unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        let blocked = (0..10_000).filter(|_| work.draw(&mut random) != Cost::None).count();
        // Binomial(10 000, 1/4) has a standard deviation of 43.
        assert!((2_285..2_715).contains(&blocked), "{blocked} of 10000");
        assert!((work.mean_s() - 0.001).abs() < 1e-12);
    }

    #[test]
    fn a_block_takes_its_time_and_a_spin_burns_it() {
        let began_ns = monotonic_ns();
        Cost::Block(Duration::from_millis(3)).spend(|| false);
        assert!(monotonic_ns() - began_ns >= 3_000_000);

        let began_ns = thread_cpu_ns();
        Cost::Spin(Duration::from_millis(3)).spend(|| false);
        assert!(thread_cpu_ns() - began_ns >= 3_000_000);
    }
}
