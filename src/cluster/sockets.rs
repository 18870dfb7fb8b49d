//! The program's listening sockets, and the way of a connection to a worker and, where that refuses it, back.
//!
//! A connection is accepted only while some worker is free, and kept until the worker that was given it has answered
//! for it: a worker that refuses, dies or closes gives it back, and another gets it. So a connection that no worker has
//! answered for is not lost with a worker.

use std::collections::BTreeMap;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::SockFlag;
use serde_json::json;
use socket2::SockRef;

use super::listening_socket::{Inherited, ListeningSocket};
use super::poller::{Due, Poller, Token, UniqueId};
use super::protocol::{self, Address, Query};
use super::worker::{Unanswered, WorkerState};
use super::workers::Workers;
use crate::failure::Failure;
use crate::scoreboard::Count;
use crate::server::accept::{BACK_OFF, accept_next, log_pause, reason_to_pause};
use crate::server::ipc::Ipc;
use crate::sys::epoll::Interest;
use crate::sys::errno_of;
use crate::units::monotonic_ns;

/// How long the connections of a socket wait for another worker when the last has left it.
const ORPHAN_WAITS_NS: u64 = 5_000_000_000;

/// How long to wait for the message that a worker leaves, after the one that it has closed a server.
const CLOSE_WAITS_NS: u64 = 100_000_000;

/// Listening sockets that one worker may have: it must not use up the descriptors of all.
const MOST_SOCKETS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptingProcess {
    Master,
    Worker,
}

#[derive(Default)]
pub struct Sockets {
    sockets: BTreeMap<u64, ListeningSocket>,
    inherited: Inherited,
    next: u64,
    /// Connections that a worker may have to answer for before it is given no more.
    most_unanswered: usize,
    /// There was no descriptor left, say: nothing is accepted until [`Due::AcceptAgain`].
    pub is_paused: bool,
    /// A worker has answered for them; our copies are to be closed.
    pub passed: Vec<OwnedFd>,
}

impl Sockets {
    pub fn new(most_unanswered: usize) -> Sockets {
        Sockets { most_unanswered, ..Sockets::default() }
    }

    /// The workers that may get a connection of this socket, with their numbers, in the order in which they became
    /// free.
    pub fn free(&self, socket: u64) -> &[(UniqueId, usize)] {
        &self.sockets[&socket].free
    }

    pub fn addresses_of(&self, id: UniqueId) -> impl Iterator<Item = &Address> {
        self.sockets.values().filter(move |socket| socket.has_member(id)).map(|socket| &socket.address)
    }

    pub fn first_address(&self) -> Option<&Address> {
        self.sockets.values().next().map(|socket| &socket.address)
    }

    pub fn set_ready(&mut self, socket: u64) {
        self.sockets.entry(socket).and_modify(|socket| socket.is_ready = true);
    }

    /// The next connection, of all sockets in turn: one that was given back, or one that the kernel has.
    pub fn next_connection(&mut self, workers: &mut Workers) -> Result<Option<(u64, Arc<OwnedFd>)>, Failure> {
        if self.is_paused {
            return Ok(None);
        }
        for (&token, socket) in &mut self.sockets {
            while socket.can_give() {
                if let Some(connection) = socket.returned.pop_front() {
                    return Ok(Some((token, connection)));
                }
                // What a worker gets is non-blocking: libuv expects that.
                match accept_next(&*socket, SockFlag::SOCK_NONBLOCK) {
                    Ok(connection) => return Ok(Some((token, Arc::new(connection)))),
                    Err(errno) => match reason_to_pause(errno, true, |_| {})? {
                        None => socket.is_ready = false,
                        Some(reason) => {
                            log_pause(reason);
                            self.is_paused = true;
                            workers.poller.after(BACK_OFF, Due::AcceptAgain);
                            return Ok(None);
                        }
                    },
                }
            }
        }
        Ok(None)
    }

    /// Passes a connection to a worker, and keeps a copy until it is answered for.
    pub fn pass(&mut self, socket: u64, connection: Arc<OwnedFd>, id: UniqueId, workers: &mut Workers) {
        let seq = workers.next_seq();
        let Some(found) = self.sockets.get_mut(&socket) else { return };
        let worker =
            workers.get_mut(id).and_then(|worker| worker.ipc.as_mut().map(|ipc| (ipc, &mut worker.unanswered)));
        let Some((ipc, unanswered)) = worker else {
            found.set_busy(id);
            return found.returned.push_back(connection);
        };
        ipc.send_connection(&found.connection_head, seq, Arc::clone(&connection));
        unanswered.push(Unanswered { seq, socket, connection });
        if unanswered.len() >= self.most_unanswered {
            found.set_busy(id);
        }
        workers.counts.report.passed += 1;
        workers.watch(id);
    }

