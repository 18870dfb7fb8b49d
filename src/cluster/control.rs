//! The master's control socket: a client sends one request, a line of JSON; the answer is lines of JSON, the last with
//! the key `"ok"`. Only the master's own user and root are served (SO_PEERCRED). Nothing waits for a client.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use clap::Subcommand;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};

use super::listening_socket::SocketFile;
use super::poller::{Poller, Token};
use crate::failure::Failure;
use crate::server::args::parse_workers;
use crate::sys::epoll::Interest;

#[derive(Subcommand, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum ControlRequest {
    /// The workers, and what has happened to them
    Status,
    /// Replace all workers, one after another, each when its successor listens
    Reload {
        /// Of the workers that are started from now on, in place of the master's own
        #[arg(skip)]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        environment: Option<BTreeMap<String, String>>,
    },
    /// From now on so many workers
    Scale {
        #[arg(value_name = "N", value_parser = parse_workers)]
        workers: usize,
    },
    /// Pass a JSON message to the program, received there by process.on('message')
    Send {
        /// Only to this worker
        #[arg(long, value_name = "I")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        worker: Option<usize>,
        /// Such as '{"act": "shout"}'
        #[arg(value_name = "JSON", value_parser = parse_json)]
        message: Value,
    },
    /// Stop the master and all workers
    Stop,
}

fn parse_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("not JSON: {error}; a text is written '\"like this\"'"))
}

/// A client that comes when so many are there takes the place of the oldest: clients that hang do not keep others out.
const MOST_CLIENTS: usize = 16;

/// The longest request, a message for the workers included.
const LONGEST_REQUEST: usize = 1 << 20;

/// A client that does not read is disconnected when so many bytes wait for it.
const MOST_UNREAD: usize = 1 << 20;

/// The socket, where the master has one, and its clients.
#[derive(Default)]
pub struct ControlSocket {
    _file: Option<SocketFile>,
    listener: Option<UnixListener>,
    clients: BTreeMap<u64, ControlClient>,
    last: u64,
    is_paused: bool,
}

struct ControlClient {
    stream: UnixStream,
    request: Vec<u8>,
    /// Its request is complete; further bytes do not matter.
    has_asked: bool,
    unsent: Vec<u8>,
    is_done: bool,
}

