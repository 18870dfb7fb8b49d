//! HOW: one thread, its connections, an engine that carries their bytes, and nothing shared with the other threads.
//!
//! The schedule says when; this loop sends what is due on a connection that is free and reads what comes
//! back. What the system calls for it are is the [`engine`](crate::load::engine)'s affair. What is the loop's:
//!
//! - the next request is written straight after the parsed answer;
//! - after connect(2) the request is sent at once. On loopback the handshake is over by then, although the
//!   call returned EINPROGRESS: the SYN-ACK is processed when connect(2) releases the socket;
//! - the clock is read once per answer: the end of one request is the beginning of the next. The ~0.3 µs of
//!   parsing between them belong to the client and count against the server, which is the honest direction;
//! - time-outs are not timers but one comparison per wait (see [`Client::scan`]).
//!
//! Memory is allocated before the start: counting and sending take none.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl;
use socket2::Socket;

use crate::load::connection::{Connection, Route, State, errno};
use crate::load::control::Control;
use crate::load::engine::{self, Engine, Ready, Standing, WAKE};
use crate::load::interval::{Teller, Totals};
use crate::load::response::{Answer, Progress, Template};
use crate::load::schedule::{Schedule, Thinker};
use crate::load::tally::{Cause, Measures, Moments, Tally, Window, count};
use crate::units::monotonic_ns;

/// Pauses after failed connects double from the first to the last.
const FIRST_BACK_OFF_NS: u64 = 10_000_000;
const LAST_BACK_OFF_NS: u64 = 1_000_000_000;
/// How long a server that announced its close may take before we close first.
const CLOSING_GRACE_NS: u64 = 1_000_000_000;
/// Deadlines are looked at no more often than this.
const SCAN_GAP_NS: u64 = 1_000_000;
/// Who pressed Ctrl-C wants the result, not the last answer.
const INTERRUPTED_DRAIN_NS: u64 = 1_000_000_000;

/// What all threads of a run have in common; read-only.
pub struct Plan {
    pub route: Route,
    /// As many requests as may be under way on a connection, one behind the other.
    pub requests: Vec<u8>,
    /// Bytes of one of them.
    pub request_bytes: usize,
    pub pipeline: usize,
    /// One with `Connection: close`.
    pub last_request: Vec<u8>,
    /// The method is HEAD.
    pub no_body: bool,
    pub open_loop: bool,
    /// What is due is a user, who comes with a connection, asks several times and goes.
    pub sessions: bool,
    /// There is a pause between an answer and the next request on its connection.
    pub thinks: bool,
    /// Being connected is the answer.
    pub connect_only: bool,
    pub requests_per_connection: Option<u64>,
    pub timeout_ns: u64,
    /// From the moment a request is due until nobody wants its answer any more; `u64::MAX` for never.
    pub deadline_ns: u64,
    /// A number of requests ends the run, not a moment.
    pub ends_by_count: bool,
    /// Never sleep.
    pub busy_poll: bool,
    pub measures: Measures,
}

/// What one thread takes along beside its connections.
pub struct Share {
    pub schedule: Schedule,
    pub thinker: Thinker,
    /// Where somebody watches.
    pub teller: Option<Teller>,
}

/// A connection that only was to come about counts as answered.
const CONNECTED: Answer = Answer { status: 200, worker: None, body_bytes: 0, close: false };

/// Whether the answers in hand are complete.
enum Reading {
    GoesOn,
    Over,
}

