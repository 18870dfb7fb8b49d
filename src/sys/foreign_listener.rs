//! The listener of another process: a duplicate of it, and its group without a program.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::stat::fstat;
use nix::{setsockopt_impl, sockopt_impl};

use super::pidfd::PidFd;

/// A duplicate of the descriptor `number` of another process (pidfd_getfd(2)). It means the same open file: what the
/// other process closes stays open as long as we have it.
///
/// # Errors
/// EPERM when we may not trace the process (ptrace(2): another user's, or Yama forbids it), EBADF when it has no such
/// descriptor, ESRCH when it has ended, ENOSYS before Linux 5.6.
pub fn duplicate(process: &PidFd, number: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_getfd(2) takes three numbers and touches no memory.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_fd().as_raw_fd(), number, 0) })?;
    // SAFETY: the kernel has just made this descriptor, with close-on-exec, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The number by which /proc and sock_diag(7) name a socket.
pub fn inode(socket: impl AsFd) -> nix::Result<u32> {
    Ok(fstat(socket.as_fd())?.st_ino as u32)
}

/// Takes the program away from the group of `member`: from now on the kernel's hash chooses (socket(7),
/// SO_DETACH_REUSEPORT_BPF).
///
/// # Errors
/// ENOENT when the group has none, ENOPROTOOPT before Linux 5.3.
pub fn detach_selector(member: impl AsFd) -> nix::Result<()> {
    setsockopt(&member, DetachReusePortBpf, &0)
}

sockopt_impl!(DetachReusePortBpf, SetOnly, libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, libc::c_int);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::bpf::attach_classic;
    use nix::unistd::Pid;
    use std::net::TcpListener;

    #[test]
    fn a_duplicate_of_our_own_listener_is_the_same_socket_and_nobody_has_number_999() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let we = PidFd::open(Pid::this()).unwrap();
        let same = duplicate(&we, listener.as_raw_fd()).unwrap();
        assert_eq!(inode(&same), inode(&listener));
        assert_eq!(duplicate(&we, 999_999).err(), Some(Errno::EBADF));
    }

    #[test]
    fn a_group_loses_its_program_once() {
        let member = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        member.set_reuse_port(true).unwrap();
        member.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        member.listen(1).unwrap();
        assert_eq!(detach_selector(&member), Err(Errno::ENOENT));
        let returns_0 = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
        attach_classic(&member, &[returns_0]).unwrap();
        assert_eq!((detach_selector(&member), detach_selector(&member)), (Ok(()), Err(Errno::ENOENT)));
    }
}
