//! An event loop with libuv's phases, as Node runs on it. Four notions: the *loop* goes round; an *observer* says which
//! event is waited for (libuv: a handle); a *request object* takes blocking work to a helper thread and its result back
//! ([`pool`]); a *callback* says what to do then.
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
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::time::Duration;

use crate::slots::{SlotKey, Slots};
use crate::sys::epoll::{Epoll, Interest};
use crate::units::monotonic_ns;

pub mod pool;
pub mod scenario;

use pool::{HelperPool, NoResult, Outcome, RequestClass};

/// The epoll token of the helper threads' results.
const FINISHED_REQUESTS: u64 = u64::MAX;

/// Reports taken per wait; what is left comes in the next turn.
const REPORTS_PER_WAIT: usize = 1024;

/// What is deferred to the pending phase by the poll phase still runs in this turn; what that defers in turn, so many
/// times.
const PENDING_ROUNDS: usize = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopMetrics {
    pub turns: u64,
    /// Callbacks of the poll phase: a descriptor that is ready, a request that is finished.
    pub events: u64,
    /// Time in the waits of the poll phase, in nanoseconds.
    pub idle_ns: u64,
}

type Callback = Box<dyn FnOnce(&mut PhasedLoop)>;
type ObserverCallback = Box<dyn FnMut(&mut PhasedLoop, ObservedEvent)>;
type RequestCallback = Box<dyn FnOnce(&mut PhasedLoop, Outcome)>;

#[derive(Default)]
struct ObserverState {
    /// Where its callback runs: timers, idle, prepare, poll or check.
    phase: Phase,
    /// Away while it runs.
    callback: Option<ObserverCallback>,
    is_active: bool,
    is_referenced: bool,
    /// Of a descriptor: epoll knows it.
    is_registered: bool,
    /// The number of its last start. An entry of a list with another number is out of date.
    start: u64,
    /// Of a timer.
    due_ns: u64,
    repeat_ns: u64,
}

pub struct PhasedLoop {
    epoll: Epoll,
    now_ns: u64,
    phase: Phase,
    observers: Slots<ObserverState>,
    /// Observers that are active and referenced: the loop goes on for them.
    active_referenced: usize,
    /// Due time, number of the start, observer: the earliest first, of two that are due at once the one started first.
    timers: BTreeSet<(u64, u64, SlotKey)>,
    /// Those that were started since somebody asked for the earliest: sorted first, a million of them is inserted in half
    /// the time.
    new_timers: Vec<(u64, u64, SlotKey)>,
    /// The started observers of the idle, prepare and check phases with the numbers of their starts; the one started
    /// last is first, as in libuv.
    each_turn: [VecDeque<(u64, SlotKey)>; 3],
    starts: u64,
    pending: VecDeque<Callback>,
    immediates: VecDeque<Callback>,
    next_ticks: VecDeque<Callback>,
    microtasks: VecDeque<Callback>,
    closing: Vec<Callback>,
    requests: Slots<RequestCallback>,
    pool: HelperPool,
    is_stopped: bool,
    metrics: LoopMetrics,
}

