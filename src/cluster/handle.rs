//! One listening socket of the program, and the workers that are to have its connections.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use serde_json::Value;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

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
    /// The file of a Unix socket, which goes with it; and which file that is.
    file: Option<(PathBuf, (u64, u64))>,
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
    pub fn bind(query: &Query, key: String, inherited: &mut Inherited) -> nix::Result<Handle> {
        let mut file = None;
        let (socket, address): (Rc<OwnedFd>, Address) = match query.target()? {
            Target::Ip(candidates) => {
                let mut bound = Err(Errno::EINVAL);
                for address in candidates {
                    bound = bind(address, query).map_err(errno_of);
                    if bound.is_ok() {
                        break;
                    }
                }
                let (socket, address) = bound?;
                (Rc::new(socket), address)
            }
            Target::Path(path) => {
                let socket = bind_unix(&path, query).map_err(errno_of)?;
                file = identity(&path).map(|ours| (path.clone(), ours));
                (Rc::new(socket), Address::Path(path))
            }
            Target::Inherited(fd) => inherited.take(fd)?,
        };
        Ok(Handle {
            connection_head: connection_head(&key),
            key,
            socket,
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
        // Somebody may have removed it, and put another in its place: that is not ours.
        if let Some((file, ours)) = &self.file
            && identity(file) == Some(*ours)
        {
            let _ = fs::remove_file(file);
        }
    }
}

fn bind(address: SocketAddr, query: &Query) -> std::io::Result<(OwnedFd, Address)> {
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
    Ok((socket.into(), Address::Ip(bound)))
}

/// As with Node, a file that is there already is a taken address, whoever has left it.
fn bind_unix(path: &Path, query: &Query) -> std::io::Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let for_all = query.mode_for_all();
    if for_all != 0 {
        let mode = fs::symlink_metadata(path)?.permissions().mode();
        fs::set_permissions(path, Permissions::from_mode(mode | for_all))?;
    }
    Ok(socket.into())
}

/// Device and inode of a socket's file, and of nothing else.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok().filter(|metadata| metadata.file_type().is_socket())?;
    Some((metadata.dev(), metadata.ino()))
}

/// Sockets that we were started with, as systemd's socket activation does. They are kept: a program that has closed one
/// may want it again, and nobody could open it for us.
#[derive(Default)]
pub struct Inherited(BTreeMap<RawFd, Rc<OwnedFd>>);

impl Inherited {
    fn take(&mut self, number: RawFd) -> nix::Result<(Rc<OwnedFd>, Address)> {
        let fd = match self.0.entry(number) {
            Entry::Occupied(taken) => Rc::clone(taken.get()),
            Entry::Vacant(place) => Rc::clone(place.insert(Rc::new(take_inherited(number)?))),
        };
        let socket = SockRef::from(&fd);
        let prepare = || {
            if socket.r#type()? != Type::STREAM {
                return Err(Errno::ENOTSUP.into());
            }
            socket.set_nonblocking(true)?;
            let address = socket.local_addr()?;
            let ip = address.as_socket().map(Address::Ip);
            let path = || address.as_pathname().map(|path| Address::Path(path.into()));
            ip.or_else(path).ok_or_else(|| std::io::Error::from(Errno::ENOTSUP))
        };
        let address = prepare().map_err(errno_of)?;
        Ok((Rc::clone(&fd), address))
    }
}

pub(super) fn errno_of(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}
