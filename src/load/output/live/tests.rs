use super::line;
use super::state::{LiveState, Phase, Rates};
use crate::report::{Configuration, IntervalReport, Latency, WorkerShare};

/// The same answers from two workers in every tenth of a second.
pub fn interval(number: u32, measured: bool, requests: u64) -> IntervalReport {
    let share = |connections, requests| WorkerShare { connections, requests, latency_us: None };
    let latency_us = Latency { p50: 251.0, p90: 280.0, p99: 612.0, p99_9: 1_270.0, max: 4_310.0, ..Latency::default() };
    IntervalReport {
        from_s: f64::from(number) / 10.0,
        to_s: f64::from(number + 1) / 10.0,
        measured,
        requests,
        qps: requests as f64 * 10.0,
        connections_open: 64,
        connections_requested: 64,
        latency_us,
        workers: [("0".into(), share(1, requests / 4)), ("10".into(), share(0, 3 * requests / 4))].into(),
        ..IntervalReport::default()
    }
}

#[test]
fn the_measurement_begins_with_new_sums_and_the_last_answers_do_not_count() {
    let mut state = LiveState::new(Configuration { duration_s: Some(0.4), workers: 2, ..Configuration::default() }, 1);
    for (number, measured, requests) in [(0, false, 400), (1, true, 800), (2, true, 400), (3, false, 4)] {
        state.add(&interval(number, measured, requests));
    }
    assert_eq!((state.phase, state.requests, state.highest_rate), (Phase::LastAnswers, 1200, 8000.0));
    assert!((state.average_rate() - 6000.0).abs() < 1e-6);
    // Worker 1 was announced and never met.
    let connections: Vec<u64> = state.workers.values().map(|share| share.connections).collect();
    assert_eq!(connections, [4, 0, 0]);
    assert_eq!(state.workers[&10].requests, 900 + 3);
    assert_eq!(state.progress(), Some(1.0));
}

#[test]
fn a_day_of_intervals_needs_no_more_room_than_a_minute() {
    let mut rates = Rates::default();
    for i in 0..864_000 {
        rates.push(f64::from(i));
    }
    assert!(rates.columns(10_000).len() < 512);
    let columns = rates.columns(80);
    assert_eq!(columns.len(), 80);
    assert!(columns.is_sorted() && columns[0] < 10_000.0 && columns[79] > 850_000.0, "{columns:?}");
}

#[test]
fn the_run_in_a_line_has_no_control_characters() {
    let mut state = LiveState::new(Configuration { duration_s: Some(9.0), ..Configuration::default() }, 1);
    state.add(&interval(19, true, 8_123));
    assert_eq!(line(&state), "measuring 2 s of 9 s · 81,230/s · p50 251us · p99 612us · 64 open");
    state.add(&IntervalReport { errors: 12, ..interval(20, false, 1) });
    assert_eq!(line(&state), "last answers 2 s of 9 s · 10/s · p50 251us · p99 612us · 64 open · 12 errors");
}
