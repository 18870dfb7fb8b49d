//! Connections beside those that are measured: idle, or slow on purpose. They show what a server pays for keeping them,
//! and what it does with a slow request, an answer that is not read, and half a request. None is opened twice.
//!
//! | kind      | what it does                                                           | done when             |
//! |-----------|------------------------------------------------------------------------|-----------------------|
//! | idle      | nothing                                                                | never                 |
//! | slow-send | a byte of the request per gap, then reads the answer and starts over   | `Connection: close`   |
//! | slow-read | the request at once, then a byte of the answer per gap, and starts over | `Connection: close`   |
//! | half-open | half of the request head, then nothing                                 | never                 |
//!
//! One thread serves them all. All gaps are equal, so the bytes that are due form a queue and need no timers.

mod connection;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use connection::{BackgroundConnection, BackgroundKind};

use crate::load::client::engine::STOP;
use crate::load::client::route::{Route, errno};
use crate::load::counts::failures::{Failures, count};
use crate::load::options::background::Background;
use crate::load::response::CachedHead;
use crate::report::SlowCounts;
use crate::sys::epoll::{Epoll, Interest};
use crate::units::monotonic_ns;

/// Outstanding handshakes: few enough for the backlog of any server.
const MAX_CONNECTING: usize = 256;
const MAX_REPORTS: usize = 256;
/// How long the start waits for the handshakes of slow connections; those that take longer go on.
const SLOW_OPENING: Duration = Duration::from_secs(1);
/// How long one wait lasts at most, so that Ctrl-C is noticed.
const LONGEST_WAIT: Duration = Duration::from_millis(50);
const BUFFER_BYTES: usize = 16 * 1024;

#[derive(Default)]
pub struct BackgroundCounts {
    pub idle: SlowCounts,
    /// The failures of the idle connections.
    pub failures: Failures,
    pub slow: Vec<SlowCounts>,
}

/// Dropping it closes them all.
pub struct BackgroundConnections {
    stop_event: Arc<EventFd>,
    thread: Option<JoinHandle<BackgroundCounts>>,
    /// Brings an errno when no idle connection can be established; closed when all handshakes are over.
    opened: mpsc::Receiver<Errno>,
    waits_for_all: bool,
}

impl BackgroundConnections {
    /// Begins to connect them. A handshake that takes longer than the `timeout` is not tried again.
    pub fn start(route: Route, request: Vec<u8>, wanted: Background, timeout: Duration) -> nix::Result<Self> {
        let stop_event = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let epoll = Epoll::new(MAX_REPORTS)?;
        epoll.add(&*stop_event, STOP, Interest::EPOLLIN)?;
        let (sender, opened) = mpsc::channel();
        let of_kind = |(kind, count, _)| (0..count).map(move |_| BackgroundConnection { kind, ..Default::default() });
        let background = BackgroundLoop {
            route,
            cached_head: CachedHead::new(request.starts_with(b"HEAD ")),
            request,
            gap_ns: wanted.gap.as_nanos() as u64,
            timeout_ns: timeout.as_nanos() as u64,
            epoll,
            stop_event: stop_event.clone(),
            connections: BackgroundKind::each(&wanted).into_iter().flat_map(of_kind).collect(),
            unopened: 0..wanted.total() as usize,
            connecting: VecDeque::new(),
            opened: Some(sender),
            failures: Failures::default(),
            bytes_due: VecDeque::new(),
            buffer: vec![0; BUFFER_BYTES],
            wanted,
        };
        let thread = thread::Builder::new().name("background".into());
        let thread = thread.spawn(move || background.run()).map_err(errno)?;
        Ok(BackgroundConnections { stop_event, thread: Some(thread), opened, waits_for_all: wanted.idle > 0 })
    }

