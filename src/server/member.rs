//! A server as a worker of a cluster: it does for our programs what Node's `lib/internal/cluster/child.js` does for
//! Node's. Instead of binding, it asks its master, and gets the listening socket, or connections one by one.
//!
//! A member has descriptors to wait for (the channel, the shared listening socket where there is one, and SIGUSR2), and
//! one call, [`Member::accept`], which takes a connection if there is one and reads the master's messages. So a server
//! that accepts from a `Listener` does not know the difference.
//!
//! A worker leaves when the master asks it to, or after a fatal error (SIGUSR2 simulates one): it takes nothing new,
//! and answers open connections with `Connection: close`.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{Signal, raise};
use nix::sys::socket::SockFlag;
use serde_json::{Value, json};
use socket2::Socket;

use super::accept::accept_next;
use super::args::ServerArgs;
use super::ipc::{BUFFER_BYTES, Incoming, Ipc, Received};
use crate::failure::Failure;
use crate::membership::Membership;
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::fd::{set_blocking, take_inherited, until_uninterrupted};
use crate::sys::signal::{SignalQueue, is_leaving, is_stopping, leave};
use crate::units::monotonic_ns;

/// A worker that accepts by itself reads its channel at least this often, however many connections there are: it has to
/// give signs of life.
const READ_EVERY_NS: u64 = 10_000_000;

/// Descriptors kept free: to receive a connection, even if only to refuse it.
const SPARE: u64 = 4;

thread_local! {
    /// The channel is the process's, and the thread that listens has it.
    static MEMBER: RefCell<Option<Arc<Mutex<Member>>>> = const { RefCell::new(None) };
}

static IS_PASSED_CONNECTIONS: AtomicBool = AtomicBool::new(false);

pub struct Member {
    /// A signal shuts it so that nothing more is accepted: the listening socket belongs to all workers.
    pub ipc: Ipc,
    epoll: Epoll,
    fatal_error: SignalQueue,
    key: String,
    /// Where to accept from; `None` where the master does.
    socket: Option<Socket>,
    pub address: SocketAddr,
    seq: u64,
    /// Received, and not answered. A master sends the next when the last was acknowledged, so there is at most one.
    waiting: VecDeque<(u64, OwnedFd)>,
    incoming: VecDeque<Incoming>,
    buffer: Vec<u8>,
    interest: Interest,
    read_ns: u64,
    /// A received descriptor with a number from here on is one too many.
    most_fd: i32,
    is_shut: bool,
    has_failed: bool,
}

impl Member {
    /// Joins the cluster: asks for the socket to listen on, and waits for the answer.
    pub fn join(membership: Membership, args: &ServerArgs) -> Result<Arc<Mutex<Member>>, Failure> {
        if MEMBER.with_borrow(Option::is_some) {
            let line = format!(
                "bind {}: this is a worker of a cluster, which has one listener; give `cluster` a server that has one",
                args.listen
            );
            return Err(Failure::relay(line));
        }
        let channel = |errno| Failure::new(format_args!("channel {} to the master", membership.channel), errno);
        let socket = take_inherited(membership.channel).map_err(channel)?;
        let open = || {
            let (epoll, fatal_error) = (Epoll::new(1)?, SignalQueue::open_only(Signal::SIGUSR2)?);
            epoll.add(&socket, 0, Interest::EPOLLIN)?;
            epoll.add(&fatal_error, 0, Interest::EPOLLIN)?;
            Ok((epoll, fatal_error))
        };
        let (epoll, fatal_error) = open().map_err(channel)?;
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        let mut member = Member {
            ipc: Ipc::over(socket),
            epoll,
            fatal_error,
            key: String::new(),
            socket: None,
            address: args.listen,
            seq: 0,
            waiting: VecDeque::new(),
            incoming: VecDeque::new(),
            buffer: vec![0; BUFFER_BYTES],
            interest: Interest::EPOLLIN,
            read_ns: 0,
            most_fd: limit.saturating_sub(SPARE).min(i32::MAX as u64) as i32,
            is_shut: false,
            has_failed: false,
        };
        // `counts`: in the master's scoreboard. Node's primary ignores it.
        member.send(json!({"act": "online", "counts": true}));
        member.ask(args)?;
        let member = Arc::new(Mutex::new(member));
        MEMBER.set(Some(member.clone()));
        Ok(member)
    }

    pub fn shared_socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Readable when there may be a connection or a message; and a second one to wait for. Where connections come over
    /// the channel the first is the channel itself, since a wake-up through two epoll instances costs more.
    pub fn descriptors(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        match self.socket {
            Some(_) => (self.epoll.as_fd(), None),
            None => (self.ipc.as_fd(), Some(self.fatal_error.as_fd())),
        }
    }

