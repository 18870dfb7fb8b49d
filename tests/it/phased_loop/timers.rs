//! When timers run, and when not.

use acceptlab::phased_loop::{Phase, RunMode};
use acceptlab::units::monotonic_ns;

use super::*;

const ONCE: Duration = Duration::ZERO;

mod test_timer {
    use super::*;

    #[test]
    fn single_timers_run_once_repeating_ones_until_they_are_closed_and_a_stopped_one_never() {
        let mut events = new_loop();
        let (began_ns, once, repeated, closed) =
            (events.now_ns, Counter::default(), Counter::default(), Counter::default());
        for i in 0..10 {
            let (once, closed) = (once.clone(), closed.clone());
            timer(&mut events, ms(5 * i), ONCE, move |events, event| {
                assert!(!events.is_active(event.observer), "a single timer has stopped before its callback");
                once.add();
                events.close(event.observer, closed.closed());
            });
        }
        let (count, closed_too) = (repeated.clone(), closed.clone());
        timer(&mut events, ms(10), ms(10), move |events, event| {
            assert!(events.is_active(event.observer), "a repeating timer has been started again before its callback");
            if count.add() == 5 {
                events.close(event.observer, closed_too.closed());
            }
        });
        let stopped = timer(&mut events, ms(10), ms(10), never);
        events.stop_observer(stopped);
        events.set_referenced(stopped, false);
        run_to_its_end(&mut events);
        assert_eq!((once.get(), repeated.get(), closed.get()), (10, 5, 11));
        assert!(events.now_ns - began_ns >= 50_000_000);
    }

    #[test]
    fn a_timer_started_twice_runs_for_its_second_start() {
        let (mut events, ran) = (new_loop(), Counter::default());
        let timer = timer(&mut events, ms(86_400_000), ONCE, ran.callback());
        events.start_timer(timer, ms(1), ONCE);
        run_to_its_end(&mut events);
        assert_eq!(ran.get(), 1);
    }

    #[test]
    fn a_timer_that_was_never_started_is_not_active_and_does_not_repeat() {
        let mut events = new_loop();
        let timer = events.observe(Phase::Timers, never);
        assert!(!events.is_active(timer) && !events.restart_timer(timer));
        run_to_its_end(&mut events);
    }

    #[test]
    fn timers_due_at_once_run_in_the_order_of_their_starts() {
        let (mut events, log) = (new_loop(), Log::default());
        let [a, b] = ["a", "b"].map(|name| events.observe(Phase::Timers, log.callback(name)));
        for (starts, order) in [([a, b], ["a", "b"]), ([b, a], ["b", "a"])] {
            starts.into_iter().for_each(|timer| events.start_timer(timer, ONCE, ONCE));
            run_to_its_end(&mut events);
            assert_eq!(log.take(), order);
        }
    }

    #[test]
    fn a_timer_of_zero_that_starts_itself_again_waits_for_the_next_turn() {
        let (mut events, ran) = (new_loop(), Counter::default());
        let count = ran.clone();
        let timer = timer(&mut events, ONCE, ONCE, move |events, event| {
            count.add();
            events.start_timer(event.observer, ONCE, ONCE);
            events.stop();
        });
        assert_eq!(events.run(RunMode::UntilDone), Ok(true));
        assert_eq!(ran.get(), 1);
        events.close(timer, |_| {});
        run_to_its_end(&mut events);
        assert_eq!(ran.get(), 1);
    }

    #[test]
    fn a_timer_may_be_due_at_the_end_of_time() {
        let mut events = new_loop();
        let huge = [ms(0xffff_ffff_ffff), Duration::MAX].map(|after| timer(&mut events, after, ONCE, never));
        timer(&mut events, ms(1), ONCE, move |events, event| {
            huge.into_iter().chain([event.observer]).for_each(|timer| events.close(timer, |_| {}));
        });
        run_to_its_end(&mut events);
        assert!(events.is_empty());
    }

    #[test]
    fn a_timer_may_repeat_at_the_end_of_time() {
        let (mut events, log) = (new_loop(), Log::default());
        let (huge_log, tiny_log) = (log.clone(), log.clone());
        let huge = timer(&mut events, ms(1), Duration::MAX, move |_, _| huge_log.add("huge"));
        timer(&mut events, ms(2), ms(2), move |events, event| {
            tiny_log.add("tiny");
            if tiny_log.0.borrow().len() == 10 {
                [huge, event.observer].into_iter().for_each(|timer| events.close(timer, |_| {}));
            }
        });
        run_to_its_end(&mut events);
        let ran = log.take();
        assert_eq!((ran[0], ran.len()), ("huge", 10));
        assert!(ran[1..].iter().all(|&name| name == "tiny"), "{ran:?}");
    }

