//! Who accepts, who serves, and how the connections get from the one to the other: told apart by what each process has.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::summary::{Summary, Wait, seen_wait};
use crate::lab::inspect::look::{Call, Process, Recording};

/// How connections come to those who serve them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dispatch {
    WorkersAccept,
    MasterPassesDescriptors,
    MasterProxies,
    Threads,
    Unknown,
}

/// By which way exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Each takes its own connections.
    OwnAccept,
    /// A child process for each connection.
    Children,
    /// Over Unix sockets.
    Channel,
    /// By connections to ports of the workers' own.
    OtherPorts,
    /// Several threads of the process accept.
    ThreadsAccept,
    /// One thread accepts for the others.
    Handover,
    Unknown,
}

pub struct Roles {
    pub dispatch: Dispatch,
    pub way: Way,
    /// Those who accept, each with how it waits.
    pub acceptors: BTreeMap<i32, Wait>,
    /// Those who serve; the same where each takes its own.
    pub workers: Vec<i32>,
}

/// Below this share of the CPU time of a process its other threads only help.
const HELP: f64 = 0.1;

pub fn roles(recording: &Recording, summaries: &BTreeMap<i32, Summary>) -> Roles {
    let acceptors = acceptors(recording, summaries);
    let (dispatch, way, workers) = match acceptors.len() {
        0 => (Dispatch::Unknown, Way::Unknown, Vec::new()),
        1 => {
            let pid = *acceptors.keys().next().expect("there is one");
            by_one(&summaries[&pid], summaries)
        }
        _ => (Dispatch::WorkersAccept, Way::OwnAccept, acceptors.keys().copied().collect()),
    };
    Roles { dispatch, way, acceptors, workers }
}

/// The processes that accept. One that only holds the listener, because it will fork or has forked, is none.
fn acceptors(recording: &Recording, summaries: &BTreeMap<i32, Summary>) -> BTreeMap<i32, Wait> {
    let holders = || summaries.values().filter(|summary| !summary.last.holds.is_empty());
    let mut found: BTreeMap<i32, Wait> =
        holders().filter_map(|summary| Some((summary.pid(), wait_of(summary)?))).collect();
    // Busy workers were seen in no call: they are those who own connections, or who are brothers of such.
    let busy = |summary: &&Summary| !found.contains_key(&summary.pid()) && summary.seen() > 0;
    let more: Vec<(i32, Wait)> = holders().filter(busy).map(|summary| (summary.pid(), guess(summary))).collect();
    found.extend(more);
    for pid in behind_a_lock(recording, summaries, &found) {
        found.insert(pid, Wait::Lock);
    }
    found
}

fn wait_of(summary: &Summary) -> Option<Wait> {
    match summary.wait {
        Some(Wait::Accept) if is_thread_lock(summary) => Some(Wait::Lock),
        Some(wait) => Some(wait),
        // A ring in which no request was seen: the kernel shows none while the process is inside.
        None if summary.last.ring_accepts.is_some() => Some(Wait::IoUring),
        None => None,
    }
}

/// What a process may do that was always at work when it was looked at.
fn guess(summary: &Summary) -> Wait {
    let was_in = |call| summary.calls.contains_key(&call);
    match summary.last.is_blocking {
        true => Wait::Accept,
        false if was_in(Call::Select) => Wait::Select,
        false if was_in(Call::Poll) => Wait::Poll,
        false => Wait::Other,
    }
}

/// Threads that take turns in accept, and wait for their turn at one futex: the mutex.
fn is_thread_lock(summary: &Summary) -> bool {
    let mut waiting: BTreeMap<u64, usize> = BTreeMap::new();
    for task in summary.last.tasks.iter().filter(|task| task.call == Call::Futex) {
        *waiting.entry(task.address).or_default() += 1;
    }
    let at_one_futex = waiting.values().copied().max().unwrap_or(0);
    let one_at_a_time = summary.last.tasks.iter().filter(|task| task.is_at_listener).count() <= 1;
    let main_accepts = summary.acceptors.contains(&summary.pid());
    one_at_a_time && !main_accepts && (at_one_futex > 1 || (at_one_futex == 1 && summary.acceptors.len() > 1))
}

