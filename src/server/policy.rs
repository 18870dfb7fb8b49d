//! Which of the free workers gets the next connection: the policies of a master that accepts for others, side by side.
//! Which workers are free, and how the connection gets there, is decided by the master.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsFd;

use clap::ValueEnum;
use socket2::SockRef;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Each in turn
    RoundRobin,
    /// One at random
    Random,
    /// The one with the fewest connections, open or on their way to it
    LeastConnections,
    /// The first that has none; if all have some, the first of those with the fewest
    FirstFree,
    /// The one that has waited longest since it acknowledged its last one
    Acknowledged,
    /// The same worker for the same client address
    Sticky,
}

pub struct Choice {
    policy: Policy,
    last: usize,
    random: fastrand::Rng,
}

impl Choice {
    pub fn by(policy: Policy) -> Choice {
        Choice { policy, last: 0, random: fastrand::Rng::new() }
    }

    /// The next worker: a position among `free`, the numbers (below `workers`) of those that can be given a connection,
    /// in the order in which they became free. `load` says how many connections a number has.
    ///
    /// # Panics
    /// When no worker is free.
    pub fn next(
        &mut self,
        free: impl Iterator<Item = usize> + Clone,
        workers: usize,
        load: impl Fn(usize) -> u64,
        connection: impl AsFd,
    ) -> usize {
        // How many come before worker i in the round that begins with `first`.
        let turn = |i: usize, first: usize| (i + workers - first % workers) % workers;
        let after_last = self.last + 1;
        let numbered = free.clone().enumerate();
        let next = match self.policy {
            // Each worker gets the same number of connections, whatever they cost.
            Policy::RoundRobin => numbered.min_by_key(|&(_, i)| turn(i, after_last)),
            // Needs no memory, so several masters could do it side by side; the price is the spread of chance.
            Policy::Random => numbered.clone().nth(self.random.usize(..free.count())),
            // A worker that is slow or hangs keeps its connections, and so gets fewer new ones. Among equals by turns.
            Policy::LeastConnections => numbered.min_by_key(|&(_, i)| (load(i), turn(i, after_last))),
            // Among equals the first of the list, so that as few as possible are at work. Stevens' master waits when
            // nobody is idle, since its children serve one client at a time; an event loop serves one more.
            Policy::FirstFree => numbered.min_by_key(|&(_, i)| (load(i), i)),
            // The first that showed that it is awake. A worker that hangs holds the one it has not acknowledged.
            Policy::Acknowledged => numbered.clone().next(),
            // What a worker remembers of a client is there when it comes again. The clients of one that is dead or full
            // go to the next: an affinity lost costs less than a master that waits. To know the client costs a
            // getpeername for each connection, which no other policy needs.
            Policy::Sticky => {
                let home = hash_of_client_address(connection) % workers;
                numbered.min_by_key(|&(_, i)| turn(i, home))
            }
        };
        let (position, number) = next.expect("a connection is given out only while somebody is free");
        self.last = number;
        position
    }
}

/// A number for the address, without the port, of a connection's client. The same in every run: a client that comes
/// back after a restart finds its worker again. Clients that have left already all hash alike.
fn hash_of_client_address(connection: impl AsFd) -> usize {
    let peer = SockRef::from(&connection).peer_addr().ok().and_then(|peer| peer.as_socket());
    let mut hasher = DefaultHasher::new();
    peer.map(|address| address.ip()).hash(&mut hasher);
    hasher.finish() as usize
}
