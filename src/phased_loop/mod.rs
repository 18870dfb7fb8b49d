//! An event loop with libuv's phases, as Node runs on it. Four notions: the *loop* goes round; an *observer* (观察者;
//! libuv: a handle or watcher) says which event is waited for; a *request object* takes blocking work to a helper
//! thread and its result back ([`pool`]); a *callback* says what to do then.
//!
//! One turn, in the order that is true since libuv 1.45 (Node's documentation still draws the timers first):
//!
//! ```text
//! timers (once, before the first turn)
//! ┌─► pending → idle → prepare → poll → pending → check → closing → timers ─┐
//! └─────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! After each callback, whatever its phase: all of the `nextTick` queue, then all microtasks, and again, until both are
//! empty. A callback that panics ends the run, as an exception that nobody catches ends Node. Sources: `uv_run` in
//! libuv's `src/unix/core.c`; Node's `lib/internal/process/task_queues.js`.
//!
//! Times are in nanoseconds of CLOCK_MONOTONIC. The clock is read twice a turn: callbacks of one phase see the same
//! `now`, unless one of them calls [`PhasedLoop::update_time`].

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crate::slots::{SlotKey, Slots};
use crate::sys::epoll::{Epoll, Interest};
use crate::units::monotonic_ns;

pub mod args;
pub mod pool;
pub mod scenario;

use pool::{HelperPool, NoResult, Outcome, RequestClass};

/// The epoll token of the helper threads' results.
const FINISHED_REQUESTS: u64 = u64::MAX;

/// Reports taken per wait; what is left comes in the next turn.
const REPORTS_PER_WAIT: usize = 1024;

/// What a pending callback defers after poll still runs in the same turn, so many times: `uv_run` of libuv since 1.45.
const PENDING_ROUNDS: usize = 8;

/// A started observer: its phase, a number that orders it there, the number of its start, and its key. Timers are
/// ordered by the time when they are due, then by their start; of the others the one started last comes first, as in
/// libuv.
type Place = (Phase, u64, u64, SlotKey);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// No callback runs: the program itself does.
    #[default]
    Main,
    Timers,
    Pending,
    Idle,
    Prepare,
    Poll,
    Check,
    Closing,
    NextTick,
    Microtask,
}

/// Says which event is waited for. After its end it is harmless: it finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Observer(SlotKey);

/// What an observer's callback is told.
#[derive(Clone, Copy, Debug)]
pub struct ObservedEvent {
    pub observer: Observer,
    /// In the poll phase: what the descriptor is ready for.
    pub ready: Interest,
}

/// Work at a helper thread, or on its way there or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request(SlotKey);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunMode {
    /// Turns until nothing is alive, or until [`PhasedLoop::stop`].
    UntilDone,
    /// One turn, which waits for an event when nothing else is to be done.
    Once,
    /// One turn that does not wait.
    NoWait,
}

type Callback = Box<dyn FnOnce(&mut PhasedLoop)>;
type ObserverCallback = Box<dyn FnMut(&mut PhasedLoop, ObservedEvent)>;
type RequestCallback = Box<dyn FnOnce(&mut PhasedLoop, Outcome)>;

#[derive(Default)]
struct ObserverState {
    /// In which phase its callback runs, and where its last start has put it there.
    place: Place,
    /// Away while it runs.
    callback: Option<ObserverCallback>,
    is_active: bool,
    is_unreferenced: bool,
    /// The period of a timer; zero when it runs once.
    repeat: Duration,
}

pub struct PhasedLoop {
    epoll: Epoll,
    /// The time that callbacks see: it stands still while they run.
    pub now_ns: u64,
    /// The phase of the callback that runs.
    pub phase: Phase,
    observers: Slots<ObserverState>,
    /// Observers that are active and referenced: the loop goes on for them.
    active_referenced: usize,
    started: BTreeSet<Place>,
    starts: u64,
    /// Callbacks that wait for their phase, and for no event.
    queued: [VecDeque<Callback>; Phase::Microtask as usize + 1],
    requests: Slots<RequestCallback>,
    pool: Arc<HelperPool>,
    is_stopped: bool,
    pub turns: u64,
}

