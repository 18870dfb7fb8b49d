//! The event loop: one thread, one call to wait in, many connections.
//!
//! [`EventLoop::serve_until_connection`] serves the connections that are ready, and returns when a new one waits at the
//! acceptor. The caller then does the one thing that differs between architectures: it takes the connection, from a
//! listening socket or from a master, and gives it to [`EventLoop::add_accepted`].
//!
//! The acceptor is level-triggered, and one connection is taken per wake-up: a burst is shared among all who wait
//! for it, and the listener's reports do not push the connections' aside.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

use super::accept::{Acceptor, NoConnection, log_pause, no_connection, pause_end_ns};
use super::connection::{Connection, EventHandler};
use super::lock::AcceptMutex;
use super::multiplexer::Multiplexer;
use super::reactor::{ACCEPTOR, Reactor, SECOND};
use super::worker::Worker;
use crate::failure::Failure;
use crate::scoreboard::Count;
use crate::sys::epoll::{Interest, Ready};
use crate::sys::signal::{forget_listener, is_leaving, is_stopping};
use crate::units::monotonic_ns;

/// A worker that leaves closes a connection that has been silent for so long. A client under load asks far sooner, and
/// one that is silent does not hold the worker until the master kills it.
pub(super) const LEAVE_IDLE: Duration = Duration::from_secs(1);

pub struct EventLoop<A, C: EventHandler = Connection> {
    pub acceptor: A,
    interest: Interest,
    reactor: Reactor<C>,
    /// A connection has been taken since the last wake-up, so that wake-up was not empty.
    has_taken: bool,
    /// Connections that our table of descriptors has room for.
    room: usize,
    /// Until then the acceptor is not watched: there was no descriptor or memory for another connection.
    paused_until_ns: Option<u64>,
    is_watching: bool,
    /// The last report was about the acceptor's second descriptor.
    is_about_second: bool,
    /// The acceptor was shut: it is reported as ready for ever, and no connection comes from it any more.
    is_shut: bool,
    /// How many turns at the accept mutex this worker leaves to the others.
    turns_to_leave: usize,
}

impl<A: Acceptor> EventLoop<A> {
    /// # Errors
    /// The acceptor, or the descriptor that tells this process to stop, cannot be watched, as without a descriptor or
    /// memory left.
    pub fn new(acceptor: A, worker: Worker) -> Result<EventLoop<A>, Failure> {
        EventLoop::watching(acceptor, Interest::EPOLLIN, worker)
    }

    /// As [`EventLoop::new`], with another registration of the acceptor than the level-triggered one.
    ///
    /// # Errors
    /// As [`EventLoop::new`], and when the acceptor does not know such a registration (epoll_ctl(2)).
    pub fn watching(acceptor: A, interest: Interest, worker: Worker) -> Result<EventLoop<A>, Failure> {
        EventLoop::open(acceptor, interest, Multiplexer::epoll()?, worker)
    }

    /// As [`EventLoop::new`], with another call to wait in than epoll_wait.
    ///
    /// # Errors
    /// As [`EventLoop::new`].
    pub fn waiting_in(multiplexer: Multiplexer, acceptor: A, worker: Worker) -> Result<EventLoop<A>, Failure> {
        EventLoop::open(acceptor, Interest::EPOLLIN, multiplexer, worker)
    }
}

impl<A: Acceptor, C: EventHandler> EventLoop<A, C> {
    /// As [`EventLoop::new`], for what else is served step by step.
    ///
    /// # Errors
    /// As [`EventLoop::new`].
    pub fn serving(acceptor: A, worker: Worker) -> Result<EventLoop<A, C>, Failure> {
        EventLoop::open(acceptor, Interest::EPOLLIN, Multiplexer::epoll()?, worker)
    }

    fn open(acceptor: A, interest: Interest, multiplexer: Multiplexer, worker: Worker) -> Result<Self, Failure> {
        let open = || {
            let mut reactor = Reactor::new(worker, multiplexer)?;
            reactor.sender_keeps_copies = acceptor.sender_keeps_copies();
            watch(&mut reactor.multiplexer, &acceptor, interest)?;
            Ok(reactor)
        };
        let reactor = open().map_err(|errno: nix::Error| Failure::new("watch the acceptor", errno))?;
        Ok(EventLoop {
            acceptor,
            interest,
            reactor,
            has_taken: false,
            room: free_descriptors(),
            paused_until_ns: None,
            is_watching: true,
            is_about_second: false,
            is_shut: false,
            turns_to_leave: 0,
        })
    }

