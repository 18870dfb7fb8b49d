//! A channel to another process that carries connections (unix(7), SCM_RIGHTS).
//!
//! What travels is not the number but the open socket: the receiver gets a descriptor of its own, the sender's can
//! be closed, and the kernel keeps the connection alive on the way. Connections that are ready together travel in one
//! message. The way back carries answers, for a sender that wants to know what has become of its message.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, send, shutdown, socketpair};

use super::accept::Acceptor;
use crate::failure::Failure;
use crate::sys::fd::{MOST_PER_MESSAGE, receive_fds, send_fds, until_uninterrupted};

/// What a channel may hold, for setsockopt(2), SO_SNDBUF, which doubles it. On Linux 6.18 that is 86 messages (with the
/// default of 212,992 bytes 278): a receiver that hangs is sent no more, one that is merely busy is seldom full.
const BUFFER_BYTES: usize = 32 * 1024;

/// More messages than a channel holds.
const MOST_MESSAGES: usize = 128;

/// How many connections go into one message. Those on their way are counted per user, over all channels of all
/// processes, and compared with the sender's limit of descriptors (unix(7), ETOOMANYREFS): where it is low, the full
/// channels of all our workers together must not use it up. What other programs of the same user send, we cannot know.
pub fn connections_per_message(workers: usize) -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft as usize);
    (limit / (MOST_MESSAGES * workers)).clamp(1, MOST_PER_MESSAGE)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledgement {
    Taken,
    /// The receiver has no room, or is about to stop: the sender gives the connection to another.
    Refused,
}

/// One end of a channel. It never blocks.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    /// The receiver acknowledges every message.
    pub acknowledges: bool,
    /// Received in a message, and not yet taken from this channel.
    inbox: VecDeque<nix::Result<OwnedFd>>,
}

impl Channel {
    /// Both ends, to be shared between two processes by a fork. Where receivers acknowledge, every message that is
    /// received has an [`Acknowledgement`].
    pub fn pair(acknowledges: bool) -> Result<(Channel, Channel), Failure> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .map_err(|errno| Failure::new("open a Unix socket pair", errno).advise("raise ulimit -n"))?;
        socket2::SockRef::from(&one)
            .set_send_buffer_size(BUFFER_BYTES)
            .map_err(|error| Failure::new("limit the send buffer of a Unix socket pair", error))?;
        let end = |socket| Channel { socket, acknowledges, inbox: VecDeque::with_capacity(MOST_PER_MESSAGE) };
        Ok((end(one), end(other)))
    }

    /// Passes copies of 1 to [`MOST_PER_MESSAGE`] descriptors in one message: all of them, or none.
    ///
    /// # Errors
    /// EAGAIN while the channel is full, EPIPE or ECONNRESET when the other end takes no more; ETOOMANYREFS, ENOBUFS
    /// or ENOMEM while the kernel has too many on their way.
    pub fn pass(&self, connections: &[impl AsFd]) -> nix::Result<()> {
        until_uninterrupted(|| send_fds(self, connections))
    }

    /// Takes the next connection, and acknowledges it before a byte of it is read: until then the sender can give it
    /// to another. [`Channel::more_of_message`] has the others of the same message.
    ///
    /// # Errors
    /// EAGAIN when none is waiting; EINVAL, like an accept on a listener that was shut, when the sender is gone;
    /// EMFILE when our table of descriptors was full: then the connection is lost or, where receivers acknowledge,
    /// refused. So the caller looks first whether there is room.
    pub fn receive(&mut self) -> nix::Result<OwnedFd> {
        let connection = self.next()?;
        if self.acknowledges {
            // It fails when the sender is gone, and then the connection is ours anyway.
            let _ = self.acknowledge(Acknowledgement::Taken);
        }
        Ok(connection)
    }

    /// The next of those that came together with the one received last.
    pub fn more_of_message(&mut self) -> Option<nix::Result<OwnedFd>> {
        self.inbox.pop_front()
    }

    /// Gives the next connection back to the sender.
    ///
    /// # Errors
    /// Those of [`Channel::receive`]. EPIPE when the sender is gone: then [`Channel::receive`] returns this connection.
    pub fn refuse(&mut self) -> nix::Result<()> {
        let connection = self.next()?;
        self.acknowledge(Acknowledgement::Refused).inspect_err(|_| self.inbox.push_front(Ok(connection)))
    }

    fn next(&mut self) -> nix::Result<OwnedFd> {
        if self.inbox.is_empty() {
            let (socket, inbox) = (&self.socket, &mut self.inbox);
            until_uninterrupted(|| receive_fds(socket, |fd| inbox.push_back(fd)))?;
        }
        let next = self.inbox.pop_front().unwrap_or(Err(Errno::EINVAL));
        if self.acknowledges && matches!(next, Err(Errno::EMFILE)) {
            // Our copy is lost. The sender, unless it is gone, still has the connection and waits.
            let _ = self.acknowledge(Acknowledgement::Refused);
        }
        next
    }

    fn acknowledge(&self, acknowledgement: Acknowledgement) -> nix::Result<()> {
        let byte = [matches!(acknowledgement, Acknowledgement::Taken).into()];
        until_uninterrupted(|| send(self.socket.as_raw_fd(), &byte, MsgFlags::MSG_NOSIGNAL).map(drop))
    }

    /// The next acknowledgement of what was passed; `None` when the other end is closed.
    ///
    /// # Errors
    /// EAGAIN when there is none yet.
    pub fn next_acknowledgement(&self) -> nix::Result<Option<Acknowledgement>> {
        let mut byte = [0];
        let length = until_uninterrupted(|| recv(self.socket.as_raw_fd(), &mut byte, MsgFlags::empty()))?;
        Ok((length > 0).then_some(if byte == [1] { Acknowledgement::Taken } else { Acknowledgement::Refused }))
    }

    /// From now on the other end cannot pass any more (EPIPE). What is on its way can still be received, and behind it
    /// is the end: nothing is lost between the last look and the close.
    pub fn shut(&self) {
        // It fails only on a socket without a peer (shutdown(2)), which nobody can send to either.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Read);
    }
}