    /// Waits until the handshakes are over, or `interrupted`; for slow connections at most [`SLOW_OPENING`]. The error
    /// is the last errno, when idle connections were asked for and none was established.
    pub fn wait_until_open(&self, interrupted: &dyn Fn() -> bool) -> nix::Result<()> {
        let began = Instant::now();
        while (self.waits_for_all || began.elapsed() < SLOW_OPENING) && !interrupted() {
            match self.opened.recv_timeout(LONGEST_WAIT) {
                Ok(errno) => return Err(errno),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        Ok(())
    }

    pub fn stop(&mut self) -> BackgroundCounts {
        // Fails only when the counter would overflow, and then it is readable already (eventfd(2)).
        let _ = self.stop_event.write(1);
        let Some(thread) = self.thread.take() else { return BackgroundCounts::default() };
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for BackgroundConnections {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.stop();
        }
    }
}

struct BackgroundLoop {
    wanted: Background,
    route: Route,
    request: Vec<u8>,
    cached_head: CachedHead,
    gap_ns: u64,
    timeout_ns: u64,
    epoll: Epoll,
    stop_event: Arc<EventFd>,
    connections: Vec<BackgroundConnection>,
    unopened: std::ops::Range<usize>,
    /// The oldest first.
    connecting: VecDeque<usize>,
    opened: Option<mpsc::Sender<Errno>>,
    failures: Failures,
    /// Whose byte is due, and when: in order, since each gap is as long as the others.
    bytes_due: VecDeque<(u64, usize)>,
    buffer: Vec<u8>,
}

impl BackgroundLoop {
    fn run(mut self) -> BackgroundCounts {
        let mut stopped = false;
        loop {
            self.open_more();
            let due_ns = self.bytes_due.front().map(|&(due_ns, _)| due_ns);
            let overdue_ns = self.connecting.front().map(|&slot| self.connections[slot].began_ns + self.timeout_ns);
            let wake_ns = if stopped { Some(0) } else { due_ns.into_iter().chain(overdue_ns).min() };
            let timeout = wake_ns.map(|wake_ns| Duration::from_nanos(wake_ns.saturating_sub(monotonic_ns())));
            let reports = self.epoll.wait(timeout).expect("epoll_wait(2) fails only on bad arguments");
            for i in 0..reports {
                let ready = self.epoll.report(i);
                match ready.token {
                    STOP => stopped = self.stop_event.read().is_ok(),
                    slot => self.on_report(slot as usize, ready.flags),
                }
            }
            // What happened before the stop event counts, and may need more than one wait.
            if stopped && reports == 0 {
                return self.counts();
            }
            self.give_up_overdue();
            self.move_bytes_due();
        }
    }

    fn open_more(&mut self) {
        while self.connecting.len() < MAX_CONNECTING
            && let Some(slot) = self.unopened.next()
        {
            let interest = Interest::EPOLLIN | Interest::EPOLLOUT | Interest::EPOLLRDHUP | Interest::EPOLLET;
            let socket = self.connections[slot].connect(&self.route, slot as u64);
            match socket.and_then(|socket| self.epoll.add(socket, slot as u64, interest)) {
                Ok(()) => self.connecting.push_back(slot),
                Err(errno) => self.connect_failed(slot, errno),
            }
        }
        if self.connecting.is_empty() {
            self.opened = None;
        }
    }

    fn connect_failed(&mut self, slot: usize, errno: Errno) {
        self.connections[slot].socket = None;
        if self.connections[slot].kind != BackgroundKind::Idle {
            return;
        }
        count(&mut self.failures.connect, errno, 1);
        let idle = self.wanted.idle as usize;
        let is_hopeless = self.failures.total() == idle.min(MAX_CONNECTING) as u64
            && !self.connections[..idle].iter().any(|connection| connection.is_established);
        if let Some(opened) = self.opened.as_ref().filter(|_| is_hopeless) {
            // After Ctrl-C the other end is gone.
            let _ = opened.send(errno);
        }
    }

    fn give_up_overdue(&mut self) {
        let now_ns = monotonic_ns();
        while let Some(&slot) = self.connecting.front()
            && self.connections[slot].began_ns + self.timeout_ns <= now_ns
        {
            self.connecting.pop_front();
            self.connect_failed(slot, Errno::ETIMEDOUT);
        }
    }

    fn on_report(&mut self, slot: usize, flags: Interest) {
        let connection = &mut self.connections[slot];
        let Some(socket) = &connection.socket else { return };
        if !connection.is_established {
            self.connecting.retain(|&other| other != slot);
            if let Ok(Some(error)) | Err(error) = socket.take_error() {
                return self.connect_failed(slot, errno(error));
            }
            connection.is_established = true;
            self.ask(slot);
        }
        if flags.intersects(Interest::EPOLLRDHUP | Interest::EPOLLHUP | Interest::EPOLLERR) {
            return self.on_end(slot);
        }
        match self.connections[slot].kind {
            BackgroundKind::SlowSend if flags.contains(Interest::EPOLLIN) => _ = self.receive(slot, BUFFER_BYTES),
            BackgroundKind::SlowRead if flags.contains(Interest::EPOLLOUT) => self.send_until(slot, self.request.len()),
            _ => {}
        }
    }

    fn ask(&mut self, slot: usize) {
        self.connections[slot].written = 0;
        match self.connections[slot].kind {
            BackgroundKind::Idle => return,
            BackgroundKind::SlowSend => {}
            BackgroundKind::SlowRead => self.send_until(slot, self.request.len()),
            BackgroundKind::HalfOpen => return self.send_until(slot, half_of_the_head(&self.request)),
        }
        self.bytes_due.push_back((monotonic_ns() + self.gap_ns, slot));
    }

    fn send_until(&mut self, slot: usize, end: usize) {
        if self.connections[slot].send(&self.request[..end]).is_err() {
            self.on_end(slot);
        }
    }

    fn move_bytes_due(&mut self) {
        let now_ns = monotonic_ns();
        while let Some(&(due_ns, slot)) = self.bytes_due.front().filter(|(due_ns, _)| *due_ns <= now_ns) {
            self.bytes_due.pop_front();
            let goes_on = match self.connections[slot].kind {
                _ if self.connections[slot].socket.is_none() => false,
                BackgroundKind::SlowRead => self.receive(slot, 1),
                _ => {
                    self.send_until(slot, self.connections[slot].written + 1);
                    self.connections[slot].written < self.request.len()
                }
            };
            if goes_on {
                // A late byte is not made up for.
                self.bytes_due.push_back(((due_ns + self.gap_ns).max(now_ns), slot));
            }
        }
    }

    /// Reads one byte, or all there are in pieces of `most`. True while the answer is incomplete.
    fn receive(&mut self, slot: usize, most: usize) -> bool {
        loop {
            let bytes = match self.connections[slot].receive(&mut self.buffer[..most]) {
                Ok(bytes @ 1..) => bytes,
                Err(Errno::EAGAIN) => return true,
                Ok(0) | Err(_) => {
                    self.on_end(slot);
                    return false;
                }
            };
            // What is left after more than one byte is not reported again (EPOLLET).
            let is_incomplete = self.feed(slot, bytes);
            if most == 1 || !is_incomplete {
                return is_incomplete;
            }
        }
    }

    /// True while the answer is incomplete; when it is complete, the next request begins.
    fn feed(&mut self, slot: usize, bytes: usize) -> bool {
        let connection = &mut self.connections[slot];
        // An answer to half a request says only that the server will close.
        if connection.written < self.request.len() {
            return true;
        }
        match connection.reader.feed(&self.buffer[..bytes], &mut self.cached_head) {
            Ok(None) => return true,
            Ok(Some((answer, _))) => {
                connection.answered += 1;
                if answer.close {
                    connection.socket = None;
                } else {
                    self.ask(slot);
                }
            }
            Err(_) => connection.socket = None,
        }
        false
    }

    /// The server closed, so all that it will ever send is here: the rest is read at once.
    fn on_end(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        let has_asked = matches!(connection.kind, BackgroundKind::SlowSend | BackgroundKind::SlowRead)
            && connection.written == self.request.len();
        let mut is_complete = false;
        while let Ok(bytes @ 1..) = connection.receive(&mut self.buffer) {
            let fed = connection.reader.feed(&self.buffer[..bytes], &mut self.cached_head);
            is_complete = has_asked && matches!(fed, Ok(Some(_)));
        }
        if is_complete || (has_asked && connection.reader.end().is_some()) {
            connection.answered += 1;
        } else {
            connection.closed_after_ns = Some(monotonic_ns() - connection.began_ns);
        }
        connection.socket = None;
    }

    fn counts(self) -> BackgroundCounts {
        let counts = |(kind, requested, name)| connection::counts_of(&self.connections, kind, requested, name);
        let [idle, slow @ ..] = BackgroundKind::each(&self.wanted);
        let slow = slow.into_iter().filter(|&(_, requested, _)| requested > 0).map(counts).collect();
        BackgroundCounts { idle: counts(idle), failures: self.failures, slow }
    }
}

fn half_of_the_head(request: &[u8]) -> usize {
    let head = request.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or(request.len());
    head / 2
}
