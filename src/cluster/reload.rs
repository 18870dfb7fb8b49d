//! A rolling reload: one worker after another is replaced, the new one working before the old one is asked to leave, and the
//! next not touched before the old one has left. So there is never one too few, and never more than one too many.
//!
//! Here is how far it has come; what to do next is for the master, which starts and dismisses.

use std::collections::{BTreeSet, VecDeque};

use super::token::UniqueId;
use crate::units::monotonic_ns;

pub struct RollingReload {
    /// A worker that was started later is new already.
    pub since_ns: u64,
    /// Numbers still to be replaced.
    left: VecDeque<usize>,
    /// The worker that is being replaced, and its successor until that works.
    old: Option<UniqueId>,
    candidate: Option<UniqueId>,
    pub replaced: usize,
    /// Old workers that did not leave in time.
    killed: BTreeSet<UniqueId>,
    /// Clients of the control socket that wait for its end.
    pub clients: Vec<u64>,
    /// It was asked for once more meanwhile, perhaps for yet another version.
    pub again: bool,
}

/// What a reload does without a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    GoesOn,
    /// The successor does not work.
    IsAbandoned,
    /// The old one has left.
    ReplacesNext,
}

impl RollingReload {
    pub fn of(workers: usize, clients: Vec<u64>) -> RollingReload {
        RollingReload {
            since_ns: monotonic_ns(),
            left: (0..workers).collect(),
            old: None,
            candidate: None,
            replaced: 0,
            killed: BTreeSet::new(),
            clients,
            again: false,
        }
    }

    pub fn next_number(&mut self) -> Option<usize> {
        self.left.pop_front()
    }

    /// `candidate` was started to replace `old`.
    pub fn begin(&mut self, old: UniqueId, candidate: UniqueId) {
        (self.old, self.candidate) = (Some(old), Some(candidate));
    }

    /// This worker works. If it is the candidate, the old one is returned, which may leave.
    pub fn with(&mut self, id: UniqueId) -> Option<UniqueId> {
        if self.candidate != Some(id) {
            return None;
        }
        self.candidate = None;
        self.replaced += 1;
        self.old
    }

    /// This worker leaves, or (`is_gone`) has left.
    pub fn without(&self, id: UniqueId, is_gone: bool) -> Without {
        if self.candidate == Some(id) {
            Without::IsAbandoned
        } else if self.old == Some(id) && self.candidate.is_none() && is_gone {
            Without::ReplacesNext
        } else {
            Without::GoesOn
        }
    }

    /// This worker is killed. True: it is the old one, and the first time.
    pub fn kills(&mut self, id: UniqueId) -> bool {
        self.old == Some(id) && self.candidate.is_none() && self.killed.insert(id)
    }

    pub fn killed(&self) -> usize {
        self.killed.len()
    }

    /// Only numbers below `workers` are wanted now.
    pub fn shorten(&mut self, workers: usize) {
        self.left.retain(|&number| number < workers);
    }

    /// The candidate, and none any more: its number is not wanted.
    pub fn take_candidate(&mut self, is_surplus: impl Fn(UniqueId) -> bool) -> Option<UniqueId> {
        let candidate = self.candidate.take_if(|id| is_surplus(*id))?;
        self.old = None;
        Some(candidate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_one_leaves_when_its_successor_works_and_the_next_is_replaced_when_it_has_left() {
        let mut reload = RollingReload::of(2, Vec::new());
        assert_eq!(reload.next_number(), Some(0));
        let (old, new) = (UniqueId(1), UniqueId(3));
        reload.begin(old, new);
        assert_eq!(reload.without(old, true), Without::GoesOn);
        assert_eq!(reload.without(new, false), Without::IsAbandoned);
        assert_eq!((reload.with(UniqueId(2)), reload.with(new)), (None, Some(old)));
        assert_eq!(reload.without(old, false), Without::GoesOn);
        assert!(reload.kills(old) && !reload.kills(old));
        assert_eq!((reload.without(old, true), reload.killed()), (Without::ReplacesNext, 1));
        reload.shorten(1);
        assert_eq!(reload.next_number(), None);
    }
}
