//! Which socket of a SO_REUSEPORT group gets the next connection: programs that replace the kernel's hash.
//!
//! [`Select`] has the ways to choose side by side, [`Selector::attach`] what each does:
//!
//! - [`classic`]: a few instructions of classic BPF that return the number of a socket; anybody may attach them;
//! - [`live_set`]: such a program, replaced whenever a worker falls silent or comes back;
//! - [`extended`]: programs with a memory, which take turns or weigh loads; they need CAP_BPF;
//! - [`heartbeat`]: what a worker shows of itself to those who choose.
//!
//! When it is asked. Once per connection, when the SYN arrives: the request that is made then belongs to the chosen
//! listener, and so does the connection that grows out of it. (A bare SYN from a raw socket takes a turn of
//! `round-robin`, and no connection comes of it.) Between the choice and the accept lie a round trip and the time in
//! the queue, and nobody chooses again. A segment that belongs to no connection asks, too: a straggler behind a reset,
//! and with SYN cookies the ACK, for then nothing was remembered of the SYN. Programs that count have to tell them
//! apart, and under SYN cookies they leave the choice to the hash.
//!
//! What a number means. The group is an array in the order of the listen(2) calls, so socket i is worker i's. When a
//! socket leaves, the kernel moves the last one into the hole (`reuseport_detach_sock` in net/core/sock_reuseport.c):
//! after the death of worker 1 of 4, number 1 is worker 3's and number 3 is nobody's. A number that is nobody's is no
//! error: the kernel falls back on its hash. So `cpu` and `random` go on by themselves when a worker dies, a little
//! less exactly; [`live_set`] follows the moves; the extended programs name sockets in a map of their own instead,
//! where a socket that has left is an empty place, and leave the choice to the hash when they come upon one.

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
    /// By worker, where the program weighs loads.
    loads: Vec<Load>,
    live_set: Option<LiveSet>,
}

impl Selector {
    /// Attaches the program. A group has one, whichever member it is attached through.
    pub fn attach(select: Select, listeners: &[Listener]) -> Result<Selector, Failure> {
        let attach = |program| classic::attach(&listeners[0], &program);
        let mut loads = Vec::new();
        match select {
            // No program. The hash knows neither workers nor CPUs.
            Select::Hash => {}
            // What comes after the SYN is processed there too, and is in that CPU's cache. SO_INCOMING_CPU on each
            // listener would say the same, but groups did not heed it from Linux 4.6 to 6.1 (b261eda84ec1).
            Select::Cpu => attach(classic::by_cpu(&cpu::allowed(), listeners.len()))?,
            // The hash gives one client with one port the same worker each time; chance does not. For the live set it
            // is right until the parent sees that a worker shows no sign of life.
            Select::Random | Select::LiveSet => attach(classic::random(listeners.len(), &[]))?,
            // A counter in the kernel: exactly even, and as blind as the hash.
            Select::RoundRobin => extended::take_turns(listeners)?,
            // The kernel counts what it sends to each worker, and each worker what it is done with.
            Select::LeastLoaded => loads = extended::weigh_loads(listeners)?,
        }
        Ok(Selector { select, loads, live_set: None })
    }

    /// What worker `id`, whose row this is, has to show of itself.
    pub fn heartbeat(&self, id: usize, row: WorkerRow) -> Option<Heartbeat> {
        let load = self.loads.get(id).copied();
        (self.select == Select::LiveSet || load.is_some()).then(|| Heartbeat::new(row, load))
    }

    /// Closes the parent's copies of the listeners: one kept open would keep its queue in the group, and nobody would
    /// ever accept from it. Only the live set keeps them, and attaches one program after another through them.
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
