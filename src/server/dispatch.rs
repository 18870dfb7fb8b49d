//! A master that accepts for its workers: it accepts what is ready, counts how many connections each worker has, and
//! passes connections on, those for one worker in one message. The caller decides which worker gets a connection.
//!
//! A worker is *free* while it is alive and has room in its channel; where workers acknowledge, it must also have
//! acknowledged what it was given last. While no worker is free, nothing is accepted, and connections wait in the
//! kernel's accept queue. A connection that could not be passed to its worker, or was refused by it, goes to another
//! worker before any new connection.
//!
//! The listener is registered edge-triggered: it is reported once, and then the master asks how many connections wait,
//! and accepts these. To accept until there is none would cost more: an accept(2) that finds none takes nearly as long
//! as one that finds a connection, since the kernel makes a socket first. A master that cannot accept for the moment
//! needs no system call to stop watching the listener.
//!
//! Passing adds these system calls to accepting and serving, when connections come one at a time: sendmsg and close in
//! the master, epoll_wait and recvmsg in the worker. Up to sixteen connections that are ready together share these
//! calls. An acknowledgement adds a send in the worker, and a wait and a receive in the master; then nothing is shared.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;

use super::accept::{log_pause, pause_end_ns, reason_to_pause};
use super::channel::{Acknowledgement, Channel, connections_per_message};
use super::event_loop::EventLoop;
use super::listener::Listener;
use super::spin::Spin;
use super::worker_pool::WorkerPool;
use crate::failure::Failure;
use crate::report::AcceptCounts;
use crate::scoreboard::{Count, Scoreboard};
use crate::sys::epoll::{Epoll, Interest, Ready};
use crate::sys::fd::close_all;
use crate::units::monotonic_ns;

const LISTENER: u64 = u64::MAX;
const SIGNALS: u64 = u64::MAX - 1;

const REPORTS_PER_WAIT: usize = 64;

pub struct Dispatcher {
    /// How long the master looks for connections before it sleeps.
    pub spin: Spin,
    listener: Listener,
    scoreboard: Scoreboard,
    epoll: Epoll,
    slots: Vec<ChannelSlot>,
    free: Vec<usize>,
    returned: VecDeque<OwnedFd>,
    passed: Vec<OwnedFd>,
    workers_acknowledge: bool,
    /// Connections that waited at the last report about the listener, and are not accepted yet. Each that comes later
    /// is reported.
    queued: usize,
    /// A connection has been accepted since the last report about the listener, so that wake-up was not empty.
    has_taken: bool,
    accepts: AcceptCounts,
    /// Connections given since the last [`Dispatcher::pass`], and the most there may be.
    given: usize,
    batch: usize,
    /// Until then nothing is accepted or passed: there was no descriptor or kernel memory left.
    paused_until_ns: Option<u64>,
}

struct ChannelSlot {
    /// `None` when the worker has died, or takes no more connections.
    channel: Option<Channel>,
    given: u64,
    outbox: Vec<OwnedFd>,
    /// Passed, and not acknowledged yet. The master keeps its copy for the case that the worker refuses it or dies.
    unanswered: Option<OwnedFd>,
    /// The worker has refused a connection: until then it gets no other.
    full_until_ns: Option<u64>,
}

impl Dispatcher {
    pub fn new(
        listener: Listener,
        channels: Vec<Channel>,
        scoreboard: Scoreboard,
        pool: &WorkerPool,
    ) -> Result<Dispatcher, Failure> {
        let workers_acknowledge = channels.iter().any(|channel| channel.acknowledges);
        let open = || {
            let epoll = Epoll::new(REPORTS_PER_WAIT)?;
            epoll.add(&listener, LISTENER, Interest::EPOLLIN | Interest::EPOLLET)?;
            epoll.add(pool.signals(), SIGNALS, Interest::EPOLLIN)?;
            for (i, channel) in channels.iter().enumerate() {
                epoll.add(channel, i as u64, interest(workers_acknowledge))?;
            }
            Ok(epoll)
        };
        let epoll = open().map_err(|errno: Errno| Failure::new("open an epoll instance", errno))?;
        let batch = connections_per_message(channels.len());
        let slot = |channel| {
            let outbox = Vec::with_capacity(batch);
            ChannelSlot { channel: Some(channel), given: 0, outbox, unanswered: None, full_until_ns: None }
        };
        Ok(Dispatcher {
            spin: Spin::default(),
            listener,
            scoreboard,
            epoll,
            free: (0..channels.len()).collect(),
            slots: channels.into_iter().map(slot).collect(),
            returned: VecDeque::new(),
            passed: Vec::with_capacity(batch),
            workers_acknowledge,
            queued: 0,
            has_taken: false,
            accepts: AcceptCounts::default(),
            given: 0,
            batch,
            paused_until_ns: None,
        })
    }

