//! One system call for many requests: the sends of a whole round go to the kernel with the next wait, and each
//! connection has one receive that goes on until it ends (multishot). Not every byte goes this way: what is sent before
//! the handshake is known to be over, and what may not fit into the socket buffer, is sent at once, as with epoll.
//!
//! Of each socket it is remembered what the kernel still does with it, because that keeps it open: closing the
//! descriptor says nothing to the server until all of it is cancelled.

use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use socket2::Socket;

use crate::load::client::engine::{Engine, RequestBytes, STOP, SendProgress, SocketReady, slot};
use crate::sys::fd::set_blocking;
use crate::sys::socket::send_now;
use crate::sys::uring::{ACCEPTED, Completion, Uring};

/// As many buffers as connections may all answer at once, within these limits.
const BUFFERS: std::ops::RangeInclusive<usize> = 16..=1024;
const BUFFER_BYTES: usize = 8 * 1024;
/// The socket buffer has room for so much when all that went before was answered (tcp(7), tcp_wmem).
const FITS_BYTES: usize = 2048;
/// Slots that are cleared together at the end.
const BATCH: usize = 256;
const IGNORED: u64 = u64::MAX - 1;
/// What a completion with that token brings would be taken for the number of a new descriptor, and closed.
const _: () = assert!(STOP != ACCEPTED && IGNORED != ACCEPTED && STOP != IGNORED);

/// What a completion is about, in bits of the token that no slot reaches.
const RECEIVE: u64 = 1 << 29;
const ROOM: u64 = 1 << 30;
const SEND: u64 = 1 << 31;
const KINDS: [u64; 3] = [RECEIVE, ROOM, SEND];
const KIND_MASK: u64 = RECEIVE | ROOM | SEND;

#[derive(Clone, Default)]
struct UnderWay {
    token: Option<u64>,
    kinds: u64,
    /// The number of the submission that the last request waits for.
    queued_for: u64,
}

pub struct UringEngine {
    ring: Uring,
    slots: Vec<UnderWay>,
    stop_event: OwnedFd,
    /// The result of the last report, until it is taken.
    arrived: Option<nix::Result<usize>>,
    /// The receive that it came from has ended before the stream did.
    has_stopped: bool,
}

impl UringEngine {
    fn queued(&mut self, token: u64, kind: u64) {
        let under_way = &mut self.slots[slot(token).0];
        under_way.kinds |= kind;
        under_way.queued_for = self.ring.submissions();
    }

    fn receive_from(&mut self, token: u64, socket: &Socket) {
        self.ring.receive(socket, token | RECEIVE);
        self.queued(token, RECEIVE);
    }

    fn cancel(&mut self, token: u64, kinds: u64) {
        for kind in KINDS.into_iter().filter(|&kind| kinds & kind != 0) {
            self.ring.cancel(token | kind, IGNORED);
        }
    }

    /// What a server sends together with its FIN is received in two completions, the second right behind the first.
    #[inline]
    fn end_is_next(&mut self, completion: Completion) -> bool {
        let is_end = |next: Completion| {
            next.token == completion.token && !next.more && !matches!(next.result, Ok(1..) | Err(Errno::ENOBUFS))
        };
        completion.more && self.ring.peek().is_some_and(is_end)
    }

    #[inline]
    fn interpret(&mut self, completion: Completion) -> Option<SocketReady> {
        let (token, kind) = (completion.token & !KIND_MASK, completion.token & KIND_MASK);
        let ready = SocketReady { token, ..SocketReady::default() };
        let under_way = &mut self.slots[slot(token).0];
        if under_way.token != Some(token) {
            return None;
        }
        if !completion.more {
            under_way.kinds &= !kind;
        }
        match (kind, completion.result) {
            (RECEIVE, result) => {
                // The answer says that the request has left.
                under_way.kinds &= !SEND;
                self.has_stopped = !completion.more && matches!(result, Ok(1..) | Err(Errno::ENOBUFS | Errno::EINTR));
                self.arrived = match result {
                    Err(Errno::ENOBUFS | Errno::EINTR) => None,
                    result => Some(result.map(|bytes| bytes as usize)),
                };
                // A connection that is writing notices it by trying.
                let room = matches!(self.arrived, Some(Err(_)));
                let ends = self.end_is_next(completion);
                if ends {
                    self.slots[slot(token).0].kinds &= !RECEIVE;
                }
                Some(SocketReady { data: true, room, ends, ..ready })
            }
            (ROOM, _) => Some(SocketReady { room: true, ..ready }),
            (_, Err(errno)) => Some(SocketReady { failed_send: Some(errno), ..ready }),
            (_, Ok(_)) => None,
        }
    }
}

