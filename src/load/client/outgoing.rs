//! Connecting and sending, and what follows when either fails.

use std::sync::atomic::Ordering::Relaxed;

use nix::errno::Errno;

use super::ClientLoop;
use crate::load::client::connection::ConnectionState;
use crate::load::client::engine::{Engine, SendProgress};
use crate::load::counts::failures::{LostCause, count};
use crate::load::counts::window::Timestamps;
use crate::units::monotonic_ns;

/// Pauses after failed connects double from the first to the last.
const FIRST_BACK_OFF_NS: u64 = 10_000_000;
const LAST_BACK_OFF_NS: u64 = 1_000_000_000;

impl<E: Engine> ClientLoop<'_, E> {
    pub(super) fn connect(&mut self, slot: usize) {
        self.now_ns = monotonic_ns();
        let connection = &mut self.connections[slot];
        connection.generation = connection.generation.wrapping_add(1);
        connection.began_ns = self.now_ns;
        connection.answers = 0;
        connection.worker = None;
        if !self.settings.sessions {
            connection.of_session = 0;
        }
        connection.reader.reset();
        self.connects += 1;
        match self.settings.route.connect(self.connects, |_| Ok(())) {
            Ok(socket) => connection.socket = Some(socket),
            Err(errno) => return self.connect_failed(slot, errno),
        }
        connection.state = ConnectionState::Connecting;
        self.set_deadline(slot, self.settings.timeout_ns);
        let done = match self.send_at_once(slot) {
            Ok(SendProgress::Sent) if self.settings.connect_only => return self.on_connected_only(slot),
            Ok(progress) => self.with_socket(slot, |engine, token, socket| engine.begin(token, socket, progress)),
            Err(errno) => Err(errno),
        };
        if let Err(errno) = done {
            self.connect_failed(slot, errno);
        }
    }

    fn send_at_once(&mut self, slot: usize) -> nix::Result<SendProgress> {
        self.now_ns = monotonic_ns();
        if !self.connections[slot].has_request() || self.settings.connect_only {
            if self.connections[slot].is_connected() {
                self.established(slot);
                return Ok(SendProgress::Sent);
            }
            return Ok(SendProgress::Connecting);
        }
        let all = self.begin_writing(slot)?;
        if self.connections[slot].written == 0 {
            return Ok(SendProgress::Connecting);
        }
        self.established(slot);
        self.sending(slot, all);
        Ok(if all { SendProgress::Sent } else { SendProgress::HalfSent })
    }

    pub(super) fn established(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        connection.state = ConnectionState::Idle;
        connection.deadline_ns = u64::MAX;
        self.tally.times.connect.record(self.now_ns - connection.began_ns);
        let totals = &mut self.tally.totals;
        totals.established += 1;
        totals.open += 1;
        self.tally.peak_open = self.tally.peak_open.max(totals.open);
        if totals.established == 1 {
            self.control.reached.store(true, Relaxed);
        }
    }

    pub(super) fn connect_failed(&mut self, slot: usize, errno: Errno) {
        count(&mut self.tally.failures.connect, errno, 1);
        let began_ns = self.connections[slot].began_ns;
        if errno == Errno::ETIMEDOUT {
            // Its age is a lower bound.
            self.tally.times.connect.record(self.now_ns.saturating_sub(began_ns));
        }
        self.close(slot);
        if !self.control.reached.load(Relaxed) {
            self.tally.unreachable = Some(errno);
            self.control.abort(self.now_ns);
        }
        // Without a request the connection is free already, and connects again when it gets one.
        if self.connections[slot].has_request() {
            // With `--connect-only` the connection is the request, and has failed.
            while self.settings.connect_only
                && let Some(timestamps) = self.take_request(slot)
            {
                self.tally.unanswered(&self.window, Timestamps { sent_ns: Some(began_ns), ..timestamps });
            }
            self.back_off(slot);
        }
    }

    fn back_off(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        connection.state = ConnectionState::BackingOff;
        let pause_ns = FIRST_BACK_OFF_NS << connection.failures.min(10);
        connection.failures += 1;
        self.set_deadline(slot, pause_ns.min(LAST_BACK_OFF_NS));
    }

    pub(super) fn send_request(&mut self, slot: usize) {
        let written = self.begin_writing(slot);
        if let Ok(all) = written {
            self.sending(slot, all);
        }
        self.after_writing(slot, written);
    }

    pub(super) fn after_writing(&mut self, slot: usize, written: nix::Result<bool>) {
        if written == Ok(true) {
            self.connections[slot].state = ConnectionState::Reading;
        } else if let Err(errno) = written.and_then(|_| self.with_socket(slot, E::await_room)) {
            self.write_failed(slot, errno);
        }
    }

    fn begin_writing(&mut self, slot: usize) -> nix::Result<bool> {
        let is_last = self.is_last(slot);
        let connection = &mut self.connections[slot];
        connection.written = 0;
        let kept = connection.due_ns.len() * self.settings.request_bytes;
        connection.to_write = if is_last { self.settings.last_request.len() } else { kept };
        self.write(slot)
    }

    /// True when all of it is gone. How much that is was settled at the beginning: some may be answered meanwhile.
    pub(super) fn write(&mut self, slot: usize) -> nix::Result<bool> {
        let is_last = self.is_last(slot);
        let connection = &mut self.connections[slot];
        let socket = connection.socket.as_ref().ok_or(Errno::ENOTCONN)?;
        let message = if is_last { (1, &*self.settings.last_request) } else { (0, &*self.settings.requests) };
        let part = connection.written..connection.to_write;
        connection.written += self.engine.send(connection.token(slot), socket, message, part)?;
        Ok(connection.written == connection.to_write)
    }

    fn is_last(&self, slot: usize) -> bool {
        self.settings.requests_per_connection == Some(self.connections[slot].of_session + 1)
    }

    /// The first byte has been sent: the service time counts from now.
    fn sending(&mut self, slot: usize, all: bool) {
        let connection = &mut self.connections[slot];
        connection.first_byte_ns = 0;
        connection.state = if all { ConnectionState::Reading } else { ConnectionState::Writing };
        if !connection.retried {
            connection.sent_ns = self.now_ns;
            for &due_ns in &connection.due_ns {
                self.tally.sent(&self.window, due_ns, self.now_ns);
            }
        }
        self.set_deadline(slot, self.settings.timeout_ns);
    }

    pub(super) fn write_failed(&mut self, slot: usize, errno: Errno) {
        if self.may_retry(slot) {
            return self.retry(slot);
        }
        self.requests_lost(slot, LostCause::Write(errno.into()));
        self.close(slot);
        self.back_off(slot);
    }

    /// A server may close a kept connection while the client sends. A client that has received no byte of the answer
    /// may then send the request once more (RFC 9112, section 9.3.1), on a new connection, whose close is an error.
    pub(super) fn may_retry(&self, slot: usize) -> bool {
        let connection = &self.connections[slot];
        let is_untouched = connection.has_request() && connection.first_byte_ns == 0;
        self.settings.retry && connection.answers > 0 && is_untouched
    }

    pub(super) fn retry(&mut self, slot: usize) {
        self.tally.totals.retried += 1;
        let connection = &mut self.connections[slot];
        if !connection.has_sent() {
            connection.sent_ns = self.now_ns;
        }
        connection.retried = true;
        self.close(slot);
        self.connect(slot);
    }
}