/// The turn, phase by phase.
impl PhasedLoop {
    /// A loop with a pool of so many helper threads, which are started with the first request.
    pub fn new(pool_threads: usize) -> nix::Result<PhasedLoop> {
        let pool = HelperPool::new(pool_threads)?;
        let epoll = Epoll::new(REPORTS_PER_WAIT)?;
        epoll.add(&pool.event, FINISHED_REQUESTS, Interest::EPOLLIN)?;
        Ok(PhasedLoop {
            epoll,
            now_ns: monotonic_ns(),
            phase: Phase::Main,
            observers: Slots::default(),
            active_referenced: 0,
            started: BTreeSet::new(),
            starts: 0,
            queued: Default::default(),
            requests: Slots::default(),
            pool,
            is_stopped: false,
            turns: 0,
        })
    }

    /// Turns as `mode` says. True when something is still alive.
    ///
    /// # Errors
    /// Of epoll_wait(2); an interrupting signal is no error.
    pub fn run(&mut self, mode: RunMode) -> nix::Result<bool> {
        assert_eq!(self.phase, Phase::Main, "a callback must not run the loop that runs it");
        // What the program itself has put there comes before the first event.
        self.run_queues();
        // Before the timers: the loop turns once for one that is due, even when nothing else is alive.
        let mut goes_on = self.is_alive();
        self.update_time();
        if mode == RunMode::UntilDone && goes_on && !self.is_stopped {
            self.run_timers();
        }
        while goes_on && !self.is_stopped {
            let has_work = self.has_work();
            self.run_pending();
            self.run_each_turn(Phase::Idle);
            self.run_each_turn(Phase::Prepare);
            let may_wait = mode == RunMode::UntilDone || (mode == RunMode::Once && !has_work);
            self.turns += 1;
            self.poll(if may_wait { self.poll_timeout() } else { Some(Duration::ZERO) })?;
            (0..PENDING_ROUNDS).for_each(|_| self.run_pending());
            self.run_check();
            self.run_closing();
            self.update_time();
            self.run_timers();
            goes_on = mode == RunMode::UntilDone && self.is_alive();
        }
        self.is_stopped = false;
        Ok(self.is_alive())
    }

    /// *Timers*: those due by `now`. One that a callback starts waits for the next turn, and one that a callback stops
    /// does not run.
    fn run_timers(&mut self) {
        let (now_ns, last_start) = (self.now_ns, self.starts);
        while let Some(&(Phase::Timers, due_ns, start, key)) = self.started.first()
            && due_ns <= now_ns
            && start <= last_start
        {
            // Before its callback, which may stop it, or start it for another time.
            self.stop_observer(Observer(key));
            self.restart_timer(Observer(key));
            self.call_observer(key, Interest::empty());
        }
    }

    /// *Pending*: callbacks that were deferred to here, without those that they defer in turn.
    fn run_pending(&mut self) {
        self.call_queued(Phase::Pending);
    }

    /// *Idle*, *prepare*, *check*: every started observer of that kind, each turn. One that a callback starts waits for
    /// the next turn.
    fn run_each_turn(&mut self, phase: Phase) {
        let started = self.started.range((phase, 0, 0, 0)..(phase, u64::MAX, 0, 0)).copied();
        for place in started.collect::<Vec<Place>>() {
            if self.started.contains(&place) {
                self.call_observer(place.3, Interest::empty());
            }
        }
    }

    /// *Check*, second half: the immediates that were there at its beginning. (Node runs them from a check observer.)
    fn run_check(&mut self) {
        self.run_each_turn(Phase::Check);
        self.call_queued(Phase::Check);
    }

    /// *Closing*: the last callbacks of closed observers, the last closed first, as in libuv. What these close waits
    /// for the next turn.
    fn run_closing(&mut self) {
        self.call_queued(Phase::Closing);
    }

