//! Serves connections with the callbacks of a [`PhasedLoop`]: each connection is two observers, of its socket and of
//! its silence, and its state is what their callbacks hold. Work that blocks becomes a request object.
//!
//! Where the reactor has one list of all that may happen to a connection, here each wait names what comes after it.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;

use super::accept::{Acceptor, BACK_OFF, NoConnection, log_pause, no_connection};
use super::connection::{Awaited, Connection, EventHandler, LINGER, SharedBuffers, Step, end};
use super::event_loop::{LEAVE_IDLE, free_descriptors};
use super::listener::Listener;
use super::worker::Worker;
use crate::failure::Failure;
use crate::phased_loop::pool::RequestClass;
use crate::phased_loop::{ObservedEvent, Observer, Phase, PhasedLoop, Request, RunMode};
use crate::scoreboard::Count;
use crate::slots::{SlotKey, Slots};
use crate::sys::epoll::Interest;
use crate::sys::signal::{forget_listener, has_given_up, is_leaving, wake_on_termination};
use crate::work::Cost;

/// All connections of one loop, and where they come from. A clone is the same.
#[derive(Clone)]
pub struct Connections {
    pub acceptor: Rc<Listener>,
    state: Rc<RefCell<State>>,
}

/// What the callbacks of all connections share.
struct State {
    worker: Worker,
    scratch: SharedBuffers,
    open: Slots<Rc<OpenConnection>>,
    /// Connections that our table of descriptors has room for.
    room: usize,
    slow_from: Duration,
    /// The observers of the acceptor: one for each of its descriptors.
    acceptors: Vec<Observer>,
    /// A signal has asked the server to stop.
    is_ending: bool,
    /// What a callback cannot return. It has ended the loop.
    failure: Option<Failure>,
}

/// What the callbacks of one connection share.
struct OpenConnection {
    key: Cell<SlotKey>,
    /// `None` when it is closed. A callback that comes later finds nothing to do.
    state_machine: RefCell<Option<Connection>>,
    socket: Observer,
    idle_timer: Observer,
    /// The timer of a request that waits, or of the end after a refusal.
    timer: Cell<Option<Observer>>,
    /// The work of a helper thread.
    request: Cell<Option<Request>>,
    /// It goes on in this turn's check phase.
    is_yielding: Cell<bool>,
    last_active_ns: Cell<u64>,
}

type Accept = fn(&Connections, &mut PhasedLoop) -> Result<(), Failure>;
type TakeStep = fn(&mut Connection, &mut Worker, &mut SharedBuffers) -> Step;

impl Connections {
    /// Work that blocks for `slow_from` or longer belongs to the slow class of requests. Nothing but connections is
    /// opened after this.
    pub fn new(acceptor: Listener, mut worker: Worker, slow_from: Duration) -> Connections {
        worker.is_free_during = |cost| matches!(cost, Cost::Wait(_) | Cost::Block(_));
        let state = State {
            worker,
            scratch: SharedBuffers::default(),
            open: Slots::default(),
            room: free_descriptors(),
            slow_from,
            acceptors: Vec::new(),
            is_ending: false,
            failure: None,
        };
        Connections { acceptor: Rc::new(acceptor), state: Rc::new(RefCell::new(state)) }
    }

    /// Turns the loop until the server is to stop. `accept` is the callback for a new connection: it takes one, so that
    /// the open ones have their turn before the next, and gives it to [`Connections::add_accepted`].
    ///
    /// # Errors
    /// Of the acceptor and of epoll(7).
    pub fn serve(&self, events: &mut PhasedLoop, accept: Accept) -> Result<(), Failure> {
        let acceptors = [(); 2].map(|()| {
            let all = self.clone();
            events.observe(Phase::Poll, move |events, _| all.on_acceptor_ready(events, accept))
        });
        self.state.borrow_mut().acceptors = acceptors.to_vec();
        self.watch_acceptor(events)?;
        let all = self.clone();
        let stop = events.observe(Phase::Poll, move |events, _| all.on_termination(events));
        let signal = wake_on_termination().map_err(|errno| Failure::new("handle SIGTERM", errno))?;
        let started = events.start_io(stop, signal, Interest::EPOLLIN | Interest::EPOLLET);
        started.map_err(|errno| Failure::new("watch for SIGTERM", errno))?;
        events.run(RunMode::UntilDone).map_err(|errno| Failure::new("wait for events", errno))?;
        forget_listener();
        self.state.borrow().worker.record_usage();
        self.state.borrow_mut().failure.take().map_or(Ok(()), Err)
    }

