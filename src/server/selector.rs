//! Which socket of a SO_REUSEPORT group gets the next connection: programs that replace the kernel's hash.
//!
//! [`Select`] has the ways to choose side by side, [`Selector::attach`] what each does:
//!
//! - [`classic`]: a few instructions of classic BPF that return the number of a socket; anybody may attach them;
//! - [`live_set`]: such a program, replaced whenever a worker stops showing signs of life, or shows them again;
//! - [`extended`]: programs with a memory, which take turns or weigh loads; they need CAP_BPF;
//! - [`heartbeat`]: what a worker shows of itself to a program or a parent that chooses by it.
//!
//! When the kernel asks the program. Once per connection, when the SYN arrives: the listener that is chosen then keeps
//! the connection. The accept comes later, after a round trip and the time in the queue, and nothing is chosen again.
//! The kernel also asks for a segment that belongs to no connection: one that arrives after a reset and, with SYN
//! cookies, the ACK of the handshake, because the kernel kept nothing of the SYN. A program that counts must not count
//! these; with SYN cookies it leaves the choice to the hash. (A SYN from a raw socket takes a turn of `round-robin`
//! and never becomes a connection.)
//!
//! What a number means. The group is an array in the order of the listen(2) calls, so socket i belongs to worker i.
//! When a socket leaves, the kernel moves the last one into its place (`reuseport_detach_sock` in
//! net/core/sock_reuseport.c): after the death of worker 1 of 4, number 1 belongs to worker 3, and number 3 to nobody.
//! When a program returns a number that belongs to nobody, the kernel uses its hash. So when a worker dies,
//!
//! - `cpu` and `random` need no change and become a little less exact;
//! - the parent gives [`live_set`] a new program for the new numbers;
//! - the extended programs name sockets in a map of their own, where a socket that has left is an empty entry, and
//!   leave the choice to the hash when they find one.

use clap::ValueEnum;

use super::listener::Listener;
use super::worker_pool::WorkerPool;
use crate::cpu;
use crate::failure::Failure;
use crate::scoreboard::WorkerRow;
use heartbeat::{Heartbeat, Load};
use live_set::LiveSet;

mod classic;
mod extended;
pub mod heartbeat;
mod live_set;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Select {
    /// By a hash of both addresses and ports
    Hash,
    /// The worker on the CPU that processes the SYN; for --pin, and no more workers than CPUs
    Cpu,
    /// By chance
    Random,
    /// By chance among the workers that show a sign of life
    LiveSet,
    /// In turn; needs CAP_BPF
    RoundRobin,
    /// The worker with the fewest connections, open or waiting for it; needs CAP_BPF
    LeastLoaded,
}

impl Select {
    /// How many workers its program has room for.
    pub fn most_workers(self) -> usize {
        match self {
            Select::LiveSet => classic::MAX_MEMBERS,
            Select::LeastLoaded => extended::MAX_LOADS,
            _ => usize::MAX,
        }
    }
}

/// A group's way of choosing: the program in the kernel, and what the workers and the parent do for it.
pub struct Selector {
    select: Select,
    /// The load of each worker, where the program weighs loads.
    loads: Vec<Load>,
    live_set: Option<LiveSet>,
}

impl Selector {
    /// Attaches the program. A group has one, whichever member it is attached through.
    pub fn attach(select: Select, listeners: &[Listener]) -> Result<Selector, Failure> {
        let attach = |program| classic::attach(&listeners[0], &program);
        let mut loads = Vec::new();
        match select {
            // No program: the hash knows nothing about workers or CPUs.
            Select::Hash => {}
            // The CPU of the SYN also processes what comes after it, and has it in its cache. SO_INCOMING_CPU on each
            // listener would do the same, but from Linux 4.6 to 6.1 groups ignored it (b261eda84ec1).
            Select::Cpu => attach(classic::by_cpu(&cpu::allowed(), listeners.len()))?,
            // The hash gives one address and port the same worker each time; chance does not. The live set begins with
            // all workers: the parent replaces this program when it sees that one shows no sign of life.
            Select::Random | Select::LiveSet => attach(classic::random(listeners.len(), &[]))?,
            // A counter in the kernel. It is exactly even and, like the hash, does not look at who is busy.
            Select::RoundRobin => extended::take_turns(listeners)?,
            // The program counts what it gives to each worker, and each worker what it has finished.
            Select::LeastLoaded => loads = extended::weigh_loads(listeners)?,
        }
        Ok(Selector { select, loads, live_set: None })
    }

    /// The heartbeat of worker `id`, whose row this is. `None` where the choice does not look at workers.
    pub fn heartbeat(&self, id: usize, row: WorkerRow) -> Option<Heartbeat> {
        let load = self.loads.get(id).copied();
        (self.select == Select::LiveSet || load.is_some()).then(|| Heartbeat::new(row, load))
    }

    /// Closes the parent's copies of the listeners. A copy would keep a dead worker's queue in the group, and nobody
    /// would ever accept from it. Only the live set keeps the copies: the parent attaches its programs through them.
    pub fn close_copies(&mut self, listeners: Vec<Listener>) {
        self.live_set = (self.select == Select::LiveSet).then(|| LiveSet::new(listeners));
    }

    /// As [`WorkerPool::supervise`], and watches the workers where the choice depends on that.
    pub fn supervise(self, pool: &mut WorkerPool) -> Result<(), Failure> {
        match self.live_set {
            Some(live_set) => live_set.supervise(pool),
            None => pool.supervise(|| {}),
        }
    }
}
