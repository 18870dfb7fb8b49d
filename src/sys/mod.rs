//! The system calls as thin safe lines. All `unsafe` of the toolkit is in this folder: each function takes owned
//! or borrowed descriptors, returns an owned one at once, checks the result, and says why it is sound.

use nix::errno::Errno;

pub mod async_fd;
pub mod bpf;
pub mod connections;
pub mod descriptors;
pub mod epoll;
pub mod fd;
pub mod foreign_listener;
pub mod inotify;
pub mod lock;
pub mod memory;
pub mod namespace;
pub mod perf;
pub mod pidfd;
pub mod poll;
pub mod process;
pub mod procfs;
pub mod signal;
pub mod sock_diag;
pub mod socket;
pub mod terminal;
pub mod uring;
pub mod waiting;

/// EINVAL where no system call has made the error, but the standard library: a path too long for an address, say.
pub fn errno_of(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}