impl Acceptor for Channel {
    fn sender_keeps_copies(&self) -> bool {
        self.acknowledges
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_channel_that_nobody_empties_is_soon_full_and_has_room_again_once_it_is_emptied() {
        let (master, mut worker) = Channel::pair(false).unwrap();
        let connection = [open()];
        let held = (0..1000).take_while(|_| master.pass(&connection).is_ok()).count();
        assert!((20..200).contains(&held), "{held}");
        assert_eq!(master.pass(&connection), Err(Errno::EAGAIN));
        for _ in 0..held {
            worker.receive().unwrap();
        }
        assert_eq!(worker.receive().unwrap_err(), Errno::EAGAIN);
        master.pass(&connection).unwrap();
    }

    #[test]
    fn what_was_passed_before_a_channel_was_shut_is_received_and_what_comes_later_is_refused() {
        let (master, mut worker) = Channel::pair(false).unwrap();
        master.pass(&[open(), open()]).unwrap();
        worker.shut();
        assert_eq!(master.pass(&[open()]), Err(Errno::EPIPE));
        worker.receive().unwrap();
        worker.more_of_message().unwrap().unwrap();
        assert_eq!(worker.receive().unwrap_err(), Errno::EINVAL);
        worker.acknowledge(Acknowledgement::Refused).unwrap();
        assert_eq!(master.next_acknowledgement(), Ok(Some(Acknowledgement::Refused)));
    }

    /// The table of a test's process is everybody's and must not be full; what the kernel would say is put in by hand.
    #[test]
    fn a_connection_for_which_there_was_no_descriptor_is_refused() {
        let (master, mut worker) = Channel::pair(true).unwrap();
        for take in [|worker: &mut Channel| worker.receive().map(drop), Channel::refuse] {
            worker.inbox.push_back(Err(Errno::EMFILE));
            assert_eq!(take(&mut worker), Err(Errno::EMFILE));
            assert_eq!(master.next_acknowledgement(), Ok(Some(Acknowledgement::Refused)));
        }
    }

    #[test]
    fn a_connection_that_nobody_wants_back_is_kept() {
        let (master, mut worker) = Channel::pair(true).unwrap();
        master.pass(&[open()]).unwrap();
        drop(master);
        assert_eq!(worker.refuse(), Err(Errno::EPIPE));
        worker.receive().unwrap();
    }
}
