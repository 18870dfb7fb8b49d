//! Observers: started, stopped, closed, referenced; of each turn's phases and of descriptors.

use std::io::Write;
use std::os::unix::net::UnixStream;

use acceptlab::phased_loop::pool::RequestClass;
use acceptlab::sys::epoll::Interest;
use nix::errno::Errno;

use super::*;

const EACH_TURN: [Phase; 3] = [Phase::Idle, Phase::Prepare, Phase::Check];

mod test_active {
    use super::*;

    #[test]
    fn an_observer_is_active_from_its_start_to_its_stop_and_never_again_after_its_close() {
        let (mut events, closed) = (new_loop(), Counter::default());
        let timer = events.observe(Phase::Timers, never);
        assert!(!events.is_active(timer));
        events.start_timer(timer, ms(60_000), Duration::ZERO);
        assert!(events.is_active(timer));
        events.stop_observer(timer);
        assert!(!events.is_active(timer));
        events.start_timer(timer, ms(60_000), Duration::ZERO);
        events.close(timer, closed.closed());
        events.start_timer(timer, ms(60_000), Duration::ZERO);
        assert!(!events.is_active(timer));
        run_to_its_end(&mut events);
        assert_eq!(closed.get(), 1);
    }
}

mod test_idle {
    use super::*;

    #[test]
    fn an_idle_observer_does_not_keep_timers_from_running() {
        let (mut events, idle, check, closed) =
            (new_loop(), Counter::default(), Counter::default(), Counter::default());
        let all = [(Phase::Idle, &idle), (Phase::Check, &check)];
        let [idle_observer, check_observer] =
            all.map(|(phase, counter)| each_turn(&mut events, phase, counter.callback()));
        let count = closed.clone();
        timer(&mut events, ms(5), Duration::ZERO, move |events, event| {
            for observer in [idle_observer, check_observer, event.observer] {
                events.close(observer, count.closed());
            }
        });
        run_to_its_end(&mut events);
        assert_eq!(closed.get(), 3);
        // One that is late by 5 ms at the very first has no turn before it; the turn behind it is without observers.
        assert_eq!(idle.get(), check.get());
    }

    #[test]
    fn an_idle_observer_that_stops_itself_still_keeps_its_turn_from_waiting() {
        let (mut events, checked, closed) = (new_loop(), Counter::default(), Counter::default());
        let idle = each_turn(&mut events, Phase::Idle, stop_itself);
        let check = each_turn(&mut events, Phase::Check, checked.callback());
        assert_eq!((events.run(RunMode::Once), checked.get()), (Ok(true), 1));
        [idle, check].into_iter().for_each(|observer| events.close(observer, closed.closed()));
        assert_eq!(closed.get(), 0);
        assert_eq!((events.run(RunMode::Once), closed.get()), (Ok(false), 2));
    }
}

mod test_ref {
    use super::*;

    fn close_and_run(events: &mut PhasedLoop, observer: Observer) {
        let closed = Counter::default();
        events.close(observer, closed.closed());
        assert_eq!(closed.get(), 0);
        run_to_its_end(events);
        assert_eq!(closed.get(), 1);
    }

    #[test]
    fn an_empty_loop_ends_at_once() {
        let mut events = new_loop();
        run_to_its_end(&mut events);
        assert_eq!(events.turns, 0);
    }

    #[test]
    fn the_loop_does_not_go_on_for_an_observer_that_is_not_referenced() {
        for phase in EACH_TURN {
            let mut events = new_loop();
            let observer = each_turn(&mut events, phase, never);
            events.set_referenced(observer, false);
            run_to_its_end(&mut events);
            assert!(events.is_active(observer));
            close_and_run(&mut events, observer);
        }
        let mut events = new_loop();
        let stopped = events.observe(Phase::Timers, never);
        let started = timer(&mut events, ms(42), ms(42), never);
        events.set_referenced(started, false);
        for timer in [stopped, started] {
            events.set_referenced(timer, false);
            run_to_its_end(&mut events);
            close_and_run(&mut events, timer);
        }
    }

