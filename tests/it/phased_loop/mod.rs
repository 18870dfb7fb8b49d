//! The event loop held to what libuv's own tests hold libuv to, in our words: one module per file of theirs, in the
//! file here that is about the same thing. Where libuv does what its documentation does not promise, the test says so.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use acceptlab::phased_loop::{ObservedEvent, Observer, Phase, PhasedLoop, RunMode};

mod endurance;
mod observers;
mod requests;
mod timers;
mod turns;

/// How often something happened; the copies count together.
#[derive(Clone, Default)]
struct Counter(Rc<Cell<u64>>);

impl Counter {
    /// The count with this one.
    fn add(&self) -> u64 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }

    fn get(&self) -> u64 {
        self.0.get()
    }

    /// A callback that does nothing but count.
    fn callback<T>(&self) -> impl FnMut(&mut PhasedLoop, T) + 'static {
        let counter = self.clone();
        move |_, _| {
            counter.add();
        }
    }

    /// The same for the closing phase.
    fn closed(&self) -> impl FnOnce(&mut PhasedLoop) + 'static {
        let counter = self.clone();
        move |_| {
            counter.add();
        }
    }
}

/// What happened, in its order; the copies are one list.
#[derive(Clone, Default)]
struct Log(Rc<RefCell<Vec<&'static str>>>);

impl Log {
    fn add(&self, name: &'static str) {
        self.0.borrow_mut().push(name);
    }

    /// All since the last call.
    fn take(&self) -> Vec<&'static str> {
        self.0.take()
    }

    /// A callback that does nothing but tell its name.
    fn callback<T>(&self, name: &'static str) -> impl FnMut(&mut PhasedLoop, T) + 'static {
        let log = self.clone();
        move |_, _| log.add(name)
    }

    /// The same for the closing phase.
    fn closed(&self, name: &'static str) -> impl FnOnce(&mut PhasedLoop) + 'static {
        let log = self.clone();
        move |_| log.add(name)
    }
}

fn new_loop() -> PhasedLoop {
    PhasedLoop::new(4).expect("an event loop")
}

/// The loop turns until nothing is alive.
fn run_to_its_end(events: &mut PhasedLoop) {
    assert_eq!(events.run(RunMode::UntilDone), Ok(false));
}

/// A started timer; once, where `repeat` is zero.
fn timer(
    events: &mut PhasedLoop,
    after: Duration,
    repeat: Duration,
    callback: impl FnMut(&mut PhasedLoop, ObservedEvent) + 'static,
) -> Observer {
    let timer = events.observe(Phase::Timers, callback);
    events.start_timer(timer, after, repeat);
    timer
}

/// A started observer of the idle, prepare or check phase.
fn each_turn(
    events: &mut PhasedLoop,
    phase: Phase,
    callback: impl FnMut(&mut PhasedLoop, ObservedEvent) + 'static,
) -> Observer {
    let observer = events.observe(phase, callback);
    events.start(observer);
    observer
}

fn never(_: &mut PhasedLoop, event: ObservedEvent) {
    panic!("{event:?} came");
}

fn stop_itself(events: &mut PhasedLoop, event: ObservedEvent) {
    events.stop_observer(event.observer);
}

/// For observers that call each other: a place for one that does not exist yet.
type Later = Rc<Cell<Option<Observer>>>;

fn the(later: &Later) -> Observer {
    later.get().expect("it exists by now")
}

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}
