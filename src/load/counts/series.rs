//! The measured window over time: the worst second, the longest silence, and whether the answers became fewer or
//! slower. An average over a minute hides the moment in which a server replaced its workers. All times count from the
//! beginning of the window.

use crate::load::counts::histogram::Times;
use crate::report::{TimeSeries, WorstSecond};

const SECOND_NS: u64 = 1_000_000_000;
const MILLISECOND_NS: u64 = 1_000_000;
const SECOND_MS: u64 = 1_000;
/// Seconds and silences of a longer window are those of its first hour: 14 MiB for each thread are enough.
const LONGEST_S: u64 = 3_600;

#[derive(Clone, Default)]
pub struct Series {
    seconds: Vec<Option<Box<Second>>>,
    parts: Parts,
}

#[derive(Clone)]
struct Second {
    latency: Times,
    /// For each millisecond, whether an answer was complete in it.
    answered: [bool; SECOND_MS as usize],
}

impl Series {
    /// A request that will get no answer counts at its age.
    pub fn record(&mut self, at_ns: u64, latency_ns: u64, is_answered: bool) {
        let answers = u64::from(is_answered);
        self.parts.at(at_ns).count(answers, answers * latency_ns).record(latency_ns);
        if let Some(second) = self.second(at_ns) {
            second.latency.record(latency_ns);
            second.answered[(at_ns % SECOND_NS / MILLISECOND_NS) as usize] |= is_answered;
        }
    }

    fn second(&mut self, at_ns: u64) -> Option<&mut Second> {
        let index = at_ns / SECOND_NS;
        if index >= LONGEST_S {
            return None;
        }
        let index = index as usize;
        if index >= self.seconds.len() {
            self.seconds.resize_with(index + 1, || None);
        }
        let new = || Box::new(Second { latency: Times::with_digits(1), answered: [false; _] });
        Some(self.seconds[index].get_or_insert_with(new))
    }

    pub fn add(&mut self, other: Series) {
        self.parts.merge(&other.parts);
        for (index, second) in (0..).zip(other.seconds) {
            if let Some((second, sum)) = second.zip(self.second(index * SECOND_NS)) {
                sum.latency.add(&second.latency);
                sum.answered.iter_mut().zip(second.answered).for_each(|(sum, more)| *sum |= more);
            }
        }
    }

    /// The second with the highest p99, of equals the one with the longest single time.
    pub fn worst_second(&self) -> Option<WorstSecond> {
        let seconds = (0u32..).zip(&self.seconds).filter_map(|(from_s, second)| {
            let latency = &second.as_ref()?.latency;
            Some(WorstSecond { from_s: f64::from(from_s), requests: latency.count(), latency_us: latency.latency() })
        });
        seconds.max_by(|a, b| {
            let (a, b) = (a.latency_us, b.latency_us);
            a.p99.total_cmp(&b.p99).then(a.max.total_cmp(&b.max))
        })
    }

    /// The most whole milliseconds in a row without an answer; `None` of a window without length.
    pub fn longest_silence_ms(&self, window_ns: u64) -> Option<u64> {
        let window_ms = window_ns.min(LONGEST_S * SECOND_NS) / MILLISECOND_NS;
        let has_answer = |ms: u64| {
            let second = self.seconds.get((ms / SECOND_MS) as usize).and_then(Option::as_ref);
            second.is_some_and(|second| second.answered[(ms % SECOND_MS) as usize])
        };
        let (mut longest, mut silent) = (0, 0);
        for ms in 0..window_ms {
            silent = if has_answer(ms) { 0 } else { silent + 1 };
            longest = longest.max(silent);
        }
        (window_ms > 0).then_some(longest)
    }

    /// The window in at most 128 equal parts, the last perhaps shorter, each with its beginning and its end in
    /// nanoseconds. There are at least 64 unless the window lasts less than 64 ms.
    pub fn parts(&self, window_ns: u64) -> Vec<(u64, u64, SeriesPart)> {
        let mut parts = self.parts.clone();
        while window_ns > Parts::MOST << parts.shift {
            parts.double();
        }
        let part = |(i, part): (u64, SeriesPart)| (i << parts.shift, ((i + 1) << parts.shift).min(window_ns), part);
        (0..window_ns.div_ceil(1 << parts.shift)).zip(parts.parts).map(part).collect()
    }

    /// The same as it is reported; `None` of a window without length.
    pub fn over_time(&self, window_ns: u64) -> Option<TimeSeries> {
        let parts = self.parts(window_ns);
        let p99_us =
            |part: &SeriesPart| part.latency.as_ref().map_or(0, |times| times.quantile_us(0.99).round() as u64);
        Some(TimeSeries {
            interval_s: parts.first()?.1 as f64 / 1e9,
            answered: parts.iter().map(|(.., part)| part.answers).collect(),
            p99_us: parts.iter().map(|(.., part)| p99_us(part)).collect(),
        })
    }
}

#[derive(Clone, Default)]
pub struct SeriesPart {
    pub answers: u64,
    pub latency_sum_ns: u64,
    /// The times of all requests that ended in it.
    pub latency: Option<Box<Times>>,
}

impl SeriesPart {
    /// Counts so many answers, and returns what their times, and those of requests without one, are recorded in.
    fn count(&mut self, answers: u64, latency_sum_ns: u64) -> &mut Times {
        self.answers += answers;
        self.latency_sum_ns = self.latency_sum_ns.saturating_add(latency_sum_ns);
        self.latency.get_or_insert_with(|| Box::new(Times::with_digits(1)))
    }

