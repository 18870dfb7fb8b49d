//! The connections of an address on which somebody listens, as sock_diag(7) lists them.

use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::AddressFamily;

use crate::sys::sock_diag::{
    ANY_CONNECTION, CLOSE_WAIT, ESTABLISHED, Extra, LISTEN, TIME_WAIT, TcpSocket, tcp_sockets, unix_sockets,
};

/// One connection, of TCP or of a Unix socket.
pub struct Connection {
    pub key: Key,
    /// The number of the socket, which has another one in TIME_WAIT.
    pub cookie: u64,
    /// 0 when nobody has accepted it.
    pub inode: u32,
    /// Not in TIME_WAIT.
    pub is_alive: bool,
    /// Bytes that wait to be read.
    pub received: u32,
    /// The segments with data that TCP has received, where they are asked for.
    pub data_segments: u32,
}

/// Its addresses, ours first, or the inode of the client's Unix socket.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    Tcp(SocketAddr, SocketAddr),
    Unix(u32),
}

/// The connections of the address of a [`crate::sys::sock_diag::Listener`].
///
/// # Errors
/// Those of [`tcp_sockets`], and for a path those of [`unix_sockets`].
pub fn connections_of(address: &str, extra: Extra) -> nix::Result<Vec<Connection>> {
    match address.parse() {
        Ok(address) => of_tcp(address, extra),
        Err(_) => of_unix(address.trim_start_matches("unix:")),
    }
}

/// The connections of a TCP address, with those in TIME_WAIT on either side of a connection within this machine.
fn of_tcp(address: SocketAddr, extra: Extra) -> nix::Result<Vec<Connection>> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let (any, port) = (address.ip().is_unspecified(), address.port());
    let sockets = |states, local_port, remote_port, extra| {
        tcp_sockets(family, states, local_port, remote_port, extra).map(Vec::into_iter)
    };
    let ours = sockets(ANY_CONNECTION, port, 0, extra)?.map(|socket| (socket.local, socket.remote, socket));
    let closed_by_clients = sockets(1 << TIME_WAIT, 0, port, Extra::Nothing)?;
    // Any address would also mean the servers of other machines that our clients have asked.
    let is_within = |socket: &TcpSocket| !any || socket.local.ip() == socket.remote.ip();
    let theirs = closed_by_clients.filter(is_within).map(|socket| (socket.remote, socket.local, socket));
    // The kernel prefers a listener at one address to one at any.
    let preferred: Vec<IpAddr> = match any {
        true => sockets(1 << LISTEN, port, 0, Extra::Nothing)?.map(|listener| listener.local.ip()).collect(),
        false => Vec::new(),
    };
    let is_meant = |ip: IpAddr| if any { !preferred.contains(&ip) } else { ip == address.ip() };
    let of_address = ours.chain(theirs).filter(|(local, ..)| is_meant(local.ip()));
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
    Ok(connection.collect())
}

/// An accepted Unix socket has the name of its listener.
fn of_unix(name: &str) -> nix::Result<Vec<Connection>> {
    let all = unix_sockets()?.into_iter();
    let accepted = all.filter(|socket| socket.state == ESTABLISHED && socket.name == name);
    let connection = accepted.map(|socket| Connection {
        key: Key::Unix(socket.peer),
        cookie: u64::from(socket.peer),
        inode: socket.inode,
        is_alive: true,
        received: socket.received,
        data_segments: 0,
    });
    Ok(connection.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{Shutdown, TcpListener, TcpStream};

    /// Those between these two; the ports may have been another test's before.
    fn between(listener: &str, local: SocketAddr, remote: SocketAddr) -> Vec<Connection> {
        let all = connections_of(listener, Extra::Nothing).unwrap().into_iter();
        all.filter(|connection| connection.key == Key::Tcp(local, remote)).collect()
    }

    #[test]
    fn a_connection_belongs_to_the_listener_at_its_address_and_not_to_the_one_at_any() {
        let exact = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = exact.local_addr().unwrap();
        let client = TcpStream::connect(there).unwrap();
        let here = client.local_addr().unwrap();
        assert_eq!(between(&there.to_string(), there, here).len(), 1);
        assert_eq!(between(&format!("0.0.0.0:{}", there.port()), there, here).len(), 0);
    }

    #[test]
    fn a_connection_that_its_client_has_closed_first_is_one_of_the_listener_at_any_address() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut server, here) = listener.accept().unwrap();
        let there = client.peer_addr().unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        server.read_to_end(&mut Vec::new()).unwrap();
        drop(server);
        let found = between(&format!("0.0.0.0:{port}"), there, here);
        assert!(matches!(found[..], [Connection { is_alive: false, .. }]), "{}", found.len());
    }
}
