//! Other calls to wait in for a listening socket than accept(2) and a worker's own epoll.

use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::listener::Listener;
use crate::failure::Failure;
use crate::sys::epoll::{Epoll, Interest};

/// Sleeps in poll(2) until the listener has a connection, or has been shut.
///
/// # Errors
/// EINTR when a signal came instead.
pub fn poll(listener: &Listener) -> nix::Result<()> {
    nix::poll::poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).map(drop)
}

/// An epoll instance that watches the listener alone, to be inherited by workers that all sleep in it.
pub fn epoll_on(listener: &Listener) -> Result<Epoll, Failure> {
    let open = || {
        let epoll = Epoll::new(1)?;
        epoll.add(listener, 0, Interest::EPOLLIN)?;
        Ok(epoll)
    };
    open().map_err(|errno: nix::Error| Failure::new("open an epoll instance", errno))
}
