//! What the workers say, and what of it the master answers by itself.

use std::mem;

use serde_json::{Value, json};

use super::{Happening, Master};
use crate::cluster::protocol::{self, Address, Message};
use crate::cluster::timers::Due;
use crate::cluster::token::{Token, Uid};
use crate::cluster::worker::State;
use crate::server::accept::BACK_OFF;
use crate::server::ipc::{Incoming, Received};
use crate::sys::epoll::Interest;
use crate::units::monotonic_ns;

/// What else a worker sends against the protocol is only counted.
const MOST_VIOLATIONS_TOLD: u64 = 10;

/// How long to wait for the word that a worker leaves, behind the one that it has closed a server.
const CLOSE_WAITS_NS: u64 = 100_000_000;

/// A longer message is told by its size.
const LONGEST_TOLD: usize = 4096;

impl Master {
    pub(super) fn hear_worker(&mut self, uid: Uid, flags: Interest) {
        if flags.intersects(Interest::EPOLLIN | Interest::EPOLLHUP | Interest::EPOLLERR) {
            self.receive(uid);
        }
        if let Some(ipc) = self.roster.ipc(uid) {
            ipc.flush();
        }
        self.watch(uid);
    }

    /// One receive, so that a worker that talks without end leaves the others their turn. True: there may be more.
    pub(super) fn receive(&mut self, uid: Uid) -> bool {
        let mut incoming = mem::take(&mut self.incoming);
        let Some(ipc) = self.roster.ipc(uid) else { return false };
        let received = ipc.receive(&mut self.buffer, &mut incoming);
        // An acknowledgement is a sign of life that comes without a message.
        if received == Received::Something {
            self.note_life(uid);
        }
        for incoming in incoming.drain(..) {
            let message = match incoming {
                Incoming::Message(message, _unwanted) => Message::parse(message),
                Incoming::Answer { ack, accepted } => Ok(Message::Answer { ack, accepted }),
                Incoming::Large(bytes) => Ok(Message::SaidMuch(bytes)),
                // It has no descriptor left: as if it had refused.
                Incoming::Undelivered(seq) => Ok(Message::Answer { ack: seq, accepted: false }),
                Incoming::Connection { .. } => Err("a connection where none belongs".to_owned()),
                Incoming::Violation(what) => Err(what),
            };
            match message {
                Ok(message) => self.hear(uid, message),
                Err(what) => self.note_violation(uid, &what),
            }
        }
        self.incoming = incoming;
        if received == Received::End {
            self.disconnected(uid);
        }
        received == Received::Something
    }

    fn hear(&mut self, uid: Uid, message: Message) {
        match message {
            Message::Online { counts } => self.hear_online(uid, counts),
            Message::Query(query) if !self.is_told_to_stop => {
                self.happenings.push_back(Happening::Query(uid, query));
            }
            Message::Query(_) => {}
            Message::Listening { port } => self.hear_listening(uid, port),
            Message::Close(key) => self.hear_close(uid, &key),
            Message::ExitedAfterDisconnect { seq: heard } => {
                self.note_leaving(uid);
                let seq = self.next_seq();
                if let Some(ipc) = self.roster.ipc(uid) {
                    ipc.send(&protocol::acknowledge(heard, seq));
                }
            }
            Message::Answer { ack, accepted } => self.hear_answer(uid, ack, accepted),
            Message::Suicide => self.hear_suicide(uid),
            Message::Count(counts) => counts.iter().for_each(|(name, n)| self.lives.count(name, *n)),
            Message::Said(message) => self.tell("message", uid, tellable(message)),
            Message::SaidMuch(bytes) => self.tell("message", uid, json!({"bytes": bytes})),
        }
    }

    fn hear_online(&mut self, uid: Uid, counts: bool) {
        if let Some(worker) = self.roster.get_mut(uid) {
            (worker.is_online, worker.counts) = (true, counts);
        }
        self.tell("online", uid, json!({}));
        if self.notifier.as_ref().is_some_and(|notifier| notifier.value().is_some()) {
            self.notify(uid);
        }
    }

    /// The program has closed one of its servers. One that goes on wants the port to be closed, as with Node; what one that
    /// leaves has closed is its successor's. Node's library says that it leaves in the message behind this one.
    fn hear_close(&mut self, uid: Uid, key: &str) {
        self.leave_handles(uid, |handle| handle.key == key);
        if let Some(token) = self.find_handle(key) {
            self.timers.at(monotonic_ns() + CLOSE_WAITS_NS, Due::Closed(token, uid));
        }
    }

    fn hear_listening(&mut self, uid: Uid, port: Option<u64>) {
        let its = self.handles.values().filter(|handle| handle.has_member(uid));
        let mut addresses = its.map(|handle| &handle.address);
        let is_meant = |address: &&Address| match address {
            Address::Ip(address) => port == Some(address.port().into()),
            Address::Path(_) => port.is_none(),
        };
        let first = addresses.clone().next();
        let address = addresses.find(is_meant).or(first).cloned();
        self.tell("listening", uid, json!({"address": address.as_ref().map(Address::to_string)}));
        let (Some(worker), Some(address)) = (self.roster.get_mut(uid), address) else { return };
        if matches!(worker.state, State::Starting { .. }) {
            (worker.state, worker.has_served) = (State::Serving, true);
            let number = worker.number;
            self.end_vacancy(number);
            self.reload_with(uid);
        }
        if self.address.is_none() && self.roster.is_at_full_strength(self.workers) {
            let first = self.handles.values().next().map_or(address, |handle| handle.address.clone());
            self.address = Some(first.clone());
            self.happenings.push_back(Happening::Ready(first));
        }
    }

    /// Waits for what the channel of a worker needs now.
    pub(super) fn watch(&mut self, uid: Uid) {
        let Some(worker) = self.roster.get_mut(uid) else { return };
        let Some(ipc) = &worker.ipc else { return };
        if ipc.is_broken() {
            // It takes nothing more. What it has said still counts.
            while self.receive(uid) {}
            return self.disconnected(uid);
        }
        let interest = ipc.interest();
        if interest != worker.interest {
            // A registration is changed without allocating, so this cannot fail (epoll_ctl(2)).
            let _ = self.epoll.modify(ipc, Token::Worker(uid).encode(), interest);
            worker.interest = interest;
        }
        if ipc.is_starved() && !worker.is_flush_due {
            worker.is_flush_due = true;
            self.timers.at(monotonic_ns() + BACK_OFF.as_nanos() as u64, Due::Flush(uid));
        }
    }

    pub(super) fn flush_again(&mut self, uid: Uid) {
        let Some(worker) = self.roster.get_mut(uid) else { return };
        worker.is_flush_due = false;
        if let Some(ipc) = &mut worker.ipc {
            ipc.flush();
        }
        self.watch(uid);
    }

    pub(super) fn note_violation(&mut self, uid: Uid, what: &str) {
        let Some(worker) = self.roster.get_mut(uid) else { return };
        worker.violations += 1;
        let is_last = worker.violations == MOST_VIOLATIONS_TOLD;
        if worker.violations <= MOST_VIOLATIONS_TOLD {
            self.tell("violation", uid, json!({"what": what, "is_last_told": is_last}));
        }
    }
}

fn tellable(message: Value) -> Value {
    match message.to_string().len() {
        bytes if bytes > LONGEST_TOLD => json!({"bytes": bytes}),
        _ => json!({"message": message}),
    }
}
