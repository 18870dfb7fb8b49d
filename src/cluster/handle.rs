//! One listening socket of the program, and the workers that are to have its connections.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use super::protocol::Query;
use super::token::Uid;

/// What all calls of `listen()` with the same key share.
pub struct Handle {
    pub key: String,
    pub socket: Rc<OwnedFd>,
    /// With the port that the kernel chose.
    pub address: SocketAddr,
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
    /// Binds what the program asks for, with the options that Node sets.
    pub fn bind(query: &Query, key: String) -> nix::Result<Handle> {
        let mut failed = Errno::EINVAL;
        for address in query.addresses()? {
            match bind(address, query) {
                Ok((socket, address)) => {
                    return Ok(Handle {
                        key,
                        socket: Rc::new(socket.into()),
                        address,
                        data: Value::Null,
                        members: Vec::new(),
                        free: Vec::new(),
                        returned: VecDeque::new(),
                        is_ready: false,
                        orphaned_ns: None,
                    });
                }
                Err(error) => failed = error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw),
            }
        }
        Err(failed)
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

fn bind(address: SocketAddr, query: &Query) -> std::io::Result<(Socket, SocketAddr)> {
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
    Ok((socket, bound))
}
