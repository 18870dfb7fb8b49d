//! A descriptor that a tokio runtime watches, with the epoll of its own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

#[derive(Debug)]
pub struct AsyncDescriptor {
    watched: AsyncFd<OwnedFd>,
}

impl AsyncDescriptor {
    /// A descriptor that the runtime of the caller watches. It is in non-blocking mode.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncDescriptor> {
        // SAFETY: the AsyncFd owns the descriptor, and this type gives nobody a way to close or replace it: it stays
        // open, and the same, until both are dropped.
        let watched = unsafe { AsyncFd::register_with_interest(fd, interest) }?;
        Ok(AsyncDescriptor { watched })
    }

    /// Ready once it has become readable, and from then on until the caller clears that.
    ///
    /// # Errors
    /// When the runtime is ending.
    pub fn poll_readable(&self, context: &mut Context) -> Poll<io::Result<AsyncFdReadyGuard<'_, OwnedFd>>> {
        self.watched.poll_read_ready(context)
    }

    /// The same for room to write.
    ///
    /// # Errors
    /// As [`AsyncDescriptor::poll_readable`].
    pub fn poll_writable(&self, context: &mut Context) -> Poll<io::Result<AsyncFdReadyGuard<'_, OwnedFd>>> {
        self.watched.poll_write_ready(context)
    }
}

impl AsFd for AsyncDescriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watched.get_ref().as_fd()
    }
}

impl AsRawFd for AsyncDescriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.watched.as_raw_fd()
    }
}
