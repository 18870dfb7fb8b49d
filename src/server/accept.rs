//! accept(2), and the one policy for what it returns instead of a connection.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Once;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::SockFlag;

use crate::console;
use crate::failure::Failure;
use crate::sys;

/// How long to wait before the next accept after one that the system had no means for.
pub const BACK_OFF: Duration = Duration::from_millis(50);

/// Connections that may fail one after another within one call, before that looks like a rule.
const MOST_FAILED_IN_A_ROW: usize = 64;

/// The next connection of a listening socket. One that has failed in the queue is skipped: accept(2) hands over its
/// network's error in its place, and the next may be well.
pub fn accept_next(listener: impl AsFd, flags: SockFlag) -> nix::Result<OwnedFd> {
    let mut failed = 0;
    loop {
        match sys::fd::accept(&listener, flags) {
            Err(errno) if is_about_one_connection(errno) && failed < MOST_FAILED_IN_A_ROW => failed += 1,
            other => return other,
        }
    }
}

/// The errors that accept(2) lists as those of a connection's network; ECONNABORTED, when the client has left; and EPERM
/// and EACCES, when the rules of a firewall or of a security module are against it.
fn is_about_one_connection(errno: Errno) -> bool {
    use Errno::*;
    matches!(
        errno,
        ECONNABORTED
            | ECONNRESET
            | EPERM
            | EACCES
            | EPROTO
            | ENOPROTOOPT
            | EOPNOTSUPP
            | ENETDOWN
            | ENETUNREACH
            | ENONET
            | EHOSTDOWN
            | EHOSTUNREACH
            | ETIMEDOUT
    )
}

/// What it means that [`accept_next`], or a channel from a master, has returned no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoConnection {
    /// Nothing there (any more).
    Nobody,
    /// No descriptor or memory is left, or one connection after another fails. They stay in the queue: try again after
    /// [`BACK_OFF`].
    Pause(Errno),
    /// The listening socket was shut: we are to stop.
    Shut,
    /// A programming error.
    Fatal(Errno),
}

impl From<Errno> for NoConnection {
    fn from(errno: Errno) -> NoConnection {
        match errno {
            Errno::EAGAIN => NoConnection::Nobody,
            Errno::EINVAL => NoConnection::Shut,
            Errno::EBADF | Errno::ENOTSOCK | Errno::EFAULT => NoConnection::Fatal(errno),
            _ => NoConnection::Pause(errno),
        }
    }
}

/// Says why nothing is accepted for the moment. Once per process: the reason does not go away by being repeated.
pub fn log_pause(errno: Errno) {
    static SAID: Once = Once::new();
    SAID.call_once(|| match errno {
        Errno::EMFILE => {
            console::log("accept: no descriptor left; connections wait until others end (raise ulimit -n)")
        }
        Errno::ENFILE => console::log(
            "accept: no descriptor left in the whole system; connections wait (raise fs.file-max)",
        ),
        Errno::ENOBUFS | Errno::ENOMEM => {
            console::log("accept: the kernel has no memory left for sockets; connections wait until it has")
        }
        _ => console::log(
            Failure::new("accept", errno).advise("connections wait, and it is tried again and again"),
        ),
    });
}