/// One thread's connections.
pub struct Client<'a, E> {
    plan: &'a Plan,
    control: &'a Control,
    /// Before the connections, because it is dropped first: what it has under way needs their sockets.
    engine: E,
    connections: Vec<Connection>,
    /// Sockets that are closed as soon as the next request is on its way: closing one takes as long as sending, and
    /// nobody has to wait for it.
    leaving: Vec<Socket>,
    /// Connections without a request in hand, longest free first: an open loop uses all of them in turn.
    free: VecDeque<u32>,
    /// Connections whose user thinks, and until when.
    thinking: BinaryHeap<Reverse<(u64, u32)>>,
    share: Share,
    /// Requests taken from the schedule.
    taken: u64,
    /// Connections begun; chooses the source address.
    connects: u64,
    window: Window,
    /// When the wait for the last answers ends.
    drained_by_ns: u64,
    tally: Tally,
    template: Template,
    /// The clock when it was last read.
    now_ns: u64,
    /// Requests in hand.
    busy: usize,
    /// No deadline is earlier.
    scan_at_ns: u64,
    /// The last moment with an open connection, or without a wish for one.
    alive_ns: u64,
    window_closed: bool,
    gave_up: bool,
    /// connect(2) failed before any connection came about: there is nothing to measure.
    unreachable: Option<Errno>,
}

