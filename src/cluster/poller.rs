//! What the master waits for, and until when: its epoll instance and its timers, of CLOCK_MONOTONIC.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::sys::epoll::Epoll;
use crate::units::monotonic_ns;

const REPORTS_PER_WAIT: usize = 64;

/// `NODE_UNIQUE_ID`: each process that is started as a worker has its own, counted from 1 over the master's life, as
/// Node does. Its number (`WORKER_ID`) passes to its successor, this id never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UniqueId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutputStream {
    Output,
    Error,
}

/// What an epoll report is about, in the 64 bits that the kernel keeps for it. Each kind is handled in
/// `Master::handle_ready`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    Signals,
    Worker(UniqueId),
    Socket(u64),
    Output(UniqueId, OutputStream),
    /// The control socket (0), or one of its clients.
    Control(u64),
    Notifier,
}

const KIND_SHIFT: u32 = 56;

impl Token {
    /// The kind is in the highest byte, which one of them below.
    pub fn encode(self) -> u64 {
        let (kind, which) = match self {
            Token::Signals => (0, 0),
            Token::Worker(id) => (1, id.0),
            Token::Socket(socket) => (2, socket),
            Token::Output(id, stream) => (3, id.0 << 1 | u64::from(stream == OutputStream::Error)),
            Token::Control(client) => (4, client),
            Token::Notifier => (5, 0),
        };
        debug_assert!(which < 1 << KIND_SHIFT);
        kind << KIND_SHIFT | which
    }

    pub fn decode(word: u64) -> Option<Token> {
        let which = word & ((1 << KIND_SHIFT) - 1);
        let stream = if which & 1 == 0 { OutputStream::Output } else { OutputStream::Error };
        Some(match word >> KIND_SHIFT {
            0 => Token::Signals,
            1 => Token::Worker(UniqueId(which)),
            2 => Token::Socket(which),
            3 => Token::Output(UniqueId(which >> 1), stream),
            4 => Token::Control(which),
            5 => Token::Notifier,
            _ => return None,
        })
    }
}

/// What has to be done at some time. A timer is never taken back: its handler looks whether the reason still exists.
/// Each kind is handled in `Master::run_timer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Due {
    /// There may be a descriptor again for the next connection.
    AcceptAgain,
    /// This worker has refused a connection of this socket; it may be given another now.
    Retry(u64, UniqueId),
    /// This socket has had no worker for long enough to be closed.
    CloseOrphan(u64),
    /// This worker has closed this socket: is the worker still there, and does no other use it?
    CloseUnused(u64, UniqueId),
    /// The channel to this worker may take descriptors again.
    Flush(UniqueId),
    Kill(UniqueId),
    Start(usize),
    Listen(UniqueId),
    Heartbeat,
    ReadFile,
}

pub struct Poller {
    /// Its tokens are [`Token`]s, encoded.
    pub epoll: Epoll,
    timers: BinaryHeap<Reverse<(u64, Due)>>,
    /// When the last wait ended.
    pub now_ns: u64,
}

impl Poller {
    pub fn new() -> nix::Result<Poller> {
        let epoll = Epoll::new(REPORTS_PER_WAIT)?;
        Ok(Poller { epoll, timers: BinaryHeap::new(), now_ns: monotonic_ns() })
    }

    pub fn at(&mut self, due_ns: u64, due: Due) {
        self.timers.push(Reverse((due_ns, due)));
    }

    pub fn after(&mut self, pause: Duration, due: Due) {
        self.at(monotonic_ns().saturating_add(pause.as_nanos() as u64), due);
    }

    /// Waits until a descriptor is ready or a timer is due, and returns how many reports the epoll instance has.
    pub fn wait(&mut self) -> nix::Result<usize> {
        let next_ns = self.timers.peek().map(|Reverse((due_ns, _))| *due_ns);
        let timeout = next_ns.map(|due_ns| Duration::from_nanos(due_ns.saturating_sub(monotonic_ns())));
        let reports = self.epoll.wait(timeout)?;
        self.now_ns = monotonic_ns();
        Ok(reports)
    }

    /// The next timer that was due when the last wait ended. What has become due since then ends the next wait at once.
    pub fn next_due(&mut self) -> Option<Due> {
        let Reverse((due_ns, _)) = self.timers.peek()?;
        if *due_ns > self.now_ns {
            return None;
        }
        self.timers.pop().map(|Reverse((_, due))| due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_in_the_order_of_their_time_and_not_before() {
        let mut poller = Poller::new().unwrap();
        poller.at(20, Due::AcceptAgain);
        poller.at(10, Due::Start(1));
        poller.at(30, Due::Start(0));
        poller.now_ns = 9;
        assert_eq!(poller.next_due(), None);
        poller.now_ns = 25;
        assert_eq!(poller.next_due(), Some(Due::Start(1)));
        assert_eq!(poller.next_due(), Some(Due::AcceptAgain));
        assert_eq!(poller.next_due(), None);
    }

    #[test]
    fn what_was_registered_is_what_is_reported() {
        let most = (1 << 55) - 1;
        for token in [
            Token::Signals,
            Token::Worker(UniqueId(1)),
            Token::Worker(UniqueId(most)),
            Token::Socket(0),
            Token::Output(UniqueId(7), OutputStream::Output),
            Token::Output(UniqueId(most), OutputStream::Error),
            Token::Control(0),
            Token::Notifier,
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
