//! Connections of our own to the group. The group's program sends each of them to the socket that we want; so the
//! process that accepts it is the one that this number belongs to, and a connection that nobody accepts is in a queue
//! that does not drain.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::lab::observe::processes::poll_until;
use crate::sys::descriptors::Descriptors;
use crate::sys::sock_diag::{ESTABLISHED, tcp_connection};

/// A worker that is free accepts within this time, also on a busy machine.
pub const ACCEPTED_WITHIN: Duration = Duration::from_millis(500);
/// A server may want a first byte before it accepts (TCP_DEFER_ACCEPT, tcp(7)). It gets an empty line, which a server of
/// HTTP is to ignore (RFC 9112, section 2.2).
const SILENT_FOR: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not yet in a queue.
    Sent,
    /// It stays there, whatever the group's program says from then on.
    Queued,
    /// And perhaps closed again.
    Accepted,
    /// Refused, reset before it was in a queue, or never answered: that says nothing about a worker.
    Failed,
}

/// Bound, and not connected until [`Probe::connect`].
pub struct Probe {
    stream: TcpStream,
    pub ours: SocketAddr,
    server: SocketAddr,
    begun: Instant,
    has_spoken: bool,
    pub state: State,
    /// The inode of the server's end, once somebody has accepted it.
    accepted: Option<u32>,
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
        let (ours, begun) = (stream.local_addr()?, Instant::now());
        Ok(Probe { stream, ours, server, begun, has_spoken: false, state: State::Sent, accepted: None })
    }

    /// On its way through the loopback device the SYN is processed during the call.
    pub fn connect(&mut self) -> io::Result<()> {
        self.begun = Instant::now();
        let socket = socket2::SockRef::from(&self.stream);
        match socket.connect(&self.server.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
            // Nobody listens any more: the next look sees it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            other => other,
        }
    }

    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Whether nobody waits for it any more: it was accepted, or has failed. Until then the server gets an empty line in
    /// time.
    pub fn poll(&mut self) -> nix::Result<bool> {
        if self.is_over() {
            return Ok(true);
        }
        let theirs = tcp_connection(self.server, self.ours)?;
        self.accepted = theirs.map(|socket| socket.inode).filter(|inode| *inode != 0);
        let is_queued = self.state == State::Queued || theirs.is_some_and(|socket| socket.state == ESTABLISHED);
        self.state = match (&self.stream).read(&mut [0]).map_err(|error| error.kind()) {
            _ if self.accepted.is_some() => State::Accepted,
            Err(io::ErrorKind::WouldBlock) if is_queued => State::Queued,
            Err(io::ErrorKind::WouldBlock) => State::Sent,
            Err(io::ErrorKind::ConnectionReset) if is_queued => State::Accepted,
            Err(_) => State::Failed,
            Ok(_) => State::Accepted,
        };
        if !self.is_over() && self.age() > SILENT_FOR && !self.has_spoken {
            self.has_spoken = true;
            // Where there is no connection there is nobody to hear it.
            let _ = (&self.stream).write(b"\r\n");
        }
        Ok(self.is_over())
    }

    /// What [`Probe::poll`] has returned last.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Accepted | State::Failed)
    }
}

/// Until all probes are over or the time is up.
pub fn await_answers(probes: &mut [Probe]) -> nix::Result<()> {
    let mut all_over = || probes.iter_mut().try_fold(true, |all, probe| Ok(probe.poll()? && all));
    let polled = poll_until(ACCEPTED_WITHIN, || match all_over() {
        Ok(false) => None,
        end => Some(end),
    });
    polled.unwrap_or(Ok(false)).map(drop)
}

/// Who of these processes has accepted each of the probes.
pub fn acceptors(probes: &[Probe], pids: &[i32]) -> Vec<Option<i32>> {
    let mut owners: BTreeMap<u32, i32> = BTreeMap::new();
    for &pid in pids {
        owners.extend(Descriptors::of(pid).iter().flat_map(Descriptors::sockets).map(|inode| (inode, pid)));
    }
    probes.iter().map(|probe| owners.get(&probe.accepted?).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_refused_connection_says_nothing_and_one_that_is_closed_was_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let end = |accept: &dyn Fn()| {
            let mut probe = Probe::bind(server, None).unwrap();
            probe.connect().unwrap();
            accept();
            poll_until(ACCEPTED_WITHIN, || probe.poll().unwrap().then_some(probe.state))
        };
        assert_eq!(end(&|| drop(listener.accept().unwrap())), Some(State::Accepted));
        drop(listener);
        assert_eq!(end(&|| ()), Some(State::Failed));
    }
}