impl<'a, E: Engine> Client<'a, E> {
    pub fn new(plan: &'a Plan, control: &'a Control, connections: u64) -> nix::Result<Client<'a, E>> {
        let engine =
            E::new(connections as usize, control.bell(), [plan.requests.as_slice(), &plan.last_request])?;
        let connection =
            |_| Connection { due_ns: VecDeque::with_capacity(plan.pipeline), ..Connection::default() };
        Ok(Client {
            plan,
            control,
            engine,
            connections: (0..connections).map(connection).collect(),
            leaving: Vec::with_capacity(connections as usize + 1),
            free: (0..connections as u32).collect(),
            thinking: BinaryHeap::with_capacity(connections as usize),
            share: Share { schedule: Schedule::nothing(), thinker: Thinker::nothing(), teller: None },
            taken: 0,
            connects: 0,
            window: Window { start_ns: 0, open_ns: u64::MAX, close_ns: u64::MAX },
            drained_by_ns: u64::MAX,
            tally: Tally::new(plan.measures),
            template: Template::new(plan.no_body),
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
        let connecting = |client: &Client<E>| client.connections.iter().any(|c| c.state == State::Connecting);
        while connecting(self) && self.unreachable.is_none() && self.drained_by_ns == u64::MAX {
            self.turn();
        }
    }

    /// Runs the schedule to its end, waits for the last answers, and returns what was counted.
    pub fn run(mut self, window: Window, share: Share) -> Tally {
        // 50 µs of default slack would be added to every due time (prctl(2), PR_SET_TIMERSLACK).
        let _ = prctl::set_timerslack(1);
        self.window = window;
        self.share = share;
        self.drained_by_ns = window.close_ns.saturating_add(self.plan.timeout_ns);
        if let Some(teller) = &mut self.share.teller {
            teller.begin(window.start_ns);
        }
        if self.plan.thinks && !self.plan.sessions {
            self.begin_with_thinking();
        }
        // A signal may have come before the window existed.
        self.heed_control();
        self.now_ns = monotonic_ns();
        self.alive_ns = self.now_ns;
        self.dispatch();
        while !self.is_over() {
            self.turn();
        }
        self.give_up_the_rest();
        let totals = self.totals();
        if let Some(teller) = self.share.teller.take() {
            teller.finish(self.now_ns, totals);
        }
        self.tally.unreachable = self.unreachable;
        self.tally.gave_up = self.gave_up;
        self.tally
    }

    /// Users who have come at different times are not all of one mind at the beginning.
    fn begin_with_thinking(&mut self) {
        let users = self.free.len() as u64;
        for (user, slot) in (0u64..).zip(std::mem::take(&mut self.free)) {
            let pause_ns =
                u128::from(self.share.thinker.pause_ns()) * u128::from(user + 1) / u128::from(users);
            self.thinking.push(Reverse((self.window.start_ns + pause_ns as u64, slot)));
        }
    }

    fn is_over(&self) -> bool {
        // A user who thinks will ask again; without sessions the schedule has to agree.
        let thinks = self.plan.sessions && !self.thinking.is_empty();
        let nothing_left = self.busy == 0 && !thinks && self.next_due_ns().is_none();
        nothing_left || self.gave_up || self.unreachable.is_some() || self.now_ns >= self.drained_by_ns
    }

    /// Waits once, deals with all that is ready, and then with the time.
    fn turn(&mut self) {
        let wake_ns = if self.plan.busy_poll { self.now_ns } else { self.next_wake_ns() };
        let timeout =
            (wake_ns != u64::MAX).then(|| Duration::from_nanos(wake_ns.saturating_sub(self.now_ns)));
        self.engine.wait(timeout).expect("waiting fails only on bad arguments");
        self.now_ns = monotonic_ns();
        while let Some(ready) = self.engine.next() {
            self.on_report(ready);
            self.dispatch();
            self.leaving.clear();
        }
        self.look_at_the_clock();
        self.leaving.clear();
    }

    fn next_wake_ns(&self) -> u64 {
        let phase_ns = if self.window_closed { self.drained_by_ns } else { self.window.close_ns };
        let due_ns = if self.free.is_empty() { None } else { self.next_due_ns() };
        let thought_ns = self.thinking.peek().map_or(u64::MAX, |Reverse((due_ns, _))| *due_ns);
        let told_ns = self.share.teller.as_ref().map_or(u64::MAX, Teller::ends_ns);
        phase_ns.min(self.scan_at_ns).min(due_ns.unwrap_or(u64::MAX)).min(thought_ns).min(told_ns)
    }

    /// When the schedule has something to send; `None` when never again.
    fn next_due_ns(&self) -> Option<u64> {
        let due_ns = self.share.schedule.next_due_ns(self.now_ns.saturating_sub(self.window.start_ns))?;
        Some(self.window.start_ns + due_ns)
    }

    /// Hands requests that are due to connections that are free.
    fn dispatch(&mut self) {
        if !self.thinking.is_empty() {
            self.wake_thinkers();
        }
        // Each at most once: what is over at once, like a connection that was all that was wanted, must not keep the rest
        // waiting.
        for _ in 0..self.free.len() {
            let Some(&slot) = self.free.front() else { return };
            let Some(due_ns) = self.take_due() else { return };
            self.free.pop_front();
            if self.plan.sessions {
                self.connections[slot as usize].of_session = 0;
            }
            self.begin(slot as usize, due_ns);
            if !self.free.is_empty() {
                // A backlog is sent in one go: each request has its own moment.
                self.now_ns = monotonic_ns();
            }
        }
    }

    /// Takes the next request that is due and still wanted.
    fn take_due(&mut self) -> Option<u64> {
        let elapsed_ns = self.now_ns.checked_sub(self.window.start_ns)?;
        loop {
            let due_ns = self.window.start_ns + self.share.schedule.take(elapsed_ns)?;
            self.taken += 1;
            if due_ns.saturating_add(self.plan.deadline_ns) > self.now_ns {
                return Some(due_ns);
            }
            self.shed(due_ns);
        }
    }

    /// Nobody wants this answer any more, and nobody was asked for it: its user left when the deadline passed.
    fn shed(&mut self, due_ns: u64) {
        self.tally.shed += 1;
        let end_ns = due_ns + self.plan.deadline_ns;
        self.record_unanswered(Moments { due_ns, sent_ns: None, first_byte_ns: None, end_ns });
    }

    /// Those who have thought long enough ask again.
    fn wake_thinkers(&mut self) {
        while let Some(&Reverse((due_ns, slot))) = self.thinking.peek()
            && due_ns <= self.now_ns
        {
            self.thinking.pop();
            // In a session each user is due once, with the first request; in a closed loop each request is.
            if self.plan.sessions || self.take_due().is_some() {
                self.begin(slot as usize, due_ns);
            }
        }
    }

    fn begin(&mut self, slot: usize, due_ns: u64) {
        if self.busy == 0 {
            self.alive_ns = self.now_ns;
        }
        self.busy += 1;
        self.connections[slot].due_ns.push_back(due_ns);
        while self.connections[slot].due_ns.len() < self.plan.pipeline
            && let Some(due_ns) = self.take_due()
        {
            self.busy += 1;
            self.connections[slot].due_ns.push_back(due_ns);
        }
        match self.connections[slot].state {
            State::Idle => self.send_request(slot),
            State::Closed => self.connect(slot),
            // It sends when it is established.
            _ => {}
        }
    }

    /// The connection has nothing more to do for now.
    fn release(&mut self, slot: usize) {
        if self.plan.thinks && !self.plan.sessions {
            self.think(slot);
        } else {
            self.free.push_back(slot as u32);
        }
    }

    fn think(&mut self, slot: usize) {
        let due_ns = self.now_ns.saturating_add(self.share.thinker.pause_ns());
        self.thinking.push(Reverse((due_ns, slot as u32)));
    }

    fn connect(&mut self, slot: usize) {
        self.now_ns = monotonic_ns();
        let connection = &mut self.connections[slot];
        connection.generation = connection.generation.wrapping_add(1);
        connection.began_ns = self.now_ns;
        connection.answers = 0;
        if !self.plan.sessions {
            connection.of_session = 0;
        }
        connection.reader.reset();
        self.connects += 1;
        match self.plan.route.connect(self.connects) {
            Ok(socket) => connection.socket = Some(socket),
            Err(errno) => return self.connect_failed(slot, errno),
        }
        connection.state = State::Connecting;
        self.set_deadline(slot, self.plan.timeout_ns);
        let done = match self.send_at_once(slot) {
            Ok(Standing::Sent) if self.plan.connect_only => return self.on_connected_only(slot),
            Ok(standing) => self.hand_over(slot, standing),
            Err(errno) => Err(errno),
        };
        if let Err(errno) = done {
            self.connect_failed(slot, errno);
        }
    }

    /// On loopback the socket is perhaps established already: then sends, if there is something to send.
    fn send_at_once(&mut self, slot: usize) -> Result<Standing, Errno> {
        self.now_ns = monotonic_ns();
        if !self.connections[slot].has_request() || self.plan.connect_only {
            if !self.connections[slot].is_connected() {
                return Ok(Standing::Connecting);
            }
            self.established(slot);
            return Ok(Standing::Sent);
        }
        let all = self.begin_writing(slot)?;
        if self.connections[slot].written == 0 {
            return Ok(Standing::Connecting);
        }
        self.established(slot);
        self.sending(slot, all);
        Ok(if all { Standing::Sent } else { Standing::HalfSent })
    }

    fn hand_over(&mut self, slot: usize, standing: Standing) -> Result<(), Errno> {
        let connection = &self.connections[slot];
        let Some(socket) = &connection.socket else { return Err(Errno::ENOTCONN) };
        self.engine.begin(connection.token(slot), socket, standing)
    }

    fn established(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        connection.state = State::Idle;
        connection.deadline_ns = u64::MAX;
        self.tally.connect.record(self.now_ns - connection.began_ns);
        self.tally.established += 1;
        self.tally.opened();
        if self.tally.established == 1 {
            self.control.say_reached();
        }
    }

    fn connect_failed(&mut self, slot: usize, errno: Errno) {
        count(&mut self.tally.failures.connect, errno, 1);
        let began_ns = self.connections[slot].began_ns;
        if errno == Errno::ETIMEDOUT {
            // Nobody answered: it would have been longer still.
            self.tally.connect.record(self.now_ns.saturating_sub(began_ns));
        }
        self.close(slot);
        if !self.control.is_reached() {
            self.unreachable = Some(errno);
            self.control.abort(self.now_ns);
        }
        // Without a request in hand it is free already, and connects again when it gets one.
        if self.connections[slot].has_request() {
            if self.plan.connect_only {
                self.give_up_connecting(slot);
            }
            self.back_off(slot);
        }
    }

    /// Where the connection is the request, it has failed now.
    fn give_up_connecting(&mut self, slot: usize) {
        let began_ns = self.connections[slot].began_ns;
        while let Some(moments) = self.take_request(slot) {
            self.record_unanswered(Moments { sent_ns: Some(began_ns), ..moments });
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
        match self.begin_writing(slot) {
            Ok(all) => {
                self.sending(slot, all);
                if !all {
                    self.wait_for_room(slot);
                }
            }
            Err(errno) => self.write_failed(slot, errno),
        }
    }

    /// Writes what the kernel takes of the requests in hand. True when all of it is gone.
    fn begin_writing(&mut self, slot: usize) -> Result<bool, Errno> {
        let is_last = self.is_last(slot);
        let connection = &mut self.connections[slot];
        connection.written = 0;
        connection.to_write = match is_last {
            true => self.plan.last_request.len(),
            false => connection.due_ns.len() * self.plan.request_bytes,
        };
        self.write(slot)
    }

    /// Writes more of them; how much there was to write was settled at the beginning, some may be answered meanwhile.
    fn write(&mut self, slot: usize) -> Result<bool, Errno> {
        let is_last = self.is_last(slot);
        let connection = &mut self.connections[slot];
        let Some(socket) = &connection.socket else { return Err(Errno::ENOTCONN) };
        let (message, bytes) = if is_last { (1, &self.plan.last_request) } else { (0, &self.plan.requests) };
        let part = connection.written..connection.to_write;
        connection.written += self.engine.send(connection.token(slot), socket, message, bytes, part)?;
        Ok(connection.written == connection.to_write)
    }

    fn is_last(&self, slot: usize) -> bool {
        self.plan.requests_per_connection == Some(self.connections[slot].of_session + 1)
    }

    /// The requests have begun their way: their service time counts from now.
    fn sending(&mut self, slot: usize, all: bool) {
        let connection = &mut self.connections[slot];
        connection.sent_ns = self.now_ns;
        connection.first_byte_ns = 0;
        connection.state = if all { State::Reading } else { State::Writing };
        for &due_ns in &connection.due_ns {
            self.tally.sent(&self.window, due_ns, self.now_ns);
        }
        self.set_deadline(slot, self.plan.timeout_ns);
    }

    fn wait_for_room(&mut self, slot: usize) {
        let connection = &self.connections[slot];
        let socket = connection.socket.as_ref();
        if let Some(Err(errno)) = socket.map(|socket| self.engine.await_room(connection.token(slot), socket))
        {
            self.write_failed(slot, errno);
        }
    }

    fn write_failed(&mut self, slot: usize, errno: Errno) {
        let lost = self.requests_failed(slot);
        count(&mut self.tally.failures.write, errno, lost);
        self.close(slot);
        self.back_off(slot);
    }

    fn on_report(&mut self, ready: Ready) {
        if ready.token == WAKE {
            return self.heed_control();
        }
        let (slot, generation) = engine::slot(ready.token);
        if self.connections[slot].generation != generation {
            return;
        }
        match self.connections[slot].state {
            State::Connecting if ready.room => self.on_connected(slot),
            State::Writing if ready.room => self.on_room(slot),
            State::Writing | State::Reading => {
                if let Some(errno) = ready.failed_send {
                    return self.write_failed(slot, errno);
                }
            }
            _ => {}
        }
        // Also while writing: a server may answer or close before it has read everything.
        if self.connections[slot].is_established() && ready.data {
            self.receive(slot, ready.ends);
        }
    }

    fn on_connected(&mut self, slot: usize) {
        let error = self.connections[slot].socket.as_ref().map(|socket| socket.take_error());
        match error {
            Some(Ok(None)) => {
                self.established(slot);
                if !self.plan.connect_only {
                    self.begin_receiving(slot);
                }
                match self.connections[slot].has_request() {
                    true if self.plan.connect_only => self.on_connected_only(slot),
                    true => self.send_request(slot),
                    false => {}
                }
            }
            Some(Ok(Some(error)) | Err(error)) => self.connect_failed(slot, errno(error)),
            None => {}
        }
    }

    fn begin_receiving(&mut self, slot: usize) {
        let connection = &self.connections[slot];
        if let Some(socket) = &connection.socket {
            self.engine.established(connection.token(slot), socket);
        }
    }

    fn on_connected_only(&mut self, slot: usize) {
        let began_ns = self.connections[slot].began_ns;
        if let Some(moments) = self.take_request(slot) {
            let moments = Moments { sent_ns: Some(began_ns), ..moments };
            self.count_answer(moments, &CONNECTED, true);
        }
        self.close_and_free(slot);
    }

    fn on_room(&mut self, slot: usize) {
        match self.write(slot) {
            Ok(true) => self.connections[slot].state = State::Reading,
            Ok(false) => {
                let connection = &self.connections[slot];
                let Some(socket) = &connection.socket else { return };
                if let Err(errno) = self.engine.await_more_room(connection.token(slot), socket) {
                    self.write_failed(slot, errno);
                }
            }
            Err(errno) => self.write_failed(slot, errno),
        }
    }

    /// Reads until the socket is empty or the answer complete.
    fn receive(&mut self, slot: usize, ends: bool) {
        loop {
            let connection = &self.connections[slot];
            let Some(socket) = &connection.socket else { return };
            let bytes = match self.engine.receive(connection.token(slot), socket) {
                Ok(0) => return self.on_end(slot),
                Ok(bytes) => bytes,
                Err(Errno::EAGAIN) => return,
                Err(errno) => return self.on_failed_read(slot, errno.into()),
            };
            self.now_ns = monotonic_ns();
            match connection.state {
                State::Closing => {}
                State::Idle => return self.on_failed_read(slot, Cause::Malformed),
                _ => match self.read_answers(slot, bytes, ends) {
                    Reading::GoesOn => {}
                    Reading::Over => return,
                },
            }
            if bytes < self.engine.capacity() && !ends {
                return;
            }
        }
    }

    /// Takes all answers out of the first `bytes` received.
    fn read_answers(&mut self, slot: usize, bytes: usize, server_closed: bool) -> Reading {
        let mut taken = 0;
        loop {
            let connection = &mut self.connections[slot];
            if connection.first_byte_ns == 0 {
                connection.first_byte_ns = self.now_ns;
            }
            let fed = connection.reader.feed(&self.engine.data()[taken..bytes], &mut self.template);
            taken += fed.consumed;
            match fed.progress {
                Progress::More => return Reading::GoesOn,
                // Nothing was asked for beyond the last answer.
                Progress::Done(_) if taken < bytes && connection.due_ns.len() <= 1 => break,
                Progress::Malformed => break,
                Progress::Done(answer) => self.on_answer(slot, &answer, server_closed),
            }
            if !self.connections[slot].has_request() || !self.connections[slot].has_sent() {
                return Reading::Over;
            }
            if taken == bytes {
                return Reading::GoesOn;
            }
        }
        self.on_failed_read(slot, Cause::Malformed);
        Reading::Over
    }

    fn on_answer(&mut self, slot: usize, answer: &Answer, server_closed: bool) {
        let Some(moments) = self.take_request(slot) else { return };
        let connection = &mut self.connections[slot];
        connection.answers += 1;
        connection.of_session += 1;
        connection.failures = 0;
        connection.first_byte_ns = 0;
        let first = connection.answers == 1;
        let half_sent = connection.state == State::Writing;
        let last = self.plan.requests_per_connection == Some(connection.of_session);
        self.count_answer(moments, answer, first);
        if self.connections[slot].has_request() {
            if !answer.close {
                return;
            }
            // It said that it will not answer the others.
            let lost = self.requests_failed(slot);
            count(&mut self.tally.failures.read, Cause::Eof, lost);
        }
        if answer.close && !server_closed && !half_sent {
            self.connections[slot].state = State::Closing;
            self.connections[slot].deadline_ns = u64::MAX;
            self.set_deadline(slot, CLOSING_GRACE_NS.min(self.plan.timeout_ns));
            return;
        }
        let ends = server_closed || half_sent || last;
        if ends {
            self.close(slot);
        } else {
            self.connections[slot].state = State::Idle;
            self.connections[slot].deadline_ns = u64::MAX;
        }
        self.go_on(slot);
    }

    /// What comes after an answer: the next request of the session, over a new connection if need be, or whatever is due.
    fn go_on(&mut self, slot: usize) {
        let is_over = self.plan.requests_per_connection == Some(self.connections[slot].of_session);
        match self.plan.sessions && !is_over {
            true => self.go_on_with_session(slot),
            false => self.release(slot),
        }
    }

    fn close_and_go_on(&mut self, slot: usize) {
        self.close(slot);
        self.go_on(slot);
    }

    /// The user thinks, and then asks again; after the end of the window nobody does.
    fn go_on_with_session(&mut self, slot: usize) {
        if self.now_ns >= self.window.close_ns {
            self.close_and_free(slot);
        } else if self.plan.thinks {
            self.think(slot);
        } else {
            self.begin(slot, self.now_ns);
        }
    }

    fn count_answer(&mut self, moments: Moments, answer: &Answer, first: bool) {
        self.tally.answer(&self.window, moments, answer, first);
        if let Some(teller) = &mut self.share.teller {
            let slip_ns = moments.sent_ns.map(|sent_ns| sent_ns.saturating_sub(moments.due_ns));
            teller.now().answered(self.tally.latency_ns(moments), slip_ns, answer.worker, first);
        }
    }

    /// The server closed its side.
    fn on_end(&mut self, slot: usize) {
        self.now_ns = monotonic_ns();
        match self.connections[slot].state {
            // Between two requests a server may close as it likes.
            State::Idle => self.close(slot),
            State::Closing => self.close_and_go_on(slot),
            _ => match self.connections[slot].reader.end() {
                Some(answer) => self.on_answer(slot, &answer, true),
                None => self.on_failed_read(slot, Cause::Eof),
            },
        }
    }

    fn on_failed_read(&mut self, slot: usize, cause: Cause) {
        match self.connections[slot].state {
            // The answer is complete; how the server then leaves is its own affair.
            State::Closing => self.close_and_go_on(slot),
            State::Idle => {
                count(&mut self.tally.failures.read, cause, 1);
                self.close(slot);
            }
            _ => {
                let lost = self.requests_failed(slot);
                count(&mut self.tally.failures.read, cause, lost);
                self.close_and_free(slot);
            }
        }
    }

    /// Takes the first of the requests in hand off the connection.
    fn take_request(&mut self, slot: usize) -> Option<Moments> {
        let connection = &mut self.connections[slot];
        let due_ns = connection.due_ns.pop_front()?;
        let sent_ns = connection.has_sent().then_some(connection.sent_ns);
        let first_byte_ns = (connection.first_byte_ns > 0).then_some(connection.first_byte_ns);
        self.busy -= 1;
        Some(Moments { due_ns, sent_ns, first_byte_ns, end_ns: self.now_ns })
    }

    /// No answer will come: the requests in hand enter the histograms at their age. Returns how many there were.
    fn requests_failed(&mut self, slot: usize) -> u64 {
        let mut failed = 0;
        while let Some(moments) = self.take_request(slot) {
            self.record_unanswered(moments);
            failed += 1;
        }
        failed
    }

    fn record_unanswered(&mut self, moments: Moments) {
        self.tally.record(&self.window, moments, false);
        if let Some(teller) = &mut self.share.teller {
            teller.now().unanswered(self.tally.latency_ns(moments));
        }
    }

    fn close(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        if connection.is_established() {
            self.tally.open -= 1;
            self.alive_ns = self.now_ns;
        }
        let token = connection.token(slot);
        if let Some(socket) = connection.socket.take() {
            self.engine.close(token, &socket);
            self.leaving.push(socket);
        }
        connection.state = State::Closed;
        connection.deadline_ns = u64::MAX;
    }

    fn close_and_free(&mut self, slot: usize) {
        self.close(slot);
        self.release(slot);
    }

    fn set_deadline(&mut self, slot: usize, from_now_ns: u64) {
        let patience_ns = self.stale_ns(slot);
        let deadline_ns = self.now_ns.saturating_add(from_now_ns).min(patience_ns);
        self.connections[slot].deadline_ns = deadline_ns;
        self.scan_at_ns = self.scan_at_ns.min(deadline_ns);
    }

    /// When nobody wants the answer to the first request in hand any more.
    fn stale_ns(&self, slot: usize) -> u64 {
        let due_ns = self.connections[slot].due_ns.front().copied();
        due_ns.map_or(u64::MAX, |due_ns| due_ns.saturating_add(self.plan.deadline_ns))
    }

    /// Once per wait: what time alone makes happen.
    fn look_at_the_clock(&mut self) {
        if self.now_ns >= self.scan_at_ns {
            self.scan();
        }
        if self.now_ns >= self.window.close_ns && !self.window_closed {
            self.window_closed = true;
            self.forget_unsent();
            self.end_thinking();
        }
        if self.share.teller.as_ref().is_some_and(|teller| teller.ends_ns() <= self.now_ns) {
            let totals = self.totals();
            self.share.teller.iter_mut().for_each(|teller| teller.look_at_the_clock(self.now_ns, totals));
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
        if self.stale_ns(slot) <= self.now_ns {
            return self.abandon(slot);
        }
        match self.connections[slot].state {
            State::Connecting => self.connect_failed(slot, Errno::ETIMEDOUT),
            State::Writing | State::Reading => {
                self.tally.failures.timeout += self.requests_failed(slot);
                self.close_and_free(slot);
            }
            State::BackingOff if self.connections[slot].has_request() => self.connect(slot),
            State::BackingOff | State::Closing => self.close_and_go_on(slot),
            State::Closed | State::Idle => {}
        }
    }

    /// The user has left; so does the connection, since the answer to this request would come before the next.
    fn abandon(&mut self, slot: usize) {
        let was_sent = self.connections[slot].has_sent();
        let requests = self.requests_failed(slot);
        *if was_sent { &mut self.tally.abandoned } else { &mut self.tally.shed } += requests;
        self.close_and_free(slot);
    }

    /// The window is over: nobody asks again.
    fn end_thinking(&mut self) {
        for Reverse((_, slot)) in std::mem::take(&mut self.thinking) {
            self.close(slot as usize);
            self.free.push_back(slot);
        }
    }

    fn totals(&self) -> Totals {
        Totals {
            open: self.tally.open,
            established: self.tally.established,
            errors: self.tally.failures.total(),
            due: if self.plan.open_loop { self.taken } else { 0 },
        }
    }

    /// In closed loop a request exists only once it is sent: those still looking for a connection are
    /// forgotten. In open loop they were due, and stay.
    fn forget_unsent(&mut self) {
        if self.plan.open_loop {
            return;
        }
        for slot in 0..self.connections.len() {
            if !self.connections[slot].has_sent() {
                while self.take_request(slot).is_some() {}
            }
        }
    }

    fn heed_control(&mut self) {
        let Some(stopped_at_ns) = self.control.stopped_at_ns() else { return };
        self.window.close_ns = self.window.close_ns.min(stopped_at_ns);
        self.share.schedule.end_at(stopped_at_ns.saturating_sub(self.window.start_ns));
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
            self.tally.failures.timeout += self.requests_failed(slot);
        }
        while self.plan.open_loop
            && let Some(due_ns) = self.take_due()
        {
            self.tally.failures.timeout += 1;
            let end_ns = self.now_ns;
            self.record_unanswered(Moments { due_ns, sent_ns: None, first_byte_ns: None, end_ns });
        }
    }

    /// Decides what a handshake was that the end of the run cut short.
    fn settle(&mut self, slot: usize) {
        if self.connections[slot].is_connected() {
            // Established after our last look: the server's book may have it, so ours must.
            return self.established(slot);
        }
        self.tally.connect.record(self.now_ns - self.connections[slot].began_ns);
        if !self.control.is_reached() {
            self.unreachable = Some(Errno::ETIMEDOUT);
        }
    }
}
