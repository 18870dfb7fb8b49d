//! The program's listening sockets, and the way of a connection to a worker and, where that does not want it, back.

use std::mem;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::socket::SockFlag;
use serde_json::json;
use socket2::SockRef;

use super::Master;
use crate::cluster::handle::{Handle, errno_of};
use crate::cluster::protocol::{self, Query};
use crate::cluster::timers::Due;
use crate::cluster::token::{Token, Uid};
use crate::cluster::worker::{State, Unanswered};
use crate::failure::Failure;
use crate::scoreboard::Count;
use crate::server::Ipc;
use crate::server::accept::{BACK_OFF, NoConnection, accept_next, log_pause};
use crate::sys::epoll::Interest;
use crate::units::monotonic_ns;

/// How long what a socket has accepted waits for another worker when the last has closed it.
const ORPHAN_WAITS_NS: u64 = 5_000_000_000;

/// Connections that a worker may have to answer for, where it is given some before it has answered for the last.
const MOST_UNANSWERED: usize = 16;

/// Listening sockets that one worker may have: it must not use up everybody's descriptors.
const MOST_HANDLES: usize = 64;

impl Master {
    /// The workers that can be given a connection of this handle, with their numbers, in the order in which they became
    /// free.
    pub fn free(&self, handle: u64) -> &[(Uid, usize)] {
        &self.handles[&handle].free
    }

    /// All that live, whether or not they still have to answer for some: what such a worker is passed waits for it, up to
    /// a bound.
    pub fn living(&self, handle: u64) -> Vec<(Uid, usize)> {
        let lives = |&&(uid, _): &&(Uid, usize)| {
            let worker = self.roster.get(uid);
            worker.is_some_and(|worker| !worker.is_hung && worker.unanswered.len() < MOST_UNANSWERED)
        };
        self.handles[&handle].members.iter().filter(lives).copied().collect()
    }

    /// How many connections worker `number` has: those it has not answered for, and those that it counts as open, if it is
    /// a program that counts in the scoreboard.
    pub fn load(&self, number: usize) -> u64 {
        let unanswered = self.roster.iter().filter(|worker| worker.number == number);
        let unanswered: usize = unanswered.map(|worker| worker.unanswered.len()).sum();
        self.scoreboard.row(number).get(Count::Active) + unanswered as u64
    }

    /// How many there are to be; their numbers are below this.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Passes a connection to a worker, and keeps a copy until it is answered for.
    pub fn pass(&mut self, handle: u64, connection: Rc<OwnedFd>, uid: Uid) {
        let seq = self.next_seq();
        let Some(found) = self.handles.get_mut(&handle) else { return };
        found.set_busy(uid);
        let Some(worker) = self.roster.get_mut(uid) else { return found.returned.push_back(connection) };
        let Some(ipc) = &mut worker.ipc else { return found.returned.push_back(connection) };
        ipc.send_connection(&found.connection_head, seq, Rc::clone(&connection));
        worker.unanswered.push(Unanswered { seq, handle, connection });
        self.lives.report.passed += 1;
        self.watch(uid);
    }

    /// The master listens and accepts; the worker waits to be passed connections.
    pub fn keep(&mut self, uid: Uid, query: &Query) {
        self.answer_query(uid, query, true);
    }

    /// The socket itself goes to the worker, which listens and accepts.
    pub fn share(&mut self, uid: Uid, query: &Query) {
        self.answer_query(uid, query, false);
    }

    pub(super) fn hear_answer(&mut self, uid: Uid, ack: u64, accepted: bool) {
        let Some(worker) = self.roster.get_mut(uid) else { return };
        let Some(at) = worker.unanswered.iter().position(|given| given.seq == ack) else {
            return self.note_violation(uid, "an answer to what was not asked");
        };
        let Unanswered { handle, connection, .. } = worker.unanswered.swap_remove(at);
        if accepted {
            if !worker.counts {
                self.scoreboard.row(worker.number).add(Count::Accepted, 1);
            }
            self.set_free(handle, uid);
            // Nobody waits for our copy to be closed: first the worker is to have its next.
            self.passed.extend(Rc::try_unwrap(connection));
        } else {
            self.give_back(handle, connection);
            // It has no room, or is about to leave: at once it would say no again.
            self.timers.at(self.now_ns + BACK_OFF.as_nanos() as u64, Due::Rested(handle, uid));
        }
        if self.is_told_to_stop {
            self.terminate_if_own(uid);
        }
    }

