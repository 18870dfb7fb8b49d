//! A bounded queue of accepted connections, from the thread that accepts to one that waits in an epoll.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::accept::Acceptor;
use super::threads::send;
use crate::failure::Failure;

/// The end of the thread that accepts.
pub struct AcceptedSender {
    queue: Sender<OwnedFd>,
    announced: Arc<EventFd>,
}

/// The other end: readable while a connection is in the queue, or on its way.
pub struct AcceptedQueue {
    queue: Receiver<OwnedFd>,
    announced: Arc<EventFd>,
}

/// # Errors
/// Without a descriptor left.
pub fn accepted_queue(room: usize) -> Result<(AcceptedSender, AcceptedQueue), Failure> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE;
    let announced = EventFd::from_flags(flags).map_err(|errno| Failure::new("open an eventfd", errno))?;
    let (announced, (sender, receiver)) = (Arc::new(announced), crossbeam_channel::bounded(room));
    Ok((AcceptedSender { queue: sender, announced: announced.clone() }, AcceptedQueue { queue: receiver, announced }))
}

impl AcceptedSender {
    /// As [`send`]. Announced first: a queue without room passes a connection when somebody takes it.
    pub fn send(&self, connection: OwnedFd, gives_up: fn() -> bool) -> bool {
        // It fails on a counter of 2^64 - 1.
        let _ = self.announced.write(1);
        send(&self.queue, connection, gives_up)
    }
}

impl AcceptedQueue {
    /// The next connection.
    ///
    /// # Errors
    /// EAGAIN when none has been announced, EINVAL when no more will come.
    pub fn take(&self) -> nix::Result<OwnedFd> {
        self.announced.read()?;
        // What was announced is there in a moment, unless the sender gave up, and then it is gone in a moment.
        self.queue.recv().map_err(|_| Errno::EINVAL)
    }
}

impl AsFd for AcceptedQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.announced.as_fd()
    }
}

impl Acceptor for AcceptedQueue {}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    #[test]
    fn connections_come_in_order_through_any_queue_and_its_end_is_told() {
        for room in [0, 1, 8] {
            let (sender, queue) = accepted_queue(room).unwrap();
            assert_eq!(queue.take().unwrap_err(), Errno::EAGAIN);
            let (sockets, others): (Vec<_>, Vec<_>) = (0..4).map(|_| UnixStream::pair().unwrap()).unzip();
            let sends = thread::spawn(move || others.into_iter().all(|other| sender.send(other.into(), || false)));
            for socket in sockets {
                let taken = loop {
                    match queue.take() {
                        Err(Errno::EAGAIN) => {}
                        taken => break UnixStream::from(taken.unwrap()),
                    }
                };
                std::io::Write::write_all(&mut &taken, b"x").unwrap();
                assert_eq!(std::io::Read::read(&mut &socket, &mut [0; 8]).unwrap(), 1);
            }
            assert!(sends.join().unwrap());
            assert_eq!(queue.take().unwrap_err(), Errno::EAGAIN);
        }
        let (sender, queue) = accepted_queue(0).unwrap();
        assert!(!sender.send(UnixStream::pair().unwrap().0.into(), || true));
        drop(sender);
        assert_eq!(queue.take().unwrap_err(), Errno::EINVAL);
    }
}
