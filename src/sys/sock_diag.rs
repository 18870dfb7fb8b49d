//! sock_diag(7): what the kernel tells of sockets, whoever owns them, over netlink(7). `ss` reads the same. No right is
//! needed; only the sockets of our own network namespace are listed.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};
use serde::{Deserialize, Serialize};

/// States of a TCP socket (include/net/tcp_states.h).
pub const ESTABLISHED: u8 = 1;
pub const TIME_WAIT: u8 = 6;
pub const CLOSE_WAIT: u8 = 8;
pub const LISTEN: u8 = 10;

/// All that a connection can be in, from its first SYN to the end of TIME_WAIT.
pub const ANY_CONNECTION: u32 = !(1 << LISTEN | 1);

/// A TCP socket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TcpSocket {
    pub state: u8,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Distinguishes it from all other sockets of the machine, also from later ones with the same addresses.
    pub cookie: u64,
    /// Bytes received and not read; of a listening socket the connections that nobody has accepted.
    pub received: u32,
    /// Bytes sent and not acknowledged; of a listening socket its backlog.
    pub sent: u32,
    pub uid: u32,
    /// 0 when no process has a descriptor of it: nobody has accepted it yet, or it was closed.
    pub inode: u32,
    /// A listening IPv6 socket that takes no IPv4 connections.
    pub is_v6_only: bool,
    /// Packets dropped by this socket; only where [`Extra::Drops`] asks for it.
    pub drops: u32,
    /// Segments with data received; only where [`Extra::Segments`] asks for it.
    pub data_segments: u32,
}

/// What the kernel is to add to each socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    Nothing,
    Drops,
    Segments,
}

/// A Unix socket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UnixSocket {
    pub state: u8,
    pub inode: u32,
    /// The inode of the other end; 0 for none.
    pub peer: u32,
    /// The path; of an abstract one with `@` in front.
    pub name: String,
    /// As [`TcpSocket::received`] and [`TcpSocket::sent`].
    pub received: u32,
    pub sent: u32,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;

/// `struct inet_diag_msg`, and the attributes behind it (linux/inet_diag.h).
const INET_MESSAGE: usize = 72;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_SKMEMINFO: u16 = 7;
const INET_DIAG_SKV6ONLY: u16 = 11;
/// `SK_MEMINFO_DROPS`, the ninth number of the attribute.
const DROPS_AT: usize = 8 * 4;
/// `tcpi_data_segs_in` of `struct tcp_info`.
const DATA_SEGMENTS_AT: usize = 152;

/// `struct unix_diag_msg` and its attributes (linux/unix_diag.h).
const UNIX_MESSAGE: usize = 16;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_RQLEN: u16 = 4;
const UDIAG_SHOW_NAME: u32 = 1;
const UDIAG_SHOW_PEER: u32 = 4;
const UDIAG_SHOW_RQLEN: u32 = 16;

/// The TCP sockets of a family (`AF_INET` or `AF_INET6`) in one of these states, a bit for each. A port of 0 is any.
///
/// # Errors
/// ENOENT or EAFNOSUPPORT where the kernel does not have or not list this family, EPROTONOSUPPORT where it lists no
/// sockets at all; EMFILE without a descriptor left for the question.
pub fn tcp_sockets(
    family: AddressFamily,
    states: u32,
    local_port: u16,
    remote_port: u16,
    extra: Extra,
) -> nix::Result<Vec<TcpSocket>> {
    let family = family as u8;
    let mut found = Vec::new();
    let request = inet_request(family, states, extra, local_port, remote_port, &[0; 44]);
    dump(&request, |message| found.extend(parse_tcp(message)))?;
    Ok(found)
}

