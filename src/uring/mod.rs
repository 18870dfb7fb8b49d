//! An event loop over io_uring(7). Where epoll reports what a call would do now, and the worker then makes the call, a
//! ring is asked once and reports what has been done: a connection has been accepted, bytes have been received, an
//! answer has been sent. All that a turn asks for goes to the kernel with the system call that waits for the next.
//!
//! A connection has at most two requests in the ring: one to receive and one to send. It is closed when both are
//! completed: until then the kernel holds its socket.

pub mod accept;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;

use self::accept::RingAcceptor;
use crate::failure::Failure;
use crate::scoreboard::Count;
use crate::server::connection::{LINGER, WITH_THE_END, end, send_end};
use crate::server::conversation::{Conversation, ServingState};
use crate::server::reactor::LONG_ROUND_NS;
use crate::server::table::ConnectionTable;
use crate::server::{Listener, Worker};
use crate::slots::SlotKey;
use crate::sys::signal::{forget_listener, has_given_up, is_stopping};
use crate::sys::uring::{ACCEPTED, Completion, SENT, Uring, explain};
use crate::units::monotonic_ns;

/// Buffers for what is received: the kernel takes one when bytes arrive, so silent connections need none.
const BUFFERS: u16 = 256;
const BUFFER_BYTES: usize = 4096;

/// Tokens beside the keys of connections, which leave the highest bit free.
pub const TERMINATION: u64 = (1 << 63) - 1;
const IGNORED: u64 = (1 << 63) - 2;

/// A client that goes on sending while its answer waits is no longer listened to from here on.
const MOST_UNREAD_BYTES: usize = 64 * 1024;

/// Empty buffers kept for the next answers.
const MOST_SPARE: usize = 64;

pub struct RingLoop<'a> {
    ring: Uring,
    worker: &'a mut Worker,
    table: ConnectionTable<RingConnection>,
    timers: BinaryHeap<Reverse<(u64, SlotKey, Purpose)>>,
    now_ns: u64,
    /// The answers of the connection that is being served.
    output: Vec<u8>,
    spare: Vec<Vec<u8>>,
    acceptor: RingAcceptor,
    is_finishing: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    Answer,
    Close,
}

struct RingConnection {
    socket: OwnedFd,
    conversation: Conversation,
    /// Received but not consumed.
    left_over: Vec<u8>,
    is_receiving: bool,
    is_cancelling: bool,
    is_sending: bool,
    /// A request has been answered: more will come, so the next receive goes on for all of them.
    is_kept: bool,
    /// The client sends no more.
    has_ended: bool,
    has_timer: bool,
    is_closing: bool,
}

impl RingConnection {
    fn has_half_a_request(&self) -> bool {
        self.is_served() && (!self.left_over.is_empty() || self.conversation.is_inside_body())
    }

    /// Nothing of it waits, and nothing is on its way to the client.
    fn is_served(&self) -> bool {
        self.conversation.state() == ServingState::Serving && !self.is_sending
    }
}

