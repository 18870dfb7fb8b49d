//! Serves connections with the callbacks of a [`PhasedLoop`]: each connection is two observers, of its socket and of its
//! silence, and its state is what their callbacks hold. Work that blocks becomes a request object.
//!
//! Where the reactor has one list of all that may happen to a connection, here each wait names what comes after it.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use super::connection::{Connection, LINGER, SharedBuffers, Step};
use super::worker::Worker;
use crate::phased_loop::pool::RequestClass;
use crate::phased_loop::{ObservedEvent, Observer, Phase, PhasedLoop, Request};
use crate::scoreboard::Count;
use crate::slots::{SlotKey, Slots};
use crate::sys::epoll::Interest;
use crate::sys::signal::has_given_up;
use crate::work::Cost;

/// All connections of one loop. A clone is the same.
#[derive(Clone)]
pub struct Connections(Rc<RefCell<SharedByAll>>);

struct SharedByAll {
    worker: Worker,
    scratch: SharedBuffers,
    open: Slots<Rc<Served>>,
    slow_from: Duration,
    is_ending: bool,
}

/// What the callbacks of one connection share.
struct Served {
    key: Cell<SlotKey>,
    /// `None` when it is closed. A callback that comes later finds nothing to do.
    connection: RefCell<Option<Connection>>,
    socket: Observer,
    idle_timer: Observer,
    /// The timer of a request that waits, or of the end after a refusal.
    timer: Cell<Option<Observer>>,
    /// The work of a helper thread.
    request: Cell<Option<Request>>,
    /// It goes on in this turn's check phase.
    is_yielding: Cell<bool>,
    last_active_ns: Cell<u64>,
    /// Its time is over. Its bytes may be there nevertheless, when the loop was blocked: the next poll phase shows it.
    has_grace_turn: Cell<bool>,
}

type TakeStep = fn(&mut Connection, &mut Worker, &mut SharedBuffers) -> Step;

impl Connections {
    /// Work that blocks for `slow_from` or longer belongs to the slow class of requests.
    pub fn new(worker: Worker, slow_from: Duration) -> Connections {
        let (scratch, open) = (SharedBuffers::default(), Slots::default());
        Connections(Rc::new(RefCell::new(SharedByAll { worker, scratch, open, slow_from, is_ending: false })))
    }

    pub fn count(&self, count: Count) {
        self.0.borrow().worker.count(count);
    }

    /// Takes back what was counted too early.
    pub fn uncount(&self, count: Count) {
        self.0.borrow().worker.row.subtract(count, 1);
    }

    pub fn record_usage(&self) {
        self.0.borrow().worker.record_usage();
    }

    /// A new connection. Its first request is often there already, so this begins to serve it.
    pub fn add(&self, events: &mut PhasedLoop, socket: OwnedFd) {
        // The cached time may be older than the connection, and its idle time-out begins now.
        events.update_time();
        let served = Rc::new_cyclic(|served: &std::rc::Weak<Served>| {
            let callback = |all: &Connections, call: fn(&Connections, &mut PhasedLoop, &Rc<Served>, ObservedEvent)| {
                let (all, served) = (all.clone(), served.clone());
                move |events: &mut PhasedLoop, event| {
                    served.upgrade().iter().for_each(|served| call(&all, events, served, event))
                }
            };
            Served {
                key: Cell::new(0),
                connection: RefCell::new(Some(Connection::new(socket))),
                socket: events.observe(Phase::Poll, callback(self, Connections::on_ready)),
                idle_timer: events.observe(Phase::Timers, callback(self, Connections::on_idle_timeout)),
                timer: Cell::new(None),
                request: Cell::new(None),
                is_yielding: Cell::new(false),
                last_active_ns: Cell::new(events.now_ns()),
                has_grace_turn: Cell::new(false),
            }
        });
        let idle_timeout = {
            let mut all = self.0.borrow_mut();
            all.worker.opened();
            served.key.set(all.open.insert(served.clone()));
            all.worker.idle_timeout
        };
        events.start_timer(served.idle_timer, idle_timeout, Duration::ZERO);
        self.advance(events, &served, Connection::step);
    }

