//! HOW: one thread with its connections, which shares nothing with the other threads. The schedule says when; this loop
//! sends what is due on a connection that is free and reads the answers, by an [`engine`] that makes the system calls:
//!
//! - after connect(2) the request is sent at once. On loopback the handshake is over by then, although the
//!   call returned EINPROGRESS: the SYN-ACK is processed when connect(2) releases the socket;
//! - the clock is read once per answer: the end of one request is the beginning of the next. The ~0.3 µs of
//!   parsing between them belong to the client and count against the server, which is the honest direction;
//! - time-outs are not timers but one comparison per wait (see [`ClientLoop::scan`]);
//! - memory is allocated before the start: neither a request nor its answer takes any.
//!
//! This file hands out what is due; [`outgoing`] connects and sends, [`incoming`] reads answers, [`ending`] handles
//! time, failures and the end of the run.

pub mod connection;
pub mod control;
pub mod engine;
pub mod route;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl;
use socket2::Socket;

use crate::load::client::connection::{ClientConnection, ConnectionState};
use crate::load::client::control::RunControl;
use crate::load::client::engine::Engine;
use crate::load::client::route::Route;
use crate::load::counts::interval::IntervalSender;
use crate::load::counts::tally::{Measures, Tally};
use crate::load::counts::window::{Timestamps, Window};
use crate::load::response::CachedHead;
use crate::load::schedule::{Schedule, Thinker};
use crate::units::monotonic_ns;

mod ending;
mod incoming;
mod outgoing;

pub struct ClientSettings {
    pub route: Route,
    /// As many copies as may be outstanding on a connection, each of `request_bytes`.
    pub requests: Vec<u8>,
    pub request_bytes: usize,
    pub pipeline: usize,
    /// One copy with `Connection: close`.
    pub last_request: Vec<u8>,
    pub no_body: bool,
    pub open_loop: bool,
    /// The schedule begins users, each with a connection and several requests.
    pub sessions: bool,
    pub thinks: bool,
    pub connect_only: bool,
    pub retry: bool,
    pub requests_per_connection: Option<u64>,
    pub timeout_ns: u64,
    /// From the moment a request is due until its user leaves; `u64::MAX` for never.
    pub deadline_ns: u64,
    pub ends_by_count: bool,
    pub busy_poll: bool,
    pub measures: Measures,
}

/// One thread's share of the run; the [`ClientSettings`] are the same for all.
pub struct Assignment {
    pub connections: u64,
    pub schedule: Schedule,
    pub thinker: Thinker,
    pub intervals: Option<IntervalSender>,
}

pub struct ClientLoop<'a, E> {
    settings: &'a ClientSettings,
    control: &'a RunControl,
    /// Before the connections, because it is dropped first: what it has begun needs their sockets.
    engine: E,
    connections: Vec<ClientConnection>,
    /// Closed after the next request is sent: closing one takes as long as sending, and no request has to wait for it.
    sockets_to_close: Vec<Socket>,
    /// Connections without an outstanding request, longest free first: an open loop uses all of them in turn.
    free: VecDeque<u32>,
    /// The users that think, and until when: the end of the pause, and the connection.
    thinking: BinaryHeap<Reverse<(u64, u32)>>,
    schedule: Schedule,
    thinker: Thinker,
    /// Connections begun; chooses the source address.
    connects: u64,
    /// It begins never until [`ClientLoop::run`] says when: nothing is due.
    window: Window,
    /// When the wait for the last answers ends.
    drained_by_ns: u64,
    tally: Tally,
    cached_head: CachedHead,
    now_ns: u64,
    /// Requests, of all connections.
    outstanding: usize,
    /// No deadline is earlier.
    scan_at_ns: u64,
    /// The last moment with an open connection, or without a request that needs one.
    alive_ns: u64,
    window_closed: bool,
}

