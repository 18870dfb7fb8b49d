//! Deliberately slow clients beside those that measure: what does a server do with a request that comes a byte at a
//! time, an answer that nobody fetches, a client that falls silent in mid-sentence? A connection has one life; what
//! became of it is counted.
//!
//! | kind      | what it does                                                          | done when             |
//! |-----------|-----------------------------------------------------------------------|-----------------------|
//! | send      | a byte of the request per gap, then reads the answer and starts over   | `Connection: close`   |
//! | read      | the request at once, then a byte of the answer per gap, and starts over | `Connection: close`   |
//! | half-open | half of the request head, then nothing                                | never                 |
//!
//! One thread serves them all with one epoll instance, so that they take nothing from the measuring threads but CPU;
//! since all gaps are equal, the bytes that are due form a queue and need no timers.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, recv, send};
use socket2::{Domain, Socket};

use crate::load::client::route::{Route, errno};
use crate::load::response::{Reader, Template};
use crate::report::SlowBook;
use crate::sys::epoll::{Epoll, Interest};
use crate::units::monotonic_ns;

/// Handshakes under way at one time: few enough for the backlog of any server.
const MAX_IN_FLIGHT: usize = 256;
const MAX_REPORTS: usize = 256;
/// How long the start waits for the handshakes; those that take longer go on.
const OPENING: Duration = Duration::from_secs(1);
/// What a slow reader asks the kernel to hold for it: less than the kernel's least, which it then gets (tcp(7)).
const SMALL_BUFFER_BYTES: usize = 1;
/// The token of the bell; members count from 0.
const BELL: u64 = u64::MAX;

/// How many of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds {
    pub send: u32,
    pub read: u32,
    pub half_open: u32,
}

impl Kinds {
    /// The connections of all kinds together.
    pub fn total(self) -> u64 {
        u64::from(self.send) + u64::from(self.read) + u64::from(self.half_open)
    }

    fn each(self) -> [(Kind, u32); 3] {
        [(Kind::Send, self.send), (Kind::Read, self.read), (Kind::HalfOpen, self.half_open)]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Send,
    Read,
    HalfOpen,
}

/// The slow clients and their thread. Dropping it closes them all.
pub struct SlowCrowd {
    bell: Arc<EventFd>,
    thread: Option<JoinHandle<Vec<SlowBook>>>,
}

impl SlowCrowd {
    /// Connects them, waits a moment until that is done, and lets them be slow until they are stopped. A connection
    /// that does not come about is not tried again: the book says how many were established.
    ///
    /// # Errors
    /// When there is no descriptor or no thread left for it.
    pub fn start(route: Route, request: Vec<u8>, kinds: Kinds, gap: Duration) -> nix::Result<SlowCrowd> {
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let epoll = Epoll::new(MAX_REPORTS)?;
        epoll.add(&*bell, BELL, Interest::EPOLLIN)?;
        let (opened, is_open) = mpsc::channel();
        let members = kinds.each().into_iter().flat_map(|(kind, count)| (0..count).map(move |_| kind));
        let slow = Slow {
            route,
            template: Template::new(request.starts_with(b"HEAD ")),
            request,
            gap_ns: gap.as_nanos() as u64,
            epoll,
            members: members.map(Member::new).collect(),
            begun: 0,
            connecting: 0,
            opened: Some(opened),
            turns: VecDeque::new(),
            buffer: vec![0; 16 * 1024],
        };
        let thread =
            thread::Builder::new().name("slow".into()).spawn(move || slow.run(kinds)).map_err(errno)?;
        // The other end never sends: it hangs up when no handshake is left, or the thread is over.
        let _ = is_open.recv_timeout(OPENING);
        Ok(SlowCrowd { bell, thread: Some(thread) })
    }

    /// Closes all that are left; a book for each kind that was asked for.
    pub fn stop(mut self) -> Vec<SlowBook> {
        self.join()
    }