    /// Takes what an accept returned: a connection, or the reason why there is none.
    ///
    /// # Errors
    /// When the acceptor is broken.
    pub fn add_accepted(&self, events: &mut PhasedLoop, accepted: nix::Result<OwnedFd>) -> Result<(), Failure> {
        let errno = match accepted {
            Ok(socket) => {
                self.add(events, socket);
                return Ok(());
            }
            Err(errno) => errno,
        };
        match no_connection(errno, false, |count| self.count(count))? {
            NoConnection::Nobody => Ok(()),
            NoConnection::Pause(errno) => self.pause_accepting(events, errno),
            NoConnection::Shut => {
                // The signal's own observer does the rest. This event was not about a connection.
                self.state.borrow().worker.row.subtract(Count::Wakeups, 1);
                self.stop_watching(events)
            }
        }
    }

    fn on_acceptor_ready(&self, events: &mut PhasedLoop, accept: Accept) {
        let has_room = self.count_open() < self.state.borrow().room;
        let accepted = if has_room {
            self.count(Count::Wakeups);
            accept(self, events)
        } else {
            // Checked before the call that would fail with this error: a channel would lose the connection.
            self.acceptor.receive_messages();
            self.pause_accepting(events, Errno::EMFILE)
        };
        self.end_at_failure(events, accepted);
        if is_leaving() {
            self.leave(events);
        }
    }

    fn on_termination(&self, events: &mut PhasedLoop) {
        // Unwatched first: it is shut, and would be reported as ready for ever.
        let _ = self.stop_watching(events);
        self.state.borrow_mut().acceptors.clear();
        if has_given_up() { events.stop() } else { self.finish(events) }
    }

    fn pause_accepting(&self, events: &mut PhasedLoop, reason: Errno) -> Result<(), Failure> {
        log_pause(reason);
        self.stop_watching(events)?;
        let all = self.clone();
        set_timeout(events, BACK_OFF, move |events| {
            let watched = all.watch_acceptor(events);
            all.end_at_failure(events, watched);
        });
        Ok(())
    }

    fn watch_acceptor(&self, events: &mut PhasedLoop) -> Result<(), Failure> {
        let watched = self.each_descriptor(|observer, fd| events.start_io(observer, fd, Interest::EPOLLIN));
        watched.map_err(|errno| Failure::new("watch the acceptor", errno))
    }

    fn stop_watching(&self, events: &mut PhasedLoop) -> Result<(), Failure> {
        let stopped = self.each_descriptor(|observer, fd| events.stop_io(observer, fd));
        stopped.map_err(|errno| Failure::new("stop watching the acceptor", errno))
    }

    /// The descriptors of the acceptor and their observers.
    fn each_descriptor(&self, mut call: impl FnMut(Observer, BorrowedFd) -> nix::Result<()>) -> nix::Result<()> {
        let descriptors = [Some(self.acceptor.as_fd()), self.acceptor.second_descriptor()].into_iter().flatten();
        descriptors.zip(&self.state.borrow().acceptors).try_for_each(|(fd, &observer)| call(observer, fd))
    }

    fn end_at_failure(&self, events: &mut PhasedLoop, outcome: Result<(), Failure>) {
        if let Err(failure) = outcome {
            self.state.borrow_mut().failure = Some(failure);
            events.stop();
        }
    }

