//! What goes wrong, and what is many: panics, timers by the hundred thousand, the largest pool, no more threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use acceptlab::phased_loop::pool::{NoResult, RequestClass};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::*;
use crate::inconclusive::{Needs, inconclusive};

#[test]
fn work_that_panics_has_no_result_and_its_helper_goes_on() {
    let (mut events, log) = (PhasedLoop::new(1).unwrap(), Log::default());
    let first = log.clone();
    let callback = move |_: &mut PhasedLoop, result: Result<(), NoResult>| {
        assert_eq!(result, Err(NoResult::Panicked));
        first.add("panicked");
    };
    events.submit(RequestClass::Slow, || panic!("as this test wants it"), callback).unwrap();
    let mut second = log.callback("went on");
    events.submit(RequestClass::Slow, || (), move |events, _| second(events, ())).unwrap();
    run_to_its_end(&mut events);
    assert_eq!(log.take(), ["panicked", "went on"]);
}

#[test]
fn a_callback_that_panics_ends_the_run_and_the_loop_can_be_dropped_with_all_that_it_holds() {
    for phase in [Phase::Timers, Phase::Idle, Phase::Check] {
        let (mut events, held) = (new_loop(), Counter::default());
        let panicking = events.observe(phase, |_, _| panic!("as this test wants it"));
        match phase {
            Phase::Timers => events.start_timer(panicking, Duration::ZERO, Duration::ZERO),
            _ => events.start(panicking),
        }
        timer(&mut events, ms(60_000), Duration::ZERO, held.callback());
        let mut done = held.callback();
        events.submit(RequestClass::Fast, || (), move |events, _| done(events, ())).unwrap();
        let ran = catch_unwind(AssertUnwindSafe(|| events.run(RunMode::UntilDone)));
        assert!(ran.is_err(), "{phase:?}");
        drop(events);
        assert_eq!(Rc::strong_count(&held.0), 1, "{phase:?}");
    }
}

#[test]
fn a_hundred_thousand_timers_run_and_another_hundred_thousand_that_were_stopped_do_not() {
    let (mut events, ran) = (new_loop(), Counter::default());
    let began_ns = events.now_ns;
    for i in 0..100_000 {
        timer(&mut events, Duration::from_nanos(i * 7919 % 1_000_000), Duration::ZERO, ran.callback());
        let stopped = timer(&mut events, Duration::ZERO, ms(1), never);
        events.stop_observer(stopped);
    }
    run_to_its_end(&mut events);
    assert_eq!(ran.get(), 100_000);
    assert!(events.now_ns - began_ns >= 999_999);
}

#[test]
fn a_thousand_and_twenty_four_helpers_work_at_once() {
    const HELPERS: usize = 1024;
    let mut events = PhasedLoop::new(HELPERS).unwrap();
    let present = Arc::new((Mutex::new(0), Condvar::new()));
    let most = Rc::new(Cell::new(0));
    let deadline = Instant::now() + ms(60_000);
    for _ in 0..HELPERS {
        let (present, most) = (present.clone(), most.clone());
        let work = move || {
            let (count, changed) = &*present;
            let mut count = count.lock().unwrap();
            *count += 1;
            changed.notify_all();
            // Each waits for all. Where there are fewer threads, the test says so after a minute.
            let rest = deadline.saturating_duration_since(Instant::now());
            *changed.wait_timeout_while(count, rest, |count| *count < HELPERS).unwrap().0
        };
        events.submit(RequestClass::Fast, work, move |_, seen| most.set(most.get().max(seen.unwrap()))).unwrap();
    }
    run_to_its_end(&mut events);
    if most.get() < HELPERS {
        inconclusive(Needs::Kernel("1024 threads"), format!("{} requests were worked at together", most.get()));
    }
}

/// In a process of its own, whose address space has no room for the stacks of more threads.
const STACK: &str = "RUST_MIN_STACK";