    /// Answers what has arrived and closes the rest. The loop ends when the last connection is closed.
    pub fn finish(&self, events: &mut PhasedLoop) {
        self.0.borrow_mut().is_ending = true;
        let open: Vec<Rc<Served>> = {
            let all = self.0.borrow();
            all.open.keys().into_iter().filter_map(|key| all.open.get(key).cloned()).collect()
        };
        for served in &open {
            served.connection.borrow_mut().iter_mut().for_each(|connection| connection.mark_readable(false));
            self.advance(events, served, Connection::step);
        }
        self.end_if_done(events);
    }

    fn on_ready(&self, events: &mut PhasedLoop, served: &Rc<Served>, event: ObservedEvent) {
        let is_gone = event.ready.intersects(Interest::EPOLLERR | Interest::EPOLLHUP);
        if let Some(connection) = &mut *served.connection.borrow_mut()
            && (event.ready.intersects(Interest::EPOLLIN | Interest::EPOLLRDHUP) || is_gone)
        {
            connection.mark_readable(is_gone || event.ready.contains(Interest::EPOLLRDHUP));
        }
        if is_gone && served.is(Connection::is_waiting) {
            // There is no client left to answer.
            return self.close(events, served, true);
        }
        self.advance(events, served, Connection::step);
    }

    /// The idle time-out is over, or was when the timer was started: since then the connection may have been active.
    fn on_idle_timeout(&self, events: &mut PhasedLoop, served: &Rc<Served>, _: ObservedEvent) {
        let due_ns = served.last_active_ns.get() + self.0.borrow().worker.idle_timeout.as_nanos() as u64;
        let is_ours = (served.is(Connection::is_waiting) && !served.is(Connection::has_unsent))
            || served.is(Connection::is_lingering);
        if is_ours {
            // It is silent because we have not answered yet, and its timer or its helper will come.
            served.touch(events.now_ns());
            self.restart_idle_timer(events, served);
        } else if due_ns > events.now_ns() {
            events.start_timer(served.idle_timer, Duration::from_nanos(due_ns - events.now_ns()), Duration::ZERO);
        } else if !served.has_grace_turn.replace(true) {
            events.start_timer(served.idle_timer, Duration::ZERO, Duration::ZERO);
        } else if served.is(Connection::has_half_a_request) {
            served.touch(events.now_ns());
            self.restart_idle_timer(events, served);
            self.advance(events, served, Connection::time_out);
        } else {
            let does_not_read = served.is(Connection::has_unsent);
            self.close(events, served, does_not_read);
        }
    }

    fn restart_idle_timer(&self, events: &mut PhasedLoop, served: &Served) {
        events.start_timer(served.idle_timer, self.0.borrow().worker.idle_timeout, Duration::ZERO);
    }