    fn join(&mut self) -> Vec<SlowBook> {
        // Fails only when the counter would overflow, and then it is readable already (eventfd(2)).
        let _ = self.bell.write(1);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(books)) => books,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Vec::new(),
        }
    }
}

impl Drop for SlowCrowd {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.join();
        }
    }
}

struct Member {
    kind: Kind,
    /// `None` before its life and after it.
    socket: Option<Socket>,
    /// When connect(2) was called: its age counts from here, since the server may know of it before us.
    began_ns: u64,
    is_established: bool,
    /// Bytes of the request that the kernel has taken.
    written: usize,
    reader: Reader,
    answered: u64,
    /// How old it was when the server ended it before it was done.
    closed_after_ns: Option<u64>,
}

impl Member {
    fn new(kind: Kind) -> Member {
        Member {
            kind,
            socket: None,
            began_ns: 0,
            is_established: false,
            written: 0,
            reader: Reader::default(),
            answered: 0,
            closed_after_ns: None,
        }
    }

    fn send(&mut self, bytes: &[u8]) -> nix::Result<()> {
        let Some(socket) = &self.socket else { return Err(Errno::ENOTCONN) };
        match send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
            Ok(written) => self.written += written,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8]) -> nix::Result<usize> {
        let Some(socket) = &self.socket else { return Err(Errno::ENOTCONN) };
        recv(socket.as_raw_fd(), buffer, MsgFlags::empty())
    }
}

/// What the thread knows.
struct Slow {
    route: Route,
    request: Vec<u8>,
    /// The method is HEAD.
    template: Template,
    gap_ns: u64,
    epoll: Epoll,
    members: Vec<Member>,
    /// Members whose life has begun, and how many of them are not yet established.
    begun: usize,
    connecting: usize,
    /// Dropped when all handshakes are over.
    opened: Option<mpsc::Sender<()>>,
    /// Whose byte is due, and when: in order, since each gap is as long as the others.
    turns: VecDeque<(u64, usize)>,
    buffer: Vec<u8>,
}

impl Slow {
    fn run(mut self, kinds: Kinds) -> Vec<SlowBook> {
        loop {
            self.open_more();
            let timeout = self.turns.front().map(|&(due_ns, _)| due_ns.saturating_sub(monotonic_ns()));
            let timeout = timeout.map(Duration::from_nanos);
            let reports = self.epoll.wait(timeout).expect("epoll_wait(2) fails only on bad arguments");
            let mut stopped = false;
            for i in 0..reports {
                let ready = self.epoll.report(i);
                match ready.token {
                    // What was reported before the bell happened before it, and counts.
                    BELL => stopped = true,
                    slot => self.on_report(slot as usize, ready.flags),
                }
            }
            if stopped {
                return self.books(kinds);
            }
            self.take_turns();
        }
    }

    fn open_more(&mut self) {
        while self.begun < self.members.len() && self.connecting < MAX_IN_FLIGHT {
            let slot = self.begun;
            self.begun += 1;
            self.members[slot].began_ns = monotonic_ns();
            let connected = connect(&self.route, slot as u64, self.members[slot].kind).and_then(|socket| {
                let interest =
                    Interest::EPOLLIN | Interest::EPOLLOUT | Interest::EPOLLRDHUP | Interest::EPOLLET;
                self.epoll.add(&socket, slot as u64, interest)?;
                Ok(socket)
            });
            if let Ok(socket) = connected {
                self.members[slot].socket = Some(socket);
                self.connecting += 1;
            }
        }
        if self.connecting == 0 {
            self.opened = None;
        }
    }

    fn on_report(&mut self, slot: usize, flags: Interest) {
        let member = &mut self.members[slot];
        let Some(socket) = &member.socket else { return };
        if !member.is_established {
            self.connecting -= 1;
            if !matches!(socket.take_error(), Ok(None)) {
                member.socket = None;
                return;
            }
            member.is_established = true;
            self.ask(slot);
        }
        if flags.intersects(Interest::EPOLLRDHUP | Interest::EPOLLHUP | Interest::EPOLLERR) {
            return self.on_end(slot);
        }
        match self.members[slot].kind {
            Kind::Send if flags.contains(Interest::EPOLLIN) => self.receive(slot),
            Kind::Read if flags.contains(Interest::EPOLLOUT) => self.send_rest(slot, self.request.len()),
            _ => {}
        }
    }

