//! The bytes in a connection's two queues, from the kernel (sock_diag(7)): sent and not acknowledged, received and not read.
//! The same numbers are in `/proc/net/tcp`, but that takes longer the more connections the machine has had: half a second
//! after a busy minute.

use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

/// `struct inet_diag_msg` and the `struct nlmsghdr` in front of it, up to the fields wanted here.
const STATE_AT: usize = 16 + 1;
const RECEIVED_AT: usize = 16 + 56;
const SENT_AT: usize = 16 + 60;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_BYTES: u32 = 72;
const ALL_STATES: u32 = u32::MAX;
const TCP_LISTEN: u8 = 10;

/// Bytes in the two queues of one end of a connection.
pub struct Queues {
    pub received: u32,
    pub sent: u32,
}

/// The queues of the socket bound to `local` and connected to `remote`. `None` when the kernel knows no such connection;
/// an error when it cannot be asked (it was built without INET_DIAG).
pub fn queues(local: SocketAddrV4, remote: SocketAddrV4) -> nix::Result<Option<Queues>> {
    let kernel = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    sendto(kernel.as_raw_fd(), &request(local, remote), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut reply = [0; 512];
    let length = recv(kernel.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    let is_found = length >= SENT_AT + 4 && reply[4..6] == SOCK_DIAG_BY_FAMILY.to_ne_bytes();
    // Without a connection the kernel finds the listener, whose queues count something else.
    if !is_found || reply[STATE_AT] == TCP_LISTEN {
        return Ok(None);
    }
    let number = |at: usize| u32::from_ne_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]]);
    Ok(Some(Queues { received: number(RECEIVED_AT), sent: number(SENT_AT) }))
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`, asking for exactly one socket.
fn request(local: SocketAddrV4, remote: SocketAddrV4) -> Vec<u8> {
    const NLM_F_REQUEST: u16 = 1;
    const NO_COOKIE: [u8; 8] = [0xff; 8];
    let address = |end: SocketAddrV4| [&end.ip().octets()[..], &[0; 12]].concat();
    [
        &REQUEST_BYTES.to_ne_bytes()[..],
        &SOCK_DIAG_BY_FAMILY.to_ne_bytes(),
        &NLM_F_REQUEST.to_ne_bytes(),
        &[0; 8],
        &[libc::AF_INET as u8, libc::IPPROTO_TCP as u8, 0, 0],
        &ALL_STATES.to_ne_bytes(),
        &local.port().to_be_bytes(),
        &remote.port().to_be_bytes(),
        &address(local),
        &address(remote),
        &[0; 4],
        &NO_COOKIE,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};

    #[test]
    fn what_was_sent_is_in_the_other_ends_queue_until_it_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (SocketAddr::V4(there), mut client) =
            (listener.local_addr().unwrap(), TcpStream::connect(listener.local_addr().unwrap()).unwrap())
        else {
            unreachable!("bound to an IPv4 address")
        };
        let SocketAddr::V4(here) = client.local_addr().unwrap() else { unreachable!("as above") };
        let mut server = listener.accept().unwrap().0;
        client.write_all(b"abc").unwrap();
        server.peek(&mut [0]).unwrap();
        assert_eq!(queues(there, here).unwrap().unwrap().received, 3);
        server.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(queues(there, here).unwrap().unwrap().received, 0);
        assert!(queues(there, there).unwrap().is_none());
    }
}
