//! Request objects: work at the helper threads, its results, and how it is taken back.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use acceptlab::phased_loop::Request;
use acceptlab::phased_loop::pool::{NoResult, RequestClass};

use super::*;

/// Helpers that have begun a request each and do not go on before this is dropped.
struct Occupied(#[expect(dead_code, reason = "its drop is what the helpers wait for")] Vec<Sender<()>>);

fn occupy(events: &mut PhasedLoop, helpers: usize, class: RequestClass) -> Occupied {
    let (begun, has_begun) = channel();
    let releases = (0..helpers).map(|_| {
        let (release, wait) = channel::<()>();
        let begun = begun.clone();
        let work = move || {
            begun.send(()).expect("the test waits");
            // Until the sender is dropped.
            let _ = wait.recv();
        };
        events.submit(class, work, |_, result| assert_eq!(result, Ok(()))).expect("a pool with threads");
        release
    });
    let occupied = Occupied(releases.collect());
    has_begun.iter().take(helpers).for_each(drop);
    occupied
}

fn submit_never(events: &mut PhasedLoop, class: RequestClass, cancelled: &Counter) -> Request {
    let cancelled = cancelled.clone();
    let done = move |_: &mut PhasedLoop, result: Result<(), NoResult>| {
        assert_eq!(result, Err(NoResult::Cancelled));
        cancelled.add();
    };
    events.submit(class, || panic!("this work was taken back"), done).expect("a pool with threads")
}

mod test_threadpool {
    use super::*;

    #[test]
    fn work_runs_once_in_another_thread_and_its_result_comes_once_in_the_poll_phase() {
        let (mut events, done) = (new_loop(), Counter::default());
        let (count, ours) = (done.clone(), thread::current().id());
        let callback = move |events: &mut PhasedLoop, result: Result<_, NoResult>| {
            assert_ne!(result.unwrap(), ours);
            assert_eq!((thread::current().id(), events.phase), (ours, Phase::Poll));
            count.add();
        };
        events.submit(RequestClass::Fast, || thread::current().id(), callback).unwrap();
        assert_eq!(done.get(), 0);
        run_to_its_end(&mut events);
        assert_eq!(done.get(), 1);
    }

    #[test]
    fn one_helper_does_its_work_in_the_order_in_which_it_was_submitted() {
        // A pool of no thread at all would never finish anything: it has one.
        for size in [0, 1] {
            let (mut events, done) = (PhasedLoop::new(size).unwrap(), Rc::new(RefCell::new(Vec::new())));
            for i in 0..100 {
                let done = done.clone();
                events.submit(RequestClass::Fast, move || i, move |_, i| done.borrow_mut().push(i.unwrap())).unwrap();
            }
            run_to_its_end(&mut events);
            assert_eq!(done.take(), Vec::from_iter(0..100));
        }
    }

    /// libuv lets one slow request at a time into the queue, so that with one thread fast work overtakes the second
    /// slow request; its documentation promises no order, and here the first submitted is the first begun.
    #[test]
    fn slow_work_occupies_half_of_the_helpers_and_fast_work_goes_on_beside_it() {
        for (size, most_slow) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)] {
            let (mut events, log) = (PhasedLoop::new(size).unwrap(), Log::default());
            let occupied = Rc::new(Cell::new(Some(occupy(&mut events, most_slow, RequestClass::Slow))));
            let (mut slow, fast) = (log.callback("slow"), log.clone());
            events.submit(RequestClass::Slow, || (), move |events, _| slow(events, ())).unwrap();
            if size == 1 {
                occupied.take();
            }
            let done = move |_: &mut PhasedLoop, _| {
                fast.add("fast");
                drop(occupied.take());
            };
            events.submit(RequestClass::Fast, || (), done).unwrap();
            run_to_its_end(&mut events);
            assert_eq!(log.take(), if size == 1 { ["slow", "fast"] } else { ["fast", "slow"] }, "{size} threads");
        }
    }
}

mod test_threadpool_cancel {
    use super::*;

    #[test]
    fn requests_of_either_class_that_no_helper_has_begun_can_be_taken_back_by_a_callback() {
        for class in [RequestClass::Fast, RequestClass::Slow] {
            let (mut events, cancelled) = (new_loop(), Counter::default());
            let mut occupied = Some(occupy(&mut events, 4, RequestClass::Fast));
            let requests = [(); 16].map(|()| submit_never(&mut events, class, &cancelled));
            timer(&mut events, ms(1), Duration::ZERO, move |events, event| {
                assert!(requests.iter().all(|&request| events.cancel(request)));
                events.close(event.observer, |_| {});
                occupied.take();
            });
            run_to_its_end(&mut events);
            assert_eq!((cancelled.get(), events.is_empty()), (16, true));
        }
    }

    #[test]
    fn a_request_that_was_taken_back_is_told_so_in_the_poll_phase_and_not_before() {
        let (mut events, cancelled) = (new_loop(), Counter::default());
        let occupied = occupy(&mut events, 4, RequestClass::Fast);
        let request = submit_never(&mut events, RequestClass::Fast, &cancelled);
        assert!(events.cancel(request));
        assert_eq!(cancelled.get(), 0);
        // libuv says yes a second time, too: an accident, as it has nothing more to take back.
        assert!(!events.cancel(request));
        drop(occupied);
        run_to_its_end(&mut events);
        assert_eq!(cancelled.get(), 1);
    }

    #[test]
    fn a_request_that_a_helper_works_at_or_has_finished_cannot_be_taken_back() {
        let (mut events, done) = (new_loop(), Counter::default());
        let (begun, has_begun) = channel();
        let (release, wait): (_, Receiver<()>) = channel();
        let work = move || {
            begun.send(()).expect("the test waits");
            let _ = wait.recv();
        };
        let count = done.clone();
        let callback = move |_: &mut PhasedLoop, result| {
            assert_eq!(result, Ok(()));
            count.add();
        };
        let request = events.submit(RequestClass::Fast, work, callback).unwrap();
        has_begun.recv().unwrap();
        assert!(!events.cancel(request));
        drop(release);
        run_to_its_end(&mut events);
        assert_eq!((done.get(), events.cancel(request)), (1, false));
    }
}