impl<'a> RingLoop<'a> {
    /// The loop of the calling thread. The termination is a descriptor that becomes readable when the server is to
    /// stop.
    ///
    /// # Errors
    /// When this kernel gives us no ring.
    pub fn new(worker: &'a mut Worker, termination: BorrowedFd) -> Result<RingLoop<'a>, Failure> {
        let opened = Uring::new(BUFFERS, BUFFER_BYTES, Vec::new());
        let mut ring = opened.map_err(|errno| Failure::relay(explain(errno)))?;
        ring.watch(termination, TERMINATION);
        Ok(RingLoop {
            ring,
            worker,
            table: ConnectionTable::default(),
            timers: BinaryHeap::new(),
            now_ns: monotonic_ns(),
            output: Vec::new(),
            spare: Vec::new(),
            acceptor: RingAcceptor::default(),
            is_finishing: false,
        })
    }

    pub fn ring(&self) -> &Uring {
        &self.ring
    }

    /// Serves until the server is to stop: the connections of a listener in blocking mode, or those that another ring
    /// passes.
    ///
    /// # Errors
    /// Of the listener and of the ring.
    pub fn serve(&mut self, listener: Option<&Listener>) -> Result<(), Failure> {
        while !is_stopping() && !self.acceptor.is_shut() {
            if let Some(listener) = listener {
                self.acceptor.ask(&mut self.ring, listener.as_fd());
            }
            self.turn(self.due_ns())?;
        }
        Ok(())
    }

    /// Answers what has arrived, closes the rest, and goes on until nothing is open or it is time to give up.
    ///
    /// # Errors
    /// Of the ring.
    pub fn finish(mut self, listener: Option<Listener>) -> Result<(), Failure> {
        match &listener {
            Some(listener) => self.leave(listener.as_fd())?,
            None => self.turn(Some(self.now_ns))?,
        }
        // The ring has let go of it.
        forget_listener();
        drop(listener);
        self.is_finishing = true;
        self.table.keys().into_iter().for_each(|key| self.go_on(key));
        while self.table.count() > 0 && !has_given_up() {
            self.turn(self.due_ns())?;
        }
        Ok(())
    }

    /// A new connection may have woken this ring just before the accept was cancelled. A cancelled accept takes
    /// nothing, and no other ring was woken: the connection would wait until the next one comes. So what waits now is
    /// taken.
    fn leave(&mut self, listener: BorrowedFd) -> Result<(), Failure> {
        self.stop_accepting()?;
        self.acceptor.ask(&mut self.ring, listener);
        self.stop_accepting()
    }

    fn stop_accepting(&mut self) -> Result<(), Failure> {
        while self.acceptor.is_asked() {
            self.acceptor.stop(&mut self.ring, IGNORED);
            self.turn(None)?;
        }
        Ok(())
    }

    /// Gives the kernel what has been asked for, waits until something is done or due, and deals with all of it.
    fn turn(&mut self, due_ns: Option<u64>) -> Result<(), Failure> {
        let began_ns = monotonic_ns();
        if began_ns > self.now_ns + LONG_ROUND_NS {
            self.table.extend_activity(self.now_ns, began_ns);
        }
        let timeout = due_ns.map(|due_ns| Duration::from_nanos(due_ns.saturating_sub(began_ns)));
        let ring = &mut self.ring;
        let waited = self.worker.spin.wait(timeout, |timeout| {
            ring.wait(timeout)?;
            Ok(ring.peek().into_iter().count())
        });
        waited.map_err(|errno| Failure::new("wait for the ring", errno))?;
        self.now_ns = monotonic_ns();
        while let Some(completion) = self.ring.next_completion() {
            self.complete(completion)?;
        }
        self.run_timers();
        self.close_silent();
        Ok(())
    }

    fn complete(&mut self, completion: Completion) -> Result<(), Failure> {
        match completion.token {
            ACCEPTED => {
                let accepted = self.acceptor.take(&mut self.ring, completion, |count| self.worker.count(count))?;
                accepted.into_iter().for_each(|socket| self.add(socket));
            }
            TERMINATION | IGNORED => {}
            token if token & SENT != 0 => self.sent(token & !SENT, completion),
            key => self.received(key, completion),
        }
        Ok(())
    }

    fn add(&mut self, socket: OwnedFd) {
        self.worker.opened();
        let connection = RingConnection {
            socket,
            conversation: Conversation::default(),
            left_over: Vec::new(),
            is_receiving: false,
            is_cancelling: false,
            is_sending: false,
            is_kept: false,
            has_ended: false,
            has_timer: false,
            is_closing: false,
        };
        let key = self.table.insert(connection, self.now_ns);
        self.go_on(key);
    }

    fn received(&mut self, key: SlotKey, completion: Completion) {
        self.table.touch(key, self.now_ns);
        let Some(connection) = self.table.get_mut(key) else { return };
        if !completion.more {
            (connection.is_receiving, connection.is_cancelling) = (false, false);
        }
        match completion.result {
            _ if connection.is_closing => {}
            Ok(0) => connection.has_ended = true,
            Ok(_) if connection.conversation.state() == ServingState::Lingering => {}
            Ok(_) => {
                let mut data = self.ring.data();
                if connection.is_served() && connection.left_over.is_empty() {
                    let used = connection.conversation.answer_requests(data, self.worker, &mut self.output);
                    data = &data[used..];
                }
                connection.left_over.extend_from_slice(data);
            }
            // All buffers were taken, and come back with their completions; or we have asked for the end.
            Err(Errno::ENOBUFS | Errno::ECANCELED | Errno::EINTR) => {}
            Err(_) => return self.close(key, true),
        }
        self.go_on(key);
    }

    fn sent(&mut self, key: SlotKey, completion: Completion) {
        let mut bytes = self.ring.take_sent();
        let is_whole = completion.result == Ok(bytes.len() as u32);
        bytes.clear();
        if self.spare.len() < MOST_SPARE {
            self.spare.push(bytes);
        }
        self.table.touch(key, self.now_ns);
        let Some(connection) = self.table.get_mut(key) else { return };
        connection.is_sending = false;
        if is_whole || connection.is_closing { self.go_on(key) } else { self.close(key, true) }
    }

    /// Answers what there is to answer, and asks the ring for what the connection needs next.
    fn go_on(&mut self, key: SlotKey) {
        let Some(connection) = self.table.get_mut(key) else { return };
        if connection.is_closing {
            if !connection.is_receiving && !connection.is_sending {
                self.remove(key);
            }
            return;
        }
        if connection.is_served() && self.output.is_empty() && !connection.left_over.is_empty() {
            let received = &connection.left_over;
            let used = connection.conversation.answer_requests(received, self.worker, &mut self.output);
            connection.left_over.drain(..used);
        }
        if connection.left_over.is_empty() {
            // Gives the memory back: an idle connection owns no buffer.
            connection.left_over = Vec::new();
        }
        if !self.output.is_empty() {
            let answers = std::mem::replace(&mut self.output, self.spare.pop().unwrap_or_default());
            let state = connection.conversation.state();
            let is_last = matches!(state, ServingState::Closing | ServingState::Refusing);
            let flags = if is_last { WITH_THE_END } else { MsgFlags::empty() };
            self.ring.send_owned(&connection.socket, answers, flags, key);
            (connection.is_sending, connection.is_kept) = (true, true);
            if self.worker.has_work() {
                // The work of the next request must not hold up this answer.
                self.ring.submit();
            }
        }
        match connection.conversation.state() {
            ServingState::Serving if connection.is_sending => self.receive(key),
            ServingState::Serving if connection.has_ended || self.is_finishing => {
                let lost = connection.has_half_a_request();
                self.close(key, lost);
            }
            ServingState::Serving => self.receive(key),
            _ if connection.is_sending => {}
            ServingState::Waiting(cost) if !connection.has_timer => {
                connection.has_timer = true;
                self.receive(key);
                self.set_timer(key, cost.duration(), Purpose::Answer);
            }
            ServingState::Waiting(_) => self.receive(key),
            ServingState::Closing => self.close(key, false),
            ServingState::Refusing => {
                connection.conversation.linger();
                connection.left_over = Vec::new();
                send_end(&connection.socket);
                self.receive(key);
                self.set_timer(key, LINGER, Purpose::Close);
            }
            ServingState::Lingering if connection.has_ended => self.close(key, true),
            ServingState::Lingering => self.receive(key),
        }
    }

    /// Sees to it that the ring receives for this connection, unless it has too much already.
    fn receive(&mut self, key: SlotKey) {
        let Some(connection) = self.table.get_mut(key) else { return };
        let is_full = connection.left_over.len() > MOST_UNREAD_BYTES;
        if connection.is_receiving {
            if is_full && !std::mem::replace(&mut connection.is_cancelling, true) {
                self.ring.cancel(key, IGNORED);
            }
        } else if !is_full && !connection.has_ended {
            connection.is_receiving = true;
            if connection.is_kept {
                self.ring.receive(&connection.socket, key);
            } else {
                self.ring.receive_once(&connection.socket, key);
            }
        }
    }

    fn set_timer(&mut self, key: SlotKey, after: Duration, purpose: Purpose) {
        self.timers.push(Reverse((monotonic_ns() + after.as_nanos() as u64, key, purpose)));
    }

    fn close(&mut self, key: SlotKey, lost: bool) {
        let Some(connection) = self.table.get_mut(key) else { return };
        if std::mem::replace(&mut connection.is_closing, true) {
            return;
        }
        // Counted first: a client that sees the end finds it in the scoreboard.
        self.worker.closed();
        if lost {
            self.worker.count(Count::ClientErrors);
        }
        if connection.is_receiving || connection.is_sending {
            // Both are completed by that. No request to the ring: the kernel would do it in a thread of its own and
            // look the number up there, when it may be that of a new connection.
            end(&connection.socket);
        } else {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: SlotKey) {
        if let Some(connection) = self.table.remove(key) {
            if connection.conversation.state() == ServingState::Closing {
                send_end(&connection.socket);
            }
            self.ring.close(connection.socket, IGNORED);
        }
    }

    fn run_timers(&mut self) {
        while let Some(&Reverse((due_ns, key, purpose))) = self.timers.peek()
            && due_ns <= self.now_ns
        {
            self.timers.pop();
            self.table.touch(key, self.now_ns);
            let Some(connection) = self.table.get_mut(key).filter(|connection| !connection.is_closing) else {
                continue;
            };
            match purpose {
                Purpose::Close => self.close(key, true),
                Purpose::Answer => {
                    connection.has_timer = false;
                    connection.conversation.finish_work(self.worker, &mut self.output);
                    self.go_on(key);
                }
            }
        }
    }

    /// Ends the connections that have been silent for the idle time-out.
    fn close_silent(&mut self) {
        let idle_ns = self.worker.idle_timeout.as_nanos() as u64;
        while let Some((key, since_ns)) = self.table.longest_idle() {
            if since_ns + idle_ns > self.now_ns {
                break;
            }
            self.table.touch(key, self.now_ns);
            let Some(connection) = self.table.get_mut(key) else { break };
            match connection.conversation.state() {
                // It is silent because we have not answered yet, or its end is near: its timer will come.
                _ if connection.is_closing => {}
                ServingState::Waiting(_) | ServingState::Lingering if !connection.is_sending => {}
                _ if connection.has_half_a_request() => {
                    connection.conversation.time_out(self.worker, &mut self.output);
                    self.go_on(key);
                }
                _ => {
                    let does_not_read = connection.is_sending;
                    self.close(key, does_not_read);
                }
            }
        }
    }

    fn due_ns(&self) -> Option<u64> {
        let timer_ns = self.timers.peek().map(|Reverse((due_ns, ..))| *due_ns);
        let idle_ns = self.worker.idle_timeout.as_nanos() as u64;
        let silent_ns = self.table.longest_idle().map(|(_, since_ns)| since_ns + idle_ns);
        [timer_ns, silent_ns, self.acceptor.due_ns()].into_iter().flatten().min()
    }
}