/// This test binary again, with one test, whose threads have stacks of so many bytes.
fn run_again(test: &str, preparation: &str, stack: u64) {
    let script = format!("{preparation} exec \"$0\" --exact phased_loop::endurance::{test} --nocapture");
    let output = Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(STACK, stack.to_string())
        .env_remove(crate::inconclusive::FILE)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn without_a_single_thread_a_request_is_an_error_and_neither_of_its_callbacks_runs() {
    if std::env::var_os(STACK).is_none() {
        return run_again(
            "without_a_single_thread_a_request_is_an_error_and_neither_of_its_callbacks_runs",
            "",
            1 << 60,
        );
    }
    let mut events = new_loop();
    let submitted = events.submit(RequestClass::Fast, || (), |_, _| panic!("a request that was not taken is done"));
    assert!(submitted.is_err());
    run_to_its_end(&mut events);
    assert!(events.is_empty());
}

/// libuv aborts then. What half of the helpers is (slow work has no more) is half of those that there are.
#[test]
fn with_fewer_threads_than_asked_for_all_work_is_done_and_slow_work_still_leaves_one_to_fast_work() {
    if std::env::var_os(STACK).is_none() {
        let name = "with_fewer_threads_than_asked_for_all_work_is_done_and_slow_work_still_leaves_one_to_fast_work";
        // Room for the test's own stack and two more of 8 GiB each.
        return run_again(name, "ulimit -v 30000000;", 8 << 30);
    }
    let before = threads();
    let (mut events, log) = (PhasedLoop::new(4).unwrap(), Log::default());
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    for _ in 0..4 {
        let wait = wait.clone();
        let mut slow = log.callback("slow");
        let work = move || {
            let _ = wait.lock().unwrap().recv();
        };
        events.submit(RequestClass::Slow, work, move |events, _| slow(events, ())).unwrap();
    }
    let fast = log.clone();
    let mut release = Some(release);
    let done = move |_: &mut PhasedLoop, _| {
        fast.add("fast");
        release.take();
    };
    events.submit(RequestClass::Fast, || (), done).unwrap();
    run_to_its_end(&mut events);
    assert_eq!(log.take(), ["fast", "slow", "slow", "slow", "slow"]);
    assert_eq!(threads() - before, 2);
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn threads_that_could_not_be_started_are_started_with_a_later_request() {
    if std::env::var_os(STACK).is_none() {
        let name = "threads_that_could_not_be_started_are_started_with_a_later_request";
        return run_again(name, "ulimit -S -v 30000000;", 8 << 30);
    }
    let before = threads();
    let mut events = PhasedLoop::new(4).unwrap();
    events.submit(RequestClass::Fast, || (), |_, result| assert_eq!(result, Ok(()))).unwrap();
    assert_eq!(threads() - before, 2);
    let (_, most) = getrlimit(Resource::RLIMIT_AS).unwrap();
    setrlimit(Resource::RLIMIT_AS, most, most).unwrap();
    events.submit(RequestClass::Fast, || (), |_, result| assert_eq!(result, Ok(()))).unwrap();
    assert_eq!(threads() - before, 4);
    run_to_its_end(&mut events);
}

#[test]
fn a_million_timers_run_in_the_order_in_which_they_are_due() {
    let (mut events, last_ns, ran) = (new_loop(), Rc::new(Cell::new(0)), Counter::default());
    for i in 0..1_000_000_u64 {
        let after = Duration::from_nanos(i * 7919 % 1_000_000);
        let due_ns = events.now_ns + after.as_nanos() as u64;
        let (last_ns, ran) = (last_ns.clone(), ran.clone());
        timer(&mut events, after, Duration::ZERO, move |events, event| {
            assert!(last_ns.replace(due_ns) <= due_ns && due_ns <= events.now_ns);
            ran.add();
            events.close(event.observer, |_| {});
        });
    }
    run_to_its_end(&mut events);
    assert_eq!(ran.get(), 1_000_000);
    assert!(events.is_empty());
}