    #[test]
    fn the_loop_does_not_go_on_for_a_descriptor_that_is_not_referenced_but_closes_its_observer() {
        let mut events = new_loop();
        let (stream, _other) = UnixStream::pair().unwrap();
        let observer = events.observe(Phase::Poll, never);
        events.start_io(observer, &stream, Interest::EPOLLIN).unwrap();
        events.set_referenced(observer, false);
        run_to_its_end(&mut events);
        close_and_run(&mut events, observer);
    }

    #[test]
    fn a_prepare_observer_may_end_the_loop_that_goes_on_for_it() {
        let mut events = new_loop();
        let prepare = each_turn(&mut events, Phase::Prepare, |events, event| {
            events.set_referenced(event.observer, false);
        });
        run_to_its_end(&mut events);
        close_and_run(&mut events, prepare);
    }

    #[test]
    fn a_request_is_waited_for_when_no_observer_is_referenced() {
        let (mut events, done) = (new_loop(), Counter::default());
        let timer = timer(&mut events, ms(60_000), Duration::ZERO, never);
        events.set_referenced(timer, false);
        let mut count = done.callback();
        events.submit(RequestClass::Fast, || (), move |events, _| count(events, ())).unwrap();
        run_to_its_end(&mut events);
        assert_eq!(done.get(), 1);
    }

    #[test]
    fn referenced_is_a_state_and_not_a_count() {
        let mut events = new_loop();
        let idle = events.observe(Phase::Idle, never);
        events.start(idle);
        for is_referenced in [true, true, false, false, true] {
            events.set_referenced(idle, is_referenced);
            assert_eq!(events.is_alive(), is_referenced);
        }
    }
}

mod test_loop_handles {
    use super::*;

    const TURNS: u64 = 21;
    const IDLES: u64 = 7;

    /// Two prepare observers of which one starts the other each second turn, a check observer that starts more and more
    /// idle ones, and idle ones that stop themselves and start one that closes itself.
    #[test]
    fn observers_that_start_stop_and_close_each_other_run_as_often_as_they_should() {
        let mut events = new_loop();
        let [turn, second, checked, closed, guests, guests_closed] = [(); 6].map(|()| Counter::default());
        let (turns, count) = (turn.clone(), second.clone());
        let second_prepare = events.observe(Phase::Prepare, move |events, event| {
            assert_eq!(turns.get() % 2, 1, "one that was started in a phase waits for the next turn");
            events.stop_observer(event.observer);
            count.add();
        });
        let turns = turn.clone();
        let first_prepare = each_turn(&mut events, Phase::Prepare, move |events, _| {
            if turns.get() % 2 == 0 {
                events.start(second_prepare);
            }
            turns.add();
        });
        let is_guest_there = Rc::new(Cell::new(false));
        let ran = Counter::default();
        let idles: Vec<Observer> = (0..IDLES)
            .map(|_| {
                let (ran, guests, guests_closed, is_there) =
                    (ran.clone(), guests.clone(), guests_closed.clone(), is_guest_there.clone());
                events.observe(Phase::Idle, move |events, event| {
                    if !is_there.replace(true) {
                        guests.add();
                        let (closed, is_there) = (guests_closed.clone(), is_there.clone());
                        each_turn(events, Phase::Idle, move |events, event| {
                            let (closed, is_there) = (closed.clone(), is_there.clone());
                            events.close(event.observer, move |_| {
                                closed.add();
                                is_there.set(false);
                            });
                        });
                    }
                    if ran.add() % 5 == 0 {
                        events.stop_observer(event.observer);
                    }
                })
            })
            .collect();
        let (turns, count, all_closed) = (turn.clone(), checked.clone(), closed.clone());
        each_turn(&mut events, Phase::Check, move |events, event| {
            count.add();
            if turns.get() < TURNS {
                idles.iter().take(1 + (turns.get() % IDLES) as usize).for_each(|&idle| events.start(idle));
                return;
            }
            for &observer in idles.iter().chain(&[first_prepare, second_prepare, event.observer]) {
                events.close(observer, all_closed.closed());
            }
        });
        // Keeps no turn from waiting: the check observer has started an idle one before each.
        let ticking = timer(&mut events, ms(2), ms(2), |_, _| {});
        events.set_referenced(ticking, false);
        run_to_its_end(&mut events);
        assert_eq!((turn.get(), checked.get(), second.get()), (TURNS, TURNS, TURNS / 2));
        assert_eq!((closed.get(), guests_closed.get()), (IDLES + 3, guests.get()));
        assert!(ran.get() > TURNS && guests.get() > 1);
    }
}