impl<'a, E: Engine> ClientLoop<'a, E> {
    pub fn new(settings: &'a ClientSettings, control: &'a RunControl, share: Assignment) -> nix::Result<Self> {
        let Assignment { connections, schedule, thinker, intervals } = share;
        let room = connections as usize;
        let messages = [settings.requests.as_slice(), &settings.last_request];
        let due_ns = || VecDeque::with_capacity(settings.pipeline);
        let connection = |_| ClientConnection { due_ns: due_ns(), deadline_ns: u64::MAX, ..Default::default() };
        Ok(ClientLoop {
            settings,
            control,
            engine: E::new(room, control.stop_event.as_fd(), messages)?,
            connections: (0..connections).map(connection).collect(),
            sockets_to_close: Vec::with_capacity(room + 1),
            free: (0..connections as u32).collect(),
            thinking: BinaryHeap::with_capacity(room),
            schedule,
            thinker,
            connects: 0,
            window: Window { start_ns: u64::MAX, open_ns: u64::MAX, close_ns: u64::MAX },
            drained_by_ns: u64::MAX,
            tally: Tally { intervals, ..Tally::new(settings.measures) },
            cached_head: CachedHead::new(settings.no_body),
            now_ns: monotonic_ns(),
            outstanding: 0,
            scan_at_ns: u64::MAX,
            alive_ns: 0,
            window_closed: false,
        })
    }

    /// Connects all connections and waits for it: an open loop should not begin with a storm of handshakes.
    pub fn open_all(&mut self) {
        (0..self.connections.len()).for_each(|slot| self.connect(slot));
        while self.connections.iter().any(|connection| connection.state == ConnectionState::Connecting)
            && self.tally.unreachable.is_none()
            && self.drained_by_ns == u64::MAX
        {
            self.poll_once();
        }
    }

    pub fn run(mut self, window: Window) -> Tally {
        // 50 µs of default slack would be added to every due time (prctl(2), PR_SET_TIMERSLACK).
        let _ = prctl::set_timerslack(1);
        self.window = window;
        self.drained_by_ns = window.close_ns.saturating_add(self.settings.timeout_ns);
        if let Some(intervals) = &mut self.tally.intervals {
            intervals.begin(window.start_ns);
        }
        if self.settings.thinks && !self.settings.sessions {
            self.begin_with_thinking();
        }
        // A signal may have come before the window existed.
        self.apply_stop();
        self.now_ns = monotonic_ns();
        self.alive_ns = self.now_ns;
        self.dispatch();
        while !self.is_over() {
            self.poll_once();
        }
        self.count_outstanding_as_lost();
        if let Some(intervals) = self.tally.intervals.take() {
            intervals.finish(self.now_ns, self.tally.totals());
        }
        self.tally
    }

    /// Spreads the first requests over one think time: in a steady state the users are at different points of it.
    fn begin_with_thinking(&mut self) {
        let users = self.free.len() as u64;
        for (user, slot) in (0u64..).zip(std::mem::take(&mut self.free)) {
            let pause_ns = u128::from(self.thinker.pause_ns()) * u128::from(user + 1) / u128::from(users);
            self.thinking.push(Reverse((self.window.start_ns + pause_ns as u64, slot)));
        }
    }

    fn is_over(&self) -> bool {
        // In a session a user who thinks sends another request; otherwise the schedule decides.
        let thinks = self.settings.sessions && !self.thinking.is_empty();
        let nothing_left = self.outstanding == 0 && !thinks && self.next_due_ns().is_none();
        nothing_left || self.tally.gave_up || self.tally.unreachable.is_some() || self.now_ns >= self.drained_by_ns
    }

    fn poll_once(&mut self) {
        let wake_ns = if self.settings.busy_poll { self.now_ns } else { self.next_wake_ns() };
        let timeout = (wake_ns != u64::MAX).then(|| Duration::from_nanos(wake_ns.saturating_sub(self.now_ns)));
        self.engine.wait(timeout).expect("waiting fails only on bad arguments");
        self.now_ns = monotonic_ns();
        while let Some(ready) = self.engine.next() {
            self.on_report(ready);
            self.dispatch();
            self.sockets_to_close.clear();
        }
        self.check_timers();
        self.sockets_to_close.clear();
    }