    /// One message of the acceptor brings at most so many connections. A connection of a message is lost when there is
    /// no descriptor for it (one in an accept queue waits), so the acceptor is read only when there is room for all.
    pub fn taking_at_once(mut self, connections: usize) -> EventLoop<A, C> {
        self.room = self.room.saturating_sub(connections - 1).max(1);
        self
    }

    pub fn has_room_for(&self, connections: usize) -> bool {
        self.reactor.open() + connections <= self.room
    }

    /// Serves the connections that are ready. True: a new one waits at the acceptor. False: the server is to stop.
    ///
    /// # Errors
    /// The wait fails, or the acceptor cannot be watched again after a pause. What a client does is never one: it is
    /// counted.
    pub fn serve_until_connection(&mut self) -> Result<bool, Failure> {
        while !is_stopping() && !self.has_left() {
            match self.reactor.next_report(self.paused_until_ns)? {
                // No room. Checked before the call that would fail with this error: accept(2) would leave the
                // connection in its queue, but a channel would lose it.
                Some(Ready { token: ACCEPTOR | SECOND, .. }) if self.reactor.open() >= self.room => {
                    self.acceptor.receive_messages();
                    self.pause_accepting(Errno::EMFILE)?;
                }
                Some(Ready { token: token @ (ACCEPTOR | SECOND), .. }) => {
                    self.reactor.worker.count(Count::Wakeups);
                    self.has_taken = false;
                    self.is_about_second = token == SECOND;
                    return Ok(true);
                }
                Some(ready) => self.reactor.serve(ready),
                None => self.resume_when_due()?,
            }
        }
        Ok(false)
    }

    /// The connection waits at the acceptor's second descriptor.
    pub fn is_about_second(&self) -> bool {
        self.is_about_second
    }

    /// Leaves the connection that was reported to others who wait for the acceptor, while `condition` holds and for
    /// `at_most`, and serves its own meanwhile. Then it may still be there, or not. False: the server is to stop.
    ///
    /// # Errors
    /// As [`EventLoop::serve_until_connection`].
    pub fn serve_while(&mut self, condition: impl Fn() -> bool, at_most: Duration) -> Result<bool, Failure> {
        let until_ns = self.reactor.now_ns + at_most.as_nanos() as u64;
        while condition() && self.reactor.now_ns < until_ns {
            self.stop_watching()?;
            if let Some(ready) = self.reactor.next_report(Some(until_ns))? {
                self.reactor.serve(ready);
            }
            if is_stopping() {
                return Ok(false);
            }
        }
        if !self.is_watching {
            self.watch_acceptor()?;
        }
        Ok(true)
    }

    /// True: this worker of a cluster was asked to leave, and it has no open connection any more. It does not close a
    /// connection between two requests at once: its next request may be on its way, and is answered with
    /// `Connection: close`.
    fn has_left(&mut self) -> bool {
        if !is_leaving() {
            return false;
        }
        self.reactor.shorten_idle_timeout(LEAVE_IDLE);
        self.reactor.open() == 0
    }

    /// As [`EventLoop::serve_until_connection`], where one worker at a time waits for the acceptor: the holder of the
    /// mutex. True: a connection waits there, and the caller has the mutex; it must accept, give the mutex back and
    /// only then serve the connection.
    ///
    /// The other workers wait for their connections, and for the time to try again. A wait that ends so does not count
    /// as a wake-up, because the listening socket did not end it. The rules are nginx's (`src/event/ngx_event.c`).
    ///
    /// # Errors
    /// As [`EventLoop::serve_until_connection`]; and when the mutex cannot be tried or given back.
    pub fn wait_for_turn(&mut self, mutex: &AcceptMutex) -> Result<bool, Failure> {
        while !is_stopping() {
            if !self.reactor.is_about_to_wait() {
                // These are served without the mutex. A report about the acceptor has been handled already.
                if let Some(ready) = self.reactor.next_report(None)?.filter(|ready| ready.token != ACCEPTOR) {
                    self.reactor.serve(ready);
                }
                continue;
            }
            let has_turn = self.may_try() && mutex.try_take()?;
            match (has_turn, self.is_watching) {
                // A worker that gives the mutex back leaves the acceptor registered: often it is the next holder, too.
                (true, false) => self.watch_acceptor()?,
                (false, true) => self.stop_watching()?,
                _ => {}
            }
            let retry_ns = (!has_turn).then(|| monotonic_ns() + mutex.retry.as_nanos() as u64);
            self.reactor.next_report([retry_ns, self.paused_until_ns].into_iter().flatten().min())?;
            if has_turn && self.reactor.has_report_about(ACCEPTOR) {
                self.reactor.worker.count(Count::Wakeups);
                self.has_taken = false;
                return Ok(true);
            }
            if has_turn {
                mutex.give()?;
            }
        }
        Ok(false)
    }

