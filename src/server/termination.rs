//! Which sockets a signal to stop shuts, for each kind of server; the mechanism is [`crate::sys::signal`].

use std::os::fd::AsFd;
use std::time::Instant;

use crossbeam_channel::Receiver;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::listener::Listener;
use crate::failure::Failure;
use crate::sys::signal::{
    GRACE, has_given_up, is_stopping, note_socket, shut_listener_on_termination, shut_sockets_on_termination,
    wake_on_termination,
};

/// SIGTERM shuts the listener and every connection of this process: no thread stays blocked in accept or recv.
pub fn shut_sockets_when_stopping(listener: &Listener) -> Result<(), Failure> {
    note_socket(listener.end());
    listener.with_shared_socket(shut_sockets_on_termination).map_err(|errno| Failure::new("handle SIGTERM", errno))
}

/// As [`shut_sockets_when_stopping`], but the listener belongs to other workers, too, and is left to the parent.
pub fn shut_connections_when_stopping(listener: &Listener) -> Result<(), Failure> {
    shut_sockets_on_termination(Some(listener.as_fd())).map_err(|errno| Failure::new("handle SIGTERM", errno))
}

/// SIGTERM shuts the listener of an event loop that does not share it, or that may end it for all. The handler does it:
/// a loop in the middle of a request does not look.
pub fn shut_listener_when_stopping(listener: &Listener) -> Result<(), Failure> {
    shut_listener_on_termination(listener.end(), false).map_err(|errno| Failure::new("handle SIGTERM", errno))
}

/// As [`shut_listener_when_stopping`], where the parent has no copy to shut: its SIGTERM stops all workers, so the
/// first that gets it shuts the listener for all. One from another process ends this worker, and the others serve on.
pub fn shut_shared_listener_when_stopping(listener: &Listener) -> Result<(), Failure> {
    shut_listener_on_termination(listener, true).map_err(|errno| Failure::new("handle SIGTERM", errno))
}

/// Sleeps until SIGTERM, or what else stops a server, has come: for a main thread that neither accepts nor serves.
pub fn wait_for_signal() -> Result<(), Failure> {
    let wait = || {
        let wake = wake_on_termination()?;
        // A signal that came earlier has made nothing readable.
        while !is_stopping() {
            match poll(&mut [PollFd::new(wake, PollFlags::POLLIN)], PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    };
    wait().map_err(|errno| Failure::new("wait for a signal", errno))
}

/// Waits until every thread that holds the sending side has ended, or the grace period is over.
pub fn wait_for_threads(all_gone: &Receiver<()>) {
    let deadline = Instant::now() + GRACE;
    while !has_given_up() && Instant::now() < deadline {
        // A message never comes; the end of the channel does.
        if let Err(crossbeam_channel::RecvTimeoutError::Disconnected) = all_gone.recv_deadline(deadline) {
            return;
        }
    }
}