    fn next_wake_ns(&self) -> u64 {
        let phase_ns = if self.window_closed { self.drained_by_ns } else { self.window.close_ns };
        let due_ns = if self.free.is_empty() { None } else { self.next_due_ns() };
        let thought_ns = self.thinking.peek().map_or(u64::MAX, |Reverse((due_ns, _))| *due_ns);
        let interval_ns = self.tally.intervals.as_ref().map_or(u64::MAX, |intervals| intervals.ends_ns);
        phase_ns.min(self.scan_at_ns).min(due_ns.unwrap_or(u64::MAX)).min(thought_ns).min(interval_ns)
    }

    /// When the schedule has something to send; `None` when never again.
    fn next_due_ns(&self) -> Option<u64> {
        let due_ns = self.schedule.next_due_ns(self.now_ns.saturating_sub(self.window.start_ns))?;
        Some(self.window.start_ns.saturating_add(due_ns))
    }

    fn dispatch(&mut self) {
        if !self.thinking.is_empty() {
            self.wake_thinkers();
        }
        // Each connection at most once: requests that are over at once (--connect-only) must not delay the events.
        for _ in 0..self.free.len() {
            let Some(&slot) = self.free.front() else { return };
            let Some(due_ns) = self.take_due() else { return };
            self.free.pop_front();
            if self.settings.sessions {
                self.connections[slot as usize].of_session = 0;
            }
            self.begin(slot as usize, due_ns);
            if !self.free.is_empty() {
                // A backlog is sent in one go: each request has its own moment.
                self.now_ns = monotonic_ns();
            }
        }
    }

    fn take_due(&mut self) -> Option<u64> {
        let elapsed_ns = self.now_ns.checked_sub(self.window.start_ns)?;
        loop {
            let due_ns = self.window.start_ns + self.schedule.take(elapsed_ns)?;
            self.tally.totals.due += u64::from(self.settings.open_loop);
            if due_ns.saturating_add(self.settings.deadline_ns) > self.now_ns {
                return Some(due_ns);
            }
            self.tally.shed += 1;
            let end_ns = due_ns + self.settings.deadline_ns;
            self.tally.unanswered(&self.window, Timestamps::unsent(due_ns, end_ns));
        }
    }

    fn wake_thinkers(&mut self) {
        while let Some(&Reverse((due_ns, slot))) = self.thinking.peek()
            && due_ns <= self.now_ns
        {
            self.thinking.pop();
            // In a session each user is due once, with the first request; in a closed loop each request is.
            if self.settings.sessions || self.take_due().is_some() {
                self.begin(slot as usize, due_ns);
            }
        }
    }

    fn begin(&mut self, slot: usize, due_ns: u64) {
        if self.outstanding == 0 {
            self.alive_ns = self.now_ns;
        }
        self.outstanding += 1;
        self.connections[slot].due_ns.push_back(due_ns);
        while self.connections[slot].due_ns.len() < self.settings.pipeline
            && let Some(due_ns) = self.take_due()
        {
            self.outstanding += 1;
            self.connections[slot].due_ns.push_back(due_ns);
        }
        match self.connections[slot].state {
            ConnectionState::Idle => self.send_request(slot),
            ConnectionState::Closed => self.connect(slot),
            // It sends when it is established, or after its pause.
            _ => {}
        }
    }

    fn with_socket(&mut self, slot: usize, ask: impl Fn(&mut E, u64, &Socket) -> nix::Result<()>) -> nix::Result<()> {
        let connection = &self.connections[slot];
        let socket = connection.socket.as_ref().ok_or(Errno::ENOTCONN)?;
        ask(&mut self.engine, connection.token(slot), socket)
    }

    fn release(&mut self, slot: usize) {
        if self.settings.thinks && !self.settings.sessions {
            self.think(slot);
        } else {
            self.free.push_back(slot as u32);
        }
    }

    fn think(&mut self, slot: usize) {
        let due_ns = self.now_ns.saturating_add(self.thinker.pause_ns());
        self.thinking.push(Reverse((due_ns, slot as u32)));
    }
}