/// The turn, phase by phase.
impl PhasedLoop {
    /// A loop with a pool of so many helper threads, which are started with the first request.
    pub fn new(pool_threads: usize) -> nix::Result<PhasedLoop> {
        let pool = HelperPool::new(pool_threads)?;
        let epoll = Epoll::new(REPORTS_PER_WAIT)?;
        epoll.add(&pool, FINISHED_REQUESTS, Interest::EPOLLIN)?;
        Ok(PhasedLoop {
            epoll,
            now_ns: monotonic_ns(),
            phase: Phase::Main,
            observers: Slots::default(),
            active_referenced: 0,
            timers: BTreeSet::new(),
            new_timers: Vec::new(),
            each_turn: Default::default(),
            starts: 0,
            pending: VecDeque::new(),
            immediates: VecDeque::new(),
            next_ticks: VecDeque::new(),
            microtasks: VecDeque::new(),
            closing: Vec::new(),
            requests: Slots::default(),
            pool,
            is_stopped: false,
            metrics: LoopMetrics::default(),
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
            let has_work = !(self.pending.is_empty() && self.each_turn[0].is_empty());
            self.run_pending();
            self.run_each_turn(Phase::Idle);
            self.run_each_turn(Phase::Prepare);
            let may_wait = mode == RunMode::UntilDone || (mode == RunMode::Once && !has_work);
            let timeout = if may_wait { self.poll_timeout() } else { Some(Duration::ZERO) };
            self.metrics.turns += 1;
            if let Err(errno) = self.poll(timeout) {
                self.phase = Phase::Main;
                return Err(errno);
            }
            (0..PENDING_ROUNDS).for_each(|_| self.run_pending());
            self.run_each_turn(Phase::Check);
            self.run_immediates();
            self.run_closing();
            self.update_time();
            self.run_timers();
            goes_on = mode == RunMode::UntilDone && self.is_alive();
        }
        self.phase = Phase::Main;
        self.is_stopped = false;
        Ok(self.is_alive())
    }

    /// *Timers*: those due by `now`. One that a callback starts waits for the next turn, and one that a callback stops
    /// does not run.
    fn run_timers(&mut self) {
        let (now_ns, last_start) = (self.now_ns, self.starts);
        while let Some(&(due_ns, start, key)) = self.timers().first()
            && due_ns <= now_ns
            && start <= last_start
        {
            // Before its callback, which may stop it, or start it for another time.
            self.stop_observer(Observer(key));
            self.restart_timer(Observer(key));
            self.call(key, Interest::empty());
        }
    }

    /// *Pending*: callbacks that were deferred to here, without those that they deferred in turn.
    fn run_pending(&mut self) {
        mem::take(&mut self.pending).into_iter().for_each(|callback| self.call_once(Phase::Pending, callback));
    }

    /// *Idle*, *prepare*, *check*: every started observer of that kind, each turn. One that a callback starts waits for
    /// the next turn.
    fn run_each_turn(&mut self, phase: Phase) {
        for (start, key) in self.each_turn[place(phase)].clone() {
            if self.observers.get(key).is_some_and(|state| state.is_active && state.start == start) {
                self.call(key, Interest::empty());
            }
        }
    }

    /// *Check*, second half: the immediates that were there at its beginning. (Node runs them from a check observer.)
    fn run_immediates(&mut self) {
        mem::take(&mut self.immediates).into_iter().for_each(|callback| self.call_once(Phase::Check, callback));
    }

    /// *Closing*: the last callbacks of closed observers, the last closed first, as in libuv. What these close waits for
    /// the next turn.
    fn run_closing(&mut self) {
        mem::take(&mut self.closing).into_iter().rev().for_each(|callback| self.call_once(Phase::Closing, callback));
    }

    /// *Poll*: waits for events, then calls the observers of those that came. Results of helper threads are events.
    fn poll(&mut self, timeout: Option<Duration>) -> nix::Result<()> {
        let began_ns = monotonic_ns();
        let reports = self.epoll.wait(timeout)?;
        self.update_time();
        if timeout != Some(Duration::ZERO) {
            self.metrics.idle_ns += self.now_ns - began_ns;
        }
        for i in 0..reports {
            let ready = self.epoll.report(i);
            if ready.token == FINISHED_REQUESTS {
                self.finish_requests();
            } else if self.is_active(Observer(ready.token)) {
                self.metrics.events += 1;
                self.call(ready.token, ready.flags);
            }
        }
        Ok(())
    }

    /// How long the poll phase may wait: until the first timer, `None` for ever; not at all while there is something to
    /// do elsewhere, or nothing to wait for.
    fn poll_timeout(&mut self) -> Option<Duration> {
        let [idle, ..] = &self.each_turn;
        let is_needed = !(idle.is_empty() && self.pending.is_empty() && self.immediates.is_empty());
        let has_nothing = self.active_referenced == 0 && self.requests.count() == 0;
        if self.is_stopped || is_needed || has_nothing || !self.closing.is_empty() {
            return Some(Duration::ZERO);
        }
        let (due_ns, ..) = self.timers().first()?;
        Some(Duration::from_nanos(due_ns.saturating_sub(monotonic_ns())))
    }

    fn finish_requests(&mut self) {
        for (key, outcome) in self.pool.take_finished() {
            if let Some(callback) = self.requests.remove(key) {
                self.metrics.events += 1;
                self.call_once(Phase::Poll, Box::new(|events| callback(events, outcome)));
            }
        }
    }

    fn call(&mut self, key: SlotKey, ready: Interest) {
        let Some(state) = self.observers.get_mut(key) else { return };
        self.phase = state.phase;
        let Some(mut callback) = state.callback.take() else { return };
        callback(self, ObservedEvent { observer: Observer(key), ready });
        if let Some(state) = self.observers.get_mut(key) {
            state.callback = Some(callback);
        }
        self.run_queues();
    }

    fn call_once(&mut self, phase: Phase, callback: Callback) {
        self.phase = phase;
        callback(self);
        self.run_queues();
    }

    /// All of the `nextTick` queue, then all microtasks, and again, until both are empty.
    fn run_queues(&mut self) {
        while !(self.next_ticks.is_empty() && self.microtasks.is_empty()) {
            self.phase = Phase::NextTick;
            while let Some(callback) = self.next_ticks.pop_front() {
                callback(self);
            }
            self.phase = Phase::Microtask;
            while let Some(callback) = self.microtasks.pop_front() {
                callback(self);
            }
        }
    }
}

/// Observers: made, then started. One that is active and referenced keeps the loop going.
impl PhasedLoop {
    /// Its callback runs in this phase: timers, idle, prepare, poll (see [`PhasedLoop::start_io`]) or check.
    pub fn observe(
        &mut self,
        phase: Phase,
        callback: impl FnMut(&mut PhasedLoop, ObservedEvent) + 'static,
    ) -> Observer {
        assert!(matches!(phase, Phase::Timers | Phase::Poll) || place(phase) < 3);
        Observer(self.observers.insert(ObserverState {
            phase,
            callback: Some(Box::new(callback)),
            is_referenced: true,
            ..ObserverState::default()
        }))
    }

