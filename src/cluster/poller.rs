//! What the master waits for, and until when: its epoll instance and its timers, of CLOCK_MONOTONIC.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::AsFd;
use std::time::Duration;

use super::token::{Token, UniqueId};
use crate::sys::epoll::{Epoll, Interest};
use crate::units::monotonic_ns;

const REPORTS_PER_WAIT: usize = 64;

/// What has to be done at some time. A timer is never taken back: its handler looks whether the reason still exists. Each
/// kind is handled in `Master::run_timer`.
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
    /// This worker should have left.
    Kill(UniqueId),
    /// This number is to have a worker.
    Start(usize),
    /// This worker should listen by now.
    Listen(UniqueId),
    Heartbeat,
    /// Read the watched file.
    ReadFile,
}

pub struct Poller {
    epoll: Epoll,
    timers: BinaryHeap<Reverse<(u64, Due)>>,
    /// When the last wait ended.
    pub now_ns: u64,
}

impl Poller {
    pub fn new() -> nix::Result<Poller> {
        let epoll = Epoll::new(REPORTS_PER_WAIT)?;
        Ok(Poller { epoll, timers: BinaryHeap::new(), now_ns: monotonic_ns() })
    }

    pub fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> nix::Result<()> {
        self.epoll.add(fd, token.encode(), interest)
    }

    /// A registration is changed without allocating, so this cannot fail (epoll_ctl(2)).
    pub fn modify(&self, fd: impl AsFd, token: Token, interest: Interest) {
        let _ = self.epoll.modify(fd, token.encode(), interest);
    }

    /// Before the close, where another process may hold the same socket: the registration belongs to it (epoll(7)).
    pub fn delete(&self, fd: impl AsFd) -> nix::Result<()> {
        self.epoll.delete(fd)
    }

    pub fn at(&mut self, due_ns: u64, due: Due) {
        self.timers.push(Reverse((due_ns, due)));
    }

    pub fn after(&mut self, pause: Duration, due: Due) {
        self.at(monotonic_ns().saturating_add(pause.as_nanos() as u64), due);
    }

    /// Waits until a descriptor is ready or a timer is due, and returns how many reports [`Poller::report`] holds.
    pub fn wait(&mut self) -> nix::Result<usize> {
        let next_ns = self.timers.peek().map(|Reverse((due_ns, _))| *due_ns);
        let timeout = next_ns.map(|due_ns| Duration::from_nanos(due_ns.saturating_sub(monotonic_ns())));
        let reports = self.epoll.wait(timeout)?;
        self.now_ns = monotonic_ns();
        Ok(reports)
    }

    /// Report `i` of the last wait.
    pub fn report(&self, i: usize) -> Option<(Token, Interest)> {
        let ready = self.epoll.report(i);
        Token::decode(ready.token).map(|token| (token, ready.flags))
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
}
