//! A control socket: clients send requests, a line of JSON each, and get answers, lines of JSON of which the last has
//! the key `"ok"`. Only our own user and root are served: the socket's mode is 0600, and the peer's user is checked
//! (SO_PEERCRED, unix(7)). Nothing waits for a client, and a client that hangs or sends garbage disturbs no other.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::console::write_within;
use crate::sys::epoll::{Epoll, Interest};

/// `sun_path` has 108 bytes, the NUL at its end included (unix(7)).
const LONGEST_ADDRESS: usize = 107;

/// What differs between the programs that have such a socket.
#[derive(Clone, Copy)]
pub struct ControlSettings {
    /// Whom another user is told that it belongs to, such as `this cluster`.
    pub owner: &'static str,
    /// One that comes when so many are there takes the place of the oldest that waits for nothing.
    pub most_clients: usize,
    /// In bytes.
    pub longest_request: usize,
    /// A client that does not read is disconnected when so many bytes wait for it.
    pub most_unread: usize,
    /// A client is disconnected when it has its first answer.
    pub answers_once: bool,
    /// The epoll token of a client; of number 0, of the listener.
    pub token: fn(u64) -> u64,
}

pub struct ControlSocket {
    settings: ControlSettings,
    listener: UnixListener,
    clients: BTreeMap<u64, ControlClient>,
    last: u64,
    /// The listener is not watched, because there was no descriptor for a client.
    is_paused: bool,
}

struct ControlClient {
    stream: UnixStream,
    received: Vec<u8>,
    unsent: Vec<u8>,
    state: ClientState,
    /// It sends no more.
    has_ended: bool,
    /// It reads no more, either.
    is_gone: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ClientState {
    Idle,
    /// Its request is being carried out; the next has to wait.
    Asked,
    /// It gets lines until it leaves.
    Subscribed,
    /// It is disconnected when it has what was sent to it.
    Answered,
}

impl ControlSocket {
    /// Serves the clients of this listener, whose readiness `epoll` reports with the tokens of the settings.
    pub fn new(listener: UnixListener, settings: ControlSettings, epoll: &Epoll) -> io::Result<ControlSocket> {
        listener.set_nonblocking(true)?;
        epoll.add(&listener, (settings.token)(0), Interest::EPOLLIN)?;
        Ok(ControlSocket { settings, listener, clients: BTreeMap::new(), last: 0, is_paused: false })
    }

    /// # Errors
    /// No client could be accepted; [`ControlSocket::accept_again`] has to be called after a while.
    pub fn accept(&mut self, epoll: &Epoll) -> io::Result<()> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => return Ok(()),
            Err(error) => {
                // No descriptor left, perhaps. It would be reported again at once, so it is not watched for a while.
                self.is_paused = epoll.delete(&self.listener).is_ok();
                return Err(error);
            }
        };
        self.last += 1;
        let id = self.last;
        let has_room = self.clients.len() < self.settings.most_clients || self.disconnect_oldest_idle();
        stream.set_nonblocking(true)?;
        let interest = Interest::EPOLLIN | Interest::EPOLLOUT | Interest::EPOLLRDHUP | Interest::EPOLLET;
        epoll.add(&stream, (self.settings.token)(id), interest)?;
        let is_known = is_our_user(&stream);
        self.clients.insert(id, ControlClient::new(stream));
        if !is_known {
            self.dismiss(id, &format!("{} belongs to another user", self.settings.owner));
        } else if !has_room {
            self.dismiss(id, "too many clients wait for an answer here; try again");
        }
        Ok(())
    }

    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Time has passed, or something has happened that may have left us a descriptor.
    pub fn accept_again(&mut self, epoll: &Epoll) {
        if self.is_paused {
            self.is_paused = epoll.add(&self.listener, (self.settings.token)(0), Interest::EPOLLIN).is_err();
        }
    }

    /// A client can be read from or written to, or is gone, as epoll has reported it.
    pub fn receive(&mut self, id: u64, ready: Interest) {
        let longest = self.settings.longest_request;
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.is_gone |= ready.intersects(Interest::EPOLLHUP | Interest::EPOLLERR);
        if client.flush().and_then(|()| client.receive(longest)).is_err() {
            self.clients.remove(&id);
        }
        self.remove_if_done(id);
    }

    /// The next request of this client, when its last is answered. What is no request is refused.
    pub fn next_request<R: DeserializeOwned>(&mut self, id: u64) -> Option<R> {
        loop {
            let client = self.clients.get_mut(&id).filter(|client| client.state == ClientState::Idle)?;
            let Some(end) = client.received.iter().position(|&byte| byte == b'\n') else {
                if client.received.len() > self.settings.longest_request {
                    let most = self.settings.longest_request >> 20;
                    self.dismiss(id, &format!("a request has at most {most} MiB"));
                }
                return None;
            };
            let line: Vec<u8> = client.received.drain(..=end).collect();
            client.state = ClientState::Asked;
            match serde_json::from_slice(&line) {
                Ok(request) => return Some(request),
                Err(error) => self.refuse(id, &format!("that is not a request: {error}")),
            }
        }
    }

    /// A line of an answer that is not the last.
    pub fn send(&mut self, id: u64, line: &impl Serialize) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        serde_json::to_writer(&mut client.unsent, line).expect("its keys are strings");
        client.unsent.push(b'\n');
        if client.flush().is_err() || client.unsent.len() > self.settings.most_unread {
            self.clients.remove(&id);
        }
    }

    /// The last line of an answer.
    pub fn answer(&mut self, id: u64, line: &impl Serialize) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.state = if self.settings.answers_once { ClientState::Answered } else { ClientState::Idle };
        }
        self.send(id, line);
        self.remove_if_done(id);
    }

    /// The same for a request that is not granted.
    pub fn refuse(&mut self, id: u64, why: &str) {
        self.answer(id, &json!({"ok": false, "error": why}));
    }

    /// From now on this client gets what [`ControlSocket::publish`] sends.
    pub fn subscribe(&mut self, id: u64) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.state = ClientState::Subscribed;
        }
    }

    pub fn publish(&mut self, line: &impl Serialize) {
        let subscribed = self.clients.iter().filter(|(_, client)| client.state == ClientState::Subscribed);
        for id in subscribed.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.send(id, line);
        }
    }

    /// Before we end: each client has so long to read the rest.
    pub fn flush_within(&mut self, limit: Duration) {
        for client in self.clients.values_mut() {
            let _ = write_within(&client.stream, &mut client.unsent, limit);
        }
    }

    /// The last that this client is told.
    fn dismiss(&mut self, id: u64, why: &str) {
        self.refuse(id, why);
        if let Some(client) = self.clients.get_mut(&id) {
            client.state = ClientState::Answered;
        }
        self.remove_if_done(id);
    }

    fn disconnect_oldest_idle(&mut self) -> bool {
        let oldest = self.clients.iter().find(|(_, client)| client.state == ClientState::Idle);
        oldest.map(|(&id, _)| id).is_some_and(|id| self.clients.remove(&id).is_some())
    }

    fn remove_if_done(&mut self, id: u64) {
        if self.clients.get(&id).is_some_and(ControlClient::is_done) {
            self.clients.remove(&id);
        }
    }
}