mod test_queue_foreach_delete {
    use super::*;

    #[test]
    fn an_observer_that_another_closes_in_their_phase_is_not_called_and_the_one_behind_it_is() {
        let (mut events, log) = (new_loop(), Log::default());
        for phase in EACH_TURN {
            each_turn(&mut events, phase, log.callback("started first"));
            let between = each_turn(&mut events, phase, never);
            let log = log.clone();
            each_turn(&mut events, phase, move |events, event| {
                log.add("started last");
                events.close(event.observer, |_| {});
                events.close(between, |_| {});
            });
        }
        assert_eq!(events.run(RunMode::NoWait), Ok(true));
        // The one started last is first: libuv's accident, which its own test names.
        assert_eq!(log.take(), ["started last", "started first"].repeat(3));
    }

    #[test]
    fn an_observer_that_another_stops_and_starts_in_their_phase_waits_for_the_next_turn() {
        for phase in EACH_TURN {
            let (mut events, log) = (new_loop(), Log::default());
            let second = each_turn(&mut events, phase, log.callback("second"));
            let first_log = log.clone();
            each_turn(&mut events, phase, move |events, _| {
                first_log.add("first");
                events.stop_observer(second);
                events.start(second);
            });
            assert_eq!((events.run(RunMode::NoWait), log.take()), (Ok(true), vec!["first"]), "{phase:?}");
            assert_eq!((events.run(RunMode::NoWait), log.take()), (Ok(true), vec!["second", "first"]), "{phase:?}");
        }
    }
}

mod test_watcher_cross_stop {
    use super::*;

    #[test]
    fn of_many_descriptors_ready_at_once_the_first_one_called_may_close_all_others() {
        let (mut events, called, closed) = (new_loop(), Counter::default(), Counter::default());
        let all = Rc::new(RefCell::new(Vec::new()));
        let streams: Vec<_> = (0..100).map(|_| UnixStream::pair().unwrap()).collect();
        for (ours, theirs) in &streams {
            (&*theirs).write_all(b"ready").unwrap();
            let (called, closed, observers) = (called.clone(), closed.clone(), all.clone());
            let observer = events.observe(Phase::Poll, move |events, _| {
                called.add();
                for &observer in observers.borrow().iter() {
                    events.close(observer, closed.closed());
                }
            });
            events.start_io(observer, ours, Interest::EPOLLIN).unwrap();
            all.borrow_mut().push(observer);
        }
        run_to_its_end(&mut events);
        assert_eq!((called.get(), closed.get()), (1, 100));
    }
}

mod test_poll_multiple_handles {
    use super::*;

    #[test]
    fn a_descriptor_has_one_observer_at_a_time() {
        let (mut events, closed) = (new_loop(), Counter::default());
        let (stream, _other) = UnixStream::pair().unwrap();
        let [first, second] = [(); 2].map(|()| events.observe(Phase::Poll, never));
        events.start_io(first, &stream, Interest::EPOLLIN).unwrap();
        assert_eq!(events.start_io(second, &stream, Interest::EPOLLIN), Err(Errno::EEXIST));
        assert!(!events.is_active(second));
        events.stop_io(first, &stream).unwrap();
        events.start_io(second, &stream, Interest::EPOLLIN).unwrap();
        events.close(first, closed.closed());
        events.set_referenced(second, false);
        run_to_its_end(&mut events);
        assert_eq!((events.is_active(second), closed.get()), (true, 1));
        events.close(second, closed.closed());
        events.start_io(second, &stream, Interest::EPOLLIN).unwrap();
        assert!(!events.is_active(second), "it is closed, and is not started again");
        run_to_its_end(&mut events);
        assert_eq!(closed.get(), 2);
    }
}