    /// Begins a request in the way of its kind.
    fn ask(&mut self, slot: usize) {
        self.members[slot].written = 0;
        match self.members[slot].kind {
            Kind::Send => {}
            Kind::Read => self.send_rest(slot, self.request.len()),
            Kind::HalfOpen => return self.send_rest(slot, half_of_the_head(&self.request)),
        }
        self.turns.push_back((monotonic_ns() + self.gap_ns, slot));
    }

    fn send_rest(&mut self, slot: usize, end: usize) {
        let member = &mut self.members[slot];
        if member.socket.is_some()
            && member.written < end
            && member.send(&self.request[member.written..end]).is_err()
        {
            self.on_end(slot);
        }
    }

    /// One byte for everybody whose gap is over.
    fn take_turns(&mut self) {
        let now_ns = monotonic_ns();
        while let Some(&(due_ns, slot)) = self.turns.front().filter(|(due_ns, _)| *due_ns <= now_ns) {
            self.turns.pop_front();
            let goes_on = match self.members[slot].kind {
                _ if self.members[slot].socket.is_none() => false,
                Kind::Read => self.read_a_byte(slot),
                Kind::Send | Kind::HalfOpen => self.send_a_byte(slot),
            };
            if goes_on {
                // Who is late does not hurry.
                self.turns.push_back(((due_ns + self.gap_ns).max(now_ns), slot));
            }
        }
    }

    /// Whether there is more to send.
    fn send_a_byte(&mut self, slot: usize) -> bool {
        let at = self.members[slot].written;
        self.send_rest(slot, at + 1);
        self.members[slot].written < self.request.len()
    }

    /// Whether this answer goes on.
    fn read_a_byte(&mut self, slot: usize) -> bool {
        let mut byte = [0];
        match self.members[slot].receive(&mut byte) {
            Ok(1) => self.feed(slot, &byte),
            Err(Errno::EAGAIN | Errno::EINTR) => true,
            _ => {
                self.on_end(slot);
                false
            }
        }
    }

    /// Reads what there is of an answer, at any speed.
    fn receive(&mut self, slot: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        loop {
            match self.members[slot].receive(&mut buffer) {
                Ok(bytes @ 1..) if self.feed(slot, &buffer[..bytes]) => {}
                Err(Errno::EINTR) => {}
                // The end is reported, and read, by itself.
                _ => break,
            }
        }
        self.buffer = buffer;
    }

    /// Whether the answer goes on; when it is complete, the next request begins.
    fn feed(&mut self, slot: usize, bytes: &[u8]) -> bool {
        let member = &mut self.members[slot];
        if member.written < self.request.len() {
            // An answer to half a request says only that the server will close.
            return true;
        }
        match member.reader.feed(bytes, &mut self.template) {
            Ok(None) => return true,
            Ok(Some((answer, _))) => {
                member.answered += 1;
                if answer.close {
                    member.socket = None;
                } else {
                    self.ask(slot);
                }
            }
            Err(_) => member.socket = None,
        }
        false
    }

    /// The server closed, so all that it will ever send is here: the rest is read at once.
    fn on_end(&mut self, slot: usize) {
        let member = &mut self.members[slot];
        let asked = member.kind != Kind::HalfOpen && member.written == self.request.len();
        let mut complete = false;
        while let Ok(bytes @ 1..) = member.receive(&mut self.buffer) {
            let fed = member.reader.feed(&self.buffer[..bytes], &mut self.template);
            complete = asked && matches!(fed, Ok(Some(_)));
        }
        if complete || (asked && member.reader.end().is_some()) {
            member.answered += 1;
        } else {
            member.closed_after_ns = Some(monotonic_ns() - member.began_ns);
        }
        member.socket = None;
    }

