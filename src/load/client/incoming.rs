//! Receiving: the reports of the engine, and the answers in the bytes that arrived.

use nix::errno::Errno;

use super::ClientLoop;
use crate::load::client::connection::ConnectionState;
use crate::load::client::engine::{self, Engine, STOP, SocketReady};
use crate::load::client::route::errno;
use crate::load::counts::failures::{Cause, LostCause, count};
use crate::load::counts::window::Timestamps;
use crate::load::response::Answer;
use crate::units::monotonic_ns;

/// How long a server that announced its close may take before the client closes first.
const CLOSING_GRACE_NS: u64 = 1_000_000_000;
const CONNECTED: Answer = Answer { status: 200, worker: None, body_bytes: 0, wrong_body: false, close: false };

impl<E: Engine> ClientLoop<'_, E> {
    pub(super) fn on_report(&mut self, ready: SocketReady) {
        if ready.token == STOP {
            return self.apply_stop();
        }
        let (slot, generation) = engine::slot(ready.token);
        if self.connections[slot].generation != generation {
            return;
        }
        match self.connections[slot].state {
            ConnectionState::Connecting if ready.room => self.on_connected(slot),
            ConnectionState::Writing if ready.room => {
                let written = self.write(slot);
                self.after_writing(slot, written);
            }
            ConnectionState::Writing | ConnectionState::Reading => {
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
        let Some(socket) = &self.connections[slot].socket else { return };
        if let Ok(Some(error)) | Err(error) = socket.take_error() {
            return self.connect_failed(slot, errno(error));
        }
        self.established(slot);
        if !self.settings.connect_only {
            let _ = self.with_socket(slot, E::established);
        }
        match self.connections[slot].has_request() {
            true if self.settings.connect_only => self.on_connected_only(slot),
            true => self.send_request(slot),
            false => {}
        }
    }

    pub(super) fn on_connected_only(&mut self, slot: usize) {
        let began_ns = self.connections[slot].began_ns;
        if let Some(timestamps) = self.take_request(slot) {
            let timestamps = Timestamps { sent_ns: Some(began_ns), ..timestamps };
            self.tally.answered(&self.window, timestamps, &CONNECTED, true);
        }
        self.close_and_free(slot);
    }

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
            if matches!(connection.state, ConnectionState::Closing | ConnectionState::Idle) {
                return self.on_failed_read(slot, Cause::Unsolicited);
            }
            if !self.read_answers(slot, bytes, ends) || (bytes < E::CAPACITY && !ends) {
                return;
            }
        }
    }

    /// Takes all answers out of the first `bytes` received. False when there is nothing more to read for a request.
    fn read_answers(&mut self, slot: usize, bytes: usize, server_closed: bool) -> bool {
        let mut taken = 0;
        loop {
            let connection = &mut self.connections[slot];
            if connection.first_byte_ns == 0 {
                connection.first_byte_ns = self.now_ns;
            }
            match connection.reader.feed(&self.engine.data()[taken..bytes], &mut self.cached_head) {
                Ok(None) => return true,
                Ok(Some((answer, consumed))) => {
                    taken += consumed;
                    // No request is outstanding behind the last answer: no further bytes can be trusted.
                    let unsolicited = taken < bytes && connection.due_ns.len() <= 1;
                    if unsolicited {
                        count(&mut self.tally.failures.read, Cause::Unsolicited, 1);
                    }
                    self.on_answer(slot, &answer, server_closed || unsolicited);
                }
                Err(malformed) => {
                    self.on_failed_read(slot, Cause::Malformed(malformed));
                    return false;
                }
            }
            if !self.connections[slot].has_request() || !self.connections[slot].has_sent() {
                return false;
            }
            if taken == bytes {
                return true;
            }
        }
    }

    fn on_answer(&mut self, slot: usize, answer: &Answer, server_closed: bool) {
        let Some(timestamps) = self.take_request(slot) else { return };
        let connection = &mut self.connections[slot];
        connection.answers += 1;
        connection.of_session += 1;
        connection.failures = 0;
        connection.first_byte_ns = 0;
        connection.worker = answer.worker;
        let first = connection.answers == 1;
        let half_sent = connection.state == ConnectionState::Writing;
        let last = self.settings.requests_per_connection == Some(connection.of_session);
        self.tally.answered(&self.window, timestamps, answer, first);
        if self.connections[slot].has_request() {
            if !answer.close {
                return;
            }
            // The server announced that it will not answer the others.
            self.requests_lost(slot, LostCause::Read(Cause::Eof));
        }
        if answer.close && !server_closed && !half_sent {
            self.connections[slot].state = ConnectionState::Closing;
            self.set_deadline(slot, CLOSING_GRACE_NS.min(self.settings.timeout_ns));
            return;
        }
        if server_closed || half_sent || last {
            self.close(slot);
        } else {
            self.connections[slot].state = ConnectionState::Idle;
            self.connections[slot].deadline_ns = u64::MAX;
        }
        self.go_on(slot);
    }

    /// The next request of the session, or whatever is due. After the window no user sends another request.
    fn go_on(&mut self, slot: usize) {
        let was_last = self.settings.requests_per_connection == Some(self.connections[slot].of_session);
        if !self.settings.sessions || was_last {
            self.release(slot);
        } else if self.now_ns >= self.window.close_ns {
            self.close_and_free(slot);
        } else if self.settings.thinks {
            self.think(slot);
        } else {
            self.begin(slot, self.now_ns);
        }
    }

    pub(super) fn close_and_go_on(&mut self, slot: usize) {
        self.close(slot);
        self.go_on(slot);
    }

    fn on_end(&mut self, slot: usize) {
        self.now_ns = monotonic_ns();
        // Between two requests a server may close as it likes.
        if self.connections[slot].state == ConnectionState::Idle {
            return self.close(slot);
        }
        match self.connections[slot].reader.end() {
            Some(answer) => self.on_answer(slot, &answer, true),
            None => self.on_failed_read(slot, Cause::Eof),
        }
    }

    fn on_failed_read(&mut self, slot: usize, cause: Cause) {
        match self.connections[slot].state {
            // After the last answer a server may close as it likes; further bytes are an error.
            ConnectionState::Closing => {
                if cause == Cause::Unsolicited {
                    count(&mut self.tally.failures.read, cause, 1);
                }
                self.close_and_go_on(slot);
            }
            ConnectionState::Idle => {
                count(&mut self.tally.failures.read, cause, 1);
                self.close(slot);
            }
            _ if matches!(cause, Cause::Eof | Cause::Errno(_)) && self.may_retry(slot) => self.retry(slot),
            _ => {
                self.requests_lost(slot, LostCause::Read(cause));
                self.close_and_free(slot);
            }
        }
    }
}
