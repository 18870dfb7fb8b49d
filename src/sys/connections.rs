//! The connections of an address on which somebody listens, as sock_diag(7) lists them.

use std::net::SocketAddr;

use nix::sys::socket::AddressFamily;

use crate::sys::sock_diag::{ANY_CONNECTION, CLOSE_WAIT, ESTABLISHED, Extra, TIME_WAIT, tcp_sockets, unix_sockets};

/// One connection, of TCP or of a Unix socket.
pub struct Connection {
    pub key: Key,
    /// Of the socket: it has another one in TIME_WAIT.
    pub cookie: u64,
    /// 0 when nobody has accepted it.
    pub inode: u32,
    /// Not in TIME_WAIT.
    pub is_alive: bool,
    /// Bytes that wait to be read.
    pub received: u32,
    /// Of TCP, where they are asked for.
    pub data_segments: u32,
}

/// Its addresses, ours first, or the inode of the client's Unix socket.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    Tcp(SocketAddr, SocketAddr),
    Unix(u32),
}

/// Of the address of a [`crate::sys::sock_diag::Listener`].
pub fn connections_of(address: &str, extra: Extra) -> Vec<Connection> {
    match address.parse() {
        Ok(address) => of_tcp(address, extra),
        Err(_) => of_unix(address.trim_start_matches("unix:")),
    }
}

/// With those in TIME_WAIT on either side of a loopback connection.
fn of_tcp(address: SocketAddr, extra: Extra) -> Vec<Connection> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let (any, port) = (address.ip().is_unspecified(), address.port());
    let ours = tcp_sockets(family, ANY_CONNECTION, port, 0, extra).unwrap_or_default();
    let closed_by_clients = tcp_sockets(family, 1 << TIME_WAIT, 0, port, Extra::Nothing).unwrap_or_default();
    let ours = ours.into_iter().map(|socket| (socket.local, socket.remote, socket));
    let theirs = closed_by_clients.into_iter().map(|socket| (socket.remote, socket.local, socket));
    let of_address = ours.chain(theirs).filter(|(local, ..)| any || local.ip() == address.ip());
    let connection = of_address.filter_map(|(local, remote, socket)| {
        let is_open = matches!(socket.state, ESTABLISHED | CLOSE_WAIT);
        // Without an inode these were closed by their owner, or are not yet established.
        let is_alive = is_open || (socket.inode != 0 && socket.state != TIME_WAIT);
        (is_alive || socket.state == TIME_WAIT).then_some(Connection {
            key: Key::Tcp(local, remote),
            cookie: socket.cookie,
            inode: socket.inode,
            is_alive,
            received: socket.received,
            data_segments: socket.data_segments,
        })
    });
    connection.collect()
}

/// An accepted Unix socket has the name of its listener.
fn of_unix(name: &str) -> Vec<Connection> {
    let all = unix_sockets().unwrap_or_default().into_iter();
    let accepted = all.filter(|socket| socket.state == ESTABLISHED && socket.name == name);
    let connection = accepted.map(|socket| Connection {
        key: Key::Unix(socket.peer),
        cookie: u64::from(socket.peer),
        inode: socket.inode,
        is_alive: true,
        received: socket.received,
        data_segments: 0,
    });
    connection.collect()
}