/// The socket bound to `local` and connected to `remote`, if there is one. The kernel finds it by its hash; a list of
/// connections costs a walk through all of the machine.
///
/// # Errors
/// EPROTONOSUPPORT where the kernel lists no sockets, EMFILE without a descriptor left for the question.
pub fn tcp_connection(local: SocketAddr, remote: SocketAddr) -> nix::Result<Option<TcpSocket>> {
    let address = |end: SocketAddr| match end.ip() {
        IpAddr::V4(ip) => [&ip.octets()[..], &[0; 12]].concat(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    // The number of an interface belongs to a link-local address; all ones is any cookie.
    let interface = if let SocketAddr::V6(local) = local { local.scope_id() } else { 0 };
    let rest = [address(local), address(remote), interface.to_ne_bytes().to_vec(), vec![0xff; 8]].concat();
    let rest: &[u8; 44] = rest.as_slice().try_into().expect("two of 16 bytes, 4 and 8");
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
    let request = inet_request(family, u32::MAX, Extra::Nothing, local.port(), remote.port(), rest);
    let kernel = ask(&request, NLM_F_REQUEST)?;
    let mut reply = [0; 1024];
    let length = recv(kernel.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    let mut found = None;
    // An error means that there is none.
    let _ = messages(&reply[..length], &mut |message| found = parse_tcp(message));
    // Without a connection the kernel finds the listener.
    Ok(found.filter(|socket| socket.state != LISTEN))
}

/// All Unix sockets that listen, and all that are connected; none where the kernel lacks the module that lists them.
///
/// # Errors
/// As [`tcp_connection`].
pub fn unix_sockets() -> nix::Result<Vec<UnixSocket>> {
    let show = UDIAG_SHOW_NAME | UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN;
    let states: u32 = 1 << ESTABLISHED | 1 << LISTEN;
    let request = [&[libc::AF_UNIX as u8, 0, 0, 0][..], &states.to_ne_bytes(), &[0; 4], &show.to_ne_bytes(), &[0; 8]];
    let mut found = Vec::new();
    match dump(&request.concat(), |message| found.extend(parse_unix(message))) {
        Err(errno) if !is_without(errno) => Err(errno),
        _ => Ok(found),
    }
}

/// A socket that listens.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    pub inode: u32,
    /// `127.0.0.1:8080`, `[::]:8080`, `unix:/run/x.sock`.
    pub address: String,
    /// IPv6 and IPv4 at once.
    #[serde(default)]
    pub is_dual: bool,
    /// Connections that nobody has accepted.
    pub queued: u32,
    /// The kernel takes one connection more than this.
    pub backlog: u32,
    /// Connections and packets that it has dropped, since it began to listen.
    pub drops: u32,
    pub uid: u32,
}

impl Listener {
    /// `None` for a Unix socket.
    pub fn ip(&self) -> Option<SocketAddr> {
        self.address.parse().ok()
    }
}

/// All sockets of this network namespace that listen.
///
/// # Errors
/// As [`tcp_sockets`], for IPv4.
pub fn listeners() -> nix::Result<Vec<Listener>> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let sockets = match tcp_sockets(family, 1 << LISTEN, 0, 0, Extra::Drops) {
            Err(errno) if family == AddressFamily::Inet6 && is_without(errno) => Vec::new(),
            sockets => sockets?,
        };
        found.extend(sockets.into_iter().map(|socket| Listener {
            inode: socket.inode,
            address: socket.local.to_string(),
            is_dual: socket.local.is_ipv6() && !socket.is_v6_only && socket.local.ip().is_unspecified(),
            queued: socket.received,
            backlog: socket.sent,
            drops: socket.drops,
            uid: socket.uid,
        }));
    }
    let unix = unix_sockets()?.into_iter().filter(|socket| socket.state == LISTEN);
    found.extend(unix.map(|socket| Listener {
        inode: socket.inode,
        address: format!("unix:{}", socket.name),
        queued: socket.received,
        backlog: socket.sent,
        ..Listener::default()
    }));
    Ok(found)
}

/// A kernel without IPv6, or without the module that lists Unix sockets: the others are enough.
fn is_without(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::EAFNOSUPPORT)
}

/// Whether somebody listens on this port in the network namespace of a process. Netlink answers for our own only, so
/// the tables of proc_pid_net(5) are read: local address, remote address, state, of which 0A listens.
pub fn listens_in_network_of(pid: i32, port: u16) -> bool {
    let of_port = format!(":{port:04X} ");
    ["tcp", "tcp6"].iter().any(|table| {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        text.lines().any(|line| line.contains(&of_port) && line.split_whitespace().nth(3) == Some("0A"))
    })
}