    /// Who hangs is not free, whatever else it is.
    pub(super) fn set_free(&mut self, handle: u64, uid: Uid) {
        let is_able = self.roster.get(uid).is_some_and(|worker| !worker.is_hung);
        if let Some(found) = self.handles.get_mut(&handle).filter(|_| is_able) {
            found.set_free(uid);
        }
    }

    fn give_back(&mut self, handle: u64, connection: Rc<OwnedFd>) {
        if let Some(found) = self.handles.get_mut(&handle) {
            found.returned.push_back(connection);
            self.lives.report.returned += 1;
        }
    }

    fn answer_query(&mut self, uid: Uid, query: &Query, keep: bool) {
        let seq = self.next_seq();
        let key = query.key();
        let found = self.find_or_bind(uid, query, &key, keep);
        let Some(worker) = self.roster.get_mut(uid) else { return };
        let (number, is_leaving) = (worker.number, worker.state == State::Leaving);
        let Some(ipc) = &mut worker.ipc else { return };
        match found {
            Ok(token) => {
                let Some(handle) = self.handles.get_mut(&token) else { return };
                if handle.data.is_null() {
                    handle.data = query.data.clone();
                }
                // Who has been told to go hears of that soon; it is given nothing until then.
                if !is_leaving {
                    handle.add_member(uid, number);
                }
                if keep {
                    ipc.send(&protocol::kept(query, &key, &handle.address, &handle.data, seq));
                    self.set_free(token, uid);
                } else {
                    let reply = protocol::shared(query, &key, &handle.data, seq);
                    ipc.send_handle(&reply, Rc::clone(&handle.socket), seq);
                }
            }
            Err(errno) => {
                ipc.send(&protocol::failed(query, &key, errno, seq));
                let tried = format!("listen {}", query.in_words());
                let what = Failure::new(tried, errno).to_string();
                self.note_trouble(uid, &what);
                self.tell("failure", uid, json!({ "what": what }));
            }
        }
        self.watch(uid);
    }

    pub(super) fn find_handle(&self, key: &str) -> Option<u64> {
        self.handles.iter().find(|(_, handle)| handle.key == key).map(|(&token, _)| token)
    }

    fn find_or_bind(&mut self, uid: Uid, query: &Query, key: &str, listen: bool) -> nix::Result<u64> {
        if let Some(token) = self.find_handle(key) {
            return Ok(token);
        }
        // Orphans count for everybody.
        let is_its = |handle: &&Handle| handle.members.is_empty() || handle.has_member(uid);
        if self.handles.values().filter(is_its).count() >= MOST_HANDLES {
            return Err(Errno::EMFILE);
        }
        let handle = Handle::bind(query, key.to_owned(), &mut self.inherited)?;
        let token = self.next_handle;
        self.next_handle += 1;
        if listen {
            SockRef::from(&handle).listen(query.backlog()).map_err(errno_of)?;
            self.epoll.add(&handle, Token::Handle(token).encode(), Interest::EPOLLIN | Interest::EPOLLET)?;
        }
        self.handles.insert(token, handle);
        Ok(token)
    }

    /// Of all handles in turn: what was given back, then what the kernel has.
    pub(super) fn next_connection(&mut self) -> Result<Option<(u64, Rc<OwnedFd>)>, Failure> {
        if self.is_exhausted {
            return Ok(None);
        }
        for (&token, handle) in &mut self.handles {
            while handle.can_give() {
                if let Some(connection) = handle.returned.pop_front() {
                    return Ok(Some((token, connection)));
                }
                // What a worker gets does not wait: libuv expects that of it.
                let failed = match accept_next(&*handle, SockFlag::SOCK_NONBLOCK) {
                    Ok(connection) => return Ok(Some((token, Rc::new(connection)))),
                    Err(errno) => errno,
                };
                match NoConnection::from(failed) {
                    NoConnection::Nobody => handle.is_ready = false,
                    NoConnection::Pause(_) => {
                        log_pause(failed);
                        self.is_exhausted = true;
                        self.timers.at(monotonic_ns() + BACK_OFF.as_nanos() as u64, Due::AcceptAgain);
                        return Ok(None);
                    }
                    NoConnection::Shut | NoConnection::Fatal(_) => {
                        return Err(Failure::new(format_args!("accept on {}", handle.address), failed));
                    }
                }
            }
        }
        Ok(None)
    }

