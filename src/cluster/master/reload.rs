//! A rolling reload: one worker after another is replaced, the new one listening before the old one is asked to go, and
//! the next not touched before the old one has left. So there is never one too few, and never more than one too many.
//!
//! A successor that ends, or does not listen in time, replaces nobody: then the reload is abandoned, and who works goes on.

use std::collections::{BTreeSet, VecDeque};

use serde_json::json;

use super::Master;
use crate::cluster::token::Uid;
use crate::units::monotonic_ns;

/// A reload under way.
pub(super) struct Roll {
    /// Who was started later is new already.
    since_ns: u64,
    /// Numbers still to be replaced.
    left: VecDeque<usize>,
    /// Who is being replaced, and by whom.
    old: Option<Uid>,
    candidate: Option<Uid>,
    replaced: usize,
    /// Who did not leave in time.
    killed: BTreeSet<Uid>,
    /// Clients of the control socket that wait for its end.
    clients: Vec<u64>,
    /// It was asked for once more meanwhile, perhaps for yet another version.
    again: bool,
}

impl Master {
    /// Begins to replace all workers; this client of the control socket waits for it.
    pub(super) fn reload(&mut self, client: Option<u64>) {
        if let Some(roll) = &mut self.roll {
            roll.again = true;
            roll.clients.extend(client);
            let step = json!({"step": "a reload is under way; another follows it"});
            return client.into_iter().for_each(|client| self.tell_client(client, &step));
        }
        self.begin_reload(client.into_iter().collect());
    }

    fn begin_reload(&mut self, clients: Vec<u64>) {
        // Somebody has taken the matter in hand: a program that was given up is tried once more.
        (self.has_given_up, self.lives.report.gave_up) = (false, false);
        self.events.tell("reload", json!({"workers": self.workers}));
        self.roll = Some(Roll {
            since_ns: monotonic_ns(),
            left: (0..self.workers).collect(),
            old: None,
            candidate: None,
            replaced: 0,
            killed: BTreeSet::new(),
            clients,
            again: false,
        });
        (0..self.workers).for_each(|number| self.start_if_vacant(number));
        self.replace_next();
    }

    /// A worker listens. If it is the candidate, the old one may go.
    pub(super) fn reload_with(&mut self, uid: Uid) {
        let Some(roll) = &mut self.roll else { return };
        if roll.candidate != Some(uid) {
            return;
        }
        roll.candidate = None;
        roll.replaced += 1;
        match roll.old {
            Some(old) if self.roster.get(old).is_some() => self.dismiss(old),
            // It was faster.
            _ => self.replace_next(),
        }
    }

    /// This worker serves no more, or not for long.
    pub(super) fn reload_without(&mut self, uid: Uid, why: &str) {
        let Some(roll) = &self.roll else { return };
        if roll.candidate == Some(uid) {
            self.abandon_reload(&format!("the new worker does not serve: {why}"));
        } else if roll.old == Some(uid) && roll.candidate.is_none() && self.roster.get(uid).is_none() {
            self.replace_next();
        }
    }

    /// The old worker had to be killed: who waits for the reload is to know that clients may have noticed.
    pub(super) fn reload_by_force(&mut self, uid: Uid) {
        let Some(worker) = self.roster.get(uid) else { return };
        let step = format!("worker {}: the old one has not left in time, and is killed", worker.number);
        let Some(roll) = self.roll.as_mut().filter(|roll| roll.old == Some(uid) && roll.candidate.is_none())
        else {
            return;
        };
        if roll.killed.insert(uid) {
            let clients = roll.clients.clone();
            clients.into_iter().for_each(|client| self.tell_client(client, &json!({"step": step})));
        }
    }

    pub(super) fn abandon_reload(&mut self, why: &str) {
        let Some(roll) = self.roll.take() else { return };
        self.lives.report.reloads_failed += 1;
        let outcome = json!({"replaced": roll.replaced, "of": self.workers, "why": why});
        self.events.tell("reload-failed", outcome);
        for client in roll.clients {
            self.refuse(client, &format!("the reload was abandoned: {why}; the others go on as they were"));
        }
    }

    fn replace_next(&mut self) {
        loop {
            if self.has_given_up {
                return self.abandon_reload("the program was given up");
            }
            let Some(roll) = &mut self.roll else { return };
            let Some(number) = roll.left.pop_front() else { return self.finish_reload() };
            let (clients, total) = (roll.clients.clone(), self.workers);
            // Who is about to be started anyway will be new.
            let holder = self.roster.holder(number).filter(|worker| worker.started_ns < roll.since_ns);
            let Some(old) = holder.map(|worker| worker.uid) else { continue };
            match self.fork(number, Some(old)) {
                Ok(candidate) => {
                    if let Some(roll) = &mut self.roll {
                        (roll.old, roll.candidate) = (Some(old), Some(candidate));
                    }
                    let step = json!({"step": format!("worker {number} of {total}: a successor is started")});
                    clients.iter().for_each(|&client| self.tell_client(client, &step));
                }
                Err(failure) => self.abandon_reload(&failure.to_string()),
            }
            return;
        }
    }

    fn finish_reload(&mut self) {
        let Some(roll) = self.roll.take() else { return };
        self.lives.report.reloads += 1;
        let killed = roll.killed.len();
        self.events.tell("reloaded", json!({"replaced": roll.replaced, "killed": killed}));
        if roll.again {
            return self.begin_reload(roll.clients);
        }
        for client in roll.clients {
            let by_force = if killed > 0 { format!(", killed: {killed}") } else { String::new() };
            let done = format!("workers replaced: {}{by_force}", roll.replaced);
            self.answer(client, json!({"done": done, "replaced": roll.replaced, "killed": killed}));
        }
    }

    /// Numbers from here on are no longer wanted.
    pub(super) fn shorten_reload(&mut self, workers: usize) {
        let Some(roll) = &mut self.roll else { return };
        roll.left.retain(|&number| number < workers);
        let candidate = roll.candidate.and_then(|uid| self.roster.get(uid));
        if let Some(worker) = candidate.filter(|worker| worker.number >= workers) {
            let uid = worker.uid;
            // Its place is gone, and so is whom it was to replace.
            if let Some(roll) = &mut self.roll {
                (roll.candidate, roll.old) = (None, None);
            }
            self.dismiss(uid);
            self.replace_next();
        }
    }
}
