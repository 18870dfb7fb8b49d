//! A master that stands between its clients and its workers: its pairs of sockets, and what it waits for.
//!
//! A pair is two sockets, the client's and one of our own to a worker, and two streams, one in each direction. The
//! caller's [`CopyStep`] copies a stream. The relay finds out which pair is ready, and passes on how a stream ends: an
//! end as an end (shutdown(2), SHUT_WR), and a client's reset as a reset.
//!
//! splice(2) would keep the bytes in the kernel, for the price of a pipe: two more descriptors per stream.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::accept::{log_pause, pause_end_ns, reason_to_pause};
use super::connection::LINGER;
pub use super::connection::{receive, send_some};
use super::event_loop::free_descriptors;
use super::listener::Listener;
use super::worker_pool::WorkerPool;
use crate::failure::Failure;
use crate::report::AcceptCounts;
use crate::scoreboard::Count;
use crate::slots::{SlotKey, Slots};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::errno_of;
use crate::sys::signal::GRACE;
use crate::units::monotonic_ns;

/// The most that one receive brings, and so the most that is kept of a stream.
const BUFFER_BYTES: usize = 64 * 1024;

const REPORTS_PER_WAIT: usize = 256;

/// A pair costs the client's descriptor and our own to the worker.
const DESCRIPTORS_PER_CONNECTION: usize = 2;

const LISTENER: u64 = u64::MAX;
const SIGNALS: u64 = u64::MAX - 1;

/// What the master has to decide about; everything else the relay does by itself.
pub enum RelayEvent {
    /// A client waits at the listener: [`Relay::accept`].
    Acceptable,
    /// The master could not connect to the worker. Nothing has been received from the client yet, so another worker
    /// can have it.
    Refused(PendingClient),
    /// A signal waits for [`WorkerPool::next_signal_stops`].
    Signal,
}

/// A client on its way to a worker, and the socket that will be connected to one.
pub struct PendingClient {
    pub refusals: usize,
    socket: OwnedFd,
    to_worker: Socket,
}

pub struct Relay {
    /// `None` once the server is to stop.
    listener: Option<Listener>,
    epoll: Epoll,
    pairs: Slots<Pair>,
    /// Clients that a worker has refused, for the caller to pass on.
    refused: Vec<PendingClient>,
    yielded: Vec<SlotKey>,
    /// When to look at a pair again, and its key. If the pair has been active since then, it gets a new timer.
    timers: BinaryHeap<Reverse<(u64, SlotKey)>>,
    copy: CopyStep,
    buffer: Box<[u8]>,
    idle_timeout: Duration,
    /// How many descriptors this process could still open before the first pair.
    room: usize,
    /// Until then the listener is not watched: there was no descriptor or memory for another connection.
    paused_until_ns: Option<u64>,
    reports: usize,
    reports_taken: usize,
    accepts: AcceptCounts,
    now_ns: u64,
}

impl Relay {
    /// Watches the listener, which no other process may hold, and the pool's signals. After `idle_timeout` the relay
    /// closes a client that does not receive what its worker has sent. A client that sends nothing is closed by its
    /// worker.
    pub fn new(
        listener: Listener,
        pool: &WorkerPool,
        idle_timeout: Duration,
        copy: CopyStep,
    ) -> Result<Relay, Failure> {
        let open = || {
            let epoll = Epoll::new(REPORTS_PER_WAIT)?;
            epoll.add(&listener, LISTENER, Interest::EPOLLIN)?;
            epoll.add(pool.signals(), SIGNALS, Interest::EPOLLIN)?;
            Ok(epoll)
        };
        let epoll = open().map_err(|errno: nix::Error| Failure::new("open an epoll instance", errno))?;
        Ok(Relay {
            listener: Some(listener),
            epoll,
            pairs: Slots::default(),
            refused: Vec::new(),
            yielded: Vec::new(),
            timers: BinaryHeap::new(),
            copy,
            buffer: vec![0; BUFFER_BYTES].into(),
            idle_timeout,
            room: free_descriptors(),
            paused_until_ns: None,
            reports: 0,
            reports_taken: 0,
            accepts: AcceptCounts::default(),
            now_ns: monotonic_ns(),
        })
    }

    pub fn next_event(&mut self) -> Result<RelayEvent, Failure> {
        loop {
            if let Some(event) = self.relay_once(None)? {
                return Ok(event);
            }
        }
    }