    /// This worker of a cluster takes nothing new, and ends with its last connection. It does not close one between two
    /// requests at once: its next request may be on its way, and is answered with `Connection: close`.
    fn leave(&self, events: &mut PhasedLoop) {
        let idle_timeout = self.state.borrow().worker.idle_timeout;
        self.state.borrow_mut().worker.idle_timeout = LEAVE_IDLE.min(idle_timeout);
        for connection in self.all_open() {
            // It looks how much of the shorter time is left.
            events.start_timer(connection.idle_timer, Duration::ZERO, Duration::ZERO);
        }
        self.end_if_done(events);
    }

    fn count(&self, count: Count) {
        self.state.borrow().worker.count(count);
    }

    fn count_open(&self) -> usize {
        self.state.borrow().open.count()
    }

    fn all_open(&self) -> Vec<Rc<OpenConnection>> {
        let state = self.state.borrow();
        state.open.keys().into_iter().filter_map(|key| state.open.get(key).cloned()).collect()
    }

    /// A new connection. Its first request is often there already, so this begins to serve it.
    fn add(&self, events: &mut PhasedLoop, socket: OwnedFd) {
        // The cached time may be older than the connection, and its idle time-out begins now.
        events.update_time();
        let connection = Rc::new_cyclic(|connection: &std::rc::Weak<OpenConnection>| {
            let callback =
                |all: &Connections, call: fn(&Connections, &mut PhasedLoop, &Rc<OpenConnection>, ObservedEvent)| {
                    let (all, connection) = (all.clone(), connection.clone());
                    move |events: &mut PhasedLoop, event| {
                        connection.upgrade().iter().for_each(|connection| call(&all, events, connection, event))
                    }
                };
            OpenConnection {
                key: Cell::new(0),
                state_machine: RefCell::new(Some(Connection::from(socket))),
                socket: events.observe(Phase::Poll, callback(self, Connections::on_ready)),
                idle_timer: events.observe(Phase::Timers, callback(self, Connections::on_idle_timeout)),
                timer: Cell::new(None),
                request: Cell::new(None),
                is_yielding: Cell::new(false),
                last_active_ns: Cell::new(events.now_ns),
            }
        });
        let idle_timeout = {
            let mut all = self.state.borrow_mut();
            all.worker.opened();
            connection.key.set(all.open.insert(connection.clone()));
            all.worker.idle_timeout
        };
        events.start_timer(connection.idle_timer, idle_timeout, Duration::ZERO);
        self.advance(events, &connection, Connection::step);
    }

    /// Answers what has arrived and closes the rest. The loop ends when the last connection is closed.
    fn finish(&self, events: &mut PhasedLoop) {
        self.state.borrow_mut().is_ending = true;
        for connection in &self.all_open() {
            self.look(events, connection);
        }
        self.end_if_done(events);
    }

    /// Goes on with what its socket has, whether or not that has been reported.
    fn look(&self, events: &mut PhasedLoop, connection: &Rc<OpenConnection>) {
        connection.state_machine.borrow_mut().iter_mut().for_each(|state_machine| state_machine.mark_readable(false));
        self.advance(events, connection, Connection::step);
    }

    fn on_ready(&self, events: &mut PhasedLoop, connection: &Rc<OpenConnection>, event: ObservedEvent) {
        let is_gone = event.ready.intersects(Interest::EPOLLERR | Interest::EPOLLHUP);
        if let Some(state_machine) = &mut *connection.state_machine.borrow_mut()
            && (event.ready.intersects(Interest::EPOLLIN | Interest::EPOLLRDHUP) || is_gone)
        {
            state_machine.mark_readable(is_gone || event.ready.contains(Interest::EPOLLRDHUP));
        }
        let has_lost_its_client = || is_gone && connection.awaits(Awaited::Work);
        if !has_lost_its_client() {
            self.advance(events, connection, Connection::step);
        }
        // There is no client left to answer, whether its request was read before or came in one report with the reset.
        if has_lost_its_client() {
            self.close(events, connection, true);
        }
    }