    /// Due `after` the cached `now`, and then every `repeat` (zero: once). A started timer is started anew.
    pub fn start_timer(&mut self, timer: Observer, after: Duration, repeat: Duration) {
        if let Some(state) = self.observers.get_mut(timer.0) {
            state.repeat_ns = nanoseconds(repeat);
            self.activate(timer, nanoseconds(after));
        }
    }

    /// Starts a timer that repeats for its repeat from now. False: it does not repeat, and is left alone.
    pub fn restart_timer(&mut self, timer: Observer) -> bool {
        let repeat_ns = self.observers.get(timer.0).map_or(0, |state| state.repeat_ns);
        if repeat_ns > 0 {
            self.activate(timer, repeat_ns);
        }
        repeat_ns > 0
    }

    /// Calls the observer while the descriptor is ready as `interest` says. Once more: with another interest.
    ///
    /// # Errors
    /// Of epoll_ctl(2).
    pub fn start_io(&mut self, observer: Observer, fd: impl AsFd, interest: Interest) -> nix::Result<()> {
        let Some(state) = self.observers.get_mut(observer.0) else { return Ok(()) };
        if state.is_registered {
            self.epoll.modify(fd, observer.0, interest)?;
        } else {
            self.epoll.add(fd, observer.0, interest)?;
            state.is_registered = true;
        }
        self.set_active(observer, true);
        Ok(())
    }

