//! The system calls as thin safe lines. All `unsafe` of the toolkit is in this folder: a descriptor that the kernel
//! makes is owned at once, every result is checked, and each `unsafe` has its argument above it.

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