/// `struct inet_diag_req_v2`; `rest` is what follows the ports: two addresses, the interface, the cookie.
fn inet_request(family: u8, states: u32, extra: Extra, local_port: u16, remote_port: u16, rest: &[u8; 44]) -> Vec<u8> {
    let extra = match extra {
        Extra::Nothing => 0,
        Extra::Drops => 1 << (INET_DIAG_SKMEMINFO - 1),
        Extra::Segments => 1 << (INET_DIAG_INFO - 1),
    };
    [
        &[family, libc::IPPROTO_TCP as u8, extra, 0][..],
        &states.to_ne_bytes(),
        &local_port.to_be_bytes(),
        &remote_port.to_be_bytes(),
        rest,
    ]
    .concat()
}

/// Sends a request to the kernel, which answers on the socket that is returned.
fn ask(request: &[u8], flags: u16) -> nix::Result<OwnedFd> {
    let kernel = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    let length = (HEADER + request.len()) as u32;
    let header =
        [&length.to_ne_bytes()[..], &SOCK_DIAG_BY_FAMILY.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8], request];
    sendto(kernel.as_raw_fd(), &header.concat(), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(kernel)
}

/// Asks for many sockets and calls `each` with every message, without its header.
fn dump(request: &[u8], mut each: impl FnMut(&[u8])) -> nix::Result<()> {
    let kernel = ask(request, NLM_F_REQUEST | NLM_F_DUMP)?;
    // The kernel fills what the reader offers, up to 32 KiB (`netlink_recvmsg` in net/netlink/af_netlink.c).
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let length = recv(kernel.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if length == 0 || !messages(&buffer[..length], &mut each)? {
            return Ok(());
        }
    }
}

/// Calls `each` for the messages of a reply. False behind the last of a dump.
fn messages(mut reply: &[u8], each: &mut impl FnMut(&[u8])) -> nix::Result<bool> {
    while reply.len() >= HEADER {
        let length = (number(reply, 0) as usize).clamp(HEADER, reply.len());
        let message = &reply[HEADER..length];
        match u16::from_ne_bytes([reply[4], reply[5]]) {
            SOCK_DIAG_BY_FAMILY => each(message),
            // Both carry a negative errno, or 0: a dump may fail at its end, too.
            NLMSG_DONE | NLMSG_ERROR => {
                let errno = (number(message, 0) as i32).wrapping_neg();
                return if errno > 0 { Err(Errno::from_raw(errno)) } else { Ok(false) };
            }
            _ => {}
        }
        reply = &reply[length.next_multiple_of(4).min(reply.len())..];
    }
    Ok(true)
}

fn parse_tcp(message: &[u8]) -> Option<TcpSocket> {
    let is_v6 = i32::from(*message.first()?) == libc::AF_INET6;
    if message.len() < INET_MESSAGE {
        return None;
    }
    let interface = number(message, 40);
    let address = |address_at: usize, port_at: usize| {
        let port = u16::from_be_bytes([message[port_at], message[port_at + 1]]);
        let octets: [u8; 16] = message[address_at..address_at + 16].try_into().expect("16 bytes");
        if is_v6 {
            let ip = Ipv6Addr::from(octets);
            let scope = if ip.is_unicast_link_local() { interface } else { 0 };
            return SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope));
        }
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3])), port)
    };
    let mut socket = TcpSocket {
        state: message[1],
        local: address(8, 4),
        remote: address(24, 6),
        cookie: u64::from(number(message, 44)) | u64::from(number(message, 48)) << 32,
        received: number(message, 56),
        sent: number(message, 60),
        uid: number(message, 64),
        inode: number(message, 68),
        is_v6_only: false,
        drops: 0,
        data_segments: 0,
    };
    for (kind, value) in attributes(&message[INET_MESSAGE..]) {
        match kind {
            INET_DIAG_SKMEMINFO => socket.drops = number(value, DROPS_AT),
            INET_DIAG_INFO => socket.data_segments = number(value, DATA_SEGMENTS_AT),
            INET_DIAG_SKV6ONLY => socket.is_v6_only = value.first() == Some(&1),
            _ => {}
        }
    }
    Some(socket)
}

fn parse_unix(message: &[u8]) -> Option<UnixSocket> {
    if message.len() < UNIX_MESSAGE {
        return None;
    }
    let mut socket = UnixSocket { state: message[2], inode: number(message, 4), ..UnixSocket::default() };
    for (kind, value) in attributes(&message[UNIX_MESSAGE..]) {
        match kind {
            UNIX_DIAG_NAME => {
                let (mark, name) = if value.first() == Some(&0) { ("@", &value[1..]) } else { ("", value) };
                socket.name = format!("{mark}{}", String::from_utf8_lossy(name).trim_end_matches('\0'));
            }
            UNIX_DIAG_PEER => socket.peer = number(value, 0),
            UNIX_DIAG_RQLEN => (socket.received, socket.sent) = (number(value, 0), number(value, 4)),
            _ => {}
        }
    }
    Some(socket)
}