    /// Not needed before the descriptor is closed, unless another process holds it, too (epoll(7), question 6).
    ///
    /// # Errors
    /// Of epoll_ctl(2).
    pub fn stop_io(&mut self, observer: Observer, fd: impl AsFd) -> nix::Result<()> {
        self.stop_observer(observer);
        let Some(state) = self.observers.get_mut(observer.0) else { return Ok(()) };
        if mem::take(&mut state.is_registered) { self.epoll.delete(fd) } else { Ok(()) }
    }

    /// Starts an idle, prepare or check observer.
    pub fn start(&mut self, observer: Observer) {
        if !self.is_active(observer) {
            self.activate(observer, 0);
        }
    }

    /// The observer is not called any more, until it is started again.
    pub fn stop_observer(&mut self, observer: Observer) {
        let state = self.observers.get(observer.0);
        let Some(&ObserverState { phase, is_active: true, start, due_ns, .. }) = state else { return };
        match phase {
            Phase::Timers => drop(self.timers().remove(&(due_ns, start, observer.0))),
            Phase::Poll => {}
            _ => self.each_turn[place(phase)].retain(|&(_, key)| key != observer.0),
        }
        self.set_active(observer, false);
    }

    /// Stops the observer for good; `callback` runs in the closing phase. To close it a second time does nothing. A
    /// descriptor that stays open needs [`PhasedLoop::stop_io`] first: epoll would report it for ever.
    pub fn close(&mut self, observer: Observer, callback: impl FnOnce(&mut PhasedLoop) + 'static) {
        self.stop_observer(observer);
        if self.observers.remove(observer.0).is_some() {
            self.closing.push(Box::new(callback));
        }
    }

    /// Whether the loop goes on for this observer while it is active: at first it does.
    pub fn set_referenced(&mut self, observer: Observer, is_referenced: bool) {
        let was_active = self.is_active(observer);
        self.set_active(observer, false);
        if let Some(state) = self.observers.get_mut(observer.0) {
            state.is_referenced = is_referenced;
        }
        self.set_active(observer, was_active);
    }

    pub fn is_referenced(&self, observer: Observer) -> bool {
        self.observers.get(observer.0).is_some_and(|state| state.is_referenced)
    }

    pub fn is_active(&self, observer: Observer) -> bool {
        self.observers.get(observer.0).is_some_and(|state| state.is_active)
    }

    /// It has been closed.
    pub fn is_closing(&self, observer: Observer) -> bool {
        self.observers.get(observer.0).is_none()
    }

    /// Puts it into the list of its phase, a timer for `after_ns` from now.
    fn activate(&mut self, observer: Observer, after_ns: u64) {
        self.stop_observer(observer);
        let Some(state) = self.observers.get_mut(observer.0) else { return };
        self.starts += 1;
        (state.start, state.due_ns) = (self.starts, self.now_ns.saturating_add(after_ns));
        match state.phase {
            Phase::Timers => self.new_timers.push((state.due_ns, state.start, observer.0)),
            phase => self.each_turn[place(phase)].push_front((state.start, observer.0)),
        }
        self.set_active(observer, true);
    }

    fn timers(&mut self) -> &mut BTreeSet<(u64, u64, SlotKey)> {
        self.new_timers.sort_unstable();
        self.timers.extend(self.new_timers.drain(..));
        &mut self.timers
    }

    fn set_active(&mut self, observer: Observer, is_active: bool) {
        let Some(state) = self.observers.get_mut(observer.0) else { return };
        if state.is_referenced && state.is_active != is_active {
            self.active_referenced = if is_active { self.active_referenced + 1 } else { self.active_referenced - 1 };
        }
        state.is_active = is_active;
    }
}

/// Callbacks that wait for no event, request objects, and the loop as a whole.
impl PhasedLoop {
    /// After the callback that runs now, before anything else.
    pub fn next_tick(&mut self, callback: impl FnOnce(&mut PhasedLoop) + 'static) {
        self.next_ticks.push_back(Box::new(callback));
    }

