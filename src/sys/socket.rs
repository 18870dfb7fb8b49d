//! send(2) and recv(2) without libc's wrappers. These are cancellation points (pthreads(7)): around each call in a
//! process with threads they spend two atomic operations on a way to die that nobody here uses. Where the two calls
//! are all that a program does, that is one hundredth of its time. And how many connections wait at a listening socket.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

use super::fd::until_uninterrupted;

/// Sends what the kernel takes without waiting; no room (EAGAIN) is no failure.
///
/// # Errors
/// EPIPE when this end was shut or the peer's reset has been seen, ECONNRESET or another error that the connection has
/// ended with.
pub fn send_now(socket: impl AsFd, bytes: &[u8]) -> nix::Result<usize> {
    // A closed peer is an EPIPE to count, not a SIGPIPE to die of (send(2)).
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the kernel reads `bytes.len()` bytes of a slice that is borrowed for the call; no address is given.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_sendto,
            socket.as_fd().as_raw_fd(),
            bytes.as_ptr(),
            bytes.len(),
            flags,
            std::ptr::null::<libc::sockaddr>(),
            0 as libc::socklen_t,
        )
    };
    match Errno::result(sent) {
        Ok(sent) => Ok(sent as usize),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
        Err(errno) => Err(errno),
    }
}

/// Receives what is there without waiting: the number of bytes, 0 at the end of the stream; EAGAIN for nothing yet.
///
/// # Errors
/// EAGAIN for nothing yet, ECONNRESET or another error that the connection has ended with.
pub fn receive_now(socket: impl AsFd, buffer: &mut [u8]) -> nix::Result<usize> {
    until_uninterrupted(|| {
        // SAFETY: the kernel writes at most `buffer.len()` bytes into a slice that is borrowed mutably for the call; it
        // is not asked for an address.
        let received = unsafe {
            libc::syscall(
                libc::SYS_recvfrom,
                socket.as_fd().as_raw_fd(),
                buffer.as_mut_ptr(),
                buffer.len(),
                libc::MSG_DONTWAIT,
                std::ptr::null_mut::<libc::sockaddr>(),
                std::ptr::null_mut::<libc::socklen_t>(),
            )
        };
        Errno::result(received).map(|received| received as usize)
    })
}

/// How many connections wait in the accept queue. The kernel has it in a field that means something else for a
/// connection (`tcp_get_info` in net/ipv4/tcp.c); `ss` shows it as Recv-Q.
///
/// # Errors
/// ENOPROTOOPT or EOPNOTSUPP for a socket of another protocol than TCP.
pub fn accept_queue_length(listener: impl AsFd) -> nix::Result<usize> {
    // SAFETY: tcp_info is a plain struct of integers, for which all zeros is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into a struct of that size, which lives for the call (tcp(7)).
    let result = unsafe {
        libc::getsockopt(
            listener.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).map(|_| info.tcpi_unacked as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    #[test]
    fn connections_that_are_not_accepted_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _clients = [(); 3].map(|()| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        assert_eq!(accept_queue_length(&listener), Ok(3));
        listener.accept().unwrap();
        assert_eq!(accept_queue_length(&listener), Ok(2));
    }

    #[test]
    fn what_is_sent_is_received_and_nothing_is_waited_for() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut buffer = [0; 8];
        assert_eq!(receive_now(&theirs, &mut buffer), Err(Errno::EAGAIN));
        assert_eq!(send_now(&ours, b"hello"), Ok(5));
        assert_eq!(receive_now(&theirs, &mut buffer), Ok(5));
        assert_eq!(&buffer[..5], b"hello");
        let filled = [0; 65_536];
        while send_now(&ours, &filled).unwrap() > 0 {}
        drop(theirs);
        assert_eq!(send_now(&ours, b"hello"), Err(Errno::EPIPE));
        // The end, or ECONNRESET because the other side left bytes unread.
        assert!(matches!(receive_now(&ours, &mut buffer), Ok(0) | Err(Errno::ECONNRESET)));
    }
}
