//! What a worker shows of itself: a heartbeat, and for a selector that weighs loads the connections it is done with.
//!
//! A heart that must be heard cannot sleep for ever: a wait ends after [`BEAT_EVERY`] even if nothing happens, which
//! costs an idle worker twenty wake-ups per second. Where no selector listens, nothing of this is there.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::scoreboard::{Count, Row};
use crate::units::monotonic_ns;

/// A worker that waits for something to happen shows that it is alive this often. Twenty system calls per second are
/// nothing, and a hang is known within the time of a few slow requests.
pub const BEAT_EVERY: Duration = Duration::from_millis(50);

/// What the selector of a group wants to see of its workers.
pub enum Signs {
    /// It chooses without looking.
    Nothing,
    Life,
    /// By worker.
    Load(Vec<Load>),
}

impl Signs {
    /// What worker `id`, whose row this is, carries with it.
    pub fn of(&self, id: usize, row: Row) -> Option<Pulse> {
        match self {
            Signs::Nothing => None,
            Signs::Life => Some(Pulse::new(row, None)),
            Signs::Load(loads) => Some(Pulse::new(row, Some(loads[id]))),
        }
    }
}

/// A worker's account with a selector. Its load is `assigned - finished`: the connections it has open, those in its
/// queue, and the handshakes that will end there. A worker that hangs finishes nothing, so its load grows with each
/// connection it is sent, and others are chosen instead.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Added to by the selector, for every SYN it sends here.
    pub assigned: &'static AtomicU64,
    /// Stored by the worker.
    pub finished: &'static AtomicU64,
}

impl Load {
    /// Some handshakes are never completed, and the load would keep them for ever. But a worker whose queue is empty
    /// knows its load: what it has open. So what was assigned before a wait, and neither is open nor queues after it,
    /// is finished. (Or it is a handshake that took longer than the wait: one too few until this is done again.)
    fn settle(self, assigned: u64, open: u64) {
        self.finished.store(assigned.wrapping_sub(open), Relaxed);
    }
}

/// A worker's heartbeat.
#[derive(Debug)]
pub struct Pulse {
    row: Row,
    load: Option<Load>,
    /// What the selector had assigned before the wait.
    assigned: u64,
    beat_ns: u64,
    settled_ns: u64,
}

impl Pulse {
    /// Beats for the first time: a worker that has not come to its first wait does not count as silent.
    fn new(row: Row, load: Option<Load>) -> Pulse {
        let now_ns = monotonic_ns();
        row.set_alive(now_ns);
        Pulse { row, load, assigned: 0, beat_ns: now_ns, settled_ns: now_ns }
    }

    /// A wait begins; it is to end at the time returned, if not earlier.
    pub fn pause(&mut self) -> u64 {
        if let Some(load) = self.load {
            self.assigned = load.assigned.load(Relaxed);
        }
        self.beat_ns + BEAT_EVERY.as_nanos() as u64
    }

    /// The wait has ended; `nobody_queues` when it has shown that the accept queue is empty.
    pub fn beat(&mut self, now_ns: u64, nobody_queues: bool) {
        self.beat_ns = now_ns;
        self.row.set_alive(now_ns);
        let is_due = now_ns >= self.settled_ns + BEAT_EVERY.as_nanos() as u64;
        if let Some(load) = self.load.filter(|_| nobody_queues && is_due) {
            self.settled_ns = now_ns;
            load.settle(self.assigned, self.row.get(Count::Active));
        }
    }

    /// A connection has ended.
    pub fn closed(&self) {
        if let Some(load) = self.load {
            load.finished.fetch_add(1, Relaxed);
        }
    }
}