    /// The idle time-out is over, or was when the timer was started: since then the connection may have been active.
    fn on_idle_timeout(&self, events: &mut PhasedLoop, connection: &Rc<OpenConnection>, _: ObservedEvent) {
        let due_ns = connection.last_active_ns.get() + self.state.borrow().worker.idle_timeout.as_nanos() as u64;
        let is_ours = connection.awaits(Awaited::Work) || connection.awaits(Awaited::EndOfStream);
        if due_ns > events.now_ns {
            events.start_timer(connection.idle_timer, Duration::from_nanos(due_ns - events.now_ns), Duration::ZERO);
        } else if is_ours || (is_leaving() && !connection.awaits(Awaited::Request)) {
            // It is silent because we have not answered yet, and its timer or its helper will come; or this worker is
            // leaving, and a request that has begun is still finished.
            self.restart_idle_timer(events, connection);
        } else if connection.is_ready() {
            // The loop was blocked, or has had many others to call first, and has not come to this one yet.
            self.restart_idle_timer(events, connection);
            self.look(events, connection);
        } else if connection.awaits(Awaited::RestOfRequest) {
            self.restart_idle_timer(events, connection);
            self.advance(events, connection, Connection::time_out);
        } else {
            let does_not_read = connection.awaits(Awaited::RoomForAnswer);
            self.close(events, connection, does_not_read);
        }
    }

    fn restart_idle_timer(&self, events: &mut PhasedLoop, connection: &OpenConnection) {
        connection.last_active_ns.set(events.now_ns);
        events.start_timer(connection.idle_timer, self.state.borrow().worker.idle_timeout, Duration::ZERO);
    }

    /// One step, and what comes after it.
    fn advance(&self, events: &mut PhasedLoop, connection: &Rc<OpenConnection>, take_step: TakeStep) {
        let step = {
            let State { worker, scratch, .. } = &mut *self.state.borrow_mut();
            let Some(state_machine) = &mut *connection.state_machine.borrow_mut() else { return };
            take_step(state_machine, worker, scratch)
        };
        // It may have spun, or it is long ago that the client sent something: its silence begins now.
        events.update_time();
        connection.last_active_ns.set(events.now_ns);
        let (all, later) = (self.clone(), connection.clone());
        match step {
            Step::AwaitInput => self.watch(events, connection, Interest::empty()),
            Step::AwaitOutput => self.watch(events, connection, Interest::EPOLLOUT),
            Step::AwaitWork(Cost::Block(duration)) => {
                self.watch(events, connection, Interest::empty());
                let block = move || Cost::Block(duration).spend(has_given_up);
                let done = move |events: &mut PhasedLoop| all.advance(events, &later, Connection::finish_wait);
                let fallback = done.clone();
                let is_slow = duration >= self.state.borrow().slow_from;
                let class = if is_slow { RequestClass::Slow } else { RequestClass::Fast };
                match events.submit(class, block, move |events, _| done(events)) {
                    Ok(request) => connection.request.set(Some(request)),
                    // Without a helper thread this is an event loop that blocks.
                    Err(_) => {
                        block();
                        events.queue(Phase::Check, fallback);
                    }
                }
            }
            Step::AwaitWork(cost) => {
                self.watch(events, connection, Interest::empty());
                let answer = move |events: &mut PhasedLoop| all.advance(events, &later, Connection::finish_wait);
                connection.timer.set(Some(set_timeout(events, cost.duration(), answer)));
            }
            Step::Yield => {
                self.watch(events, connection, Interest::empty());
                if !connection.is_yielding.replace(true) {
                    events.queue(Phase::Check, move |events| {
                        later.is_yielding.set(false);
                        all.advance(events, &later, Connection::step);
                    });
                }
            }
            Step::Linger => {
                self.watch(events, connection, Interest::empty());
                if !connection.timer.get().is_some_and(|timer| events.is_active(timer)) {
                    let close = move |events: &mut PhasedLoop| all.close(events, &later, true);
                    connection.timer.set(Some(set_timeout(events, LINGER, close)));
                }
            }
            Step::Close { lost } => self.close(events, connection, lost),
        }
        if self.state.borrow().is_ending {
            // Half a request is not one that has been read.
            let is_half = connection.awaits(Awaited::RestOfRequest);
            if is_half || connection.awaits(Awaited::Request) {
                self.close(events, connection, is_half);
            }
        }
    }

