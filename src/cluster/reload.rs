//! A rolling reload: one worker after another is replaced, the new one working before the old one is asked to leave, and the
//! next not touched before the old one has left. So there is never one too few, and never more than one too many.
//!
//! Here is how far it has come; the master starts and dismisses.

use std::collections::{BTreeSet, VecDeque};

use super::poller::UniqueId;

#[derive(Default)]
pub struct RollingReload {
    /// A worker that was started later is new already.
    pub since_ns: u64,
    pub left: VecDeque<usize>,
    /// The worker that is being replaced, and its successor until that works.
    pub old: Option<UniqueId>,
    pub candidate: Option<UniqueId>,
    pub replaced: usize,
    /// Old workers that did not leave in time.
    pub killed: BTreeSet<UniqueId>,
    pub clients: Vec<u64>,
    /// It was asked for once more meanwhile, perhaps for yet another version.
    pub again: bool,
}

impl RollingReload {
    /// The old one was asked to leave, and the next is replaced when it has left.
    pub fn waits_for(&self, id: UniqueId) -> bool {
        self.old == Some(id) && self.candidate.is_none()
    }
}