    /// *Poll*: waits for events, then calls the observers of those that came. Results of helper threads are events.
    fn poll(&mut self, timeout: Option<Duration>) -> nix::Result<()> {
        let reports = self.epoll.wait(timeout)?;
        self.update_time();
        for i in 0..reports {
            let ready = self.epoll.report(i);
            if ready.token == FINISHED_REQUESTS {
                for (key, outcome) in self.pool.take_finished() {
                    let Some(callback) = self.requests.remove(key) else { continue };
                    self.call(Phase::Poll, |events| callback(events, outcome));
                }
            } else if self.is_active(Observer(ready.token)) {
                self.call_observer(ready.token, ready.flags);
            }
        }
        Ok(())
    }

    /// How long the poll phase may wait: until the first timer, `None` for ever; not at all while there is something to
    /// do elsewhere, or nothing to wait for.
    fn poll_timeout(&self) -> Option<Duration> {
        if self.is_stopped || self.has_work() || !self.is_alive() {
            return Some(Duration::ZERO);
        }
        let Some((Phase::Timers, due_ns, ..)) = self.started.first() else { return None };
        Some(Duration::from_nanos(due_ns.saturating_sub(monotonic_ns())))
    }

    fn has_work(&self) -> bool {
        self.has_queued() || self.started.range((Phase::Idle, 0, 0, 0)..(Phase::Prepare, 0, 0, 0)).next().is_some()
    }

    fn has_queued(&self) -> bool {
        self.queued.iter().any(|queue| !queue.is_empty())
    }

    fn call_observer(&mut self, key: SlotKey, ready: Interest) {
        let Some(state) = self.observers.get_mut(key) else { return };
        let (phase, Some(mut callback)) = (state.place.0, state.callback.take()) else { return };
        self.call(phase, |events| {
            callback(events, ObservedEvent { observer: Observer(key), ready });
            if let Some(state) = events.observers.get_mut(key) {
                state.callback = Some(callback);
            }
        });
    }

    fn call_queued(&mut self, phase: Phase) {
        for callback in std::mem::take(&mut self.queued[phase as usize]) {
            self.call(phase, callback);
        }
    }

    fn call(&mut self, phase: Phase, callback: impl FnOnce(&mut PhasedLoop)) {
        self.phase = phase;
        callback(self);
        self.run_queues();
    }

    /// Between two callbacks: all of the `nextTick` queue, then all microtasks, and again, until both are empty.
    fn run_queues(&mut self) {
        while let Some(phase) =
            [Phase::NextTick, Phase::Microtask].into_iter().find(|&phase| !self.queued[phase as usize].is_empty())
        {
            self.phase = phase;
            while let Some(callback) = self.queued[phase as usize].pop_front() {
                callback(self);
            }
        }
        self.phase = Phase::Main;
    }
}

/// Observers: made, then started. One that is active and referenced keeps the loop going.
impl PhasedLoop {
    /// Its callback runs in this phase: timers, idle, prepare, poll (see [`PhasedLoop::start_io`]) or check.
    pub fn observe(&mut self, phase: Phase, call: impl FnMut(&mut PhasedLoop, ObservedEvent) + 'static) -> Observer {
        let (place, callback) = ((phase, 0, 0, 0), Some(Box::new(call) as ObserverCallback));
        Observer(self.observers.insert(ObserverState { place, callback, ..ObserverState::default() }))
    }

    /// Due `after` the cached `now`, and then every `repeat` (zero: once). A started timer is started anew.
    pub fn start_timer(&mut self, timer: Observer, after: Duration, repeat: Duration) {
        if let Some(state) = self.observers.get_mut(timer.0) {
            state.repeat = repeat;
            self.activate(timer, after);
        }
    }

    /// Starts a timer that repeats for its repeat from now. False: it does not repeat, and is left alone.
    pub fn restart_timer(&mut self, timer: Observer) -> bool {
        let repeat = self.observers.get(timer.0).map(|state| state.repeat).filter(|repeat| !repeat.is_zero());
        repeat.map(|repeat| self.activate(timer, repeat)).is_some()
    }

    /// Calls the observer while the descriptor is ready as `interest` says. Once more: with another interest.
    ///
    /// # Errors
    /// Of epoll_ctl(2).
    pub fn start_io(&mut self, observer: Observer, fd: impl AsFd, interest: Interest) -> nix::Result<()> {
        let Some(state) = self.observers.get(observer.0) else { return Ok(()) };
        match state.is_active {
            true => self.epoll.modify(fd, observer.0, interest)?,
            false => self.epoll.add(fd, observer.0, interest)?,
        }
        self.update(observer, |state| state.is_active = true);
        Ok(())
    }

