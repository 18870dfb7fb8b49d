//! Who serves side by side and who one after another. That several take as long as their work one after another is a
//! lower bound, and holds on any machine. That they take less has room for half of the difference.

use std::time::{Duration, Instant};

use super::{bar, judged};
use crate::architectures::THREADS_FOR_REQUESTS;
use crate::support::{Kind, SERVERS, answer, ask_together, start};

const HALF_A_SECOND: Duration = Duration::from_millis(500);
/// Side by side the work takes half a second, one after another a second or more: the bar is at one second. Half of
/// the time between belongs to the programs, half to the machine.
const TOLERATED: Duration = Duration::from_millis(250);

/// How long `count` requests that are all there at once take together.
fn together(name: &str, flags: &[&str], count: usize) -> Duration {
    let server = start(name, flags);
    let since = Instant::now();
    // A connection that was answered is closed at once: a server of one at a time goes on to the next.
    for mut client in ask_together(&server, count) {
        answer(&mut client);
    }
    since.elapsed()
}

/// Catches a server that serves one after another.
#[track_caller]
fn side_by_side(name: &str, flags: &[&str], count: usize) {
    judged(TOLERATED, || {
        let took = together(name, flags, count);
        assert!(took >= HALF_A_SECOND, "{name} {flags:?}: {count} requests took {took:?}, less than one");
        bar(took < 2 * HALF_A_SECOND, || format!("{name} {flags:?}: {count} requests took {took:?}"))
    });
}

#[test]
fn sync_serialises_two_clients_and_prefork_does_not() {
    let stone = together("sync", &["--work", "block:500ms"], 2);
    assert!(stone >= 2 * HALF_A_SECOND, "two requests took {stone:?}");
    side_by_side("prefork", &["--work", "block:500ms", "--workers", "2"], 2);
}

#[test]
fn a_thread_per_connection_serves_all_at_once_and_a_pool_as_many_as_it_has_threads() {
    side_by_side("threaded", &["--work", "block:500ms"], 10);
    let pool = together("thread-pool", &["--work", "block:100ms", "--workers", "2"], 10);
    assert!(pool >= HALF_A_SECOND, "ten requests by two threads took {pool:?}");
}

#[test]
fn block_work_holds_up_the_whole_event_loop() {
    let gold = together("event-driven", &["--work", "block:100ms"], 10);
    assert!(gold >= Duration::from_millis(1000), "ten requests of 100ms took {gold:?}");
}

#[test]
fn as_many_blocking_requests_run_at_once_as_an_event_loop_has_helpers() {
    side_by_side("event-loop", &["--work", "block:500ms", "--pool", "10"], 10);
    let two = together("event-loop", &["--work", "block:100ms", "--pool", "2"], 10);
    assert!(two >= HALF_A_SECOND, "ten requests at two helpers took {two:?}");
}

#[test]
fn slow_requests_occupy_half_of_the_helpers() {
    let slow = together("event-loop", &["--work", "block:100ms", "--pool", "4", "--slow", "100ms"], 10);
    assert!(slow >= HALF_A_SECOND, "ten slow requests at four helpers, two of them for slow ones, took {slow:?}");
}

#[test]
fn wait_work_holds_up_nobody_in_an_event_loop() {
    // Where a thread serves a request, one that waits keeps its thread.
    let is_event_loop = |server: &&Kind| server.is_event_loop && !THREADS_FOR_REQUESTS.contains(&server.name);
    for server in SERVERS.iter().filter(is_event_loop) {
        side_by_side(server.name, &["--work", "wait:500ms"], 20);
    }
}
