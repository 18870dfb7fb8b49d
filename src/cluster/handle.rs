//! One listening socket of the program, and the workers that are to have its connections.

use std::collections::VecDeque;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use serde_json::Value;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::protocol::{Address, Query, Target};
use super::token::Uid;
use crate::server::ipc::connection_head;
use crate::sys::fd::take_inherited;

/// What all calls of `listen()` with the same key share.
pub struct Handle {
    pub key: String,
    /// What is said with each of its connections.
    pub connection_head: String,
    pub socket: Rc<OwnedFd>,
    /// With the port that the kernel chose.
    pub address: Address,
    /// The file of a Unix socket, which goes with it.
    file: Option<PathBuf>,
    pub data: Value,
    /// The workers that have called, with their numbers.
    pub members: Vec<(Uid, usize)>,
    /// Those that can be given a connection, in the order in which they became free.
    pub free: Vec<(Uid, usize)>,
    /// Accepted, and to be given again.
    pub returned: VecDeque<Rc<OwnedFd>>,
    /// The listening socket may have more.
    pub is_ready: bool,
    /// Since when it has no member, and what it has accepted waits for a successor.
    pub orphaned_ns: Option<u64>,
}

impl Handle {
    /// Binds what the program asks for, with the options that Node sets; or takes what we were started with.
    pub fn bind(query: &Query, key: String) -> nix::Result<Handle> {
        let (socket, address) = match query.target()? {
            Target::Ip(candidates) => {
                let mut bound = Err(Errno::EINVAL);
                for address in candidates {
                    bound = bind(address, query).map_err(errno_of);
                    if bound.is_ok() {
                        break;
                    }
                }
                bound?
            }
            Target::Path(path) => {
                let socket = bind_unix(&path).map_err(errno_of)?;
                (socket, Address::Path(path))
            }
            Target::Inherited(fd) => take(take_inherited(fd)?)?,
        };
        let file = match &address {
            Address::Path(path) if query.fd().is_none() && !is_abstract(path) => Some(path.clone()),
            _ => None,
        };
        Ok(Handle {
            connection_head: connection_head(&key),
            key,
            socket: Rc::new(socket.into()),
            address,
            file,
            data: Value::Null,
            members: Vec::new(),
            free: Vec::new(),
            returned: VecDeque::new(),
            is_ready: false,
            orphaned_ns: None,
        })
    }

    pub fn add_member(&mut self, worker: Uid, number: usize) {
        if !self.has_member(worker) {
            self.members.push((worker, number));
        }
        self.orphaned_ns = None;
    }

    pub fn has_member(&self, worker: Uid) -> bool {
        self.members.iter().any(|&(member, _)| member == worker)
    }

    pub fn set_free(&mut self, worker: Uid) {
        let member = self.members.iter().find(|&&(member, _)| member == worker);
        if let Some(&member) = member.filter(|member| !self.free.contains(member)) {
            self.free.push(member);
        }
    }

    pub fn set_busy(&mut self, worker: Uid) {
        self.free.retain(|&(free, _)| free != worker);
    }

    pub fn remove_member(&mut self, worker: Uid, now_ns: u64) {
        let before = self.members.len();
        self.members.retain(|&(member, _)| member != worker);
        self.set_busy(worker);
        if self.members.is_empty() && before > 0 {
            self.orphaned_ns = Some(now_ns);
        }
    }

    /// There may be a connection, and somebody is free to have it.
    pub fn can_give(&self) -> bool {
        !self.free.is_empty() && (self.is_ready || !self.returned.is_empty())
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // Somebody may have removed it.
            let _ = fs::remove_file(file);
        }
    }
}

fn bind(address: SocketAddr, query: &Query) -> std::io::Result<(Socket, Address)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(query.is_ipv6_only())?;
    }
    socket.set_nonblocking(true)?;
    // Inherited by every connection; one of our own servers asks for it, and Node sets it itself (tcp(7)).
    socket.set_tcp_nodelay(query.no_delay == true)?;
    socket.bind(&address.into())?;
    let bound = socket.local_addr()?.as_socket().expect("a TCP socket has an IP address");
    Ok((socket, Address::Ip(bound)))
}

/// As with Node, a file that is there already is a taken address, whoever has left it.
fn bind_unix(path: &Path) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    Ok(socket)
}

fn is_abstract(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().first() == Some(&0)
}

/// A socket that we were started with, as systemd's socket activation does.
fn take(fd: OwnedFd) -> nix::Result<(Socket, Address)> {
    let socket = Socket::from(fd);
    let prepare = || {
        if socket.r#type()? != Type::STREAM {
            return Err(Errno::ENOTSUP.into());
        }
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let unix = || {
            address.as_unix().map(|_| Address::Path(address.as_pathname().unwrap_or(Path::new("?")).into()))
        };
        let address = address.as_socket().map(Address::Ip).or_else(unix);
        address.ok_or_else(|| std::io::Error::from(Errno::ENOTSUP))
    };
    let address = prepare().map_err(errno_of)?;
    Ok((socket, address))
}

pub(super) fn errno_of(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}
