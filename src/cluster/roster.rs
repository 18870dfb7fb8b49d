//! Who works: every process that was started and is not yet reaped. Several may have one number for a while: at a
//! reload, or when a worker has said that it is about to leave, one leaves and another is its successor.

use std::collections::BTreeMap;

use nix::unistd::Pid;

use super::token::Uid;
use super::worker::{State, Worker};
use crate::server::Ipc;

/// The living, by their unique ids.
#[derive(Default)]
pub struct Roster {
    processes: BTreeMap<Uid, Worker>,
    last: u64,
}

impl Roster {
    /// The id of the next process. Nobody has had it, even should that process not come to life.
    pub fn next_uid(&mut self) -> Uid {
        self.last += 1;
        Uid(self.last)
    }

    pub fn insert(&mut self, worker: Worker) {
        self.processes.insert(worker.uid, worker);
    }

    pub fn remove(&mut self, uid: Uid) -> Option<Worker> {
        self.processes.remove(&uid)
    }

    pub fn get(&self, uid: Uid) -> Option<&Worker> {
        self.processes.get(&uid)
    }

    pub fn get_mut(&mut self, uid: Uid) -> Option<&mut Worker> {
        self.processes.get_mut(&uid)
    }

    /// Our end of its channel, while it has one.
    pub fn ipc(&mut self, uid: Uid) -> Option<&mut Ipc> {
        self.get_mut(uid)?.ipc.as_mut()
    }

    /// In the order in which they were started.
    pub fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.processes.values()
    }

    pub fn uids(&self) -> Vec<Uid> {
        self.processes.keys().copied().collect()
    }

    pub fn find(&self, pid: Pid) -> Option<Uid> {
        self.iter().find(|worker| worker.pid == pid).map(|worker| worker.uid)
    }

    /// The worker that serves as this number, or is about to.
    pub fn holder(&self, number: usize) -> Option<&Worker> {
        self.iter().find(|worker| worker.number == number && worker.state != State::Leaving)
    }

    /// All numbers below this one have a worker that serves.
    pub fn is_at_full_strength(&self, workers: usize) -> bool {
        let mut serves = vec![false; workers];
        let serving = self.iter().filter(|worker| worker.state == State::Serving);
        serving.filter(|worker| worker.number < workers).for_each(|worker| serves[worker.number] = true);
        serves.into_iter().all(|serves| serves)
    }

    pub fn len(&self) -> usize {
        self.processes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }
}
