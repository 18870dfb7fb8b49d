//! accept(2), and the one policy for what it returns instead of a connection.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Once;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::SockFlag;

use crate::console;
use crate::failure::Failure;
use crate::scoreboard::Count;
use crate::sys;

/// How long to wait after an accept that failed because no descriptor or memory was left.
pub const BACK_OFF: Duration = Duration::from_millis(50);

/// When a pause of [`BACK_OFF`] ends that begins at `now_ns`; both are times of CLOCK_MONOTONIC.
pub fn pause_end_ns(now_ns: u64) -> u64 {
    now_ns + BACK_OFF.as_nanos() as u64
}

/// Where an event loop gets its connections from: readable when there may be one.
pub trait Acceptor: AsFd {
    /// Receives what a master sends, for a worker that has no room for a connection.
    fn receive_messages(&self) {}

    /// A second descriptor to wait for. An event loop tells which of the two was reported
    /// ([`EventLoop::is_about_second`](super::EventLoop::is_about_second)).
    fn second_descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The sender of a passed connection keeps a copy of it until this worker has acknowledged it.
    fn sender_keeps_copies(&self) -> bool {
        false
    }
}

/// Connections that may fail one after another within one call, before that looks like a rule.
const MOST_FAILED_IN_A_ROW: usize = 64;

/// The next connection of a listening socket. One that has failed in the queue is skipped: accept(2) returns its error,
/// and the next connection may be good.
pub fn accept_next(listener: impl AsFd, flags: SockFlag) -> nix::Result<OwnedFd> {
    let mut failed = 0;
    loop {
        match sys::fd::accept(&listener, flags) {
            Err(errno) if is_about_one_connection(errno) && failed < MOST_FAILED_IN_A_ROW => failed += 1,
            other => return other,
        }
    }
}

/// The errors that accept(2) lists as those of a connection's network; ECONNABORTED, when the client has left; and
/// EPERM and EACCES, when the rules of a firewall or of a security module are against it.
pub fn is_about_one_connection(errno: Errno) -> bool {
    use Errno::*;
    #[rustfmt::skip]
    let about_one = [
        ECONNABORTED, ECONNRESET, EPERM, EACCES, EPROTO, ENOPROTOOPT, EOPNOTSUPP, ENETDOWN, ENETUNREACH, ENONET,
        EHOSTDOWN, EHOSTUNREACH, ETIMEDOUT,
    ];
    about_one.contains(&errno)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoConnection {
    /// The queue is empty.
    Nobody,
    /// No descriptor or memory is left, or one connection after another fails. The connections stay in the queue: try
    /// again after [`BACK_OFF`].
    Pause(Errno),
    /// The listening socket was shut: the server is to stop.
    Shut,
}

/// What the error of [`accept_next`], or of a channel from a master, means. An empty queue is counted, as an empty
/// wake-up unless a connection was taken in the same wake-up; an `Err` is a programming error.
pub fn no_connection(errno: Errno, has_taken: bool, mut count: impl FnMut(Count)) -> Result<NoConnection, Failure> {
    match errno {
        Errno::EAGAIN => {
            count(Count::AcceptEagain);
            if !has_taken {
                count(Count::EmptyWakeups);
            }
            Ok(NoConnection::Nobody)
        }
        Errno::EINVAL => Ok(NoConnection::Shut),
        Errno::EBADF | Errno::ENOTSOCK | Errno::EFAULT => Err(Failure::new("accept a connection", errno)),
        _ => Ok(NoConnection::Pause(errno)),
    }
}

/// As [`no_connection`], for a listener that only its owner shuts: `Some` is the reason for a pause.
pub fn reason_to_pause(errno: Errno, has_taken: bool, count: impl FnMut(Count)) -> Result<Option<Errno>, Failure> {
    match no_connection(errno, has_taken, count)? {
        NoConnection::Nobody => Ok(None),
        NoConnection::Pause(errno) => Ok(Some(errno)),
        NoConnection::Shut => Err(Failure::new("accept a connection", errno)),
    }
}

/// Logs why nothing is accepted for the moment, once per process.
pub fn log_pause(errno: Errno) {
    let advice = match errno {
        Errno::EMFILE => "no descriptor left; connections wait until others end (raise ulimit -n)",
        Errno::ENFILE => "no descriptor left in the whole system; connections wait (raise fs.file-max)",
        Errno::ENOBUFS | Errno::ENOMEM => "the kernel has no memory left for sockets; connections wait until it has",
        _ => {
            let failure = Failure::new("accept", errno);
            return log_once(failure.advise("connections wait, and it is tried again and again"));
        }
    };
    log_once(format_args!("accept: {advice}"));
}

/// As [`log_pause`], for a reason that comes before the accept.
pub fn log_once(reason: impl fmt::Display) {
    static SAID: Once = Once::new();
    SAID.call_once(|| console::log(reason));
}