    /// Not needed before the descriptor is closed, unless another process holds it, too (epoll(7), question 6).
    ///
    /// # Errors
    /// Of epoll_ctl(2).
    pub fn stop_io(&mut self, observer: Observer, fd: impl AsFd) -> nix::Result<()> {
        let was_active = self.is_active(observer);
        self.stop_observer(observer);
        if was_active { self.epoll.delete(fd) } else { Ok(()) }
    }

    /// Starts an idle, prepare or check observer.
    pub fn start(&mut self, observer: Observer) {
        if !self.is_active(observer) {
            self.activate(observer, Duration::ZERO);
        }
    }

    /// The observer is not called any more, until it is started again. For one of a descriptor see
    /// [`PhasedLoop::stop_io`].
    pub fn stop_observer(&mut self, observer: Observer) {
        if let Some(state) = self.observers.get(observer.0) {
            self.started.remove(&state.place);
        }
        self.update(observer, |state| state.is_active = false);
    }

    /// Stops the observer for good; `callback` runs in the closing phase. To close it a second time does nothing. A
    /// descriptor that stays open needs [`PhasedLoop::stop_io`] first: epoll would report it for ever.
    pub fn close(&mut self, observer: Observer, callback: impl FnOnce(&mut PhasedLoop) + 'static) {
        self.stop_observer(observer);
        if self.observers.remove(observer.0).is_some() {
            self.queued[Phase::Closing as usize].push_front(Box::new(callback));
        }
    }

    /// Whether the loop goes on for this observer while it is active: at first it does.
    pub fn set_referenced(&mut self, observer: Observer, is_referenced: bool) {
        self.update(observer, |state| state.is_unreferenced = !is_referenced);
    }

    pub fn is_active(&self, observer: Observer) -> bool {
        self.observers.get(observer.0).is_some_and(|state| state.is_active)
    }

    /// Puts it into the order of its phase, a timer for `after` from now.
    fn activate(&mut self, observer: Observer, after: Duration) {
        self.stop_observer(observer);
        let Some(state) = self.observers.get_mut(observer.0) else { return };
        self.starts += 1;
        let due_ns = self.now_ns.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX));
        let order = if state.place.0 == Phase::Timers { due_ns } else { u64::MAX - self.starts };
        state.place = (state.place.0, order, self.starts, observer.0);
        self.started.insert(state.place);
        self.update(observer, |state| state.is_active = true);
    }

    /// Changes an observer, and with it the count of those that the loop goes on for.
    fn update(&mut self, observer: Observer, change: impl FnOnce(&mut ObserverState)) {
        let Some(state) = self.observers.get_mut(observer.0) else { return };
        let keeps_alive = |state: &ObserverState| usize::from(state.is_active && !state.is_unreferenced);
        self.active_referenced -= keeps_alive(state);
        change(state);
        self.active_referenced += keeps_alive(state);
    }
}

/// Callbacks that wait for no event, request objects, and the loop as a whole.
impl PhasedLoop {
    /// Calls back without an event: in the next pending or check phase (Node's setImmediate), or between two callbacks.
    pub fn queue(&mut self, phase: Phase, callback: impl FnOnce(&mut PhasedLoop) + 'static) {
        self.queued[phase as usize].push_back(Box::new(callback));
    }

