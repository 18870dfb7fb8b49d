//! A user and a network namespace of our own (user_namespaces(7), network_namespaces(7)): in it an ordinary user may
//! change the settings of the network, and nobody else sees them.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::Mode;
use nix::unistd::{getegid, geteuid, write};

/// The namespaces live as long as this value.
pub struct NetworkNamespace {
    /// A process inside that reads until we close the pipe, or have died.
    keeper: Child,
    pub(super) user: OwnedFd,
    pub(super) network: OwnedFd,
}

impl NetworkNamespace {
    /// Makes them, with the loopback device up and `settings` made: files below /proc/sys/net and their contents. The
    /// user is the same inside.
    ///
    /// # Errors
    /// EPERM where an ordinary user may not make a user namespace, ENOSPC when there are as many as there may be
    /// (user_namespaces(7)); ENOENT for a setting that the kernel does not have, EINVAL for a value that it refuses.
    pub fn new(settings: &[(String, String)]) -> io::Result<NetworkNamespace> {
        let settings: Vec<(CString, CString)> = settings
            .iter()
            .map(|(file, value)| Ok((CString::new(file.as_str())?, CString::new(value.as_str())?)))
            .collect::<Result<_, std::ffi::NulError>>()?;
        let one_id = |id: u32| CString::new(format!("{id} {id} 1")).expect("digits hold no NUL");
        let (user, group) = (one_id(geteuid().as_raw()), one_id(getegid().as_raw()));
        let prepare = move || {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
            // Without this the kernel takes no map of groups from an ordinary user.
            fill(c"/proc/self/setgroups", c"deny")?;
            fill(c"/proc/self/gid_map", &group)?;
            fill(c"/proc/self/uid_map", &user)?;
            raise_loopback()?;
            settings.iter().try_for_each(|(file, value)| fill(file, value))?;
            Ok(())
        };
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        // SAFETY: between fork and exec the closure only makes system calls and allocates nothing (signal-safety(7)).
        let mut keeper = unsafe { command.pre_exec(prepare) }.spawn()?;
        let open = |name: &str| File::open(format!("/proc/{}/ns/{name}", keeper.id())).map(OwnedFd::from);
        match (open("user"), open("net")) {
            (Ok(user), Ok(network)) => Ok(NetworkNamespace { keeper, user, network }),
            (Err(error), _) | (_, Err(error)) => {
                drop(keeper.stdin.take());
                keeper.wait().and(Err(error))
            }
        }
    }

    /// A process inside: its files in /proc show the counters of this network.
    pub fn pid(&self) -> i32 {
        self.keeper.id() as i32
    }

    /// The descriptors for [`enter`], valid while this value lives.
    pub(super) fn numbers(&self) -> [i32; 2] {
        [self.user.as_raw_fd(), self.network.as_raw_fd()]
    }
}

impl Drop for NetworkNamespace {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Moves the calling process, which has one thread, into the namespaces: the user's first, because it gives the right
/// to enter the other (setns(2)).
pub(super) fn enter([user, network]: [i32; 2]) -> nix::Result<()> {
    for (number, kind) in [(user, libc::CLONE_NEWUSER), (network, libc::CLONE_NEWNET)] {
        // SAFETY: setns(2) touches no memory.
        Errno::result(unsafe { libc::setns(number, kind) })?;
    }
    Ok(())
}

/// Moves the calling process, which has one thread, into the network namespace of another; where the right to do so is
/// missing, into its user namespace first, which gives it to the user who made that (setns(2)).
///
/// # Errors
/// ENOENT when there is no such process, EACCES when we may not look into it (ptrace(2)), EPERM when the right is
/// missing in both ways.
pub fn enter_network_of(pid: i32) -> io::Result<()> {
    let open = |name: &str| File::open(format!("/proc/{pid}/ns/{name}"));
    let network = open("net")?;
    if setns(&network, CloneFlags::CLONE_NEWNET) == Err(Errno::EPERM) {
        setns(&open("user")?, CloneFlags::CLONE_NEWUSER)?;
        setns(&network, CloneFlags::CLONE_NEWNET)?;
    }
    Ok(())
}

fn fill(file: &CStr, text: &CStr) -> nix::Result<()> {
    let file = open(file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    write(&file, text.to_bytes()).map(drop)
}

/// A new network has its loopback device down (netdevice(7)).
fn raise_loopback() -> nix::Result<()> {
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq is a plain struct of integers, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq from a place that is one.
    Errno::result(unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCSIFFLAGS, &request) }).map(drop)
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;
    use crate::sys::process::spawn_child;

    #[test]
    fn a_setting_inside_is_seen_by_programs_inside_and_by_nobody_else() {
        let file = "/proc/sys/net/ipv4/tcp_fin_timeout";
        let outside = std::fs::read_to_string(file).expect("every Linux with TCP has it");
        let namespace = match NetworkNamespace::new(&[(file.to_string(), "17".to_string())]) {
            Ok(namespace) => namespace,
            // Forbidden on this machine: there is nothing to look at.
            Err(error) => return eprintln!("no namespace of our own: {error}"),
        };
        let mut command = Command::new("cat");
        command.arg(file).stdout(Stdio::piped());
        let child = spawn_child(&mut command, &[], Signal::SIGKILL, Some(&namespace)).expect("cat starts");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.stdout, b"17\n");
        assert_eq!(std::fs::read_to_string(file).expect("as before"), outside);
        let network = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).expect("a namespace");
        assert_ne!(network(&namespace.pid().to_string()), network("self"));
    }
}
