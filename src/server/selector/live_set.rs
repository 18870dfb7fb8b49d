//! The live set: each connection goes to a random worker of those that show a sign of life.
//!
//! The parent reads the workers' heartbeats in the scoreboard and, when a worker has fallen silent or come back,
//! attaches a new [`classic::random`] in place of the old one. What was in a silent worker's queue before stays there;
//! what comes afterwards goes elsewhere. It takes no privilege.
//!
//! The parent attaches through the workers' listeners and therefore keeps copies of them. So a dead worker's socket
//! stays in the group until the parent, which gets SIGCHLD at once, closes its copy: the queue is reset then, and not
//! when the worker died. In return the parent decides when the numbers change (see [`super`]), and no connection
//! meets a program that is about another group. What is in the queue of a worker that dies is lost either way, unless
//! net.ipv4.tcp_migrate_req is 1.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::listener::Listener;
use super::super::worker_pool::WorkerPool;
use super::classic;
use super::heartbeat::BEAT_EVERY;
use crate::console;
use crate::failure::Failure;
use crate::scoreboard::Count;
use crate::units::monotonic_ns;

/// How often the parent looks: as often as there may be something new.
const LOOK_EVERY: Duration = BEAT_EVERY;

/// A worker that has been silent for so long does not get connections. Four beats: on a busy machine
/// a beat is late by tens of milliseconds. A worker that blocks for longer in its requests looks like one that hangs,
/// and to a new connection it is one.
const SILENT_AFTER: Duration = BEAT_EVERY.saturating_mul(4);

pub struct LiveSet {
    /// Worker and listener, in the order of the group.
    members: Vec<(usize, Listener)>,
    /// What the attached program is about: so many members, and the numbers among them that it passes over.
    attached: (usize, BTreeSet<usize>),
    /// Attaching has failed, and that has been said.
    is_stuck: bool,
}

impl LiveSet {
    /// Keeps the workers' listeners, in the order in which they joined the group. A program that chooses among all of
    /// them is attached already.
    pub fn new(listeners: Vec<Listener>) -> LiveSet {
        let attached = (listeners.len(), BTreeSet::new());
        LiveSet { members: listeners.into_iter().enumerate().collect(), attached, is_stuck: false }
    }

    /// Supervises the pool as [`WorkerPool::supervise`] does, and checks the heartbeats meanwhile.
    pub fn supervise(mut self, pool: &mut WorkerPool) -> Result<(), Failure> {
        while !pool.next_signal_stops(Some(LOOK_EVERY))? {
            self.update(pool);
        }
        // With a copy open, connections would still enter queues that no worker serves any more.
        drop(self);
        pool.stop();
        Ok(())
    }

    /// Looks at the workers and attaches a new program if the set has changed. While no worker is live, the last
    /// program stays: a queue is better than none.
    fn update(&mut self, pool: &WorkerPool) {
        while let Some(number) = self.members.iter().position(|&(worker, _)| !pool.is_alive(worker)) {
            self.remove(number);
        }
        let now_ns = monotonic_ns();
        let is_silent = |worker| {
            let alive_ns = pool.scoreboard().row(worker).get(Count::AliveNs);
            now_ns.saturating_sub(alive_ns) > SILENT_AFTER.as_nanos() as u64
        };
        let numbered = self.members.iter().enumerate();
        let silent = numbered.filter(|(_, (worker, _))| is_silent(*worker)).map(|(number, _)| number);
        self.pass_over(silent.collect());
    }

    /// A dead worker leaves the group, and the last member gets its number. Neither number is chosen while that
    /// happens: the one is the dead worker's before it, the other is nobody's after it.
    fn remove(&mut self, number: usize) {
        let last = self.members.len() - 1;
        let gaps = self.attached.1.iter().copied().filter(|&gap| gap <= last).chain([number, last]);
        self.pass_over(gaps.collect());
        drop(self.members.swap_remove(number));
    }

    fn pass_over(&mut self, gaps: BTreeSet<usize>) {
        let members = self.members.len();
        if gaps.len() >= members || (members, &gaps) == (self.attached.0, &self.attached.1) {
            return;
        }
        let ascending: Vec<usize> = gaps.iter().copied().collect();
        match classic::attach(&self.members[0].1, &classic::random(members, &ascending)) {
            Ok(()) => (self.attached, self.is_stuck) = ((members, gaps), false),
            // Said once: it will be tried again at every look.
            Err(_) if self.is_stuck => {}
            Err(failure) => {
                console::log(format_args!("{failure}; connections go on by the last program"));
                self.is_stuck = true;
            }
        }
    }
}
