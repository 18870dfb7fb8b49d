//! How long to wait before something counts as missing: for every wait of the lab and of the tests, unless the kernel
//! waits for us.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// How often a wait looks in the time it was given.
const LOOKS: u32 = 20;

/// So many threads may want each CPU, and the limits still have room for that: the tests themselves are two at a time.
const USUAL_THREADS_PER_CPU: f64 = 2.0;

/// A wait lasts at most so many times as long as it would on an idle machine: something that hangs is still found.
const MOST_STRETCH: f64 = 6.0;

/// A time limit on a machine that others use, too. While three times as many threads want the CPUs as usual, each gets
/// a third of the time that the limit expects, so a second counts as a third of one.
pub struct Deadline {
    left: Duration,
    look_every: Duration,
    last_look: Instant,
}

impl Deadline {
    pub fn after(limit: Duration) -> Deadline {
        Deadline { left: limit, look_every: limit / LOOKS, last_look: Instant::now() }
    }

    /// How long to wait before the next look; `None` when the time is up.
    pub fn next_look(&mut self) -> Option<Duration> {
        let now = Instant::now();
        self.pass(now - self.last_look, threads_per_cpu());
        self.last_look = now;
        (!self.left.is_zero()).then_some(self.look_every)
    }

    fn pass(&mut self, time: Duration, threads_per_cpu: f64) {
        let slower = (threads_per_cpu / USUAL_THREADS_PER_CPU).clamp(1.0, MOST_STRETCH);
        self.left = self.left.saturating_sub(time.div_f64(slower));
    }
}

/// Of the threads that run or could run at this moment (the fourth field of proc_loadavg(5)). Where the kernel does not
/// say it, none has to wait.
fn threads_per_cpu() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let runnable = text.split_whitespace().nth(3).and_then(|field| field.split_once('/')?.0.parse().ok());
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    runnable.unwrap_or(0.0) / cpus as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_second_counts_less_while_threads_wait_for_a_cpu_but_never_less_than_a_sixth() {
        let mut deadline = Deadline::after(Duration::from_secs(4));
        for (threads_per_cpu, left) in [(0.5, 3000), (2.0, 2000), (4.0, 1500), (12.0, 1333), (100.0, 1167)] {
            deadline.pass(Duration::from_secs(1), threads_per_cpu);
            assert_eq!((deadline.left.as_secs_f64() * 1e3).round() as u32, left);
        }
    }

    #[test]
    fn the_time_is_up_in_the_end() {
        let (limit, since) = (Duration::from_millis(40), Instant::now());
        let mut deadline = Deadline::after(limit);
        while let Some(pause) = deadline.next_look() {
            thread::sleep(pause);
        }
        assert!(since.elapsed() >= limit);
        assert!(Deadline::after(Duration::ZERO).next_look().is_none());
    }

    #[test]
    fn threads_that_want_a_cpu_are_counted() {
        let is_over = AtomicBool::new(false);
        let mut deadline = Deadline::after(Duration::from_secs(30));
        let are_seen = thread::scope(|scope| {
            for _ in 0..3 * thread::available_parallelism().unwrap().get() {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let are_seen = loop {
                let are_seen = threads_per_cpu() >= 2.0;
                if are_seen || deadline.next_look().is_none() {
                    break are_seen;
                }
                thread::yield_now();
            };
            is_over.store(true, Ordering::Relaxed);
            are_seen
        });
        assert!(are_seen);
    }
}