    /// Waits until there is a connection and a worker free to have it. False: the server is to stop.
    ///
    /// # Errors
    /// When the last worker has died.
    pub fn wait(&mut self, pool: &mut WorkerPool) -> Result<bool, Failure> {
        loop {
            // With work to do it only polls, so that many connections cannot delay a signal or an acknowledgement.
            let until_ns = if self.can_go_on() { Some(0) } else { self.next_pause_end_ns() };
            let timeout = until_ns.map(|until_ns| Duration::from_nanos(until_ns.saturating_sub(monotonic_ns())));
            let waited = self.spin.wait(timeout, |timeout| self.epoll.wait(timeout));
            let reports = waited.map_err(|errno| Failure::new("wait for connections", errno))?;
            for i in 0..reports {
                match self.epoll.report(i) {
                    Ready { token: LISTENER, .. } => {
                        // Where the kernel does not say how many, an accept that fails tells.
                        self.queued = self.listener.queued().unwrap_or(usize::MAX);
                        self.has_taken = false;
                        self.accepts.count(Count::Wakeups);
                        if self.queued == 0 {
                            self.accepts.count(Count::EmptyWakeups);
                        }
                    }
                    Ready { token: SIGNALS, .. } => {
                        if pool.next_signal_stops(None)? {
                            return Ok(false);
                        }
                    }
                    Ready { token, flags } => self.handle_report(token as usize, flags),
                }
            }
            self.end_pauses();
            if self.can_go_on() {
                return Ok(true);
            }
        }
    }

    /// The next connection for a worker. `None`: no worker is free, nothing is left, or enough is gathered.
    pub fn next_connection(&mut self) -> Result<Option<OwnedFd>, Failure> {
        while self.can_go_on() && self.given < self.batch {
            if let Some(connection) = self.returned.pop_front() {
                return Ok(Some(connection));
            }
            match self.listener.accept_nonblocking() {
                Ok(connection) => {
                    self.queued -= 1;
                    self.has_taken = true;
                    self.accepts.count(Count::Accepted);
                    return Ok(Some(connection));
                }
                Err(errno) => {
                    match reason_to_pause(errno, self.has_taken, |count| self.accepts.count(count))? {
                        None => self.queued = 0,
                        // What has been gathered gives descriptors back when it is passed.
                        Some(_) if self.given > 0 => break,
                        Some(reason) => {
                            log_pause(reason);
                            self.back_off();
                        }
                    }
                }
            }
        }
        Ok(None)
    }

    pub fn accepts(&self) -> AcceptCounts {
        self.accepts
    }

    /// The workers that can be given a connection, in the order in which they became free. Never empty between
    /// [`Dispatcher::next_connection`] and [`Dispatcher::give`].
    pub fn free(&self) -> &[usize] {
        &self.free
    }

    /// How many connections worker `i` has: those it has open, and those on their way to it. One too many for each that
    /// was lost on arrival, because the worker's table of descriptors was full; it says so only where it acknowledges.
    pub fn load(&self, i: usize) -> u64 {
        let row = self.scoreboard.row(i);
        // In this order: a worker counts a connection as open before it counts it as accepted. So one that arrives
        // between these two reads is counted twice rather than not at all.
        let accepted = row.get(Count::Accepted);
        let closed = accepted.saturating_sub(row.get(Count::Active));
        self.slots[i].given.saturating_sub(closed)
    }

    /// Worker `i` is to have the connection. It travels with the next [`Dispatcher::pass`].
    pub fn give(&mut self, connection: OwnedFd, i: usize) {
        self.slots[i].outbox.push(connection);
        self.slots[i].given += 1;
        self.given += 1;
        if self.workers_acknowledge {
            // One connection at a time: the worker is free again when it has acknowledged this one.
            self.free.retain(|&free| free != i);
        }
    }

    /// Passes on what has been given: one message per worker, and our copies are closed together.
    pub fn pass(&mut self) {
        for i in 0..self.slots.len() {
            let slot = &mut self.slots[i];
            if slot.outbox.is_empty() {
                continue;
            }
            let Some(channel) = &slot.channel else { continue };
            match channel.pass(&slot.outbox) {
                Ok(()) if self.workers_acknowledge => slot.unanswered = slot.outbox.pop(),
                Ok(()) => self.passed.append(&mut slot.outbox),
                Err(errno) => self.take_back(i, errno),
            }
        }
        close_all(&mut self.passed);
        self.given = 0;
    }

