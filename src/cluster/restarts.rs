//! How many restarts are too many: a program that cannot run must not be started for ever.

use std::collections::VecDeque;
use std::time::Duration;

/// The restarts of the last while, of all workers together.
pub struct Restarts {
    most: usize,
    within_ns: u64,
    at_ns: VecDeque<u64>,
}

impl Restarts {
    /// At most `most` within any time of this length.
    pub fn new(most: usize, within: Duration) -> Restarts {
        Restarts { most, within_ns: within.as_nanos() as u64, at_ns: VecDeque::new() }
    }

    /// One more, at this time of CLOCK_MONOTONIC. False: it would be one too many.
    pub fn allow(&mut self, now_ns: u64) -> bool {
        while self.at_ns.front().is_some_and(|&at_ns| at_ns + self.within_ns <= now_ns) {
            self.at_ns.pop_front();
        }
        let is_allowed = self.at_ns.len() < self.most;
        if is_allowed {
            self.at_ns.push_back(now_ns);
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_allowed_within_the_time_and_others_later() {
        let mut restarts = Restarts::new(2, Duration::from_nanos(10));
        assert_eq!(
            [0, 5, 9, 10, 11, 15].map(|at_ns| restarts.allow(at_ns)),
            [true, true, false, true, false, true]
        );
        assert!(!Restarts::new(0, Duration::from_secs(1)).allow(0));
    }
}