impl ControlSocket {
    /// Takes the place of a socket that a dead master has left, and of no other file.
    pub fn open(path: &Path, poller: &Poller) -> Result<ControlSocket, Failure> {
        let tried = || format!("control socket {}", path.display());
        let odd = |error: std::io::Error| {
            Failure::new(tried(), error).advise("choose a new file in a folder that you may write")
        };
        // Of two masters that start together, one looks, removes and binds before the other looks. A file system
        // without such locks, or a folder that may not be read, leaves it at that.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = fs::File::open(folder).map(|folder| Flock::lock(folder, FlockArg::LockExclusiveNonblock));
        let _lock = match folder {
            Ok(Err((_, errno @ Errno::EWOULDBLOCK))) => {
                return Err(Failure::new(tried(), errno)
                    .advise("another cluster starts there, or a program has locked its folder: try again"));
            }
            other => other,
        };
        let taken = |why: &str, advice: &str| Err(Failure::new(tried(), std::io::Error::other(why)).advise(advice));
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return taken("there is a file of another kind in its place", "choose another");
            }
            Ok(_) if is_stale(path) => fs::remove_file(path).map_err(odd)?,
            Ok(_) => {
                return taken("another cluster listens there", "stop it with `cluster ctl stop`, or choose another");
            }
            Err(_) => {}
        }
        // It is made with the rights that it will have, so that it is not open to others even for a moment.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound.map_err(odd)?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(odd)?;
        listener.set_nonblocking(true).map_err(odd)?;
        let watched = poller.epoll.add(&listener, Token::Control(0).encode(), Interest::EPOLLIN);
        watched.map_err(|errno| Failure::new(tried(), errno))?;
        Ok(ControlSocket { _file: SocketFile::at(path), listener: Some(listener), ..ControlSocket::default() })
    }

    pub fn accept(&mut self, poller: &Poller) {
        let Some(listener) = &self.listener else { return };
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => return,
            // No descriptor left, perhaps. It would be reported again at once, so it is not watched for a while.
            Err(_) => {
                self.is_paused = poller.epoll.delete(listener).is_ok();
                return;
            }
        };
        self.last += 1;
        if self.clients.len() >= MOST_CLIENTS
            && let Some(oldest) = self.clients.keys().next().copied()
        {
            self.clients.remove(&oldest);
        }
        let interest = Interest::EPOLLIN | Interest::EPOLLOUT | Interest::EPOLLRDHUP | Interest::EPOLLET;
        let watched = stream.set_nonblocking(true).is_ok()
            && poller.epoll.add(&stream, Token::Control(self.last).encode(), interest).is_ok();
        if !watched {
            return;
        }
        let is_known = is_our_user(&stream);
        let client =
            ControlClient { stream, request: Vec::new(), has_asked: false, unsent: Vec::new(), is_done: false };
        self.clients.insert(self.last, client);
        if !is_known {
            self.refuse(self.last, "this cluster belongs to another user");
        }
    }

    pub fn watch_again(&mut self, poller: &Poller) {
        if let Some(listener) = self.listener.as_ref().filter(|_| self.is_paused) {
            self.is_paused = poller.epoll.add(listener, Token::Control(0).encode(), Interest::EPOLLIN).is_err();
        }
    }

    /// A client can be read from or written to. Its request, once it is complete.
    pub fn receive(&mut self, id: u64) -> Option<ControlRequest> {
        let client = self.clients.get_mut(&id)?;
        if !client.flush() || !client.receive() {
            self.clients.remove(&id);
            return None;
        }
        if client.has_asked {
            return None;
        }
        if let Some(end) = client.request.iter().position(|&byte| byte == b'\n') {
            client.has_asked = true;
            let request = serde_json::from_slice(&client.request[..end]);
            client.request = Vec::new();
            match request {
                Ok(request) => return Some(request),
                Err(error) => self.refuse(id, &format!("that is not a request: {error}")),
            }
        } else if client.request.len() > LONGEST_REQUEST {
            self.refuse(id, "a request has at most a mebibyte");
        }
        None
    }

    pub fn send(&mut self, id: u64, line: &Value) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.unsent.extend_from_slice(format!("{line}\n").as_bytes());
        if !client.flush() || client.unsent.len() > MOST_UNREAD {
            self.clients.remove(&id);
        }
    }

    /// The last line of an answer.
    pub fn answer(&mut self, id: u64, mut line: Value) {
        line["ok"] = json!(true);
        self.finish(id, &line);
    }

    /// The last line of the answer to a request that is not granted.
    pub fn refuse(&mut self, id: u64, why: &str) {
        self.finish(id, &json!({"ok": false, "error": why}));
    }

    fn finish(&mut self, id: u64, line: &Value) {
        self.send(id, line);
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.is_done = true;
        client.has_asked = true;
        if client.unsent.is_empty() {
            self.clients.remove(&id);
        }
    }
}

impl ControlClient {
    /// False: it is gone, or has its whole answer.
    fn flush(&mut self) -> bool {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        !self.is_done
    }

    /// False: it is gone.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; 4096];
        while self.request.len() <= LONGEST_REQUEST {
            match self.stream.read(&mut buffer) {
                // A client that has asked may have shut its side, and waits.
                Ok(0) => return self.has_asked || self.request.contains(&b'\n'),
                // One request a client; one that sends more is disconnected.
                Ok(_) if self.has_asked => return false,
                Ok(length) => self.request.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }
}

/// No process listens there any more. Any other error than a refusal says that one does.
fn is_stale(path: &Path) -> bool {
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    matches!(connect(), Err(error) if error.kind() == ErrorKind::ConnectionRefused)
}

fn is_our_user(stream: &UnixStream) -> bool {
    let peer = getsockopt(&stream.as_fd(), sockopt::PeerCredentials);
    peer.is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}