    fn add(&mut self, other: &SeriesPart) {
        if let Some(latency) = &other.latency {
            self.count(other.answers, other.latency_sum_ns).add(latency);
        }
    }
}

/// Parts of equal length, which doubles each time that the window outgrows them.
#[derive(Clone)]
struct Parts {
    /// A part lasts 2 to the power of this, in nanoseconds.
    shift: u32,
    parts: [SeriesPart; Parts::MOST as usize],
}

impl Default for Parts {
    fn default() -> Parts {
        // 2²⁰ ns are about a millisecond.
        Parts { shift: 20, parts: std::array::from_fn(|_| SeriesPart::default()) }
    }
}

impl Parts {
    const MOST: u64 = 128;

    fn at(&mut self, at_ns: u64) -> &mut SeriesPart {
        while at_ns >> self.shift >= Parts::MOST {
            self.double();
        }
        &mut self.parts[(at_ns >> self.shift) as usize]
    }

    #[cold]
    fn double(&mut self) {
        self.shift += 1;
        for i in 0..self.parts.len() {
            let part = std::mem::take(&mut self.parts[i]);
            self.parts[i / 2].add(&part);
        }
    }

    fn merge(&mut self, other: &Parts) {
        (0..).zip(&other.parts).for_each(|(i, part)| self.at(i << other.shift).add(part));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn the_worst_second_is_the_one_with_the_highest_p99_and_failures_count_in_it() {
        let mut series = Series::default();
        (0..3_000).for_each(|ms| series.record(ms * MS, MS, true));
        (0..50).for_each(|i| series.record((1_400 + i) * MS, 30 * MS, false));
        let worst = series.worst_second().unwrap();
        assert_eq!((worst.from_s, worst.requests), (1.0, 1_050));
        assert!((30_000.0..30_100.0).contains(&worst.latency_us.p99), "{worst:?}");
        assert_eq!(Series::default().worst_second(), None);
    }

    #[test]
    fn silence_is_found_across_seconds_and_at_both_ends() {
        let mut series = Series::default();
        assert_eq!(series.longest_silence_ms(700 * MS), Some(700));
        assert_eq!(series.longest_silence_ms(0), None);
        series.record(100 * MS, MS, true);
        series.record(900 * MS, MS, true);
        series.record(3_200 * MS, MS, true);
        assert_eq!(series.longest_silence_ms(3_300 * MS), Some(2_299));
        assert_eq!(series.longest_silence_ms(9_000 * MS), Some(5_799));
    }

    #[test]
    fn one_threads_answers_end_anothers_silence() {
        let (mut one, mut other) = (Series::default(), Series::default());
        one.record(0, MS, true);
        other.record(500 * MS, 40 * MS, true);
        other.record(1_500 * MS, 2 * MS, true);
        one.add(other);
        assert_eq!(one.longest_silence_ms(2_000 * MS), Some(999));
        let worst = one.worst_second().unwrap();
        assert_eq!((worst.from_s, worst.requests), (0.0, 2));
    }

    #[test]
    fn the_first_hour_has_seconds_and_no_more() {
        let mut series = Series::default();
        series.record(LONGEST_S * SECOND_NS, MS, true);
        assert_eq!(series.worst_second(), None);
        assert_eq!(series.longest_silence_ms(2 * LONGEST_S * SECOND_NS), Some(3_600_000));
    }

    #[test]
    fn an_interval_has_its_answers_and_a_p99_that_knows_of_those_that_never_came() {
        let mut series = Series::default();
        (0..9_000).filter(|ms| *ms < 3_000 || *ms >= 6_000).for_each(|ms| series.record(ms * MS, 2 * MS, true));
        (0..10).for_each(|i| series.record((7_000 + i) * MS, 500 * MS, false));
        let over_time = series.over_time(9_000 * MS).unwrap();
        assert_eq!((over_time.answered.iter().sum::<u64>(), over_time.answered.len()), (6_000, over_time.p99_us.len()));
        let at = |s: f64| (s / over_time.interval_s) as usize;
        let near = |us: u64, expected: f64| (us as f64 / expected - 1.0).abs() < 0.07;
        assert!(
            near(over_time.p99_us[at(1.0)], 2_000.0) && near(over_time.p99_us[at(7.0)], 500_000.0),
            "{over_time:?}"
        );
        assert_eq!((over_time.answered[at(4.5)], over_time.p99_us[at(4.5)]), (0, 0));
        assert_eq!(series.over_time(0), None);
    }

    #[test]
    fn the_parts_hold_every_answer_however_long_the_window_is() {
        for window_ms in [50, 1_000, 10_000, 100_000_000] {
            let (mut one, mut other) = (Series::default(), Series::default());
            for i in 0..1_000 {
                let series = if i < 700 { &mut one } else { &mut other };
                series.record(i * window_ms * MS / 1_000, 2 * MS, true);
            }
            for (mut sum, more) in [(one.clone(), other.clone()), (other, one)] {
                sum.add(more);
                let parts = sum.parts(window_ms * MS);
                let longest = if window_ms < 64 { 0..65 } else { 64..129 };
                assert!(longest.contains(&parts.len()), "{window_ms}: {}", parts.len());
                assert_eq!(parts.iter().map(|(_, _, part)| part.answers).sum::<u64>(), 1_000);
                assert_eq!(parts.iter().map(|(_, _, part)| part.latency_sum_ns).sum::<u64>(), 2_000 * MS);
                assert!(parts.windows(2).all(|pair| pair[0].1 == pair[1].0));
                assert_eq!((parts[0].0, parts.last().unwrap().1), (0, window_ms * MS));
            }
        }
    }
}
