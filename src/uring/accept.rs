//! A listening socket that a ring is asked to accept from: once, for all connections to come (a multishot accept).

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::failure::Failure;
use crate::scoreboard::Count;
use crate::server::accept::{NoConnection, is_about_one_connection, log_pause, no_connection, pause_end_ns};
use crate::sys::uring::{Completion, Uring};
use crate::units::monotonic_ns;

#[derive(Default)]
pub struct RingAcceptor {
    is_asked: bool,
    is_shut: bool,
    /// Until then no descriptor or memory is expected to be left for another connection.
    paused_until_ns: Option<u64>,
}

impl RingAcceptor {
    pub fn is_asked(&self) -> bool {
        self.is_asked
    }

    /// It was shut, and has no more connections.
    pub fn is_shut(&self) -> bool {
        self.is_shut
    }

    /// When to ask again, of CLOCK_MONOTONIC.
    pub fn due_ns(&self) -> Option<u64> {
        self.paused_until_ns
    }

    /// Asks the ring to accept, where it is not asked already and there is no pause. The socket must be in blocking
    /// mode.
    pub fn ask(&mut self, ring: &mut Uring, listener: BorrowedFd) {
        self.paused_until_ns.take_if(|until_ns| *until_ns <= monotonic_ns());
        if !self.is_asked && !self.is_shut && self.paused_until_ns.is_none() {
            ring.accept(listener);
            self.is_asked = true;
        }
    }

    /// Asks for no more. What the ring has accepted by then is still reported.
    pub fn stop(&mut self, ring: &mut Uring, of_this: u64) {
        if self.is_asked {
            ring.stop_accepting(of_this);
        }
    }

    /// The connection that a completion with the token [`ACCEPTED`](crate::sys::uring::ACCEPTED) has brought.
    ///
    /// # Errors
    /// When the listening socket is broken.
    pub fn take(
        &mut self,
        ring: &mut Uring,
        completion: Completion,
        mut count: impl FnMut(Count),
    ) -> Result<Option<OwnedFd>, Failure> {
        self.is_asked &= completion.more;
        let errno = match completion.result {
            Ok(_) => {
                count(Count::Wakeups);
                return Ok(ring.take_accepted());
            }
            Err(errno) => errno,
        };
        if is_about_one_connection(errno) || errno == Errno::ECANCELED {
            return Ok(None);
        }
        match no_connection(errno, false, count)? {
            NoConnection::Nobody => {}
            NoConnection::Shut => self.is_shut = true,
            NoConnection::Pause(errno) => {
                log_pause(errno);
                self.paused_until_ns = Some(pause_end_ns(monotonic_ns()));
            }
        }
        Ok(None)
    }
}