    /// Registers the socket, edge-triggered, or asks again with something added. Registering reports what is ready
    /// already.
    fn watch(&self, events: &mut PhasedLoop, connection: &Rc<OpenConnection>, added: Interest) {
        if events.is_active(connection.socket) && added.is_empty() {
            return;
        }
        let interest = Interest::EPOLLIN | Interest::EPOLLRDHUP | Interest::EPOLLET | added;
        let started = match &*connection.state_machine.borrow() {
            Some(state_machine) => events.start_io(connection.socket, state_machine, interest),
            None => Ok(()),
        };
        if started.is_err() {
            // No memory or no watch left (epoll_ctl(2)): a connection we cannot wait for cannot be served.
            self.close(events, connection, true);
        }
    }

    fn close(&self, events: &mut PhasedLoop, connection: &Rc<OpenConnection>, lost: bool) {
        let Some(state_machine) = connection.state_machine.take() else { return };
        {
            // Counted first: a client that sees the end finds it in the scoreboard.
            let mut all = self.state.borrow_mut();
            all.worker.closed();
            if lost {
                all.worker.count(Count::ClientErrors);
            }
            all.open.remove(connection.key.get());
        }
        if self.acceptor.sender_keeps_copies() {
            // Otherwise the registration would live on, and report a connection that is gone (epoll(7), question 6).
            let _ = events.stop_io(connection.socket, &state_machine);
            end(&state_machine);
        }
        // This closes the socket, which also ends its registration where nobody else holds it.
        drop(state_machine);
        for observer in
            [Some(connection.socket), Some(connection.idle_timer), connection.timer.take()].into_iter().flatten()
        {
            events.close(observer, |_| {});
        }
        if let Some(request) = connection.request.take() {
            // If no helper has begun it, none needs to: there is nobody to answer.
            events.cancel(request);
        }
        self.end_if_done(events);
    }

    /// A helper thread may still be at work for a client that has left: nobody waits for it.
    fn end_if_done(&self, events: &mut PhasedLoop) {
        if (self.state.borrow().is_ending || is_leaving()) && self.count_open() == 0 {
            events.stop();
        }
    }
}

/// A timer that is due once, and closed before `callback` runs.
fn set_timeout(events: &mut PhasedLoop, after: Duration, callback: impl FnOnce(&mut PhasedLoop) + 'static) -> Observer {
    let mut callback = Some(callback);
    let timer = events.observe(Phase::Timers, move |events, event| {
        events.close(event.observer, |_| {});
        callback.take().into_iter().for_each(|callback| callback(events));
    });
    events.start_timer(timer, after, Duration::ZERO);
    timer
}

impl OpenConnection {
    fn awaits(&self, awaited: Awaited) -> bool {
        self.state_machine.borrow().as_ref().is_some_and(|connection| connection.awaited() == awaited)
    }

    fn is_ready(&self) -> bool {
        self.state_machine.borrow().as_ref().is_some_and(Connection::is_ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::reactor::tests::{assert_all_answered, clients_that_wait_too_long, impatient_worker};

    #[test]
    fn a_connection_whose_request_has_arrived_is_not_silent_however_many_others_are_called_first() {
        let (args, worker) = impatient_worker();
        let connections = Connections::new(Listener::bind(&args).unwrap(), worker, Duration::MAX);
        let mut events = PhasedLoop::new(1).unwrap();
        let clients = clients_that_wait_too_long(|socket| connections.add_accepted(&mut events, Ok(socket)).unwrap());
        // Until all of them are silent again.
        events.run(RunMode::UntilDone).unwrap();
        assert_all_answered(clients);
    }
}
