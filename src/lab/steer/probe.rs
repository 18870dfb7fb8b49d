//! Connections of our own to the group. The group's program sends each of them to the socket that we want; so the
//! process that accepts it is the one that this number belongs to, and a connection that nobody accepts is in a queue
//! that does not drain.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::socket::AddressFamily;
use socket2::{Domain, Socket, Type};

use crate::lab::observe::processes::poll_until;
use crate::sys::descriptors::Descriptors;
use crate::sys::sock_diag::{ANY_CONNECTION, Extra, tcp_sockets};

/// A worker that is free accepts within this time, also on a busy machine.
pub const ACCEPTED_WITHIN: Duration = Duration::from_millis(500);
/// A server may want a first byte before it accepts (TCP_DEFER_ACCEPT, tcp(7)). It gets an empty line, which a server of
/// HTTP is to ignore (RFC 9112, section 2.2).
const SILENT_FOR: Duration = Duration::from_millis(100);

/// Bound, and not connected until [`Probe::connect`].
pub struct Probe {
    stream: TcpStream,
    ours: SocketAddr,
    server: SocketAddr,
    begun: Instant,
    has_spoken: Cell<bool>,
}

impl Probe {
    /// From this address of ours; from a new one where it is absent.
    pub fn bind(server: SocketAddr, ours: Option<SocketAddr>) -> io::Result<Probe> {
        let ip = match server.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let mut server = server;
        server.set_ip(ip);
        let mut from = server;
        from.set_port(0);
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // Closing it is a reset, so neither side keeps it in TIME_WAIT, and the address is free again.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.bind(&ours.unwrap_or(from).into())?;
        let stream = TcpStream::from(socket);
        Ok(Probe { ours: stream.local_addr()?, stream, server, begun: Instant::now(), has_spoken: Cell::new(false) })
    }

    pub fn ours(&self) -> SocketAddr {
        self.ours
    }

    /// On its way through the loopback device the SYN is processed during the call.
    pub fn connect(&mut self) -> io::Result<()> {
        self.begun = Instant::now();
        let socket = socket2::SockRef::from(&self.stream);
        match socket.connect(&self.server.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
            other => other,
        }
    }

    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The inode of the server's end, once somebody has accepted it.
    pub fn inode(&self) -> Option<u32> {
        let family = if self.server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let (theirs, ours) = (self.server.port(), self.ours.port());
        let found = tcp_sockets(family, ANY_CONNECTION, theirs, ours, Extra::Nothing).unwrap_or_default();
        let it = found.iter().find(|socket| socket.remote.ip() == self.ours.ip() && socket.inode != 0);
        if it.is_none() && self.age() > SILENT_FOR && !self.has_spoken.replace(true) {
            // Where there is no connection there is nobody to hear it.
            let _ = (&self.stream).write(b"\r\n");
        }
        it.map(|socket| socket.inode)
    }

    /// Nobody waits for it any more: it was accepted, and perhaps closed again.
    pub fn is_over(&self) -> bool {
        let is_waiting = |error: io::Error| error.kind() == io::ErrorKind::WouldBlock;
        self.inode().is_some() || !(&self.stream).read(&mut [0]).is_err_and(is_waiting)
    }
}

/// Who has accepted each of the probes, as soon as all are accepted or the time is up.
pub fn acceptors<'a>(probes: impl IntoIterator<Item = &'a Probe>, pids: &[i32]) -> Vec<Option<i32>> {
    let probes: Vec<&Probe> = probes.into_iter().collect();
    let mut inodes: Vec<Option<u32>> = vec![None; probes.len()];
    poll_until(ACCEPTED_WITHIN, || {
        for (inode, probe) in inodes.iter_mut().zip(&probes).filter(|(inode, _)| inode.is_none()) {
            *inode = probe.inode();
        }
        inodes.iter().all(Option::is_some).then_some(())
    });
    let mut owners: BTreeMap<u32, i32> = BTreeMap::new();
    for &pid in pids {
        let sockets = Descriptors::of(pid).map(|found| found.sockets().collect::<Vec<_>>()).unwrap_or_default();
        owners.extend(sockets.into_iter().filter(|inode| inodes.contains(&Some(*inode))).map(|inode| (inode, pid)));
    }
    inodes.iter().map(|inode| owners.get(inode.as_ref()?).copied()).collect()
}
