//! The measured window second by second: which was the worst, and how long nobody got an answer. An average over a
//! minute hides the moment in which a server changed its workers; this is where it shows.
//!
//! Each thread keeps its own, a histogram and a bit per millisecond for every second; added up they tell the same as
//! one thread that had seen it all.

use crate::load::counts::histogram::Times;
use crate::report::WorstSecond;

const SECOND_NS: u64 = 1_000_000_000;
const MILLISECOND_NS: u64 = 1_000_000;
const SECOND_MS: u64 = 1_000;
/// What ends later than this is not told apart: 11 MiB for each thread are enough.
const LONGEST_S: u64 = 3_600;

#[derive(Clone)]
struct Second {
    latency: Times,
    /// A bit for each millisecond: an answer was complete in it.
    answered: [u64; SECOND_MS.div_ceil(64) as usize],
}

impl Second {
    fn new() -> Box<Second> {
        Box::new(Second { latency: Times::of_a_second(), answered: [0; _] })
    }

    fn has_answer(&self, ms: u64) -> bool {
        self.answered[(ms / 64) as usize] >> (ms % 64) & 1 == 1
    }
}

/// All moments are counted from the beginning of the window.
#[derive(Clone, Default)]
pub struct Seconds(Vec<Option<Box<Second>>>);

impl Seconds {
    pub fn answered(&mut self, at_ns: u64, latency_ns: u64) {
        if let Some(second) = self.at(at_ns) {
            second.latency.record(latency_ns);
            let ms = at_ns % SECOND_NS / MILLISECOND_NS;
            second.answered[(ms / 64) as usize] |= 1 << (ms % 64);
        }
    }

    /// A request that will get no answer counts at its age.
    pub fn unanswered(&mut self, at_ns: u64, age_ns: u64) {
        if let Some(second) = self.at(at_ns) {
            second.latency.record(age_ns);
        }
    }

    fn at(&mut self, at_ns: u64) -> Option<&mut Second> {
        let index = at_ns / SECOND_NS;
        if index >= LONGEST_S {
            return None;
        }
        let index = index as usize;
        if index >= self.0.len() {
            self.0.resize_with(index + 1, || None);
        }
        Some(self.0[index].get_or_insert_with(Second::new))
    }

    /// Adds another thread's.
    pub fn add(&mut self, other: Seconds) {
        self.0.resize_with(self.0.len().max(other.0.len()), || None);
        for (sum, second) in self.0.iter_mut().zip(other.0) {
            match (sum.as_mut(), second) {
                (Some(sum), Some(second)) => {
                    sum.latency.add(&second.latency);
                    sum.answered.iter_mut().zip(second.answered).for_each(|(sum, bits)| *sum |= bits);
                }
                (None, second) => *sum = second,
                (Some(_), None) => {}
            }
        }
    }

    /// The second with the highest p99, of equals the one with the longest single time.
    pub fn worst(&self) -> Option<WorstSecond> {
        let told = (0u32..).zip(&self.0).filter_map(|(from_s, second)| {
            let second = second.as_ref()?;
            let (requests, latency_us) = (second.latency.count(), second.latency.latency());
            Some(WorstSecond { from_s: f64::from(from_s), requests, latency_us })
        });
        told.max_by(|a, b| {
            let (a, b) = (a.latency_us, b.latency_us);
            a.p99.total_cmp(&b.p99).then(a.max.total_cmp(&b.max))
        })
    }

    /// The most whole milliseconds in a row without an answer; `None` of a window without length.
    pub fn longest_silence_ms(&self, window_ns: u64) -> Option<u64> {
        let window_ms = window_ns.min(LONGEST_S * SECOND_NS) / MILLISECOND_NS;
        let (mut longest, mut silent) = (0, 0);
        for ms in 0..window_ms {
            let second = self.0.get((ms / SECOND_MS) as usize).and_then(Option::as_ref);
            let has_answer = second.is_some_and(|second| second.has_answer(ms % SECOND_MS));
            silent = if has_answer { 0 } else { silent + 1 };
            longest = longest.max(silent);
        }
        (window_ms > 0).then_some(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn the_worst_second_is_the_one_with_the_highest_p99_and_failures_count_in_it() {
        let mut seconds = Seconds::default();
        (0..3_000).for_each(|ms| seconds.answered(ms * MS, MS));
        (0..50).for_each(|i| seconds.unanswered((1_400 + i) * MS, 30 * MS));
        let worst = seconds.worst().unwrap();
        assert_eq!((worst.from_s, worst.requests), (1.0, 1_050));
        assert!((30_000.0..32_000.0).contains(&worst.latency_us.p99), "{worst:?}");
        assert_eq!(Seconds::default().worst(), None);
    }

    #[test]
    fn silence_is_told_across_seconds_and_at_both_ends() {
        let mut seconds = Seconds::default();
        assert_eq!(seconds.longest_silence_ms(700 * MS), Some(700));
        assert_eq!(seconds.longest_silence_ms(0), None);
        seconds.answered(100 * MS, MS);
        seconds.answered(900 * MS, MS);
        seconds.answered(3_200 * MS, MS);
        assert_eq!(seconds.longest_silence_ms(3_300 * MS), Some(2_299));
        assert_eq!(seconds.longest_silence_ms(9_000 * MS), Some(5_799));
    }

    #[test]
    fn one_threads_answers_end_anothers_silence() {
        let (mut one, mut other) = (Seconds::default(), Seconds::default());
        one.answered(0, MS);
        other.answered(500 * MS, 40 * MS);
        other.answered(1_500 * MS, 2 * MS);
        one.add(other);
        assert_eq!(one.longest_silence_ms(2_000 * MS), Some(999));
        let worst = one.worst().unwrap();
        assert_eq!((worst.from_s, worst.requests), (0.0, 2));
    }

    #[test]
    fn the_first_hour_is_told_apart_and_no_more() {
        let mut seconds = Seconds::default();
        seconds.answered(LONGEST_S * SECOND_NS, MS);
        assert_eq!(seconds.worst(), None);
        assert_eq!(seconds.longest_silence_ms(2 * LONGEST_S * SECOND_NS), Some(3_600_000));
    }
}
