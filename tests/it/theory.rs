//! What the lessons say of theory, computed: a number that no run produced must come from somewhere.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

const SERVERS: usize = 12;
const CLIENTS: usize = 200;
const SERVICE_US: u64 = 1823;

/// Mean, median and standard deviation in milliseconds.
fn summary(mut times_us: Vec<u64>) -> (f64, f64, f64) {
    times_us.sort();
    let n = times_us.len() as f64;
    let mean = times_us.iter().sum::<u64>() as f64 / n;
    let variance = times_us.iter().map(|&time| (time as f64 - mean).powi(2)).sum::<f64>() / n;
    (mean / 1e3, times_us[times_us.len() / 2] as f64 / 1e3, variance.sqrt() / 1e3)
}

/// A closed network: each client comes again as soon as it has been served. `choose` says in which line it then stands,
/// given when each of them will be free.
fn response_times(mut choose: impl FnMut(&[u64]) -> usize) -> Vec<u64> {
    let (warm_us, end_us) = (5_000_000, 60_000_000);
    let mut free_us = [0; SERVERS];
    let mut arrivals: BinaryHeap<Reverse<(u64, usize)>> = (0..CLIENTS).map(|i| Reverse((0, i))).collect();
    let mut times = Vec::new();
    while let Some(Reverse((now_us, client))) = arrivals.pop().filter(|Reverse((now_us, _))| *now_us < end_us) {
        let line = choose(&free_us);
        free_us[line] = free_us[line].max(now_us) + SERVICE_US;
        arrivals.push(Reverse((free_us[line], client)));
        if now_us > warm_us {
            times.push(free_us[line] - now_us);
        }
    }
    times
}

#[test]
fn response_times_with_one_queue_and_with_twelve_are_those_of_lesson_8() {
    // One queue is the line that will be free first.
    let first_free = |free_us: &[u64]| (0..SERVERS).min_by_key(|&line| free_us[line]).unwrap();
    let (mean, _, stdev) = summary(response_times(first_free));
    assert!((30.3..30.5).contains(&mean) && (0.8..1.0).contains(&stdev), "one queue: {mean} {stdev}");

    let mut random = fastrand::Rng::with_seed(1);
    let (mean, median, stdev) = summary(response_times(|_| random.usize(..SERVERS)));
    let as_told = (31.0..31.6).contains(&mean) && (21.0..23.0).contains(&median) && (27.5..30.5).contains(&stdev);
    assert!(as_told, "twelve queues: {mean} {median} {stdev}");
}

#[test]
fn shares_of_workers_that_are_woken_in_a_fixed_order_follow_erlangs_formula() {
    let load = 4.0;
    let mut offered_past = 1.0;
    let row: Vec<String> = (1..=15)
        .map(|child| {
            let past = load * offered_past / (f64::from(child) + load * offered_past);
            let share = offered_past - past;
            offered_past = past;
            format!("{:.0}", 5000.0 * share)
        })
        .collect();
    let lesson = include_str!("../../experiments/07-who-gets-the-connection-all-strategies.md");
    assert!(lesson.contains(&row.join(" ")), "{row:?}");
}
