//! A descriptor that means one process, and never another one that has its number later (pidfd_open(2)). It becomes
//! readable when the process has ended, also where the process is not our child.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::process::Ending;

#[derive(Debug)]
pub struct PidFd(OwnedFd);

/// `struct pidfd_info` of linux/pidfd.h as it was at first, 64 bytes; a later kernel writes no more than it is asked
/// for.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    /// pid, tgid, ppid, and eight numbers of users and groups.
    numbers: [u32; 11],
    exit_code: i32,
}

/// `_IOWR(0xFF, 11, struct pidfd_info)`: direction, size, type, number (ioctl(2)).
const PIDFD_GET_INFO: libc::Ioctl = ((3 << 30) | (size_of::<PidfdInfo>() << 16) | (0xff << 8) | 11) as libc::Ioctl;

/// The bit of `mask` with which `exit_code` is asked for, and is there.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

impl PidFd {
    /// # Errors
    /// ESRCH when there is no such process; a process that has ended and was not reaped is still there.
    pub fn open(pid: Pid) -> nix::Result<PidFd> {
        // SAFETY: pidfd_open(2) touches no memory.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
        // SAFETY: the kernel has just made this descriptor, with close-on-exec, so nobody else owns it.
        Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// # Errors
    /// ESRCH when the process has ended and was reaped; EPERM when it is another user's.
    pub fn signal(&self, signal: Signal) -> nix::Result<()> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: without a siginfo pidfd_send_signal(2) reads no memory, and the descriptor is open.
        let sent = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal as libc::c_int, no_info, 0)
        };
        Errno::result(sent).map(drop)
    }

    /// Reaps the process, if it is our child and has ended: how.
    ///
    /// # Errors
    /// ECHILD when it is not our child.
    pub fn reap(&self) -> nix::Result<Option<Ending>> {
        match waitid(Id::PIDFd(self.0.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG)? {
            WaitStatus::Exited(_, status) => Ok(Some(Ending::Exited(status))),
            WaitStatus::Signaled(_, signal, _) => Ok(Some(Ending::KilledBy(signal as i32))),
            _ => Ok(None),
        }
    }

    /// How a process that its parent has reaped has ended: `PIDFD_GET_INFO` of Linux 6.15. `None` where the kernel does
    /// not know it, or not yet.
    pub fn ending(&self) -> Option<Ending> {
        let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
        // SAFETY: the kernel writes at most the size that is part of the request's number, which is that of `info`.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
        (result == 0 && info.mask & PIDFD_INFO_EXIT != 0).then(|| Ending::of_wait_status(info.exit_code))
    }
}

/// In an epoll set.
impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::process::Command;

    #[test]
    fn the_end_of_a_child_is_read_from_its_descriptor_before_and_after_it_is_reaped() {
        for (script, expected) in [("exit 3", Ending::Exited(3)), ("kill -9 $$", Ending::KilledBy(9))] {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("read x; {script}")]).stdin(std::process::Stdio::piped());
            let mut child = command.spawn().unwrap();
            let pidfd = PidFd::open(Pid::from_raw(child.id() as i32)).unwrap();
            assert_eq!((pidfd.reap(), pidfd.ending()), (Ok(None), None));
            drop(child.stdin.take());
            poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
            assert_eq!(pidfd.reap(), Ok(Some(expected)));
            assert_eq!((pidfd.reap(), pidfd.signal(Signal::SIGTERM)), (Err(Errno::ECHILD), Err(Errno::ESRCH)));
            assert!(child.wait().is_err(), "it was reaped");
            // A kernel before 6.15 does not know it.
            assert!(pidfd.ending().is_none_or(|ending| ending == expected));
        }
    }

    #[test]
    fn nobody_has_no_descriptor() {
        assert_eq!(PidFd::open(Pid::from_raw(i32::MAX)).err(), Some(Errno::ESRCH));
    }
}