    /// A worker that is closed can answer for nothing: what it was given is ours to give again.
    pub(super) fn take_back(&mut self, uid: Uid) {
        let Some(worker) = self.roster.get_mut(uid) else { return };
        for given in mem::take(&mut worker.unanswered) {
            self.give_back(given.handle, given.connection);
        }
        self.leave_handles(uid, |_| true);
    }

    /// Before all workers are asked to go: what was accepted is somebody's.
    pub(super) fn give_what_was_returned(&mut self) {
        let tokens: Vec<u64> = self.handles.keys().copied().collect();
        for token in tokens {
            let Some((uid, _)) = self.living(token).first().copied() else { continue };
            while let Some(connection) = self.handles.get_mut(&token).and_then(|h| h.returned.pop_front()) {
                self.pass(token, connection, uid);
            }
        }
    }

    /// A worker takes no more connections of these handles.
    pub(super) fn leave_handles(&mut self, uid: Uid, which: impl Fn(&Handle) -> bool) {
        let now_ns = monotonic_ns();
        for (&token, handle) in self.handles.iter_mut().filter(|(_, handle)| which(handle)) {
            let was_orphaned = handle.orphaned_ns.is_some();
            handle.remove_member(uid, now_ns);
            if handle.orphaned_ns.is_some() && !was_orphaned {
                self.timers.at(now_ns + ORPHAN_WAITS_NS, Due::Orphan(token));
            }
        }
    }

    /// A worker that hangs is given nothing until it shows that it lives, and what it was not even sent goes to others.
    pub(super) fn leave_free_lists(&mut self, uid: Uid) {
        self.handles.values_mut().for_each(|handle| handle.set_busy(uid));
        let Some(worker) = self.roster.get_mut(uid) else { return };
        let recalled = worker.ipc.as_mut().map_or(Vec::new(), Ipc::recall);
        let is_recalled = |given: &mut Unanswered| recalled.contains(&given.seq);
        let given: Vec<Unanswered> = worker.unanswered.extract_if(.., is_recalled).collect();
        for given in given {
            self.give_back(given.handle, given.connection);
        }
    }

    /// It is free for every handle, but for one whose connection it still has to answer for.
    pub(super) fn return_to_free_lists(&mut self, uid: Uid) {
        let Some(worker) = self.roster.get(uid) else { return };
        let owes = |handle: u64| worker.unanswered.iter().any(|given| given.handle == handle);
        let free = self.handles.iter_mut().filter(|(token, _)| !owes(**token));
        free.for_each(|(_, handle)| handle.set_free(uid));
    }

    pub(super) fn close_for_good(&mut self, handle: u64, uid: Uid) {
        let goes_on = self.roster.get(uid).is_some_and(|worker| worker.state == State::Serving);
        if goes_on && self.handles.get(&handle).is_some_and(|handle| handle.members.is_empty()) {
            self.handles.remove(&handle);
        }
    }

    pub(super) fn close_orphan(&mut self, handle: u64, now_ns: u64) {
        let is_over = |since_ns: u64| since_ns + ORPHAN_WAITS_NS <= now_ns;
        if !self.has_given_up && !self.roster.is_at_full_strength(self.workers) {
            // Its successor is yet to come: those who are connected wait for it.
            return self.timers.at(now_ns + ORPHAN_WAITS_NS, Due::Orphan(handle));
        }
        if self.handles.get(&handle).is_some_and(|handle| handle.orphaned_ns.is_some_and(is_over)) {
            self.handles.remove(&handle);
        }
    }
}