    /// The next connection, non-blocking.
    ///
    /// # Errors
    /// EAGAIN when there is none, EINVAL when no more will come, otherwise those of accept(2).
    pub fn accept(&mut self) -> nix::Result<OwnedFd> {
        if let Some(connection) = self.next_passed() {
            return Ok(connection);
        }
        if let Some(socket) = &self.socket {
            let accepted = accept_next(socket, SockFlag::SOCK_NONBLOCK);
            let is_empty = matches!(accepted, Err(Errno::EAGAIN));
            if !is_empty {
                if monotonic_ns() >= self.read_ns + READ_EVERY_NS {
                    self.receive();
                }
                return accepted;
            }
        }
        // Until nothing is left: a loop that waits for edges is not woken for the rest.
        while self.receive() == Received::Something && self.waiting.is_empty() {}
        match self.next_passed() {
            Some(connection) => Ok(connection),
            None if self.is_shut => Err(Errno::EINVAL),
            None => Err(Errno::EAGAIN),
        }
    }

    /// As [`Member::accept`], but it waits, and the connection blocks. A server that blocks leaves as SIGTERM ends it,
    /// as soon as it is back here: it reads its master's messages only between two connections.
    ///
    /// # Errors
    /// Also EINTR.
    pub fn accept_blocking(&mut self) -> nix::Result<OwnedFd> {
        self.await_next().and_then(|fd| set_blocking(&fd).map(|()| fd))
    }

