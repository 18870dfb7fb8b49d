//! How requests, connections, deadlines, the window and the run end.

use std::cmp::Reverse;
use std::sync::atomic::Ordering::Relaxed;

use nix::errno::Errno;

use super::ClientLoop;
use crate::load::client::connection::{ClientConnection, ConnectionState};
use crate::load::client::engine::Engine;
use crate::load::counts::failures::{Cause, LostCause, LostRequest};
use crate::load::counts::window::Timestamps;
use crate::units::monotonic_ns;

const SCAN_GAP_NS: u64 = 1_000_000;
/// After Ctrl-C the run waits for outstanding answers no longer than this.
const INTERRUPTED_DRAIN_NS: u64 = 1_000_000_000;

impl<E: Engine> ClientLoop<'_, E> {
    pub(super) fn take_request(&mut self, slot: usize) -> Option<Timestamps> {
        let connection = &mut self.connections[slot];
        let due_ns = connection.due_ns.pop_front()?;
        let sent_ns = connection.has_sent().then_some(connection.sent_ns);
        let first_byte_ns = (connection.first_byte_ns > 0).then_some(connection.first_byte_ns);
        connection.retried = false;
        self.outstanding -= 1;
        Some(Timestamps { due_ns, sent_ns, first_byte_ns, end_ns: self.now_ns })
    }

    /// The outstanding requests enter the histograms at their age. Returns how many there were.
    pub(super) fn requests_failed(&mut self, slot: usize) -> u64 {
        let mut failed = 0;
        while let Some(timestamps) = self.take_request(slot) {
            self.tally.unanswered(&self.window, timestamps);
            failed += 1;
        }
        failed
    }

    pub(super) fn requests_lost(&mut self, slot: usize, cause: LostCause) {
        let connection = &self.connections[slot];
        if connection.has_request() {
            let (client, worker) = (connection.client(), connection.worker);
            let requests = self.requests_failed(slot);
            self.tally.failures.lose(LostRequest { at_ns: self.now_ns, client, cause, worker }, requests);
        }
    }

    pub(super) fn close(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        if connection.is_established() {
            self.tally.totals.open -= 1;
            self.alive_ns = self.now_ns;
        }
        let token = connection.token(slot);
        if let Some(socket) = connection.socket.take() {
            self.engine.close(token, &socket);
            self.sockets_to_close.push(socket);
        }
        connection.state = ConnectionState::Closed;
        connection.deadline_ns = u64::MAX;
    }

    pub(super) fn close_and_free(&mut self, slot: usize) {
        self.close(slot);
        self.release(slot);
    }

    pub(super) fn set_deadline(&mut self, slot: usize, from_now_ns: u64) {
        let limit_ns = self.stale_ns(slot);
        let deadline_ns = self.now_ns.saturating_add(from_now_ns).min(limit_ns);
        self.connections[slot].deadline_ns = deadline_ns;
        self.scan_at_ns = self.scan_at_ns.min(deadline_ns);
    }

    fn stale_ns(&self, slot: usize) -> u64 {
        let due_ns = self.connections[slot].due_ns.front().copied();
        due_ns.map_or(u64::MAX, |due_ns| due_ns.saturating_add(self.settings.deadline_ns))
    }

    pub(super) fn check_timers(&mut self) {
        if self.now_ns >= self.scan_at_ns {
            self.scan();
        }
        if self.now_ns >= self.window.close_ns && !self.window_closed {
            self.window_closed = true;
            let long_ago_ns = self.now_ns.saturating_sub(self.window.duration_ns() / 2);
            let starves = |other: &&ClientConnection| other.awaits_first_answer() && other.sent_ns <= long_ago_ns;
            self.tally.starved += self.connections.iter().filter(starves).count() as u64;
            self.forget_unsent();
            for Reverse((_, slot)) in std::mem::take(&mut self.thinking) {
                self.close(slot as usize);
                self.free.push_back(slot);
            }
        }
        if self.tally.intervals.as_ref().is_some_and(|intervals| intervals.ends_ns <= self.now_ns) {
            let totals = self.tally.totals();
            if let Some(intervals) = &mut self.tally.intervals {
                intervals.send(self.now_ns, totals);
            }
        }
        let dead_ns = self.now_ns.saturating_sub(self.alive_ns);
        if self.settings.ends_by_count && self.tally.totals.open == 0 && dead_ns > self.settings.timeout_ns {
            // A run of N requests against a server that died would never end.
            self.tally.gave_up = self.outstanding > 0;
        }
        self.dispatch();
    }

    /// Requests only ever get later deadlines, so a scan is needed once per time-out, not once per request.
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
            ConnectionState::Connecting => self.connect_failed(slot, Errno::ETIMEDOUT),
            ConnectionState::Writing | ConnectionState::Reading => {
                let starves = self.connections[slot].awaits_first_answer() && self.window.contains(self.now_ns);
                self.tally.starved += u64::from(starves);
                self.requests_lost(slot, self.overdue(slot));
                self.close_and_free(slot);
            }
            ConnectionState::BackingOff if self.connections[slot].has_request() => self.connect(slot),
            // The user whose request failed has left.
            ConnectionState::BackingOff => self.close_and_free(slot),
            ConnectionState::Closing => self.close_and_go_on(slot),
            ConnectionState::Closed | ConnectionState::Idle => {}
        }
    }

    fn overdue(&self, slot: usize) -> LostCause {
        let has_no_length = self.connections[slot].reader.ends_with_connection();
        if has_no_length { LostCause::Read(Cause::NoLength) } else { LostCause::Timeout }
    }

    /// The user has left. The connection is closed, since the answer to this request would come before the next one.
    fn abandon(&mut self, slot: usize) {
        let was_sent = self.connections[slot].has_sent();
        let requests = self.requests_failed(slot);
        let counter = if was_sent { &mut self.tally.abandoned } else { &mut self.tally.shed };
        *counter += requests;
        self.close_and_free(slot);
    }

    /// In a closed loop a request exists only once it is sent; in an open loop it was due, and stays.
    fn forget_unsent(&mut self) {
        if self.settings.open_loop {
            return;
        }
        for slot in 0..self.connections.len() {
            if !self.connections[slot].has_sent() {
                while self.take_request(slot).is_some() {}
            }
        }
    }

    pub(super) fn apply_stop(&mut self) {
        let Some(stopped_at_ns) = self.control.stopped_at_ns() else { return };
        self.window.close_ns = self.window.close_ns.min(stopped_at_ns);
        self.schedule.end_at(stopped_at_ns.saturating_sub(self.window.start_ns));
        let limit_ns = INTERRUPTED_DRAIN_NS.min(self.settings.timeout_ns);
        let drain_ns = if self.control.aborted.load(Relaxed) { 0 } else { limit_ns };
        self.drained_by_ns = self.drained_by_ns.min(stopped_at_ns.saturating_add(drain_ns));
    }

    pub(super) fn count_outstanding_as_lost(&mut self) {
        self.now_ns = monotonic_ns();
        self.forget_unsent();
        for slot in 0..self.connections.len() {
            if self.connections[slot].state == ConnectionState::Connecting {
                self.resolve_handshake(slot);
            }
            self.requests_lost(slot, self.overdue(slot));
        }
        while self.settings.open_loop
            && let Some(due_ns) = self.take_due()
        {
            let lost = LostRequest { at_ns: self.now_ns, client: None, cause: LostCause::Timeout, worker: None };
            self.tally.failures.lose(lost, 1);
            self.tally.unanswered(&self.window, Timestamps::unsent(due_ns, self.now_ns));
        }
    }

    fn resolve_handshake(&mut self, slot: usize) {
        if self.connections[slot].is_connected() {
            // Established after the last event: the server may have counted it, so it is counted here too.
            return self.established(slot);
        }
        self.tally.times.connect.record(self.now_ns - self.connections[slot].began_ns);
        if !self.control.reached.load(Relaxed) {
            self.tally.unreachable = Some(Errno::ETIMEDOUT);
        }
    }
}