    /// One step, and what comes after it.
    fn advance(&self, events: &mut PhasedLoop, served: &Rc<Served>, take_step: TakeStep) {
        let step = {
            let SharedByAll { worker, scratch, .. } = &mut *self.0.borrow_mut();
            let Some(connection) = &mut *served.connection.borrow_mut() else { return };
            take_step(connection, worker, scratch)
        };
        // It may have spun, or it is long ago that the client sent something: its silence begins now.
        events.update_time();
        served.touch(events.now_ns());
        let (all, later) = (self.clone(), served.clone());
        match step {
            Step::AwaitInput => self.watch(events, served, Interest::empty()),
            Step::AwaitOutput => self.watch(events, served, Interest::EPOLLOUT),
            Step::AwaitWork(Cost::Block(duration)) => {
                self.watch(events, served, Interest::empty());
                let block = move || Cost::Block(duration).spend(has_given_up);
                let done = move |events: &mut PhasedLoop| all.advance(events, &later, Connection::finish_wait);
                let fallback = done.clone();
                let is_slow = duration >= self.0.borrow().slow_from;
                let class = if is_slow { RequestClass::Slow } else { RequestClass::Fast };
                match events.submit(class, block, move |events, _| done(events)) {
                    Ok(request) => served.request.set(Some(request)),
                    // Without a helper thread this is an event loop that blocks.
                    Err(_) => {
                        block();
                        events.immediate(fallback);
                    }
                }
            }
            Step::AwaitWork(cost) => {
                self.watch(events, served, Interest::empty());
                let answer = move |events: &mut PhasedLoop| all.advance(events, &later, Connection::finish_wait);
                served.timer.set(Some(events.set_timeout(cost.duration(), answer)));
            }
            Step::Yield => {
                self.watch(events, served, Interest::empty());
                if !served.is_yielding.replace(true) {
                    events.immediate(move |events| {
                        later.is_yielding.set(false);
                        all.advance(events, &later, Connection::step);
                    });
                }
            }
            Step::Linger => {
                self.watch(events, served, Interest::empty());
                if !served.timer.get().is_some_and(|timer| events.is_active(timer)) {
                    let close = move |events: &mut PhasedLoop| all.close(events, &later, true);
                    served.timer.set(Some(events.set_timeout(LINGER, close)));
                }
            }
            Step::Close { lost } => self.close(events, served, lost),
        }
        if self.0.borrow().is_ending {
            // Half a request is not one that has been read.
            let is_half = served.is(Connection::has_half_a_request);
            if is_half || served.is(Connection::is_between_requests) {
                self.close(events, served, is_half);
            }
        }
    }

    /// Registers the socket, edge-triggered, or asks again with something added. Registering reports what is ready
    /// already.
    fn watch(&self, events: &mut PhasedLoop, served: &Rc<Served>, added: Interest) {
        if events.is_active(served.socket) && added.is_empty() {
            return;
        }
        let interest = Interest::EPOLLIN | Interest::EPOLLRDHUP | Interest::EPOLLET | added;
        let started = match &*served.connection.borrow() {
            Some(connection) => events.start_io(served.socket, connection, interest),
            None => Ok(()),
        };
        if started.is_err() {
            // No memory or no watch left (epoll_ctl(2)): a connection we cannot wait for cannot be served.
            self.close(events, served, true);
        }
    }

    fn close(&self, events: &mut PhasedLoop, served: &Rc<Served>, lost: bool) {
        let Some(connection) = served.connection.take() else { return };
        {
            // Counted first: a client that sees the end finds it in the scoreboard.
            let mut all = self.0.borrow_mut();
            all.worker.closed();
            if lost {
                all.worker.count(Count::ClientErrors);
            }
            all.open.remove(served.key.get());
        }
        // This closes the socket, which also ends its registration.
        drop(connection);
        for observer in [Some(served.socket), Some(served.idle_timer), served.timer.take()].into_iter().flatten() {
            events.close(observer, |_| {});
        }
        if let Some(request) = served.request.take() {
            // If no helper has begun it, none needs to: there is nobody to answer.
            events.cancel(request);
        }
        self.end_if_done(events);
    }

    /// A helper thread may still be at work for a client that has left: nobody waits for it.
    fn end_if_done(&self, events: &mut PhasedLoop) {
        let all = self.0.borrow();
        if all.is_ending && all.open.count() == 0 {
            events.stop();
        }
    }
}

impl Served {
    fn touch(&self, now_ns: u64) {
        self.last_active_ns.set(now_ns);
        self.has_grace_turn.set(false);
    }

    fn is(&self, condition: fn(&Connection) -> bool) -> bool {
        self.connection.borrow().as_ref().is_some_and(condition)
    }
}