    fn books(&self, kinds: Kinds) -> Vec<SlowBook> {
        let asked_for = kinds.each().into_iter().filter(|&(_, count)| count > 0);
        asked_for.map(|(kind, count)| self.book(kind, u64::from(count))).collect()
    }

    fn book(&self, kind: Kind, requested: u64) -> SlowBook {
        let members = || self.members.iter().filter(|member| member.kind == kind);
        let mut closed_after_ns: Vec<u64> = members().filter_map(|member| member.closed_after_ns).collect();
        closed_after_ns.sort_unstable();
        SlowBook {
            kind: match kind {
                Kind::Send => "send",
                Kind::Read => "read",
                Kind::HalfOpen => "half-open",
            }
            .into(),
            requested,
            established: members().filter(|member| member.is_established).count() as u64,
            answered: members().map(|member| member.answered).sum(),
            closed_by_server: closed_after_ns.len() as u64,
            closed_after_ms: closed_after_ns.get(closed_after_ns.len() / 2).map(|&ns| ns as f64 / 1e6),
        }
    }
}

/// A non-blocking socket on its way; `number` chooses the source address.
fn connect(route: &Route, number: u64, kind: Kind) -> nix::Result<Socket> {
    let open = || {
        let socket = route.open(number)?;
        if kind == Kind::Read {
            // Before connect(2): the first window is offered in the handshake, and none is taken back.
            socket.set_recv_buffer_size(SMALL_BUFFER_BYTES)?;
        }
        if kind == Kind::Send && Domain::from(i32::from(route.address.family())) != Domain::UNIX {
            // Each byte a segment: Nagle's algorithm would put several into one when acknowledgements are late.
            socket.set_tcp_nodelay(true)?;
        }
        Ok(socket)
    };
    let socket: Socket = open().map_err(errno)?;
    match socket.connect(&route.address).map_err(errno) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

/// Where the middle of the request head is.
fn half_of_the_head(request: &[u8]) -> usize {
    let head = request.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or(request.len());
    head / 2
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc::Receiver;

    use socket2::{SockAddr, SockRef};

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const LAST_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    const GAP: Duration = Duration::from_millis(1);

    /// Gives each connection to a thread of its own, and tells when that is through with it.
    fn serve(handler: fn(&mut TcpStream)) -> (SockAddr, Receiver<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().into();
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let done = done.clone();
                thread::spawn(move || {
                    handler(&mut stream);
                    drop(stream);
                    let _ = done.send(());
                });
            }
        });
        (address, is_done)
    }

    fn to(address: SockAddr) -> Route {
        Route { address, sources: None, no_delay: false, reset: false }
    }

    fn read_request(stream: &mut TcpStream) {
        let mut request = [0; REQUEST.len()];
        stream.read_exact(&mut request).unwrap();
        assert_eq!(request, REQUEST);
    }

    /// Starts them, waits until the server has dealt with as many, and stops them.
    fn books(handler: fn(&mut TcpStream), kinds: Kinds) -> Vec<SlowBook> {
        let (address, is_done) = serve(handler);
        let crowd = SlowCrowd::start(to(address), REQUEST.into(), kinds, GAP).unwrap();
        for _ in 0..kinds.total() {
            is_done.recv_timeout(Duration::from_secs(30)).unwrap();
        }
        crowd.stop()
    }

    fn book(kind: &str, requested: u64, answered: u64, closed_by_server: u64) -> SlowBook {
        let established = requested;
        SlowBook {
            kind: kind.into(),
            requested,
            established,
            answered,
            closed_by_server,
            closed_after_ms: None,
        }
    }

    #[test]
    fn slow_clients_get_the_answers_of_a_patient_server() {
        let patient = |stream: &mut TcpStream| {
            for answer in [ANSWER, ANSWER, LAST_ANSWER] {
                read_request(stream);
                stream.write_all(answer).unwrap();
            }
            // They read on until they have seen the last of it; then they close.
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        };
        let books = books(patient, Kinds { send: 3, read: 2, half_open: 0 });
        assert_eq!(books, [book("send", 3, 9, 0), book("read", 2, 6, 0)]);
    }

    #[test]
    fn what_the_server_ends_is_counted_with_its_age() {
        let impatient = |stream: &mut TcpStream| {
            stream.read_exact(&mut [0; 5]).unwrap();
            thread::sleep(Duration::from_millis(20));
            stream.write_all(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n").unwrap();
        };
        let books = books(impatient, Kinds { send: 2, read: 0, half_open: 5 });
        for (book, (kind, count)) in books.iter().zip([("send", 2), ("half-open", 5)]) {
            let told = (&*book.kind, book.established, book.answered, book.closed_by_server);
            assert_eq!(told, (kind, count, 0, count));
            assert!(book.closed_after_ms.unwrap() >= 20.0, "{book:?}");
        }
    }

    #[test]
    fn an_answer_that_was_complete_when_the_server_left_is_an_answer() {
        let leaving = |stream: &mut TcpStream| {
            read_request(stream);
            stream.write_all(ANSWER).unwrap();
        };
        assert_eq!(books(leaving, Kinds { read: 4, ..Kinds::default() }), [book("read", 4, 4, 0)]);
        let breaking_off = |stream: &mut TcpStream| {
            read_request(stream);
            stream.write_all(&ANSWER[..ANSWER.len() - 1]).unwrap();
        };
        let books = books(breaking_off, Kinds { read: 4, ..Kinds::default() });
        assert_eq!((books[0].answered, books[0].closed_by_server), (0, 4));
    }

    #[test]
    fn a_slow_reader_takes_so_little_that_the_server_cannot_send_a_large_answer() {
        let large = |stream: &mut TcpStream| {
            read_request(stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
            let body = vec![b'x'; 100_000_000];
            assert!(stream.write_all(&body).is_err());
            // Otherwise the kernel would go on sending what it took, and hide the close behind it.
            SockRef::from(&*stream).set_linger(Some(Duration::ZERO)).unwrap();
        };
        let books = books(large, Kinds { read: 1, ..Kinds::default() });
        assert_eq!((books[0].answered, books[0].closed_by_server), (0, 1));
    }

    #[test]
    fn slow_clients_come_from_their_sources_in_turn_and_reset_where_others_do() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sources = Some("127.0.0.2,127.0.0.3".parse().unwrap());
        let address = listener.local_addr().unwrap().into();
        let kinds = Kinds { send: 1, read: 1, half_open: 2 };
        let route = Route { sources, reset: true, ..to(address) };
        let crowd = SlowCrowd::start(route, REQUEST.into(), kinds, Duration::from_secs(3600)).unwrap();
        let mut streams: Vec<_> = (0..kinds.total()).map(|_| listener.accept().unwrap()).collect();
        let mut hosts: Vec<_> = streams.iter().map(|(_, peer)| peer.ip().to_string()).collect();
        hosts.sort();
        assert_eq!(hosts, ["127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3"]);
        crowd.stop();
        for (stream, _) in &mut streams {
            let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }

    #[test]
    fn nobody_is_established_where_nobody_listens() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let kinds = Kinds { send: 300, read: 1, half_open: 1 };
        let books = SlowCrowd::start(to(address.into()), REQUEST.into(), kinds, GAP).unwrap().stop();
        assert_eq!(books.iter().map(|book| book.requested).collect::<Vec<_>>(), [300, 1, 1]);
        assert!(books.iter().all(|book| book.established == 0));
    }

    #[test]
    fn a_crowd_that_is_dropped_is_gone() {
        let (address, is_done) = serve(|stream| {
            assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), half_of_the_head(REQUEST))
        });
        let kinds = Kinds { half_open: 20, ..Kinds::default() };
        drop(SlowCrowd::start(to(address), REQUEST.into(), kinds, GAP).unwrap());
        for _ in 0..20 {
            is_done.recv_timeout(Duration::from_secs(30)).unwrap();
        }
    }
}