    /// A worker has answered for a connection. False: for none that it was given.
    pub fn take_answer(&mut self, id: UniqueId, ack: u64, accepted: bool, workers: &mut Workers) -> bool {
        let Some(worker) = workers.get_mut(id) else { return true };
        let Some(at) = worker.unanswered.iter().position(|given| given.seq == ack) else { return false };
        let Unanswered { socket, connection, .. } = worker.unanswered.swap_remove(at);
        if accepted {
            let (number, counts) = (worker.number, worker.counts);
            if !counts {
                workers.scoreboard.row(number).add(Count::Accepted, 1);
            }
            self.set_free(socket, id, workers);
            // Nothing waits for our copy to be closed: first the worker is to get its next connection.
            self.passed.extend(Arc::try_unwrap(connection));
        } else {
            // It has no room, or is about to leave: at once it would refuse again.
            self.give_back(socket, connection, workers);
            self.sockets.entry(socket).and_modify(|socket| socket.set_busy(id));
            workers.poller.after(BACK_OFF, Due::Retry(socket, id));
        }
        true
    }

    /// A worker that hangs is not free, whatever it has answered for.
    pub fn set_free(&mut self, socket: u64, id: UniqueId, workers: &Workers) {
        let is_able = workers.get(id).is_some_and(|worker| !worker.is_hung);
        if let Some(found) = self.sockets.get_mut(&socket).filter(|_| is_able) {
            found.set_free(id);
        }
    }

    /// A worker has called `listen()`: it gets the socket itself, or connections from it.
    pub fn listen(&mut self, id: UniqueId, query: &Query, acceptor: AcceptingProcess, workers: &mut Workers) {
        let seq = workers.next_seq();
        let key = query.key();
        let found = self.find_or_bind(id, query, &key, acceptor, &workers.poller);
        let Some(worker) = workers.get_mut(id) else { return };
        let (number, is_leaving) = (worker.number, worker.state == WorkerState::Leaving);
        let Some(ipc) = &mut worker.ipc else { return };
        match found {
            Ok(token) => {
                let Some(socket) = self.sockets.get_mut(&token) else { return };
                if socket.data.is_null() {
                    socket.data = query.data.clone();
                }
                // A worker that was asked to leave is given nothing more.
                if !is_leaving {
                    socket.add_member(id, number);
                }
                match acceptor {
                    AcceptingProcess::Master => {
                        ipc.send(&protocol::kept(query, &key, &socket.address, &socket.data, seq));
                        self.set_free(token, id, workers);
                    }
                    AcceptingProcess::Worker => {
                        let reply = protocol::shared(query, &key, &socket.data, seq);
                        ipc.send_handle(&reply, Arc::clone(&socket.socket), seq);
                    }
                }
            }
            Err(errno) => {
                ipc.send(&protocol::failed(query, &key, errno, seq));
                let what = Failure::new(format_args!("listen {}", query.in_words()), errno).to_string();
                workers.log_of(id, "failure", json!({ "what": what }));
                workers.set_last_error(id, &what);
            }
        }
        workers.watch(id);
    }

    fn find_or_bind(
        &mut self,
        id: UniqueId,
        query: &Query,
        key: &str,
        acceptor: AcceptingProcess,
        poller: &Poller,
    ) -> nix::Result<u64> {
        if let Some(token) = self.find(key) {
            return Ok(token);
        }
        // Sockets without a worker count for every worker.
        let is_its = |socket: &&ListeningSocket| socket.members.is_empty() || socket.has_member(id);
        if self.sockets.values().filter(is_its).count() >= MOST_SOCKETS {
            return Err(Errno::EMFILE);
        }
        let mut socket = ListeningSocket::bind(query, key.to_owned(), &mut self.inherited);
        if matches!(socket, Err(Errno::EADDRINUSE)) {
            // The program has closed the address just now and wants it again: it does not leave.
            self.sockets.retain(|_, socket| !(socket.members.is_empty() && socket.closed_by == Some(id)));
            socket = ListeningSocket::bind(query, key.to_owned(), &mut self.inherited);
        }
        let socket = socket?;
        let token = self.next;
        self.next += 1;
        if acceptor == AcceptingProcess::Master {
            SockRef::from(&socket).listen(query.backlog()).map_err(errno_of)?;
            poller.epoll.add(&socket, Token::Socket(token).encode(), Interest::EPOLLIN | Interest::EPOLLET)?;
        }
        self.sockets.insert(token, socket);
        Ok(token)
    }

    fn find(&self, key: &str) -> Option<u64> {
        self.sockets.iter().find(|(_, socket)| socket.key == key).map(|(&token, _)| token)
    }