    /// Accepts the client that waits. `None` when it has left again, or when there is no descriptor for it.
    pub fn accept(&mut self) -> Result<Option<PendingClient>, Failure> {
        let Some(listener) = &self.listener else { return Ok(None) };
        self.accepts.count(Count::Wakeups);
        // The socket to the worker first: without it an accepted client would be lost. In the accept queue it can wait.
        let accepted = open_socket().and_then(|to_worker| {
            let socket = listener.accept_nonblocking()?;
            Ok(PendingClient { refusals: 0, socket, to_worker })
        });
        match accepted {
            Ok(client) => {
                self.accepts.count(Count::Accepted);
                Ok(Some(client))
            }
            Err(errno) => {
                if let Some(reason) = reason_to_pause(errno, false, |count| self.accepts.count(count))? {
                    self.pause_accepting(reason)?;
                }
                Ok(None)
            }
        }
    }

    pub fn connect(&mut self, client: PendingClient, address: SocketAddr) {
        match client.to_worker.connect(&address.into()) {
            Ok(()) => {}
            // On loopback, too: the kernel processes the answer after this call has released the socket.
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            // Refused, or no local port left for this address; another worker has another address.
            Err(_) => {
                drop(client.to_worker);
                return self.refuse(client.socket, client.refusals);
            }
        }
        let key = self.pairs.insert(Pair::new(client, self.now_ns));
        let Some(pair) = self.pairs.get_mut(key) else { return };
        // Writable means connected (connect(2), EINPROGRESS).
        let interest = Interest::EPOLLIN | Interest::EPOLLOUT | Interest::EPOLLRDHUP | Interest::EPOLLET;
        if self.epoll.add(&pair.worker, token(key, WORKER), interest).is_err() {
            // No memory or no watch left (epoll_ctl(2)).
            self.close(key);
        }
    }

    /// Stops the pool. From now on no client is accepted, and nothing is received from a client for its worker. What
    /// workers still send is relayed until all of them have been reaped, for at most [`GRACE`]. A request that was
    /// received from a client is sent to its worker before the worker is told to stop. Returns how many connections
    /// were accepted in all.
    pub fn finish(mut self, pool: &mut WorkerPool) -> Result<AcceptCounts, Failure> {
        let deadline_ns = monotonic_ns() + GRACE.as_nanos() as u64;
        self.listener = None;
        self.refused.clear();
        for key in self.pairs.keys() {
            match self.pairs.get_mut(key) {
                Some(pair) if pair.is_connected => self.step(key),
                _ => self.close(key),
            }
        }
        pool.begin_stop();
        while self.pairs.count() > 0 || !pool.is_empty() {
            if monotonic_ns() >= deadline_ns {
                break;
            }
            if let Some(RelayEvent::Signal) = self.relay_once(Some(deadline_ns))? {
                pool.reap_stopped();
            }
        }
        pool.kill();
        Ok(self.accepts)
    }

    /// Waits (at most until `until_ns`) and takes the reports up to one that the master must decide about. `None` when
    /// all are taken, so that the caller checks whether it still waits for anything.
    fn relay_once(&mut self, until_ns: Option<u64>) -> Result<Option<RelayEvent>, Failure> {
        if self.reports_taken == self.reports {
            self.wait(until_ns)?;
        }
        while self.reports_taken < self.reports {
            let ready = self.epoll.report(self.reports_taken);
            self.reports_taken += 1;
            match ready.token {
                LISTENER if self.listener.is_none() => {}
                // Checked before the calls that would fail with this error.
                LISTENER if DESCRIPTORS_PER_CONNECTION * (self.pairs.count() + 1) > self.room => {
                    self.pause_accepting(Errno::EMFILE)?
                }
                LISTENER => return Ok(Some(RelayEvent::Acceptable)),
                SIGNALS => return Ok(Some(RelayEvent::Signal)),
                token => self.serve(token >> 1, token & 1, ready.flags),
            }
        }
        if let Some(client) = self.refused.pop() {
            return Ok(Some(RelayEvent::Refused(client)));
        }
        for key in std::mem::take(&mut self.yielded) {
            self.step(key);
        }
        self.close_overdue();
        self.resume_when_due()?;
        Ok(None)
    }

    fn wait(&mut self, until_ns: Option<u64>) -> Result<(), Failure> {
        let timer_ns = self.timers.peek().map(|Reverse((due_ns, _))| *due_ns);
        let go_on_ns = (!self.yielded.is_empty() || !self.refused.is_empty()).then_some(0);
        let wake_ns = [until_ns, timer_ns, self.paused_until_ns, go_on_ns].into_iter().flatten().min();
        let timeout = wake_ns.map(|wake_ns| Duration::from_nanos(wake_ns.saturating_sub(monotonic_ns())));
        self.reports = self.epoll.wait(timeout).map_err(|errno| Failure::new("wait for events", errno))?;
        self.reports_taken = 0;
        self.now_ns = monotonic_ns();
        Ok(())
    }