    /// After the callback that runs now and all of the `nextTick` queue.
    pub fn microtask(&mut self, callback: impl FnOnce(&mut PhasedLoop) + 'static) {
        self.microtasks.push_back(Box::new(callback));
    }

    /// A timer that is due once, and closed before `callback` runs.
    pub fn set_timeout(&mut self, after: Duration, callback: impl FnOnce(&mut PhasedLoop) + 'static) -> Observer {
        let mut callback = Some(callback);
        let timer = self.observe(Phase::Timers, move |events, event| {
            events.close(event.observer, |_| {});
            callback.take().into_iter().for_each(|callback| callback(events));
        });
        self.start_timer(timer, after, Duration::ZERO);
        timer
    }

    /// In the next check phase.
    pub fn immediate(&mut self, callback: impl FnOnce(&mut PhasedLoop) + 'static) {
        self.immediates.push_back(Box::new(callback));
    }

    /// In the next pending phase.
    pub fn defer(&mut self, callback: impl FnOnce(&mut PhasedLoop) + 'static) {
        self.pending.push_back(Box::new(callback));
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
    ) -> io::Result<Request> {
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
        let has_callbacks = !(self.pending.is_empty() && self.immediates.is_empty() && self.closing.is_empty());
        self.active_referenced > 0 || self.requests.count() > 0 || has_callbacks
    }

    /// No observer is left that is not closed, and no request that is not finished.
    pub fn is_empty(&self) -> bool {
        self.observers.count() == 0 && self.closing.is_empty() && self.requests.count() == 0
    }

    /// The time that callbacks see: it stands still while they run.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// For a callback that has taken long, before it starts a timer.
    pub fn update_time(&mut self) {
        self.now_ns = monotonic_ns();
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub fn metrics(&self) -> LoopMetrics {
        self.metrics
    }
}

/// The place of a phase in [`PhasedLoop::each_turn`]; of any other, none.
fn place(phase: Phase) -> usize {
    [Phase::Idle, Phase::Prepare, Phase::Check].iter().position(|&each| each == phase).unwrap_or(usize::MAX)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
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
            move |events: &mut PhasedLoop| ran.borrow_mut().push((name, events.phase()))
        };
        let timer = {
            let (first, tick, micro) = (note("timer"), note("tick"), note("micro"));
            let mut each = Some((tick, micro));
            events.observe(Phase::Timers, move |events, event| {
                first(events);
                let (tick, micro) = each.take().expect("this timer is due once");
                events.microtask(micro);
                events.next_tick(tick);
                events.close(event.observer, |_| {});
            })
        };
        events.start_timer(timer, Duration::ZERO, Duration::ZERO);
        events.immediate(note("immediate"));
        events.defer(note("deferred"));
        let done = note("request");
        events
            .submit(
                RequestClass::Fast,
                || 6 * 7,
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
    fn many_timers_run_in_the_order_in_which_they_are_due() {
        let mut events = PhasedLoop::new(1).unwrap();
        let last_ns = Rc::new(RefCell::new((0, 0)));
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..100_000 {
            let after = Duration::from_micros(random.u64(0..1000));
            let due_ns = events.now_ns() + nanoseconds(after);
            let last_ns = last_ns.clone();
            let timer = events.observe(Phase::Timers, move |events, event| {
                let (last, count) = *last_ns.borrow();
                assert!(last <= due_ns && due_ns <= events.now_ns());
                *last_ns.borrow_mut() = (due_ns, count + 1);
                events.close(event.observer, |_| {});
            });
            events.start_timer(timer, after, Duration::ZERO);
        }
        assert_eq!(events.run(RunMode::UntilDone), Ok(false));
        assert_eq!(last_ns.borrow().1, 100_000);
    }
}
