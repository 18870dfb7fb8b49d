//! What a worker reports to a selector: a heartbeat, and to one that weighs loads the connections it has finished.
//!
//! A worker with a heartbeat cannot sleep for ever: a wait ends after [`BEAT_EVERY`] even if nothing happens, which
//! costs an idle worker twenty wake-ups per second. Without a selector that needs it there is none of this.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::scoreboard::{Count, WorkerRow};
use crate::units::monotonic_ns;

/// A worker that waits for something to happen shows that it is alive this often. Twenty system calls per second are
/// nothing, and a hang is known within the time of a few slow requests.
pub const BEAT_EVERY: Duration = Duration::from_millis(50);

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
    fn correct(self, assigned: u64, open: u64) {
        self.finished.store(assigned.wrapping_sub(open), Relaxed);
    }
}

#[derive(Debug)]
pub struct Heartbeat {
    row: WorkerRow,
    load: Option<Load>,
    /// What the selector had assigned before the wait.
    assigned: u64,
    beat_ns: u64,
    corrected_ns: u64,
}

impl Heartbeat {
    /// Beats for the first time: a worker that has not come to its first wait does not count as silent.
    pub fn new(row: WorkerRow, load: Option<Load>) -> Heartbeat {
        let now_ns = monotonic_ns();
        row.set_alive(now_ns);
        Heartbeat { row, load, assigned: 0, beat_ns: now_ns, corrected_ns: now_ns }
    }

    /// A wait begins; it is to end at the time returned, if not earlier.
    pub fn pause(&mut self) -> u64 {
        if let Some(load) = self.load {
            self.assigned = load.assigned.load(Relaxed);
        }
        self.beat_ns + BEAT_EVERY.as_nanos() as u64
    }

    /// The wait has ended; `is_queue_empty` when it has shown that the accept queue is empty.
    pub fn beat(&mut self, now_ns: u64, is_queue_empty: bool) {
        self.beat_ns = now_ns;
        self.row.set_alive(now_ns);
        let is_due = now_ns >= self.corrected_ns + BEAT_EVERY.as_nanos() as u64;
        if let Some(load) = self.load.filter(|_| is_queue_empty && is_due) {
            self.corrected_ns = now_ns;
            load.correct(self.assigned, self.row.get(Count::Active));
        }
    }

    pub fn closed(&self) {
        if let Some(load) = self.load {
            load.finished.fetch_add(1, Relaxed);
        }
    }
}