    fn serve(&mut self, key: SlotKey, side: u64, flags: Interest) {
        let now_ns = self.now_ns;
        let Some(pair) = self.pairs.get_mut(key) else { return };
        let is_gone = flags.intersects(Interest::EPOLLERR | Interest::EPOLLHUP);
        if !pair.is_connected {
            if is_gone {
                return self.pass_on(key);
            }
            // From now on the client's bytes are received. Its first request is often there already.
            pair.is_connected = true;
            pair.up.readable = true;
            if self.epoll.add(&pair.client, token(key, CLIENT), client_interest()).is_err() {
                return self.close(key);
            }
        }
        if !pair.down.has_ended {
            pair.active_ns = now_ns;
        }
        let source = if side == WORKER { &mut pair.down } else { &mut pair.up };
        if is_gone && source.has_ended {
            // It has sent its FIN, and now it cannot receive any more either.
            return self.reset(key);
        }
        if is_gone || flags.intersects(Interest::EPOLLIN | Interest::EPOLLRDHUP) {
            source.readable = true;
            source.end_announced |= is_gone || flags.contains(Interest::EPOLLRDHUP);
        }
        self.step(key);
    }

    fn step(&mut self, key: SlotKey) {
        let is_stopping = self.listener.is_none();
        let idle_timeout = self.idle_timeout;
        let Some(pair) = self.pairs.get_mut(key) else { return };
        if is_stopping {
            pair.up.discards = true;
        }
        match pair.copy(self.copy, &mut self.buffer) {
            PairStep::Reset => return self.reset(key),
            PairStep::Done => return self.close(key),
            // The worker has ended the stream, and the kernel has all that it sent.
            _ if is_stopping && pair.down.has_ended => return self.close(key),
            PairStep::Yield => self.yielded.push(key),
            PairStep::Wait => {}
        }
        let begins_to_wait_for_output = !pair.down.unsent.is_empty() && !pair.watches_output;
        let timeout = match (pair.down.has_ended, pair.down.unsent.is_empty()) {
            // Time for the last bytes of both sides. The worker has closed, so it cannot end a client that stays.
            (true, _) => Some(LINGER),
            (false, false) => Some(idle_timeout),
            (false, true) => None,
        };
        pair.due_ns = timeout.map(|timeout| pair.active_ns + timeout.as_nanos() as u64);
        if let Some(due_ns) = pair.due_ns
            && pair.timer_ns.is_none_or(|timer_ns| due_ns < timer_ns)
        {
            pair.timer_ns = Some(due_ns);
            self.timers.push(Reverse((due_ns, key)));
        }
        if begins_to_wait_for_output {
            pair.watches_output = true;
            let interest = client_interest() | Interest::EPOLLOUT;
            // Asking anew reports what is ready already, so no edge is missed.
            if self.epoll.modify(&pair.client, token(key, CLIENT), interest).is_err() {
                self.close(key);
            }
        }
    }

    fn close(&mut self, key: SlotKey) {
        // Dropping the sockets closes them and ends their registrations: nobody else holds them.
        drop(self.pairs.remove(key));
    }

    /// Passes a client's reset on: the worker need not finish what nobody waits for. A worker's reset is not passed on:
    /// it would take away from the client what it has not read yet.
    fn reset(&mut self, key: SlotKey) {
        if let Some(pair) = self.pairs.remove(key) {
            let _ = SockRef::from(&pair.worker).set_linger(Some(Duration::ZERO));
        }
    }

    fn pass_on(&mut self, key: SlotKey) {
        if let Some(pair) = self.pairs.remove(key) {
            drop(pair.worker);
            self.refuse(pair.client, pair.refusals);
        }
    }

    /// The socket that was refused cannot be used again (connect(2), NOTES). When no other can be opened, the client is
    /// closed.
    fn refuse(&mut self, client: OwnedFd, refusals: usize) {
        if let Ok(to_worker) = open_socket() {
            self.refused.push(PendingClient { refusals: refusals + 1, socket: client, to_worker });
        }
    }

    fn close_overdue(&mut self) {
        let now_ns = self.now_ns;
        while let Some(&Reverse((timer_ns, key))) = self.timers.peek()
            && timer_ns <= now_ns
        {
            self.timers.pop();
            let Some(pair) = self.pairs.get_mut(key) else { continue };
            if pair.due_ns.is_some_and(|due_ns| due_ns <= now_ns) {
                self.close(key);
            } else if pair.timer_ns == Some(timer_ns) {
                pair.timer_ns = pair.due_ns;
                let timer = pair.due_ns.map(|due_ns| Reverse((due_ns, key)));
                self.timers.extend(timer);
            }
        }
    }

    fn pause_accepting(&mut self, reason: Errno) -> Result<(), Failure> {
        log_pause(reason);
        self.paused_until_ns = Some(pause_end_ns(self.now_ns));
        let Some(listener) = &self.listener else { return Ok(()) };
        self.epoll.delete(listener).map_err(|errno| Failure::new("stop watching the listener", errno))
    }