    #[test]
    fn one_turn_waits_for_a_timer_and_runs_it() {
        let (mut events, ran) = (new_loop(), Counter::default());
        let timer = timer(&mut events, ONCE, ONCE, ran.callback());
        assert_eq!((events.run(RunMode::Once), ran.get()), (Ok(false), 1));
        events.start_timer(timer, ms(1), ONCE);
        assert_eq!((events.run(RunMode::Once), ran.get()), (Ok(false), 2));
        events.close(timer, |_| {});
        assert_eq!((events.run(RunMode::Once), events.is_empty()), (Ok(false), true));
    }

    /// libuv's start says EINVAL; ours does nothing, as everything does to an observer that is gone.
    #[test]
    fn a_closed_timer_is_not_started() {
        let mut events = new_loop();
        let timer = events.observe(Phase::Timers, never);
        events.close(timer, |_| {});
        events.start_timer(timer, ONCE, ms(1));
        assert!(!events.is_active(timer) && !events.restart_timer(timer));
        run_to_its_end(&mut events);
    }

    #[test]
    fn no_timer_runs_early() {
        let mut events = new_loop();
        for after in [1, 2, 10] {
            let due_ns = events.now_ns + after * 1_000_000;
            timer(&mut events, ms(after), ONCE, move |_, _| assert!(monotonic_ns() >= due_ns));
        }
        run_to_its_end(&mut events);
    }

    #[test]
    fn a_repeating_timer_that_is_two_periods_late_runs_once() {
        for mode in [RunMode::Once, RunMode::NoWait] {
            let (mut events, ran) = (new_loop(), Counter::default());
            timer(&mut events, ms(10), ms(10), ran.callback());
            let late_ns = events.now_ns + 20_000_000;
            while monotonic_ns() < late_ns {
                std::hint::spin_loop();
            }
            assert_eq!((events.run(mode), ran.get()), (Ok(true), 1), "{mode:?}");
        }
    }

    #[test]
    fn a_timer_that_is_due_does_not_run_when_the_loop_does_not_go_on_for_it() {
        let mut events = new_loop();
        let timer = timer(&mut events, ONCE, ONCE, never);
        events.set_referenced(timer, false);
        run_to_its_end(&mut events);
    }
}

mod test_timer_from_check {
    use super::*;

    #[test]
    fn the_check_phase_comes_before_the_timers_of_a_turn_and_may_start_one_that_is_due_again() {
        let (mut events, log) = (new_loop(), Log::default());
        let timer_log = log.clone();
        let timer = timer(&mut events, ms(200), ONCE, move |_, _| timer_log.add("timer"));
        let prepare_log = log.clone();
        let prepare = events.observe(Phase::Prepare, move |events, event| {
            prepare_log.add("prepare");
            events.stop_observer(event.observer);
        });
        // The first turn waits until the timer is due, and then comes here first.
        let check_log = log.clone();
        each_turn(&mut events, Phase::Check, move |events, event| {
            check_log.add("check");
            events.stop_observer(event.observer);
            // Longer than a busy machine needs from here to the next turn.
            events.start_timer(timer, ms(1000), ONCE);
            events.start(prepare);
        });
        run_to_its_end(&mut events);
        assert_eq!(log.take(), ["check", "prepare", "timer"]);
    }
}

mod test_timer_again {
    use super::*;

    /// However late the loop is: the first timer is always due before the second, which it starts again.
    #[test]
    fn a_timer_that_is_always_started_again_before_it_is_due_never_runs() {
        let (mut events, log) = (new_loop(), Log::default());
        let second_log = log.clone();
        let second = timer(&mut events, ms(10), ms(10), move |events, event| {
            second_log.add("second");
            if events.is_active(event.observer) {
                // libuv has a call of its own for another repeat (uv_timer_set_repeat); here it is a start.
                events.start_timer(event.observer, ms(10), ONCE);
            } else {
                events.close(event.observer, |_| {});
            }
        });
        let first_log = log.clone();
        let mut left = 10;
        timer(&mut events, ms(5), ms(5), move |events, event| {
            first_log.add("first");
            assert!(events.restart_timer(second));
            left -= 1;
            if left == 0 {
                events.close(event.observer, |_| {});
            }
        });
        run_to_its_end(&mut events);
        assert_eq!(log.take(), [&["first"; 10][..], &["second"; 2]].concat());
        assert!(events.is_empty());
    }

    #[test]
    fn a_timer_that_is_due_runs_later_when_a_callback_before_it_starts_it_again() {
        let (mut events, log) = (new_loop(), Log::default());
        let later = Later::default();
        let (second, first_log) = (later.clone(), log.clone());
        timer(&mut events, ONCE, ONCE, move |events, _| {
            first_log.add("first");
            events.start_timer(the(&second), ONCE, ONCE);
        });
        later.set(Some(timer(&mut events, ONCE, ONCE, log.callback("second"))));
        each_turn(&mut events, Phase::Prepare, {
            let log = log.clone();
            move |events, event| {
                log.add("prepare");
                events.stop_observer(event.observer);
            }
        });
        run_to_its_end(&mut events);
        assert_eq!(log.take(), ["first", "prepare", "second"]);
    }
}