impl Engine for UringEngine {
    /// What comes later is reported anew.
    const CAPACITY: usize = usize::MAX;

    fn new(connections: usize, stop_event: BorrowedFd, messages: [&[u8]; 2]) -> nix::Result<UringEngine> {
        let buffers = connections.clamp(*BUFFERS.start(), *BUFFERS.end()).next_power_of_two();
        let messages = messages.iter().map(|&message| message.into()).collect();
        let stop_event = stop_event.try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
        let mut ring = Uring::new(buffers as u16, BUFFER_BYTES, messages)?;
        ring.watch(&stop_event, STOP);
        let slots = vec![UnderWay::default(); connections];
        Ok(UringEngine { ring, slots, stop_event, arrived: None, has_stopped: false })
    }

    fn begin(&mut self, token: u64, socket: &Socket, progress: SendProgress) -> nix::Result<()> {
        // A socket that does not block is one whose receives io_uring does not wait for either.
        set_blocking(socket)?;
        self.slots[slot(token).0] = UnderWay { token: Some(token), ..UnderWay::default() };
        if progress != SendProgress::Connecting {
            self.receive_from(token, socket);
        }
        if progress != SendProgress::Sent {
            self.await_room(token, socket)?;
        }
        Ok(())
    }

    fn established(&mut self, token: u64, socket: &Socket) -> nix::Result<()> {
        self.receive_from(token, socket);
        Ok(())
    }

    #[inline]
    fn send(&mut self, token: u64, socket: &Socket, message: RequestBytes, part: Range<usize>) -> nix::Result<usize> {
        let (number, bytes) = message;
        let is_ours = self.slots[slot(token).0].token == Some(token);
        if !is_ours || part.len() > FITS_BYTES {
            return send_now(socket, &bytes[part]);
        }
        let length = part.len();
        self.ring.send(socket, number, part, token | SEND);
        self.queued(token, SEND);
        Ok(length)
    }

    fn await_room(&mut self, token: u64, socket: &Socket) -> nix::Result<()> {
        self.ring.poll(socket, libc::POLLOUT, token | ROOM);
        self.queued(token, ROOM);
        Ok(())
    }

    fn close(&mut self, token: u64, _socket: &Socket) {
        let under_way = std::mem::take(&mut self.slots[slot(token).0]);
        if under_way.token != Some(token) || under_way.kinds == 0 {
            return;
        }
        if under_way.queued_for == self.ring.submissions() {
            // The next socket may get this descriptor's number, and what is queued for this one.
            self.ring.submit();
        }
        self.cancel(token, under_way.kinds);
    }

    fn wait(&mut self, timeout: Option<Duration>) -> nix::Result<()> {
        self.ring.wait(timeout)
    }

    #[inline]
    fn next(&mut self) -> Option<SocketReady> {
        loop {
            let completion = self.ring.next_completion()?;
            if completion.token == STOP {
                if !completion.more {
                    self.ring.watch(&self.stop_event, STOP);
                }
                return Some(SocketReady { token: STOP, ..SocketReady::default() });
            }
            if completion.token != IGNORED
                && let Some(ready) = self.interpret(completion)
            {
                return Some(ready);
            }
        }
    }

    #[inline]
    fn receive(&mut self, token: u64, socket: &Socket) -> nix::Result<usize> {
        if std::mem::take(&mut self.has_stopped) {
            self.receive_from(token, socket);
        }
        self.arrived.take().unwrap_or(Err(Errno::EAGAIN))
    }

    #[inline]
    fn data(&self) -> &[u8] {
        self.ring.data()
    }
}

/// The ring cancels what is left when it is dropped, but searches it by looking at everything each time: with fifteen
/// thousand connections that takes seconds. By token each is found at once.
impl Drop for UringEngine {
    fn drop(&mut self) {
        for slots in std::mem::take(&mut self.slots).chunks(BATCH) {
            for under_way in slots {
                under_way.token.into_iter().for_each(|token| self.cancel(token, under_way.kinds));
            }
            // The first wait hands them over, the next let the kernel do what this makes necessary, a few at a time;
            // not for ever, since a server may go on sending to the others.
            let mut in_vain = 0;
            for _ in 0..BATCH {
                let _ = self.ring.wait(Some(Duration::ZERO));
                let found = std::iter::from_fn(|| self.ring.next_completion()).count();
                in_vain = if found > 0 { 0 } else { in_vain + 1 };
                if in_vain == 2 {
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_kind_hides_a_slot_or_a_generation() {
        let token = crate::load::client::engine::token(65_535, u32::MAX);
        for kind in KINDS {
            assert_eq!((token | kind) & !KIND_MASK, token);
            assert!(token | kind < IGNORED);
        }
    }
}