/// Kind and value of each attribute (`struct nlattr`).
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]);
        let value = bytes.get(4..length)?;
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
        Some((kind, value))
    })
}

/// The number at this place; 0 where the kernel has sent less.
fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |bytes| u32::from_ne_bytes(bytes.try_into().expect("four bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn listening(local: SocketAddr) -> TcpSocket {
        let family = if local.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let found = tcp_sockets(family, 1 << LISTEN, local.port(), 0, Extra::Drops).unwrap();
        *found.iter().find(|socket| socket.local == local).expect("it listens")
    }

    #[test]
    fn a_listener_has_its_queue_and_its_backlog() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let _clients = [(); 2].map(|()| TcpStream::connect(local).unwrap());
        let socket = listening(local);
        assert_eq!((socket.received, socket.drops, socket.state), (2, 0, LISTEN));
        assert!(socket.sent > 0 && socket.inode > 0 && socket.cookie > 0, "{socket:?}");
        listener.accept().unwrap();
        assert_eq!(listening(local).received, 1);
    }

    #[test]
    fn what_nobody_has_accepted_has_no_inode() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let client = TcpStream::connect(local).unwrap();
        // The port may have been another test's before.
        let remote_port = client.local_addr().unwrap().port();
        let find = || {
            let states = ANY_CONNECTION & !(1 << TIME_WAIT);
            tcp_sockets(AddressFamily::Inet, states, local.port(), remote_port, Extra::Segments).unwrap()
        };
        assert!(matches!(find()[..], [TcpSocket { inode: 0, state: ESTABLISHED, .. }]));
        let (mut server, _) = listener.accept().unwrap();
        (&client).write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        assert!(matches!(find()[..], [TcpSocket { inode: 1.., data_segments: 1, .. }]), "{:?}", find());
    }

    #[test]
    fn what_was_sent_is_in_the_other_ends_queue_until_it_is_read() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(any) else { return eprintln!("no {any} here") };
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (there, here) = (listener.local_addr().unwrap(), client.local_addr().unwrap());
            let mut server = listener.accept().unwrap().0;
            client.write_all(b"abc").unwrap();
            server.peek(&mut [0]).unwrap();
            assert_eq!(tcp_connection(there, here).unwrap().unwrap().received, 3);
            server.read_exact(&mut [0; 3]).unwrap();
            assert_eq!(tcp_connection(there, here).unwrap().unwrap().received, 0);
            assert!(tcp_connection(there, there).unwrap().is_none());
        }
    }

    #[test]
    fn a_dump_that_fails_at_its_end_is_a_failure() {
        let end =
            |errno: i32| [&20u32.to_ne_bytes()[..], &NLMSG_DONE.to_ne_bytes(), &[0; 10], &errno.to_ne_bytes()].concat();
        assert_eq!(messages(&end(0), &mut |_| ()), Ok(false));
        assert_eq!(messages(&end(-libc::ENOENT), &mut |_| ()), Err(Errno::ENOENT));
    }

    #[test]
    fn a_listener_for_both_families_says_so() {
        let Ok(listener) = TcpListener::bind("[::]:0") else { return eprintln!("no IPv6 here") };
        assert!(!listening(listener.local_addr().unwrap()).is_v6_only);
    }

    #[test]
    fn a_unix_socket_has_a_name_a_queue_and_a_peer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let all = unix_sockets().unwrap();
        let ours = all.iter().find(|socket| socket.name == path.to_str().unwrap() && socket.state == LISTEN);
        assert_eq!(ours.expect("it listens").received, 1, "{ours:?}");
        let (one, _other) = UnixStream::pair().unwrap();
        let all = unix_sockets().unwrap();
        let inode = std::fs::read_link(format!("/proc/self/fd/{}", one.as_raw_fd())).unwrap();
        let inode = inode.to_str().unwrap().trim_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap();
        assert!(all.iter().any(|socket| socket.peer == inode), "{inode}");
        drop(listener);
    }
}