    /// A request object: `work` runs in a helper thread, then `done` in the poll phase.
    ///
    /// # Errors
    /// When the pool has no thread and none could be started; neither is called then.
    pub fn submit<T: Send + 'static>(
        &mut self,
        class: RequestClass,
        work: impl FnOnce() -> T + Send + 'static,
        done: impl FnOnce(&mut PhasedLoop, Result<T, NoResult>) + 'static,
    ) -> std::io::Result<Request> {
        let key = self.requests.insert(Box::new(|events: &mut PhasedLoop, outcome: Outcome| {
            done(events, outcome.map(|result| *result.downcast().expect("what this request's work returned")));
        }));
        let submitted = self.pool.submit(key, class, Box::new(|| Box::new(work())));
        submitted.inspect_err(|_| drop(self.requests.remove(key))).map(|()| Request(key))
    }

    /// Takes back a request that no thread has begun; its callback is told so in the poll phase. False: too late.
    pub fn cancel(&mut self, request: Request) -> bool {
        self.pool.cancel(request.0)
    }

    /// The run ends after the current turn. Between two runs: the next run has no turn.
    pub fn stop(&mut self) {
        self.is_stopped = true;
    }

    /// There is something to go on for.
    pub fn is_alive(&self) -> bool {
        self.active_referenced > 0 || self.requests.count() > 0 || self.has_queued()
    }

    /// No observer is left that is not closed, and no request that is not finished.
    pub fn is_empty(&self) -> bool {
        self.observers.count() == 0 && !self.is_alive()
    }

    /// For a callback that has taken long, before it starts a timer.
    pub fn update_time(&mut self) {
        self.now_ns = monotonic_ns();
    }
}

impl Drop for PhasedLoop {
    fn drop(&mut self) {
        self.pool.close();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn callbacks_run_phase_by_phase_and_the_queues_between_them() {
        let mut events = PhasedLoop::new(1).unwrap();
        let ran = Rc::new(RefCell::new(Vec::new()));
        let note = |name: &'static str| {
            let ran = ran.clone();
            move |events: &mut PhasedLoop| ran.borrow_mut().push((name, events.phase))
        };
        let timer = {
            let (first, tick, micro) = (note("timer"), note("tick"), note("micro"));
            let mut each = Some((tick, micro));
            events.observe(Phase::Timers, move |events, event| {
                first(events);
                let (tick, micro) = each.take().expect("this timer is due once");
                events.queue(Phase::Microtask, micro);
                events.queue(Phase::NextTick, tick);
                events.close(event.observer, |_| {});
            })
        };
        events.start_timer(timer, Duration::ZERO, Duration::ZERO);
        // Its helper has not done before this turn of the loop is over.
        let (over, is_over) = std::sync::mpsc::channel();
        let immediate = note("immediate");
        events.queue(Phase::Check, move |events| {
            immediate(events);
            over.send(()).unwrap();
        });
        events.queue(Phase::Pending, note("deferred"));
        let done = note("request");
        events
            .submit(
                RequestClass::Fast,
                move || is_over.recv().map(|()| 6 * 7).unwrap(),
                move |events, result| {
                    assert_eq!(result, Ok(42));
                    done(events);
                },
            )
            .unwrap();
        assert_eq!(events.run(RunMode::UntilDone), Ok(false));
        let (last, ran) = ran.borrow().split_last().map(|(last, ran)| (*last, ran.to_vec())).unwrap();
        assert_eq!(
            ran,
            [
                ("timer", Phase::Timers),
                ("tick", Phase::NextTick),
                ("micro", Phase::Microtask),
                ("deferred", Phase::Pending),
                ("immediate", Phase::Check),
            ]
        );
        assert_eq!(last, ("request", Phase::Poll));
        assert!(events.is_empty());
    }

    #[test]
    fn what_pending_callbacks_defer_after_poll_runs_eight_times_before_check() {
        fn defer(events: &mut PhasedLoop, left: u32, ran: Rc<RefCell<Vec<u32>>>) {
            events.queue(Phase::Pending, move |events| {
                ran.borrow_mut().push(left);
                if left > 1 {
                    defer(events, left - 1, ran);
                }
            });
        }
        let mut events = PhasedLoop::new(1).unwrap();
        let ran = Rc::new(RefCell::new(Vec::new()));
        defer(&mut events, 20, ran.clone());
        let in_check = ran.clone();
        events.queue(Phase::Check, move |_| in_check.borrow_mut().push(0));
        assert_eq!(events.run(RunMode::UntilDone), Ok(false));
        // One before poll, eight after it.
        assert_eq!(ran.borrow().iter().position(|&left| left == 0), Some(9));
        assert_eq!(ran.borrow().len(), 21);
    }
}