    /// As [`Member::accept_blocking`], but the connection is non-blocking.
    ///
    /// # Errors
    /// Also EINTR.
    pub fn await_next(&mut self) -> nix::Result<OwnedFd> {
        loop {
            match self.accept() {
                Err(Errno::EAGAIN) if is_leaving() => {
                    raise(Signal::SIGTERM)?;
                    return Err(Errno::EINVAL);
                }
                Err(Errno::EAGAIN) => {
                    poll(&mut [PollFd::new(self.epoll.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
                }
                accepted => return accepted,
            }
        }
    }

    /// Reads the master's messages for a worker that has no room: a connection that it is passed is for another.
    pub fn refuse(&mut self) {
        self.receive();
        while let Some((seq, connection)) = self.waiting.pop_front() {
            drop(connection);
            self.answer(seq, false);
        }
    }

    fn receive(&mut self) -> Received {
        self.read_ns = monotonic_ns();
        let mut incoming = std::mem::take(&mut self.incoming);
        let received = self.ipc.receive(&mut self.buffer, &mut incoming);
        self.is_shut |= received == Received::End;
        // A signal that has come stays readable: it can wait while there are messages.
        if incoming.is_empty() && matches!(self.fatal_error.take(), Ok(Some(_))) {
            self.end_after_a_fatal_error();
        }
        for message in incoming.drain(..) {
            match message {
                Incoming::Connection { seq, is_expected, connection } => {
                    if is_expected && connection.as_raw_fd() < self.most_fd {
                        self.waiting.push_back((seq, connection));
                    } else {
                        drop(connection);
                        self.answer(seq, false);
                    }
                }
                Incoming::Message(message, _) if message["cmd"] == "NODE_CLUSTER" && message["act"] == "disconnect" => {
                    self.begin_to_leave();
                }
                // Messages for the program: ours take none.
                _ => {}
            }
        }
        self.incoming = incoming;
        if self.is_shut {
            // It stays readable, and no message comes any more.
            let _ = self.epoll.delete(&self.ipc);
            if !is_stopping() {
                // The master is gone, and cannot ask us to leave. This cannot fail for a signal that exists.
                let _ = raise(Signal::SIGTERM);
            }
        } else {
            self.watch();
        }
        received
    }

    fn next_passed(&mut self) -> Option<OwnedFd> {
        let (seq, connection) = self.waiting.pop_front()?;
        self.answer(seq, true);
        Some(connection)
    }

    fn answer(&mut self, seq: u64, accepted: bool) {
        self.seq += 1;
        self.ipc.answer_connection(seq, accepted, self.seq);
    }

    fn send(&mut self, mut message: Value) {
        message["cmd"] = json!("NODE_CLUSTER");
        message["seq"] = json!(self.seq);
        self.seq += 1;
        self.ipc.send(&message);
        self.watch();
    }

    fn watch(&mut self) {
        let interest = self.ipc.interest() | Interest::EPOLLIN;
        if interest != self.interest {
            // A registration is changed without allocating, so this cannot fail (epoll_ctl(2)).
            let _ = self.epoll.modify(&self.ipc, 0, interest);
            self.interest = interest;
        }
    }

    fn ask(&mut self, args: &ServerArgs) -> Result<(), Failure> {
        let asked = self.seq;
        let listen = args.listen;
        self.send(json!({
            "act": "queryServer", "index": 0, "data": null, "fd": -1, "flags": 0, "backlog": args.backlog,
            "address": listen.ip().to_string(), "port": listen.port(), "addressType": address_type(listen.ip()),
            "noDelay": true,
        }));
        let mut incoming = VecDeque::new();
        loop {
            for message in incoming.drain(..) {
                if let Incoming::Message(reply, socket) = message
                    && reply["ack"] == json!(asked)
                {
                    return self.take_reply(&reply, socket, args);
                }
            }
            let mut ready = [PollFd::new(self.ipc.as_fd(), PollFlags::POLLIN)];
            let polled = until_uninterrupted(|| poll(&mut ready, PollTimeout::NONE));
            // A byte at a time: the first connection may come right behind the answer, and has to stay in the
            // socket, where it is waited for.
            if polled.is_err() || self.ipc.receive(&mut [0], &mut incoming) == Received::End {
                let line = format!("ask the master to listen on {listen}: it is gone");
                return Err(Failure::relay(line));
            }
        }
    }

    fn take_reply(&mut self, reply: &Value, socket: Option<OwnedFd>, args: &ServerArgs) -> Result<(), Failure> {
        let tried = || format!("bind {}", args.listen);
        if let Some(errno) = reply["errno"].as_i64().filter(|&errno| errno != 0) {
            let errno = Errno::from_raw(-errno as i32);
            return Err(Failure::new(tried(), errno).advise("the master has tried; give the program another --listen"));
        }
        self.key = reply["key"].as_str().unwrap_or_default().to_owned();
        match socket {
            Some(socket) => self.share(socket.into(), args).map_err(|error| Failure::new(tried(), error)),
            None => {
                let sockname = &reply["sockname"];
                let ip = sockname["address"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok());
                let port = sockname["port"].as_u64().and_then(|port| u16::try_from(port).ok());
                let (Some(ip), Some(port)) = (ip, port) else {
                    return Err(Failure::relay(format!("{}: the master's answer has no address", tried())));
                };
                self.address = SocketAddr::new(ip, port);
                self.ipc.expected_key = Some(self.key.clone());
                IS_PASSED_CONNECTIONS.store(true, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    fn share(&mut self, socket: Socket, args: &ServerArgs) -> std::io::Result<()> {
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.listen(args.backlog)?;
        self.address = socket.local_addr()?.as_socket().expect("a TCP socket has an IP address");
        self.epoll.add(&socket, 0, Interest::EPOLLIN)?;
        self.socket = Some(socket);
        Ok(())
    }

    fn end_after_a_fatal_error(&mut self) {
        if !is_leaving() {
            self.has_failed = true;
            // A message of the program's own, as `process.send({act: 'suicide'})`.
            self.ipc.send(&json!({"act": "suicide"}));
            self.begin_to_leave();
        }
    }

    /// A connection that the master has passed before it reads this is still taken; after that it passes no more.
    fn begin_to_leave(&mut self) {
        if is_leaving() {
            return;
        }
        leave();
        if let Some(socket) = self.socket.take() {
            // Before the close: other processes hold the socket, and with it the registration (epoll(7)).
            let _ = self.epoll.delete(&socket);
        }
        let key = self.key.clone();
        self.send(json!({"act": "close", "key": key}));
    }
}

fn address_type(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 4 } else { 6 }
}

/// Locked by whichever thread accepts.
pub(super) fn lock(member: &Mutex<Member>) -> MutexGuard<'_, Member> {
    member.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the master that this worker takes connections. False: this process is not a worker.
pub fn notify_listening(address: SocketAddr) -> bool {
    MEMBER.with_borrow(|member| {
        let Some(member) = member else { return false };
        lock(member).send(json!({
            "act": "listening", "address": address.ip().to_string(), "port": address.port(),
            "addressType": address_type(address.ip()), "fd": -1,
        }));
        true
    })
}

/// In a worker of a cluster: the master accepts, and keeps a copy of each connection until it has our answer.
pub fn is_passed_connections() -> bool {
    IS_PASSED_CONNECTIONS.load(Ordering::Relaxed)
}

pub fn has_failed() -> bool {
    MEMBER.with_borrow(|member| member.as_ref().is_some_and(|member| lock(member).has_failed))
}
