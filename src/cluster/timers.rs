//! Everything that the master has to do at some time, the next first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::token::Uid;

/// What is to be done. Nothing is ever taken back: who is told that a time has come looks whether that still matters.
/// Each kind is answered in `Master::do_what_is_due`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Due {
    /// There may be a descriptor again for what is to be accepted.
    AcceptAgain,
    /// This worker has refused a connection of this handle, and is asked again.
    Rested(u64, Uid),
    /// This handle has had no worker for long enough.
    Orphan(u64),
    /// This worker has closed this handle: is it still there, and does nobody else have it?
    Closed(u64, Uid),
    /// The channel to this worker may take descriptors again.
    Flush(Uid),
    /// This worker should have left.
    Kill(Uid),
    /// This number is to have a worker.
    Start(usize),
    /// This worker should listen by now.
    Listen(Uid),
    /// Time to look for signs of life.
    Heartbeat,
    /// Time to look at the watched file.
    Look,
}

/// Due times, of CLOCK_MONOTONIC.
#[derive(Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(u64, Due)>>,
}

impl Timers {
    pub fn at(&mut self, due_ns: u64, what: Due) {
        self.heap.push(Reverse((due_ns, what)));
    }

    pub fn next_ns(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((due_ns, _))| *due_ns)
    }

    /// The next that is due at this time, if there is one.
    pub fn take_due(&mut self, now_ns: u64) -> Option<Due> {
        self.next_ns().filter(|&due_ns| due_ns <= now_ns)?;
        self.heap.pop().map(|Reverse((_, what))| what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_in_the_order_of_its_time_and_not_before() {
        let mut timers = Timers::default();
        timers.at(20, Due::AcceptAgain);
        timers.at(10, Due::Start(1));
        timers.at(30, Due::Start(0));
        assert_eq!((timers.next_ns(), timers.take_due(9)), (Some(10), None));
        assert_eq!(timers.take_due(25), Some(Due::Start(1)));
        assert_eq!(timers.take_due(25), Some(Due::AcceptAgain));
        assert_eq!((timers.take_due(25), timers.next_ns()), (None, Some(30)));
    }
}