    fn resume_when_due(&mut self) -> Result<(), Failure> {
        let ended = self.paused_until_ns.take_if(|until_ns| self.now_ns >= *until_ns);
        let Some(listener) = self.listener.as_ref().filter(|_| ended.is_some()) else { return Ok(()) };
        let watched = self.epoll.add(listener, LISTENER, Interest::EPOLLIN);
        watched.map_err(|errno| Failure::new("watch the listener again", errno))
    }
}

/// The lowest bit of a token says which socket of the pair.
const CLIENT: u64 = 0;
const WORKER: u64 = 1;

fn token(key: SlotKey, side: u64) -> u64 {
    key << 1 | side
}

fn client_interest() -> Interest {
    Interest::EPOLLIN | Interest::EPOLLRDHUP | Interest::EPOLLET
}

fn open_socket() -> nix::Result<Socket> {
    let open = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        // The second half of a request must not wait for the ACK of the first (tcp(7), TCP_NODELAY).
        socket.set_tcp_nodelay(true)?;
        Ok::<_, std::io::Error>(socket)
    };
    open().map_err(errno_of)
}

struct Pair {
    client: OwnedFd,
    worker: Socket,
    refusals: usize,
    /// Whether the connection to the worker is there. Until then nothing is received from the client.
    is_connected: bool,
    /// What goes from the client to the worker.
    up: Stream,
    /// What goes from the worker to the client.
    down: Stream,
    /// The client did not take all at some time, so EPOLLOUT is watched as well.
    watches_output: bool,
    /// When either side was last active.
    active_ns: u64,
    /// When to close it, if neither side is active until then.
    due_ns: Option<u64>,
    /// Its next timer, which is not later than `due_ns`.
    timer_ns: Option<u64>,
}

enum PairStep {
    Wait,
    Yield,
    /// Both streams have ended, and the pair can be closed.
    Done,
    /// The client has broken the connection off.
    Reset,
}

impl Pair {
    fn new(client: PendingClient, now_ns: u64) -> Pair {
        Pair {
            client: client.socket,
            worker: client.to_worker,
            refusals: client.refusals,
            is_connected: false,
            up: Stream::default(),
            down: Stream::default(),
            watches_output: false,
            active_ns: now_ns,
            due_ns: None,
            timer_ns: None,
        }
    }

    fn copy(&mut self, copy: CopyStep, buffer: &mut [u8]) -> PairStep {
        let (client, worker) = (self.client.as_fd(), self.worker.as_fd());
        let had_ended = (self.up.has_ended, self.down.has_ended);
        let mut up = copy(&mut self.up, client, worker, buffer);
        if let Err(Broken::Sink) = up {
            // The worker takes no more. What it sent before still goes to the client. What the client sends meanwhile
            // is received and thrown away: a close with unread bytes would be a reset (RFC 9112, section 9.6).
            self.up.discards = true;
            self.up.unsent = Vec::new();
            up = copy(&mut self.up, client, worker, buffer);
        }
        let mut down = copy(&mut self.down, worker, client, buffer);
        if let Err(Broken::Source) = down {
            // The worker was killed, or closed with unread bytes. What it sent before has been received before the
            // error. For the client this is the end of the stream.
            self.down.has_ended = true;
            down = Ok(Copied::All);
        }
        let (Ok(up), Ok(down)) = (up, down) else { return PairStep::Reset };
        match (self.up.has_ended, self.down.has_ended) {
            (true, true) => return PairStep::Done,
            ends if ends == had_ended => {}
            // It fails only on a connection that is gone already.
            (true, false) => drop(shutdown(self.worker.as_raw_fd(), Shutdown::Write)),
            (false, _) => drop(shutdown(self.client.as_raw_fd(), Shutdown::Write)),
        }
        if matches!((up, down), (Copied::All, Copied::All)) { PairStep::Wait } else { PairStep::Yield }
    }
}

#[derive(Default)]
pub struct Stream {
    /// Received but not taken by the sink; at most [`BUFFER_BYTES`], and empty while the sink takes everything.
    pub unsent: Vec<u8>,
    /// False when the last receive emptied the source; the next report of epoll makes it true.
    pub readable: bool,
    /// The source has said that it will send no more; behind its last byte stands the end of the stream.
    pub end_announced: bool,
    /// The end has been received, and all before it has been sent.
    pub has_ended: bool,
    /// What is still received is thrown away.
    pub discards: bool,
}

pub enum Copied {
    /// All there was is copied, or all that the sink takes for now.
    All,
    /// There may be more, but it is the others' turn.
    Some,
}

pub enum Broken {
    Source,
    Sink,
}

/// One step of copying a stream: from its source to its sink, through a buffer, as much as both are ready for.
pub type CopyStep = fn(&mut Stream, BorrowedFd, BorrowedFd, &mut [u8]) -> Result<Copied, Broken>;