/// Brothers that hold one listener, of which at most one at a time waits for it, while others wait for a lock, or in epoll
/// without the listener until they get it.
fn behind_a_lock(
    recording: &Recording,
    summaries: &BTreeMap<i32, Summary>,
    acceptors: &BTreeMap<i32, Wait>,
) -> BTreeSet<i32> {
    let waits_elsewhere = |process: &Process| {
        seen_wait(process).is_none()
            && process.tasks.len() == 1
            && process.tasks.iter().all(|task| matches!(task.call, Call::Lock | Call::Futex | Call::Epoll))
    };
    let mut behind = BTreeSet::new();
    let of_acceptors = acceptors.keys().filter_map(|pid| summaries.get(pid));
    let families: BTreeSet<(i32, u32)> =
        of_acceptors.flat_map(|summary| summary.last.holds.iter().map(|inode| (summary.last.parent, *inode))).collect();
    for (parent, inode) in families {
        let is_brother = |process: &&Process| process.parent == parent && process.holds.contains(&inode);
        let (mut waiting, mut at_once) = (BTreeSet::new(), 0);
        for look in &recording.looks {
            let brothers: Vec<&Process> = look.processes.iter().filter(is_brother).collect();
            at_once = at_once.max(brothers.iter().filter(|process| seen_wait(process).is_some()).count());
            waiting.extend(brothers.iter().filter(|process| waits_elsewhere(process)).map(|process| process.pid));
        }
        if at_once <= 1 && !waiting.is_empty() {
            let all = summaries.values().filter(|summary| is_brother(&summary.last));
            behind.extend(all.map(Summary::pid));
        }
    }
    behind
}

/// One process accepts: it serves by itself, by its threads, or by other processes.
fn by_one(acceptor: &Summary, summaries: &BTreeMap<i32, Summary>) -> (Dispatch, Way, Vec<i32>) {
    let pid = acceptor.pid();
    let others = || summaries.values().filter(move |other| other.pid() != pid && other.wait.is_none());
    let pids = |chosen: Vec<&Summary>| chosen.iter().map(|summary| summary.pid()).collect::<Vec<_>>();
    let own: Vec<&Summary> = others().filter(|other| other.seen() > 0).collect();
    let on_ports: Vec<&Summary> = others().filter(|other| !other.last.listens_elsewhere.is_empty()).collect();
    if !on_ports.is_empty() && own.is_empty() {
        return (Dispatch::MasterProxies, Way::OtherPorts, pids(on_ports));
    }
    let linked = |other: &&Summary| other.last.channels.contains(&pid) && other.last.holds.is_empty();
    let channels: Vec<&Summary> = others().filter(linked).collect();
    let served_by_others: u64 = own.iter().map(|other| other.seen()).sum();
    // What an acceptor passes on it has had for a moment, too; what it serves it keeps.
    let keeps = acceptor.last.open > own.iter().map(|other| other.last.open).sum::<u64>();
    if served_by_others > 0 && !keeps {
        return match channels.is_empty() {
            true => (Dispatch::MasterPassesDescriptors, Way::Children, pids(own)),
            false => (Dispatch::MasterPassesDescriptors, Way::Channel, pids(channels)),
        };
    }
    // Nothing was served yet; children that are linked to the acceptor and hold no listener wait for what it will pass.
    if !channels.is_empty() && acceptor.last.open == 0 && acceptor.threads().count() == 1 {
        return (Dispatch::MasterPassesDescriptors, Way::Channel, pids(channels));
    }
    let (dispatch, way) = by_threads(acceptor);
    (dispatch, way, vec![pid])
}

fn by_threads(acceptor: &Summary) -> (Dispatch, Way) {
    let threads = acceptor.threads().count();
    let watches_once = acceptor.last.watches.len() <= 1;
    if threads < 2 {
        return (Dispatch::WorkersAccept, Way::OwnAccept);
    }
    if acceptor.acceptors.len() > 1 || !watches_once {
        return (Dispatch::Threads, Way::ThreadsAccept);
    }
    // Of two threads and more one does nearly all the work: the others help it, with files and names, say.
    let busiest = acceptor.cpu_of.values().copied().max().unwrap_or(0);
    let is_loop = acceptor.cpu_ns > 0 && acceptor.cpu_ns - busiest < (HELP * acceptor.cpu_ns as f64) as u64;
    let waits_in_loop = acceptor.wait.is_some_and(|wait| wait != Wait::Accept);
    match is_loop && waits_in_loop && acceptor.seen() > 0 {
        true => (Dispatch::WorkersAccept, Way::OwnAccept),
        false => (Dispatch::Threads, Way::Handover),
    }
}
