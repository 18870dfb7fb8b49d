//! The process that gives the group back. It has a duplicate of a listener of the group and the end of a socket pair;
//! when we end, in order or by SIGKILL, the kernel closes our end, and the watchdog detaches the program. No signal but
//! SIGKILL ends it before.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::failure::Failure;
use crate::sys::fd::{receive_fds, send_fds, take_inherited};
use crate::sys::foreign_listener::detach_selector;
use crate::sys::process::spawn_in_session;

pub struct Watchdog {
    channel: OwnedFd,
    child: Child,
}

impl Watchdog {
    pub fn start() -> Result<Watchdog, String> {
        let (channel, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|errno| Failure::new("make a socket pair", errno).to_string())?;
        // By this name also when its file was replaced or deleted meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.args(["steer", "--watchdog", &theirs.as_raw_fd().to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = spawn_in_session(&mut command, Some(theirs.as_fd()));
        let child = child.map_err(|error| Failure::new("start the watchdog", error).to_string())?;
        Ok(Watchdog { channel, child })
    }

    /// Gives it a duplicate in place of the one before.
    pub fn hand_over(&self, member: OwnedFd) -> nix::Result<()> {
        send_fds(&self.channel, &[member])
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Lets it detach, and waits until that is done. False when it was killed before, or failed.
    pub fn release(self) -> bool {
        let Watchdog { channel, mut child } = self;
        drop(channel);
        child.wait().is_ok_and(|status| status.success())
    }
}

/// What the watchdog does: `lab steer --watchdog NUMBER`.
pub fn run(channel: RawFd) -> Result<(), String> {
    // A service manager may send its signal to all processes of a service.
    SigSet::all().thread_block().expect("blocking valid signals cannot fail (pthread_sigmask(3))");
    let channel = take_inherited(channel).map_err(|_| "--watchdog is for lab itself".to_string())?;
    let mut member = None;
    loop {
        let arrived = poll(&mut [PollFd::new(channel.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
        let is_open = receive_fds(&channel, |fd| member = fd.ok().or(member.take()));
        if arrived.is_err() || is_open != Ok(true) {
            break;
        }
    }
    match member.map(detach_selector) {
        None | Some(Ok(()) | Err(Errno::ENOENT)) => Ok(()),
        Some(Err(errno)) => Err(Failure::new("detach the program (SO_DETACH_REUSEPORT_BPF)", errno).to_string()),
    }
}