    /// A worker whose connections fill more than 7/8 of its room leaves turns to the others: one for each connection
    /// above 7/8.
    fn may_try(&mut self) -> bool {
        let is_mine = self.turns_to_leave == 0;
        self.turns_to_leave = self.turns_to_leave.saturating_sub(1);
        self.paused_until_ns = self.paused_until_ns.filter(|&until_ns| self.reactor.now_ns < until_ns);
        is_mine && self.paused_until_ns.is_none() && !self.is_shut
    }

    /// Takes what an accept returned: a connection, or the reason why there is none. True when it was a connection.
    ///
    /// # Errors
    /// The acceptor is not a listening socket ([`no_connection`]), or cannot be left for a pause. That there is no
    /// connection, for whatever reason, is not an error.
    pub fn add_accepted(&mut self, accepted: nix::Result<impl Into<C>>) -> Result<bool, Failure> {
        let errno = match accepted {
            Ok(connection) => {
                self.reactor.add(connection.into());
                self.has_taken = true;
                self.turns_to_leave = self.reactor.open().saturating_sub(self.room - self.room / 8);
                return Ok(true);
            }
            Err(errno) => errno,
        };
        match no_connection(errno, self.has_taken, |count| self.reactor.worker.count(count))? {
            NoConnection::Nobody => {}
            NoConnection::Pause(errno) => self.pause_accepting(errno)?,
            NoConnection::Shut => {
                // The end of the socket woke this worker, unless it has taken a connection in the same wake-up. The
                // connections that are open are still served.
                if !self.has_taken {
                    self.reactor.worker.row.subtract(Count::Wakeups, 1);
                }
                self.is_shut = true;
                self.stop_watching()?;
            }
        }
        Ok(false)
    }

    /// Registers the acceptor anew, behind all others that wait for it.
    ///
    /// # Errors
    /// The acceptor cannot be removed from the epoll instance, or added to it.
    pub fn rearm(&mut self) -> Result<(), Failure> {
        self.stop_watching()?;
        self.watch_acceptor()
    }

    /// # Errors
    /// The wait for the last connections fails.
    pub fn finish(mut self) -> Result<Worker, Failure> {
        if self.is_watching {
            // Before the close: another process may keep the socket open, and then the registration would stay, too.
            let _ = leave(&mut self.reactor.multiplexer, &self.acceptor);
        }
        forget_listener();
        drop(self.acceptor);
        self.reactor.finish()
    }

    fn pause_accepting(&mut self, reason: Errno) -> Result<(), Failure> {
        log_pause(reason);
        self.paused_until_ns = Some(pause_end_ns(self.reactor.now_ns));
        self.stop_watching()
    }

    /// Both descriptors may have been reported together, and each report may end here.
    fn stop_watching(&mut self) -> Result<(), Failure> {
        if !std::mem::take(&mut self.is_watching) {
            return Ok(());
        }
        leave(&mut self.reactor.multiplexer, &self.acceptor)
            .map_err(|errno| Failure::new("stop watching the acceptor", errno))
    }

    fn resume_when_due(&mut self) -> Result<(), Failure> {
        let ended = self.paused_until_ns.take_if(|until_ns| self.reactor.now_ns >= *until_ns);
        ended.map_or(Ok(()), |_| self.watch_acceptor())
    }

    fn watch_acceptor(&mut self) -> Result<(), Failure> {
        self.is_watching = true;
        let watched = watch(&mut self.reactor.multiplexer, &self.acceptor, self.interest);
        watched.map_err(|errno| Failure::new("watch the acceptor again", errno))
    }
}

fn watch(multiplexer: &mut Multiplexer, acceptor: &impl Acceptor, interest: Interest) -> nix::Result<()> {
    multiplexer.add(acceptor, ACCEPTOR, interest)?;
    acceptor.second_descriptor().map_or(Ok(()), |second| multiplexer.add(second, SECOND, Interest::EPOLLIN))
}

fn leave(multiplexer: &mut Multiplexer, acceptor: &impl Acceptor) -> nix::Result<()> {
    multiplexer.remove(acceptor)?;
    acceptor.second_descriptor().map_or(Ok(()), |second| multiplexer.remove(second))
}

/// How many descriptors this process may still open. Nothing but connections is opened after the start.
pub(super) fn free_descriptors() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(usize::MAX, |(soft, _)| soft as usize);
    // One of those counted is the descriptor that reads the folder. Without /proc: more than a server has at its start.
    let open = std::fs::read_dir("/proc/self/fd").map_or(32, |entries| entries.count().saturating_sub(1));
    limit.saturating_sub(open)
}
