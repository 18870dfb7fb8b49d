//! How the loop turns: modes, stop, alive, the order of its phases, and what it counts.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use acceptlab::phased_loop::pool::RequestClass;
use acceptlab::sys::epoll::Interest;

use super::*;

mod test_run_once {
    use super::*;

    #[test]
    fn one_turn_at_a_time_until_nothing_is_alive() {
        let (mut events, turns) = (new_loop(), Counter::default());
        let count = turns.clone();
        each_turn(&mut events, Phase::Idle, move |events, event| {
            if count.add() == 64 {
                events.stop_observer(event.observer);
            }
        });
        while events.run(RunMode::Once).unwrap() {}
        assert_eq!((turns.get(), events.turns), (64, 64));
    }
}

mod test_run_nowait {
    use super::*;

    #[test]
    fn a_turn_that_does_not_wait_leaves_a_later_timer_alone() {
        let mut events = new_loop();
        let began_ns = events.now_ns;
        timer(&mut events, ms(60_000), ms(60_000), never);
        assert_eq!(events.run(RunMode::NoWait), Ok(true));
        assert!(events.now_ns - began_ns < 60_000_000_000);
    }
}

mod test_loop_stop {
    use super::*;

    #[test]
    fn stop_ends_the_run_and_the_next_run_goes_on_where_it_stood() {
        let (mut events, prepared, timed) = (new_loop(), Counter::default(), Counter::default());
        let count = prepared.clone();
        each_turn(&mut events, Phase::Prepare, move |events, event| {
            if count.add() == 10 {
                events.stop_observer(event.observer);
            }
        });
        let count = timed.clone();
        timer(&mut events, ms(2), ms(2), move |events, event| match count.add() {
            1 => events.stop(),
            10 => events.stop_observer(event.observer),
            _ => {}
        });
        assert_eq!((events.run(RunMode::UntilDone), timed.get()), (Ok(true), 1));
        assert_eq!(events.run(RunMode::NoWait), Ok(true));
        assert!(prepared.get() > 1);
        assert_eq!((events.run(RunMode::UntilDone), timed.get(), prepared.get()), (Ok(false), 10, 10));
    }

    #[test]
    fn stop_before_a_run_leaves_it_without_a_turn_and_is_used_up_by_it() {
        let (mut events, ran) = (new_loop(), Counter::default());
        timer(&mut events, Duration::ZERO, Duration::ZERO, ran.callback());
        events.stop();
        assert_eq!((events.run(RunMode::UntilDone), ran.get(), events.turns), (Ok(true), 0, 0));
        assert_eq!((events.run(RunMode::UntilDone), ran.get()), (Ok(false), 1));
    }
}

mod test_loop_alive {
    use super::*;

    #[test]
    fn a_loop_is_alive_while_a_timer_is_started_or_a_request_is_not_finished() {
        let mut events = new_loop();
        assert!(!events.is_alive());
        timer(&mut events, ms(1), Duration::ZERO, |_, _| {});
        assert!(events.is_alive());
        run_to_its_end(&mut events);
        events.submit(RequestClass::Fast, || (), |_, result| assert_eq!(result, Ok(()))).unwrap();
        assert!(events.is_alive());
        run_to_its_end(&mut events);
    }
}

mod test_loop_close {
    use super::*;

    #[test]
    fn a_loop_is_empty_when_its_last_observer_has_been_closed() {
        let mut events = new_loop();
        let timer = timer(&mut events, ms(1), ms(1), |events, _| events.stop());
        assert!(!events.is_empty());
        assert_eq!(events.run(RunMode::UntilDone), Ok(true));
        events.close(timer, |_| {});
        assert!(!events.is_empty());
        run_to_its_end(&mut events);
        assert!(events.is_empty());
    }

    /// libuv refuses to close such a loop (EBUSY); ours is dropped, and nobody waits for the thread.
    #[test]
    fn a_loop_may_be_dropped_while_a_helper_works_for_it_and_its_callback_never_runs() {
        let mut events = new_loop();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let (finished, is_finished) = std::sync::mpsc::channel();
        let captured = Counter::default();
        let mut callback = captured.callback();
        let work = move || {
            begun.send(()).expect("the test waits");
            wait.recv().expect("released");
            finished.send(()).expect("the test waits");
        };
        events.submit(RequestClass::Fast, work, move |events, _| callback(events, ())).unwrap();
        has_begun.recv().unwrap();
        drop(events);
        release.send(()).unwrap();
        is_finished.recv().unwrap();
        assert_eq!((captured.get(), Rc::strong_count(&captured.0)), (0, 1), "its callback was dropped with the loop");
    }
}

mod test_close_order {
    use super::*;

    #[test]
    fn what_is_closed_in_any_phase_has_its_last_callback_behind_the_check_phase() {
        let (mut events, log) = (new_loop(), Log::default());
        let second = timer(&mut events, ms(100_000), Duration::ZERO, never);
        let check_log = log.clone();
        each_turn(&mut events, Phase::Check, move |events, event| {
            check_log.add("check");
            events.close(event.observer, check_log.closed("check closed"));
            events.close(second, check_log.closed("second closed"));
        });
        let timer_log = log.clone();
        timer(&mut events, Duration::ZERO, Duration::ZERO, move |events, event| {
            timer_log.add("first");
            events.close(event.observer, timer_log.closed("first closed"));
        });
        run_to_its_end(&mut events);
        // The last closed first is libuv's accident, and Node's programs see it: ours keeps it.
        assert_eq!(log.take(), ["first", "check", "second closed", "check closed", "first closed"]);
        assert!(events.is_empty());
    }

