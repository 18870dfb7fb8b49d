//! Other calls to wait in for a listening socket than accept(2) and a worker's own epoll.

use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::listener::Listener;
use crate::failure::Failure;
use crate::sys::epoll::{Epoll, Interest};

/// The call in which a worker sleeps until the listener has a connection. Made before the fork.
pub enum Waiting {
    Poll,
    Epoll(Epoll),
}

impl Waiting {
    /// Each worker's own call of poll(2).
    pub fn in_poll() -> Waiting {
        Waiting::Poll
    }

    /// One epoll instance, which the workers inherit and all sleep in.
    pub fn in_one_epoll(listener: &Listener) -> Result<Waiting, Failure> {
        let open = || {
            let epoll = Epoll::new(1)?;
            epoll.add(listener, 0, Interest::EPOLLIN)?;
            Ok(Waiting::Epoll(epoll))
        };
        open().map_err(|errno: nix::Error| Failure::new("open an epoll instance", errno))
    }

    /// Sleeps until the listener has a connection, or has been shut.
    ///
    /// # Errors
    /// EINTR when a signal came instead.
    pub fn sleep(&mut self, listener: &Listener) -> nix::Result<()> {
        match self {
            Waiting::Poll => {
                let listener = PollFd::new(listener.as_fd(), PollFlags::POLLIN);
                nix::poll::poll(&mut [listener], PollTimeout::NONE).map(drop)
            }
            Waiting::Epoll(epoll) => epoll.sleep(),
        }
    }
}
