//! How many workers a connection wakes. Connections come one after another, 2 ms apart, to workers that all sleep: on a
//! machine that makes them late they are not back asleep in time, and a herd looks smaller or a single worker larger.

use std::time::Duration;

use super::{bar, judged};
use crate::counting::{WITHOUT_A_HERD, number, observe};
use crate::support::{Needs, inconclusive};

/// Of 0.6 s with 300 connections: five of them may be lost to it.
const TOLERATED: Duration = Duration::from_millis(10);

/// Per connection, in one run, with thirty-two workers that sleep.
fn switches_of_32(wait: &str) -> f64 {
    let server = format!("shared-accept --workers 32 --wait {wait}");
    number("switches", &observe(&format!("herd-{wait}"), &server, 300, "\"switches\"").0)
}

/// Catches a count that misses wake-ups, and a way to wait that no longer is the one that wakes all.
#[test]
fn level_triggered_epoll_wakes_thirty_two_idle_workers_for_every_connection() {
    judged(TOLERATED, || {
        let switches = switches_of_32("epoll");
        bar(switches >= WITHOUT_A_HERD + 0.8 * 32.0, || format!("{switches} switches per connection"))
    });
}

/// Catches a second worker that is woken for nothing. The first table of lesson 06 has the figure itself.
#[test]
fn an_exclusive_epoll_switches_for_one_worker_of_thirty_two() {
    judged(TOLERATED, || {
        let switches = switches_of_32("epoll-exclusive");
        bar(switches <= WITHOUT_A_HERD, || format!("{switches} switches per connection"))
    });
}

/// Both count the same sleeps, one when they begin, the other when they end: within 5 %.
#[test]
fn the_kernels_wake_ups_and_the_voluntary_switches_agree_within_five_percent() {
    for way in ["shared-accept", "prefork", "shared-accept --wait epoll-exclusive"] {
        let mut missing = None;
        judged(TOLERATED, || {
            let server = format!("{way} --workers 8");
            let columns = r#""switches", "kernel_wakeups", "kernel_switches""#;
            let (row, table) = observe(&format!("agree-{}", way.replace(' ', "")), &server, 500, columns);
            missing = row.observed.as_ref().unwrap().tracepoints_missing.clone();
            if missing.is_some() {
                assert_eq!(table.matches("tracepoints: ").count(), 1, "{table}");
                return Ok(());
            }
            let [switches, wakeups, left] =
                ["switches", "kernel_wakeups", "kernel_switches"].map(|column| number(column, &row));
            let of_workers = row.observed.unwrap().processes;
            assert_eq!(of_workers.iter().filter(|counts| counts.worker.is_some()).count(), 8, "{of_workers:?}");
            bar((wakeups / switches - 1.0).abs() <= 0.05 && left >= 0.95 * switches, || {
                format!("{way}: {switches} switches, {wakeups} wake-ups, {left} times off the CPU")
            })
        });
        if let Some(why) = missing {
            return inconclusive(Needs::Privilege("CAP_PERFMON"), why);
        }
    }
}