    #[test]
    fn what_a_closing_callback_closes_waits_for_the_next_turn_and_a_second_close_does_nothing() {
        let (mut events, log) = (new_loop(), Log::default());
        let [a, b] = [(); 2].map(|()| events.observe(Phase::Check, never));
        let closing_log = log.clone();
        events.close(a, move |events| {
            closing_log.add("a");
            events.start(a);
            assert!(!events.is_active(a));
            events.close(a, |_| panic!("a was closed twice"));
            events.close(b, closing_log.closed("b"));
        });
        assert_eq!((events.run(RunMode::Once), log.take()), (Ok(true), vec!["a"]));
        assert_eq!((events.run(RunMode::Once), log.take()), (Ok(false), vec!["b"]));
    }
}

mod test_callback_stack {
    use super::*;

    /// Says when a callback runs while another one is not at its end.
    #[derive(Clone, Default)]
    struct Nested(Rc<Cell<bool>>);

    impl Nested {
        fn check<T>(&self, callback: impl FnOnce() -> T) -> T {
            assert!(!self.0.replace(true), "a callback ran within another");
            let result = callback();
            self.0.set(false);
            result
        }
    }

    #[test]
    fn every_callback_has_a_fresh_stack_even_when_its_event_is_there_at_once() {
        let (mut events, nested, log) = (new_loop(), Nested::default(), Log::default());
        let (client, mut server) = UnixStream::pair().unwrap();
        server.write_all(b"a message").unwrap();
        let (reader_nested, reader_log) = (nested.clone(), log.clone());
        let client = Rc::new(client);
        let stream = client.clone();
        let reader = events.observe(Phase::Poll, move |events, event| {
            reader_nested.check(|| {
                reader_log.add("read");
                assert!(event.ready.contains(Interest::EPOLLIN));
                let mut buffer = [0; 16];
                if (&*stream).read(&mut buffer).unwrap() > 0 {
                    server.shutdown(std::net::Shutdown::Both).unwrap();
                } else {
                    events.stop_io(event.observer, &stream).unwrap();
                    let (nested, log) = (reader_nested.clone(), reader_log.clone());
                    events.close(event.observer, move |_| nested.check(|| log.add("closed")));
                }
            });
        });
        let (timer_nested, timer_log) = (nested.clone(), log.clone());
        timer(&mut events, Duration::ZERO, Duration::ZERO, move |events, event| {
            timer_nested.check(|| {
                timer_log.add("timer");
                // The message is there already, and the work may be done before submit returns.
                events.start_io(reader, &client, Interest::EPOLLIN).unwrap();
                let (nested, log) = (timer_nested.clone(), timer_log.clone());
                events.submit(RequestClass::Fast, || (), move |_, _| nested.check(|| log.add("request"))).unwrap();
                let (nested, log) = (timer_nested.clone(), timer_log.clone());
                events.close(event.observer, move |_| nested.check(|| log.add("timer closed")));
            });
        });
        run_to_its_end(&mut events);
        let mut ran = log.take();
        assert_eq!(ran[0], "timer");
        ran.sort_unstable();
        assert_eq!(ran, ["closed", "read", "read", "request", "timer", "timer closed"]);
    }
}

mod test_loop_time {
    use super::*;

    #[test]
    fn the_time_goes_on_with_each_run_even_of_a_loop_that_has_nothing_to_do() {
        let mut events = new_loop();
        let began_ns = events.now_ns;
        while events.now_ns - began_ns < 5_000_000 {
            assert_eq!(events.run(RunMode::NoWait), Ok(false));
        }
    }

    #[test]
    fn the_time_stands_still_within_a_phase() {
        let (mut events, seen) = (new_loop(), Rc::new(RefCell::new(Vec::new())));
        for _ in 0..2 {
            let seen = seen.clone();
            timer(&mut events, Duration::ZERO, Duration::ZERO, move |events, _| {
                seen.borrow_mut().push(events.now_ns);
                spin(ms(1));
            });
        }
        run_to_its_end(&mut events);
        let seen = seen.take();
        assert_eq!(seen[0], seen[1]);
    }
}

mod test_metrics {
    use super::*;

    #[test]
    fn a_timer_that_is_due_at_once_takes_one_turn() {
        let (mut events, ran) = (new_loop(), Counter::default());
        timer(&mut events, Duration::ZERO, Duration::ZERO, ran.callback());
        run_to_its_end(&mut events);
        assert_eq!((ran.get(), events.turns), (1, 1));
    }

    #[test]
    fn a_turn_is_counted_before_its_poll_phase() {
        let (mut events, seen) = (new_loop(), Rc::new(RefCell::new(Vec::new())));
        fn next(events: &mut PhasedLoop, left: u32, seen: Rc<RefCell<Vec<u64>>>) {
            seen.borrow_mut().push(events.turns);
            if left > 0 {
                events.submit(RequestClass::Fast, || (), move |events, _| next(events, left - 1, seen)).unwrap();
            }
        }
        let started = seen.clone();
        each_turn(&mut events, Phase::Prepare, move |events, event| {
            events.stop_observer(event.observer);
            next(events, 3, started.clone());
        });
        run_to_its_end(&mut events);
        assert_eq!(seen.take(), [0, 1, 2, 3]);
    }
}

fn spin(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
}