    fn take_back(&mut self, i: usize, errno: Errno) {
        let slot = &mut self.slots[i];
        slot.given -= slot.outbox.len() as u64;
        self.returned.extend(slot.outbox.drain(..));
        match errno {
            Errno::EAGAIN => {
                self.free.retain(|&free| free != i);
                self.watch(i, Interest::EPOLLOUT);
            }
            // Too many are on their way to all workers together (unix(7)). No event reports their arrival, so wait.
            Errno::ETOOMANYREFS | Errno::ENOBUFS | Errno::ENOMEM => {
                self.set_free(i);
                self.back_off();
            }
            _ => self.remove(i),
        }
    }

    fn handle_report(&mut self, i: usize, flags: Interest) {
        let Some(channel) = &self.slots[i].channel else { return };
        if flags.contains(Interest::EPOLLIN) {
            match channel.next_acknowledgement() {
                Ok(Some(acknowledgement)) => self.handle_acknowledgement(i, acknowledgement),
                Err(Errno::EAGAIN) => {}
                Ok(None) | Err(_) => self.remove(i),
            }
        } else if flags.intersects(Interest::EPOLLHUP | Interest::EPOLLERR) {
            self.remove(i);
        } else if flags.contains(Interest::EPOLLOUT) {
            self.watch(i, Interest::empty());
            self.set_free(i);
        }
    }

    fn handle_acknowledgement(&mut self, i: usize, acknowledgement: Acknowledgement) {
        let connection = self.slots[i].unanswered.take();
        match acknowledgement {
            Acknowledgement::Taken => self.set_free(i),
            Acknowledgement::Refused => {
                self.slots[i].given -= 1;
                self.slots[i].full_until_ns = Some(pause_end_ns(monotonic_ns()));
                self.returned.extend(connection);
            }
        }
    }

    /// Worker `i` takes no more; its process is reaped when the kernel reports that it has ended.
    fn remove(&mut self, i: usize) {
        if let Some(channel) = self.slots[i].channel.take() {
            let _ = self.epoll.delete(&channel);
        }
        self.free.retain(|&free| free != i);
        self.slots[i].full_until_ns = None;
        self.returned.extend(self.slots[i].unanswered.take());
    }

    fn set_free(&mut self, i: usize) {
        if !self.free.contains(&i) {
            self.free.push(i);
        }
    }

    fn watch(&mut self, i: usize, added: Interest) {
        let Some(channel) = &self.slots[i].channel else { return };
        if self.epoll.modify(channel, i as u64, interest(self.workers_acknowledge) | added).is_err() {
            // To change a registration needs no memory. If it fails nevertheless, this worker is not reported any more.
            self.remove(i);
        }
    }

    fn can_go_on(&self) -> bool {
        let is_able = self.paused_until_ns.is_none() && !self.free.is_empty();
        is_able && (self.queued > 0 || !self.returned.is_empty())
    }

    fn back_off(&mut self) {
        self.paused_until_ns = Some(pause_end_ns(monotonic_ns()));
    }

    fn end_pauses(&mut self) {
        if self.next_pause_end_ns().is_none() {
            return;
        }
        let now_ns = monotonic_ns();
        let is_over = |until_ns: &mut u64| *until_ns <= now_ns;
        self.paused_until_ns.take_if(is_over);
        for i in 0..self.slots.len() {
            if self.slots[i].full_until_ns.take_if(is_over).is_some() {
                self.set_free(i);
            }
        }
    }

    fn next_pause_end_ns(&self) -> Option<u64> {
        let pauses = self.slots.iter().map(|slot| slot.full_until_ns).chain([self.paused_until_ns]);
        pauses.flatten().min()
    }
}

/// Only acknowledgements are received. A closed channel is reported in any case (epoll_ctl(2), EPOLLHUP).
fn interest(workers_acknowledge: bool) -> Interest {
    if workers_acknowledge { Interest::EPOLLIN } else { Interest::empty() }
}

/// A worker takes the connections of one message. Where it acknowledges and is full, it refuses the connection. To
/// refuse it, the worker must receive it first, so the last free descriptor is kept for this.
pub fn take_message(events: &mut EventLoop<Channel>) -> Result<(), Failure> {
    if events.acceptor.acknowledges && !events.has_room_for(2) {
        let refused = events.acceptor.refuse();
        return refused.or_else(|errno| events.add_accepted(Err::<OwnedFd, _>(errno)).map(drop));
    }
    let first = events.acceptor.receive();
    events.add_accepted(first)?;
    while let Some(another) = events.acceptor.more_of_message() {
        events.add_accepted(another)?;
    }
    Ok(())
}

/// A worker that is to stop takes what is still in its channel or, where the master waits for acknowledgements, refuses
/// it.
pub fn take_or_refuse_rest(events: &mut EventLoop<Channel>) -> Result<(), Failure> {
    events.acceptor.shut();
    while events.acceptor.acknowledges && events.acceptor.refuse().is_ok() {}
    while let Ok(connection) = events.acceptor.receive() {
        events.add_accepted(Ok(connection))?;
    }
    Ok(())
}
