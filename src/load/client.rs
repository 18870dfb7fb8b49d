//! HOW: one thread, one epoll instance, its connections, and nothing shared with the other threads.
//!
//! The schedule says when; this loop sends what is due on a connection that is free and reads what comes
//! back. Two system calls per request are the aim, one send and one recv, so:
//!
//! - the next request is written straight after the parsed answer. The socket buffer is empty then, and waiting
//!   for EPOLLOUT first would only cost a call; EPOLLOUT is waited for after EAGAIN alone;
//! - registration is edge-triggered: no epoll_ctl(2) after the one that adds the socket. A recv(2) that returns
//!   less than was asked for has emptied the socket (epoll(7), question 9): no second one has to say EAGAIN;
//! - after connect(2) the request is sent at once. On loopback the handshake is over by then, although the
//!   call returned EINPROGRESS: the SYN-ACK is processed when connect(2) releases the socket;
//! - the clock is read once per answer: the end of one request is the beginning of the next. The ~0.3 µs of
//!   parsing between them belong to the client and count against the server, which is the honest direction;
//! - time-outs are not timers but one comparison per wait (see [`Client::scan`]).
//!
//! Memory is allocated before the start: counting and sending take none.

use std::collections::VecDeque;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl;
use socket2::SockAddr;

use crate::load::connection::{Connection, State, connect, errno};
use crate::load::control::Control;
use crate::load::response::{Answer, Progress, Template};
use crate::load::schedule::Schedule;
use crate::load::tally::{Cause, Moments, Tally, Window, count};
use crate::sys::epoll::{Epoll, Interest, Ready};
use crate::units::monotonic_ns;

/// Reports per wait: enough to spread the cost of the call, few enough that none is old when its turn comes.
const MAX_REPORTS: usize = 256;
/// Larger than most answers, so that one recv(2) takes all; one per thread, so that it stays in the cache.
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;
/// Fits into one segment on every path (RFC 9293, section 3.7.1).
const ONE_SEGMENT_BYTES: usize = 536;
/// Pauses after failed connects double from the first to the last.
const FIRST_BACK_OFF_NS: u64 = 10_000_000;
const LAST_BACK_OFF_NS: u64 = 1_000_000_000;
/// How long a server that announced its close may take before we close first.
const CLOSING_GRACE_NS: u64 = 1_000_000_000;
/// Deadlines are looked at no more often than this.
const SCAN_GAP_NS: u64 = 1_000_000;
/// Who pressed Ctrl-C wants the result, not the last answer.
const INTERRUPTED_DRAIN_NS: u64 = 1_000_000_000;
/// The token of the control's bell; no connection has it, since slots stay far below 2³².
const WAKE: u64 = u64::MAX;

/// What all threads of a run have in common; read-only.
pub struct Plan {
    pub address: SockAddr,
    pub request: Vec<u8>,
    /// The same with `Connection: close`.
    pub last_request: Vec<u8>,
    /// The method is HEAD.
    pub no_body: bool,
    pub open_loop: bool,
    pub requests_per_connection: Option<u64>,
    pub timeout_ns: u64,
    /// A number of requests ends the run, not a moment.
    pub ends_by_count: bool,
    /// Answers to keep one by one.
    pub trace: usize,
}

/// One thread's connections.
pub struct Client<'a> {
    plan: &'a Plan,
    control: &'a Control,
    epoll: Epoll,
    connections: Vec<Connection>,
    /// Connections without a request in hand, longest free first: an open loop uses all of them in turn.
    free: VecDeque<u32>,
    schedule: Schedule,
    window: Window,
    /// When the wait for the last answers ends.
    drained_by_ns: u64,
    tally: Tally,
    buffer: Box<[u8]>,
    template: Template,
    /// The clock when it was last read.
    now_ns: u64,
    /// Connections with a request in hand.
    busy: usize,
    /// No deadline is earlier.
    scan_at_ns: u64,
    /// The last moment with an open connection, or without a wish for one.
    alive_ns: u64,
    window_closed: bool,
    gave_up: bool,
    /// The very first connect(2) failed: there is nothing to measure.
    unreachable: Option<Errno>,
}