    /// The program has closed one of its servers. If it goes on it wants the port to be closed, as with Node; if it
    /// leaves, its successor needs it. Node's library says that it leaves in the message behind this one.
    pub fn close_of(&mut self, id: UniqueId, key: &str, workers: &mut Workers) {
        let Some(token) = self.find(key) else { return };
        self.leave(id, Some(key), workers);
        self.sockets.entry(token).and_modify(|socket| socket.closed_by = Some(id));
        workers.poller.at(monotonic_ns() + CLOSE_WAITS_NS, Due::CloseUnused(token, id));
    }

    pub fn close_unused(&mut self, token: u64, id: UniqueId, workers: &Workers) {
        let goes_on = workers.get(id).is_some_and(|worker| worker.state.is_working());
        if goes_on && self.sockets.get(&token).is_some_and(|socket| socket.members.is_empty()) {
            self.sockets.remove(&token);
        }
    }

    /// Closes a socket that has had no worker for long enough, unless a successor is still to come.
    pub fn close_orphan(&mut self, token: u64, workers: &mut Workers) {
        let now_ns = workers.poller.now_ns;
        if !workers.is_closed() && !workers.all_work() {
            return workers.poller.at(now_ns + ORPHAN_WAITS_NS, Due::CloseOrphan(token));
        }
        let is_over = |since_ns: u64| since_ns + ORPHAN_WAITS_NS <= now_ns;
        if self.sockets.get(&token).is_some_and(|socket| socket.orphaned_ns.is_some_and(is_over)) {
            self.sockets.remove(&token);
        }
    }

    /// A worker takes no more connections: of any socket, or of the one with this key.
    pub fn leave(&mut self, id: UniqueId, key: Option<&str>, workers: &mut Workers) {
        let now_ns = monotonic_ns();
        let is_meant = |socket: &ListeningSocket| key.is_none_or(|key| socket.key == key);
        for (&token, socket) in self.sockets.iter_mut().filter(|(_, socket)| is_meant(socket)) {
            let was_orphaned = socket.orphaned_ns.is_some();
            socket.remove_member(id, now_ns);
            if socket.orphaned_ns.is_some() && !was_orphaned {
                workers.poller.at(now_ns + ORPHAN_WAITS_NS, Due::CloseOrphan(token));
            }
        }
    }

    /// The channel of a worker is closed, so it can answer for nothing: what it was given goes to others.
    pub fn take_back_all(&mut self, id: UniqueId, workers: &mut Workers) {
        let Some(worker) = workers.get_mut(id) else { return };
        for given in mem::take(&mut worker.unanswered) {
            self.give_back(given.socket, given.connection, workers);
        }
        self.leave(id, None, workers);
    }

    /// A worker that hangs is given nothing until it shows that it lives, and what it was not even sent goes to others.
    pub fn suspend(&mut self, id: UniqueId, workers: &mut Workers) {
        self.sockets.values_mut().for_each(|socket| socket.set_busy(id));
        let Some(worker) = workers.get_mut(id) else { return };
        let recalled = worker.ipc.as_mut().map_or(Vec::new(), Ipc::recall);
        let is_recalled = |given: &mut Unanswered| recalled.contains(&given.seq);
        let given: Vec<Unanswered> = worker.unanswered.extract_if(.., is_recalled).collect();
        for given in given {
            self.give_back(given.socket, given.connection, workers);
        }
    }

    /// It lives: it is free for every socket, except one whose connection it still has to answer for.
    pub fn resume(&mut self, id: UniqueId, workers: &Workers) {
        let Some(worker) = workers.get(id) else { return };
        let owes = |socket: u64| worker.unanswered.iter().any(|given| given.socket == socket);
        let free = self.sockets.iter_mut().filter(|(token, _)| !owes(**token));
        free.for_each(|(_, socket)| socket.set_free(id));
    }

    /// Before all workers are asked to leave: what was accepted and given back goes to one that still lives.
    pub fn give_returned(&mut self, workers: &mut Workers) {
        let tokens: Vec<u64> = self.sockets.keys().copied().collect();
        for token in tokens {
            let members = self.sockets[&token].members.clone();
            let is_alive = |&&(id, _): &&(UniqueId, usize)| workers.get(id).is_some_and(|worker| !worker.is_hung);
            let Some(&(id, _)) = members.iter().find(is_alive) else { continue };
            while let Some(connection) = self.sockets.get_mut(&token).and_then(|found| found.returned.pop_front()) {
                self.pass(token, connection, id, workers);
            }
        }
    }

    /// Nothing more is accepted: closes the listening sockets or, where the workers accept, our copies of them.
    pub fn close(&mut self) {
        self.sockets.clear();
        self.inherited = Inherited::default();
    }

    fn give_back(&mut self, socket: u64, connection: Arc<OwnedFd>, workers: &mut Workers) {
        if let Some(found) = self.sockets.get_mut(&socket) {
            found.returned.push_back(connection);
            workers.counts.report.returned += 1;
        }
    }
}
