//! One listening socket of the program, and the workers that get its connections.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use serde_json::Value;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::poller::UniqueId;
use super::protocol::{Address, ListenTarget, Query, is_abstract};
use crate::server::ipc::connection_head;
use crate::sys::errno_of;
use crate::sys::fd::take_inherited;

/// Bytes of `sun_path` (unix(7)).
const ABSTRACT_LENGTH: usize = 108;

/// What all calls of `listen()` with the same key share.
pub struct ListeningSocket {
    pub key: String,
    /// The message that each of its connections comes with, up to its number.
    pub connection_head: String,
    _file: Option<SocketFile>,
    pub socket: Arc<OwnedFd>,
    /// The address in use, with the port that the kernel chose.
    pub address: Address,
    pub data: Value,
    /// The workers that have called `listen()`, with their numbers.
    pub members: Vec<(UniqueId, usize)>,
    /// Those that can be given a connection, in the order in which they became free.
    pub free: Vec<(UniqueId, usize)>,
    /// Accepted, and to be given again.
    pub returned: VecDeque<Arc<OwnedFd>>,
    pub is_ready: bool,
    /// The time since which it has no member, and its connections wait for a successor.
    pub orphaned_ns: Option<u64>,
    pub closed_by: Option<UniqueId>,
}

impl ListeningSocket {
    /// Binds the address that the program asks for, with the options that Node sets; or takes a socket that we were
    /// started with.
    pub fn bind(query: &Query, key: String, inherited: &mut Inherited) -> nix::Result<ListeningSocket> {
        let mut file = None;
        let (socket, address): (Arc<OwnedFd>, Address) = match query.target()? {
            ListenTarget::Ip(candidates) => {
                let mut bound = Err(Errno::EINVAL);
                for address in candidates {
                    bound = bind(address, query).map_err(errno_of);
                    if bound.is_ok() {
                        break;
                    }
                }
                let (socket, address) = bound?;
                (Arc::new(socket), address)
            }
            ListenTarget::Path(path) => {
                let socket = bind_unix(&path, query).map_err(errno_of)?;
                file = SocketFile::at(&path);
                (Arc::new(socket), Address::Path(path))
            }
            ListenTarget::Inherited(fd) => inherited.take(fd)?,
        };
        Ok(ListeningSocket {
            connection_head: connection_head(&key),
            key,
            socket,
            address,
            _file: file,
            data: Value::Null,
            members: Vec::new(),
            free: Vec::new(),
            returned: VecDeque::new(),
            is_ready: false,
            orphaned_ns: None,
            closed_by: None,
        })
    }

    pub fn add_member(&mut self, worker: UniqueId, number: usize) {
        if !self.has_member(worker) {
            self.members.push((worker, number));
        }
        self.orphaned_ns = None;
        self.closed_by = None;
    }

    pub fn has_member(&self, worker: UniqueId) -> bool {
        self.members.iter().any(|&(member, _)| member == worker)
    }

    pub fn set_free(&mut self, worker: UniqueId) {
        let member = self.members.iter().find(|&&(member, _)| member == worker);
        if let Some(&member) = member.filter(|member| !self.free.contains(member)) {
            self.free.push(member);
        }
    }

    pub fn set_busy(&mut self, worker: UniqueId) {
        self.free.retain(|&(free, _)| free != worker);
    }

    pub fn remove_member(&mut self, worker: UniqueId, now_ns: u64) {
        let before = self.members.len();
        self.members.retain(|&(member, _)| member != worker);
        self.set_busy(worker);
        if self.members.is_empty() && before > 0 {
            self.orphaned_ns = Some(now_ns);
        }
    }

    pub fn can_give(&self) -> bool {
        !self.free.is_empty() && (self.is_ready || !self.returned.is_empty())
    }
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn bind(address: SocketAddr, query: &Query) -> std::io::Result<(OwnedFd, Address)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(query.is_ipv6_only())?;
    }
    socket.set_nonblocking(true)?;
    // Every connection inherits it; our own servers ask for it, and Node sets it by itself (tcp(7)).
    socket.set_tcp_nodelay(query.no_delay == true)?;
    socket.bind(&address.into())?;
    let bound = socket.local_addr()?.as_socket().expect("a TCP socket has an IP address");
    Ok((socket.into(), Address::Ip(bound)))
}

/// As with Node, a file that exists already is a taken address, even if no process listens there.
fn bind_unix(path: &Path, query: &Query) -> std::io::Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // A path may be longer than an address; from our folder it is shorter, as in Node's primary.
    let folder = std::env::current_dir().unwrap_or_default();
    let mut name = path.strip_prefix(folder).unwrap_or(path).as_os_str().as_bytes().to_vec();
    if is_abstract(path) {
        // Node's library fills an abstract name with NULs up to the full length, and those count (unix(7)).
        name.resize(ABSTRACT_LENGTH.max(name.len()), 0);
    }
    socket.bind(&SockAddr::unix(OsStr::from_bytes(&name))?)?;
    let for_all = query.mode_for_all();
    if for_all != 0 && !is_abstract(path) {
        let mode = fs::symlink_metadata(path)?.permissions().mode();
        fs::set_permissions(path, Permissions::from_mode(mode | for_all))?;
    }
    Ok(socket.into())
}

/// The file of a Unix socket, which is removed before the socket is closed: until then the kernel gives its inode to no
/// other file, so a file with the same device and inode is ours, and one that has taken its place is left alone.
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    pub fn at(path: &Path) -> Option<SocketFile> {
        Some(SocketFile { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path) == Some(self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok().filter(|metadata| metadata.file_type().is_socket())?;
    Some((metadata.dev(), metadata.ino()))
}

/// Sockets that we were started with, as systemd's socket activation does. They are kept: a program that has closed one
/// may want it again, and it cannot be opened anew.
#[derive(Default)]
pub struct Inherited(BTreeMap<RawFd, Arc<OwnedFd>>);

impl Inherited {
    fn take(&mut self, number: RawFd) -> nix::Result<(Arc<OwnedFd>, Address)> {
        let fd = match self.0.entry(number) {
            Entry::Occupied(taken) => Arc::clone(taken.get()),
            Entry::Vacant(place) => Arc::clone(place.insert(Arc::new(take_inherited(number)?))),
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
        Ok((Arc::clone(&fd), address))
    }
}