impl<'a> Client<'a> {
    pub fn new(plan: &'a Plan, control: &'a Control, connections: u64) -> nix::Result<Client<'a>> {
        let epoll = Epoll::new(MAX_REPORTS.min(connections as usize + 1))?;
        // Edge-triggered, because nobody reads it: each ring is one report for each thread.
        epoll.add(control.bell(), WAKE, Interest::EPOLLIN | Interest::EPOLLET)?;
        Ok(Client {
            plan,
            control,
            epoll,
            connections: (0..connections).map(|_| Connection::default()).collect(),
            free: (0..connections as u32).collect(),
            schedule: Schedule::nothing(),
            window: Window { start_ns: 0, open_ns: u64::MAX, close_ns: u64::MAX },
            drained_by_ns: u64::MAX,
            tally: Tally::new(plan.trace),
            template: Template::new(plan.no_body),
            buffer: vec![0; RECEIVE_BUFFER_BYTES].into_boxed_slice(),
            now_ns: monotonic_ns(),
            busy: 0,
            scan_at_ns: u64::MAX,
            alive_ns: 0,
            window_closed: false,
            gave_up: false,
            unreachable: None,
        })
    }

    /// Connects all connections and waits for it: an open loop should not begin with a storm of handshakes.
    pub fn open_all(&mut self) {
        (0..self.connections.len()).for_each(|slot| self.connect(slot));
        let connecting = |client: &Client| client.connections.iter().any(|c| c.state == State::Connecting);
        while connecting(self) && self.unreachable.is_none() && self.drained_by_ns == u64::MAX {
            self.turn();
        }
    }

    /// Runs the schedule to its end, waits for the last answers, and returns what was counted; or the errno,
    /// when not even the first connection came about.
    pub fn run(mut self, window: Window, schedule: Schedule) -> Result<Tally, Errno> {
        // 50 µs of default slack would be added to every due time (prctl(2), PR_SET_TIMERSLACK).
        let _ = prctl::set_timerslack(1);
        self.window = window;
        self.schedule = schedule;
        self.drained_by_ns = window.close_ns.saturating_add(self.plan.timeout_ns);
        // A signal may have come before the window existed.
        self.heed_control();
        self.now_ns = monotonic_ns();
        self.alive_ns = self.now_ns;
        self.dispatch();
        while !self.is_over() {
            self.turn();
        }
        self.give_up_the_rest();
        match self.unreachable {
            Some(errno) => Err(errno),
            None => Ok(self.tally),
        }
    }

    fn is_over(&self) -> bool {
        let nothing_left = self.busy == 0 && self.next_due_ns().is_none();
        nothing_left || self.gave_up || self.unreachable.is_some() || self.now_ns >= self.drained_by_ns
    }

    /// Waits once, deals with all that is ready, and then with the time.
    fn turn(&mut self) {
        let wake_ns = self.next_wake_ns();
        let timeout =
            (wake_ns != u64::MAX).then(|| Duration::from_nanos(wake_ns.saturating_sub(self.now_ns)));
        let reports = self.epoll.wait(timeout).expect("epoll_wait(2) fails only on bad arguments");
        self.now_ns = monotonic_ns();
        for i in 0..reports {
            let ready = self.epoll.report(i);
            self.on_report(ready);
            self.dispatch();
        }
        self.look_at_the_clock();
    }

    fn next_wake_ns(&self) -> u64 {
        let phase_ns = if self.window_closed { self.drained_by_ns } else { self.window.close_ns };
        let due_ns = if self.free.is_empty() { None } else { self.next_due_ns() };
        phase_ns.min(self.scan_at_ns).min(due_ns.unwrap_or(u64::MAX))
    }

    /// When the schedule has something to send; `None` when never again.
    fn next_due_ns(&self) -> Option<u64> {
        let due_ns = self.schedule.next_due_ns(self.now_ns.saturating_sub(self.window.start_ns))?;
        Some(self.window.start_ns + due_ns)
    }

    /// Hands requests that are due to connections that are free.
    fn dispatch(&mut self) {
        while let Some(&slot) = self.free.front() {
            let due_ns = self
                .now_ns
                .checked_sub(self.window.start_ns)
                .and_then(|elapsed_ns| self.schedule.take(elapsed_ns));
            let Some(due_ns) = due_ns else { return };
            self.free.pop_front();
            self.begin(slot as usize, self.window.start_ns + due_ns);
            if !self.free.is_empty() {
                // A backlog is sent in one go: each request has its own moment.
                self.now_ns = monotonic_ns();
            }
        }
    }

    fn begin(&mut self, slot: usize, due_ns: u64) {
        if self.busy == 0 {
            self.alive_ns = self.now_ns;
        }
        self.busy += 1;
        self.connections[slot].due_ns = Some(due_ns);
        match self.connections[slot].state {
            State::Idle => self.send_request(slot),
            State::Closed => self.connect(slot),
            // It sends when it is established.
            _ => {}
        }
    }

    fn connect(&mut self, slot: usize) {
        self.now_ns = monotonic_ns();
        let connection = &mut self.connections[slot];
        connection.generation = connection.generation.wrapping_add(1);
        connection.began_ns = self.now_ns;
        connection.answers = 0;
        connection.reader.reset();
        // Nagle's algorithm never holds back a request in one segment: nothing unacknowledged is before it.
        let no_delay = self.plan.request.len() > ONE_SEGMENT_BYTES;
        match connect(&self.plan.address, no_delay) {
            Ok(socket) => connection.socket = Some(socket),
            Err(errno) => return self.connect_failed(slot, errno),
        }
        connection.state = State::Connecting;
        self.set_deadline(slot, self.plan.timeout_ns);
        match self.send_at_once(slot).and_then(|interest| self.register(slot, interest)) {
            Ok(()) => {}
            Err(errno) => self.connect_failed(slot, errno),
        }
    }

    /// Tries to send on a socket that is perhaps established already, and says what to wait for.
    fn send_at_once(&mut self, slot: usize) -> Result<Interest, Errno> {
        if self.connections[slot].due_ns.is_none() {
            return Ok(Interest::EPOLLIN | Interest::EPOLLOUT);
        }
        self.now_ns = monotonic_ns();
        self.connections[slot].written = 0;
        let all = self.write(slot)?;
        if self.connections[slot].written == 0 {
            return Ok(Interest::EPOLLIN | Interest::EPOLLOUT);
        }
        self.established(slot);
        self.sending(slot, all);
        Ok(if all { Interest::EPOLLIN } else { Interest::EPOLLIN | Interest::EPOLLOUT })
    }

    fn register(&self, slot: usize, interest: Interest) -> Result<(), Errno> {
        let Some(socket) = &self.connections[slot].socket else { return Err(Errno::ENOTCONN) };
        self.epoll.add(socket, self.token(slot), interest | Interest::EPOLLRDHUP | Interest::EPOLLET)
    }

    /// The slot and its generation: a report for a socket that this slot has closed is recognised as stale.
    fn token(&self, slot: usize) -> u64 {
        u64::from(self.connections[slot].generation) << 32 | slot as u64
    }

    fn established(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        connection.state = State::Idle;
        connection.deadline_ns = u64::MAX;
        self.tally.connect.record(self.now_ns - connection.began_ns);
        self.tally.established += 1;
        self.tally.opened();
    }

    fn connect_failed(&mut self, slot: usize, errno: Errno) {
        count(&mut self.tally.failures.connect, errno);
        self.close(slot);
        if self.tally.established == 0 {
            self.unreachable = Some(errno);
            self.control.abort(self.now_ns);
        }
        // Without a request in hand it is free already, and connects again when it gets one.
        if self.connections[slot].due_ns.is_some() {
            self.back_off(slot);
        }
    }

    fn back_off(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        connection.state = State::BackingOff;
        let pause_ns = FIRST_BACK_OFF_NS << connection.failures.min(10);
        connection.failures += 1;
        self.set_deadline(slot, pause_ns.min(LAST_BACK_OFF_NS));
    }

    /// Sends the request in hand on an idle connection.
    fn send_request(&mut self, slot: usize) {
        self.connections[slot].written = 0;
        match self.write(slot) {
            Ok(all) => {
                self.sending(slot, all);
                if !all {
                    self.wait_for_room(slot);
                }
            }
            Err(errno) => self.write_failed(slot, errno),
        }
    }

    fn write(&mut self, slot: usize) -> Result<bool, Errno> {
        let connection = &mut self.connections[slot];
        let is_last = self.plan.requests_per_connection == Some(connection.answers + 1);
        connection.write(if is_last { &self.plan.last_request } else { &self.plan.request })
    }

    /// The request has begun its way: its service time counts from now.
    fn sending(&mut self, slot: usize, all: bool) {
        let connection = &mut self.connections[slot];
        connection.sent_ns = self.now_ns;
        connection.state = if all { State::Reading } else { State::Writing };
        self.set_deadline(slot, self.plan.timeout_ns);
    }

    fn wait_for_room(&mut self, slot: usize) {
        let interest = Interest::EPOLLIN | Interest::EPOLLOUT | Interest::EPOLLRDHUP | Interest::EPOLLET;
        let socket = self.connections[slot].socket.as_ref();
        let modified = socket.map(|socket| self.epoll.modify(socket, self.token(slot), interest));
        if let Some(Err(errno)) = modified {
            self.write_failed(slot, errno);
        }
    }

    fn write_failed(&mut self, slot: usize, errno: Errno) {
        count(&mut self.tally.failures.write, errno);
        self.request_failed(slot);
        self.close(slot);
        self.back_off(slot);
    }

    fn on_report(&mut self, ready: Ready) {
        if ready.token == WAKE {
            return self.heed_control();
        }
        let slot = (ready.token & u64::from(u32::MAX)) as usize;
        if self.connections[slot].generation != (ready.token >> 32) as u32 {
            return;
        }
        match self.connections[slot].state {
            State::Connecting => self.on_connected(slot),
            State::Writing => self.on_room(slot),
            _ => {}
        }
        // Also while writing: a server may answer or close before it has read everything.
        if self.connections[slot].is_established() && ready.flags != Interest::EPOLLOUT {
            self.receive(slot, ready.flags);
        }
    }

    fn on_connected(&mut self, slot: usize) {
        let error = self.connections[slot].socket.as_ref().map(|socket| socket.take_error());
        match error {
            Some(Ok(None)) => {
                self.established(slot);
                if self.connections[slot].due_ns.is_some() {
                    self.send_request(slot);
                }
            }
            Some(Ok(Some(error)) | Err(error)) => self.connect_failed(slot, errno(error)),
            None => {}
        }
    }

    fn on_room(&mut self, slot: usize) {
        match self.write(slot) {
            Ok(true) => self.connections[slot].state = State::Reading,
            Ok(false) => {}
            Err(errno) => self.write_failed(slot, errno),
        }
    }

    /// Reads until the socket is empty or the answer complete.
    fn receive(&mut self, slot: usize, flags: Interest) {
        // Then the end of the stream, or an error, waits behind the data and is not reported a second time.
        let ends = flags.intersects(Interest::EPOLLRDHUP | Interest::EPOLLHUP | Interest::EPOLLERR);
        loop {
            let connection = &mut self.connections[slot];
            let bytes = match connection.read(&mut self.buffer) {
                Ok(0) => return self.on_end(slot),
                Ok(bytes) => bytes,
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => continue,
                Err(errno) => return self.on_failed_read(slot, errno.into()),
            };
            self.now_ns = monotonic_ns();
            match connection.state {
                State::Closing => {}
                State::Idle => return self.on_failed_read(slot, Cause::Malformed),
                _ => {
                    let fed = connection.reader.feed(&self.buffer[..bytes], &mut self.template);
                    match fed.progress {
                        // Nothing was asked for beyond this answer.
                        Progress::Done(_) if fed.consumed < bytes => {
                            return self.on_failed_read(slot, Cause::Malformed);
                        }
                        Progress::Done(answer) => return self.on_answer(slot, &answer, ends),
                        Progress::Malformed => return self.on_failed_read(slot, Cause::Malformed),
                        Progress::More => {}
                    }
                }
            }
            if bytes < self.buffer.len() && !ends {
                return;
            }
        }
    }

    fn on_answer(&mut self, slot: usize, answer: &Answer, server_closed: bool) {
        let Some(moments) = self.take_request(slot) else { return };
        let connection = &mut self.connections[slot];
        connection.answers += 1;
        connection.failures = 0;
        let first = connection.answers == 1;
        let half_sent = connection.state == State::Writing;
        let last = self.plan.requests_per_connection == Some(connection.answers);
        self.tally.answer(&self.window, self.plan.open_loop, moments, answer, first);
        if answer.close && !server_closed && !half_sent {
            self.connections[slot].state = State::Closing;
            self.set_deadline(slot, CLOSING_GRACE_NS.min(self.plan.timeout_ns));
            return;
        }
        if server_closed || half_sent || last {
            self.close(slot);
        } else {
            self.connections[slot].state = State::Idle;
        }
        self.free.push_back(slot as u32);
    }

    /// The server closed its side.
    fn on_end(&mut self, slot: usize) {
        self.now_ns = monotonic_ns();
        match self.connections[slot].state {
            // Between two requests a server may close as it likes.
            State::Idle => self.close(slot),
            State::Closing => self.close_and_free(slot),
            _ => match self.connections[slot].reader.end() {
                Some(answer) => self.on_answer(slot, &answer, true),
                None => self.on_failed_read(slot, Cause::Eof),
            },
        }
    }

    fn on_failed_read(&mut self, slot: usize, cause: Cause) {
        match self.connections[slot].state {
            // The answer is complete; how the server then leaves is its own affair.
            State::Closing => self.close_and_free(slot),
            State::Idle => {
                count(&mut self.tally.failures.read, cause);
                self.close(slot);
            }
            _ => {
                count(&mut self.tally.failures.read, cause);
                self.request_failed(slot);
                self.close_and_free(slot);
            }
        }
    }

    /// Takes the request in hand off the connection.
    fn take_request(&mut self, slot: usize) -> Option<Moments> {
        let connection = &mut self.connections[slot];
        let due_ns = connection.due_ns.take()?;
        let sent_ns = connection.has_sent().then_some(connection.sent_ns);
        connection.deadline_ns = u64::MAX;
        self.busy -= 1;
        Some(Moments { due_ns, sent_ns, end_ns: self.now_ns })
    }

    /// No answer will come: the request enters the histograms at its age.
    fn request_failed(&mut self, slot: usize) {
        if let Some(moments) = self.take_request(slot) {
            self.tally.record(&self.window, self.plan.open_loop, moments);
        }
    }

    fn close(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        if connection.is_established() {
            self.tally.open -= 1;
            self.alive_ns = self.now_ns;
        }
        // Nobody else holds the descriptor, so closing also ends its registration (epoll(7), question 6).
        connection.socket = None;
        connection.state = State::Closed;
        connection.deadline_ns = u64::MAX;
    }

    fn close_and_free(&mut self, slot: usize) {
        self.close(slot);
        self.free.push_back(slot as u32);
    }

    fn set_deadline(&mut self, slot: usize, from_now_ns: u64) {
        let deadline_ns = self.now_ns.saturating_add(from_now_ns);
        self.connections[slot].deadline_ns = deadline_ns;
        self.scan_at_ns = self.scan_at_ns.min(deadline_ns);
    }

    /// Once per wait: what time alone makes happen.
    fn look_at_the_clock(&mut self) {
        if self.now_ns >= self.scan_at_ns {
            self.scan();
        }
        if self.now_ns >= self.window.close_ns && !self.window_closed {
            self.window_closed = true;
            self.forget_unsent();
        }
        let dead_ns = self.now_ns.saturating_sub(self.alive_ns);
        if self.plan.ends_by_count && self.tally.open == 0 && dead_ns > self.plan.timeout_ns {
            // Otherwise a run of N requests against a server that died would never end.
            self.gave_up = self.busy > 0;
        }
        self.dispatch();
    }

    /// Looks for deadlines that have passed. Requests only ever get later deadlines, so a scan is needed once
    /// per time-out, not once per request.
    fn scan(&mut self) {
        let mut earliest_ns = u64::MAX;
        for slot in 0..self.connections.len() {
            if self.connections[slot].deadline_ns <= self.now_ns {
                self.on_deadline(slot);
            }
            earliest_ns = earliest_ns.min(self.connections[slot].deadline_ns);
        }
        self.scan_at_ns = earliest_ns.max(self.now_ns + SCAN_GAP_NS);
    }

    fn on_deadline(&mut self, slot: usize) {
        match self.connections[slot].state {
            State::Connecting => self.connect_failed(slot, Errno::ETIMEDOUT),
            State::Writing | State::Reading => {
                self.tally.failures.timeout += 1;
                self.request_failed(slot);
                self.close_and_free(slot);
            }
            State::BackingOff if self.connections[slot].due_ns.is_some() => self.connect(slot),
            State::BackingOff | State::Closing => self.close_and_free(slot),
            State::Closed | State::Idle => {}
        }
    }

    /// In closed loop a request exists only once it is sent: those still looking for a connection are
    /// forgotten. In open loop they were due, and stay.
    fn forget_unsent(&mut self) {
        if self.plan.open_loop {
            return;
        }
        for slot in 0..self.connections.len() {
            if self.connections[slot].due_ns.is_some() && !self.connections[slot].has_sent() {
                self.take_request(slot);
            }
        }
    }

    fn heed_control(&mut self) {
        let Some(stopped_at_ns) = self.control.stopped_at_ns() else { return };
        self.window.close_ns = self.window.close_ns.min(stopped_at_ns);
        self.schedule.end_at(stopped_at_ns.saturating_sub(self.window.start_ns));
        let patience_ns = INTERRUPTED_DRAIN_NS.min(self.plan.timeout_ns);
        let drain_ns = if self.control.is_aborted() { 0 } else { patience_ns };
        self.drained_by_ns = self.drained_by_ns.min(stopped_at_ns.saturating_add(drain_ns));
    }

    /// What has no answer by now will get none: it is counted, at its age.
    fn give_up_the_rest(&mut self) {
        self.now_ns = monotonic_ns();
        self.forget_unsent();
        for slot in 0..self.connections.len() {
            if self.connections[slot].state == State::Connecting {
                self.settle(slot);
            }
            if self.connections[slot].due_ns.is_some() {
                self.tally.failures.timeout += 1;
                self.request_failed(slot);
            }
        }
        let elapsed_ns = self.now_ns.saturating_sub(self.window.start_ns);
        while self.plan.open_loop
            && let Some(due_ns) = self.schedule.take(elapsed_ns)
        {
            let due_ns = self.window.start_ns + due_ns;
            self.tally.failures.timeout += 1;
            let never_sent = Moments { due_ns, sent_ns: None, end_ns: self.now_ns };
            self.tally.record(&self.window, true, never_sent);
        }
    }

    /// Decides what a handshake was that the end of the run cut short.
    fn settle(&mut self, slot: usize) {
        let socket = self.connections[slot].socket.as_ref();
        if socket.is_some_and(|socket| socket.peer_addr().is_ok()) {
            // Established after our last look: the server's book may have it, so ours must.
            self.established(slot);
        } else if self.tally.established == 0 {
            self.unreachable = Some(Errno::ETIMEDOUT);
        }
    }
}