impl ControlClient {
    fn new(stream: UnixStream) -> ControlClient {
        let (received, unsent, state) = (Vec::new(), Vec::new(), ClientState::Idle);
        ControlClient { stream, received, unsent, state, has_ended: false, is_gone: false }
    }

    /// It waits for nothing, and nothing can come from it. One that has asked may have shut its side, and waits.
    fn is_done(&self) -> bool {
        match self.state {
            ClientState::Asked => false,
            ClientState::Subscribed => self.is_gone,
            ClientState::Idle => self.has_ended && self.unsent.is_empty() && !self.received.contains(&b'\n'),
            ClientState::Answered => self.unsent.is_empty(),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // It has asked, and is gone: what it has asked for is done nevertheless.
                Err(_) if self.state == ClientState::Asked || self.received.contains(&b'\n') => self.unsent.clear(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn receive(&mut self, most: usize) -> io::Result<()> {
        let mut buffer = [0; 4096];
        while self.received.len() <= most && !self.has_ended {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.has_ended = true,
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if self.state == ClientState::Idle => return Err(error),
                Err(_) => self.has_ended = true,
            }
        }
        Ok(())
    }
}

fn is_our_user(stream: &UnixStream) -> bool {
    let peer = getsockopt(&stream.as_fd(), sockopt::PeerCredentials);
    peer.is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}

/// A listener at this path, for our user only.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    // It is made with the rights that it will have, so that it is not open to others even for a moment.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = with_short_path(path, |path| UnixListener::bind(path));
    umask(before);
    let listener = bound?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A connection that blocks.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    with_short_path(path, |path| UnixStream::connect(path))
}

/// A connection that does not block, and neither does making it.
///
/// # Errors
/// EAGAIN when so many clients wait to be accepted that no more may (unix(7)).
pub fn connect_without_waiting(path: &Path) -> io::Result<UnixStream> {
    with_short_path(path, |path| {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(socket.into())
    })
}

/// A path that is too long for an address is reached through its folder's descriptor (proc_pid_fd(5)).
fn with_short_path<T>(path: &Path, call: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return call(path) };
    if path.as_os_str().len() <= LONGEST_ADDRESS {
        return call(path);
    }
    let flags = (OFlag::O_PATH | OFlag::O_DIRECTORY).bits();
    let folder = OpenOptions::new().read(true).custom_flags(flags).open(folder)?;
    call(&Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name))
}
