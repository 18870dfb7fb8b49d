//! Who accepts, who serves, and how the connections get from the one to the other: told apart by what each process has.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::advice::kind_of;
use super::summary::{Summary, Wait, seen_wait};
use crate::lab::inspect::look::{Call, Process, Recording};
use crate::lab::server_kind::Kind;

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

/// The exact way of a dispatch, as the schema says it in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    OwnAccept,
    Children,
    Channel,
    OtherPorts,
    ThreadsAccept,
    Handover,
    Unknown,
}

pub struct Roles {
    /// Acceptors that were seen in no call that waits for a listener: how they wait is a guess.
    pub guessed: Vec<i32>,
    pub dispatch: Dispatch,
    pub way: Way,
    /// Those who accept, each with how it waits.
    pub acceptors: BTreeMap<i32, Wait>,
    /// Those who serve; the same where each takes its own.
    pub workers: Vec<i32>,
}

/// Below this share of the CPU time of a process its other threads only help it.
const HELP: f64 = 0.1;

/// Where a master sleeps that does nothing but wait for its workers.
const IDLE: [Call; 5] = [Call::Futex, Call::Select, Call::Poll, Call::Epoll, Call::Sleep];

/// With less CPU time nothing can be said of who did it.
const SOME_WORK_NS: u64 = 2_000_000;

/// A child that is forked for a connection has at least so many page faults.
const FAULTS_PER_CHILD: u64 = 10;

pub fn roles(recording: &Recording, summaries: &BTreeMap<i32, Summary>) -> Roles {
    let (acceptors, guessed) = acceptors(recording, summaries);
    let (dispatch, way, workers) = match acceptors.len() {
        0 => (Dispatch::Unknown, Way::Unknown, Vec::new()),
        1 => {
            let pid = *acceptors.keys().next().expect("there is one");
            by_one(recording, &summaries[&pid], summaries)
        }
        _ => (Dispatch::WorkersAccept, Way::OwnAccept, acceptors.keys().copied().collect()),
    };
    Roles { guessed, dispatch, way, acceptors, workers }
}

/// The processes that accept, of those that live. One that only holds the listener, because it will fork or has forked,
/// is none. And those of them whose way to wait is a guess.
fn acceptors(recording: &Recording, summaries: &BTreeMap<i32, Summary>) -> (BTreeMap<i32, Wait>, Vec<i32>) {
    let lives = |summary: &&Summary| recording.last().processes.iter().any(|process| process.pid == summary.pid());
    let holders = || summaries.values().filter(|summary| !summary.last.holds.is_empty()).filter(lives);
    let mut found: BTreeMap<i32, Wait> =
        holders().filter_map(|summary| Some((summary.pid(), wait_of(summary)?))).collect();
    // Busy workers were seen in no call, but they own connections. A child of an acceptor was forked for its
    // connection.
    let is_known = |pid: i32| found.contains_key(&pid);
    let is_new = |summary: &&Summary| !is_known(summary.pid()) && !is_known(summary.last.parent);
    // The parent of holders that sleeps at every look, and not for the listener, looks after them.
    let is_parent = |pid: i32| holders().any(|other| other.last.parent == pid);
    let only_watches =
        |summary: &Summary| is_parent(summary.pid()) && summary.calls.keys().all(|call| IDLE.contains(call));
    let mut likely: Vec<&Summary> = holders().filter(is_new).filter(|summary| summary.seen() > 0).collect();
    likely.retain(|summary| !only_watches(summary));
    let pids: BTreeSet<i32> = likely.iter().map(|summary| summary.pid()).collect();
    likely.retain(|summary| !pids.contains(&summary.last.parent));
    if found.is_empty() && likely.is_empty() {
        likely = holders().filter(|summary| summary.cpu_ns > 0 && !only_watches(summary)).collect();
    }
    // A worker that is stopped does nothing that could be seen; its siblings do.
    let is_known = |pid: i32| found.contains_key(&pid) || likely.iter().any(|summary| summary.pid() == pid);
    let known: Vec<&Summary> = summaries.values().filter(|summary| is_known(summary.pid())).collect();
    let stopped = holders().filter(|summary| summary.last.is_stopped() && !is_known(summary.pid()));
    let stopped: Vec<&Summary> = stopped
        .filter(|summary| known.is_empty() || known.iter().any(|other| other.last.parent == summary.last.parent))
        .collect();
    likely.extend(stopped);
    let more: Vec<(i32, Wait)> = likely.iter().map(|summary| (summary.pid(), guess(recording, summary))).collect();
    found.extend(more.iter().copied());
    let behind = behind_a_lock(recording, summaries, &found);
    found.extend(behind.iter().map(|&pid| (pid, Wait::Lock)));
    let guessed = more.iter().map(|(pid, _)| *pid).filter(|pid| !behind.contains(pid)).collect();
    (found, guessed)
}

fn wait_of(summary: &Summary) -> Option<Wait> {
    match summary.wait {
        // The parent that made the instance has it, too, and does not wait in it.
        Some(_) if summary.shares_epoll && summary.acceptors.is_empty() && summary.seen() == 0 => None,
        Some(Wait::Accept) if is_thread_lock(summary) => Some(Wait::Lock),
        Some(wait) => Some(wait),
        // A ring in which no request was seen: the kernel shows none while the process is inside.
        None if summary.last.ring_accepts.is_some() => Some(Wait::IoUring),
        None => None,
    }
}

/// What a process may do that was always at work when it was looked at. It has no epoll instance with a listener.
fn guess(recording: &Recording, summary: &Summary) -> Wait {
    let was_only_in = |known: &[Call]| summary.calls.keys().all(|call| known.contains(call));
    match kind_of(recording, summary.pid()) {
        // As their sources say: gunicorn/workers/sync.py, puma/server.rb.
        Kind::Gunicorn | Kind::Puma => Wait::Select,
        _ if summary.last.is_blocking => Wait::Accept,
        _ if summary.calls.contains_key(&Call::Select) => Wait::Select,
        // Before poll(2) there is nothing that could be seen.
        _ if summary.calls.contains_key(&Call::Poll) || was_only_in(&[Call::Running, Call::Transfer]) => Wait::Poll,
        _ => Wait::Other,
    }
}

/// Threads that take turns in accept, and wait for their turn at one futex: the mutex.
fn is_thread_lock(summary: &Summary) -> bool {
    let mut waiting: BTreeMap<u64, usize> = BTreeMap::new();
    // The main thread waits for the end of the others.
    let others = || summary.last.tasks.iter().filter(|task| task.tid != summary.pid());
    for task in others().filter(|task| task.call == Call::Futex) {
        *waiting.entry(task.address).or_default() += 1;
    }
    let at_one_futex = waiting.values().copied().max().unwrap_or(0);
    let one_at_a_time = summary.last.tasks.iter().filter(|task| task.is_at_listener).count() <= 1;
    let main_accepts = summary.acceptors.contains(&summary.pid());
    one_at_a_time && !main_accepts && (at_one_futex > 1 || (at_one_futex == 1 && summary.acceptors.len() > 1))
}

/// Children of one parent that hold one listener, of which one at a time waits for it, while others wait for a lock, or in
/// epoll without the listener until they get it.
fn behind_a_lock(
    recording: &Recording,
    summaries: &BTreeMap<i32, Summary>,
    acceptors: &BTreeMap<i32, Wait>,
) -> BTreeSet<i32> {
    let mut behind = BTreeSet::new();
    let of_acceptors = acceptors.keys().filter_map(|pid| summaries.get(pid));
    let families: BTreeSet<(i32, u32)> =
        of_acceptors.flat_map(|summary| summary.last.holds.iter().map(|inode| (summary.last.parent, *inode))).collect();
    for (parent, inode) in families {
        let is_sibling = |process: &&Process| process.parent == parent && process.holds.contains(&inode);
        let (mut at_lock, mut waiting, mut watching) = (0, 0, 0);
        for look in &recording.looks {
            let siblings: Vec<&Process> = look.processes.iter().filter(is_sibling).collect();
            if siblings.len() < 2 {
                continue;
            }
            let does = |calls: &[Call]| {
                let alone = siblings.iter().filter(|process| process.tasks.len() == 1 && seen_wait(process).is_none());
                alone.filter(|process| calls.contains(&process.tasks[0].call)).count()
            };
            at_lock += does(&[Call::Lock]);
            waiting += does(&[Call::Futex, Call::Epoll]);
            watching += siblings.iter().filter(|process| seen_wait(process).is_some()).count();
        }
        // One process is read after another, and meanwhile the lock may go from one to the next: then two have it.
        let is_one_at_a_time = 2 * watching <= 3 * recording.looks.len();
        if at_lock > 0 || (waiting > 0 && is_one_at_a_time) {
            let all = recording.last().processes.iter().filter(is_sibling);
            behind.extend(all.map(|process| process.pid));
        }
    }
    behind
}

/// One process accepts: it serves by itself, by its threads, or by other processes.
fn by_one(recording: &Recording, acceptor: &Summary, summaries: &BTreeMap<i32, Summary>) -> (Dispatch, Way, Vec<i32>) {
    let pid = acceptor.pid();
    let threads = serving_threads(recording, acceptor);
    let others = || summaries.values().filter(move |other| other.pid() != pid);
    let pids = |chosen: Vec<&Summary>| chosen.iter().map(|summary| summary.pid()).collect::<Vec<_>>();
    let own: Vec<&Summary> = others().filter(|other| other.open > 0).collect();
    let on_ports: Vec<&Summary> = others().filter(|other| !other.last.listens_elsewhere.is_empty()).collect();
    // The workers of a proxy have connections of other ports only.
    if !on_ports.is_empty() && own.is_empty() {
        return (Dispatch::MasterProxies, Way::OtherPorts, pids(on_ports));
    }
    let is_linked = |other: &&Summary| other.last.channels.contains(&pid) && other.last.holds.is_empty();
    let linked: Vec<&Summary> = others().filter(is_linked).collect();
    // What an acceptor passes on it has had for a moment, too; what it serves it keeps, and its children do little.
    let sum = |of: fn(&Summary) -> u64| others().map(of).sum::<u64>();
    let keeps = acceptor.open > sum(|other| other.open) && sum(|other| other.cpu_ns) < acceptor.cpu_ns / 5;
    let faults = acceptor.last.child_faults - acceptor.first.child_faults;
    let forks = faults > 0 && faults >= FAULTS_PER_CHILD * (acceptor.seen() - acceptor.first.open);
    if !linked.is_empty() && !keeps && (!own.is_empty() || threads == 1) {
        return (Dispatch::MasterPassesDescriptors, Way::Channel, pids(linked));
    }
    if linked.is_empty() && !keeps && (!own.is_empty() || forks) {
        return (Dispatch::MasterPassesDescriptors, Way::Children, pids(own));
    }
    let (dispatch, way) = by_threads(acceptor, threads);
    (dispatch, way, vec![pid])
}

/// The threads of a process that may serve connections. Where the main thread alone waits for the listener and does
/// nearly all the work, the others help it, with files and names; Node has such threads from its start.
fn serving_threads(recording: &Recording, acceptor: &Summary) -> usize {
    let is_node = kind_of(recording, acceptor.pid()) == Kind::Node;
    let main_accepts = acceptor.acceptors.iter().all(|tid| *tid == acceptor.pid());
    let has_worked = acceptor.cpu_ns > SOME_WORK_NS;
    let is_loop = acceptor.wait.is_some_and(|wait| wait != Wait::Accept) && has_worked && !has_help(acceptor);
    if is_node || (main_accepts && is_loop) { 1 } else { acceptor.threads.len() }
}

/// Other threads than the busiest do a part of the work, also such as have begun and ended between two looks. Of one that
/// has done nothing meanwhile the time of its whole life tells.
fn has_help(acceptor: &Summary) -> bool {
    if acceptor.cpu_ns == 0 {
        let of_those_that_live: u64 = acceptor.last.tasks.iter().map(|task| task.cpu_ns).sum();
        let ended = acceptor.last.cpu_ns.saturating_sub(of_those_that_live);
        return ended as f64 > HELP * acceptor.last.cpu_ns as f64;
    }
    acceptor.cpu_ns_of_others() as f64 > HELP * acceptor.cpu_ns as f64
}

fn by_threads(acceptor: &Summary, threads: usize) -> (Dispatch, Way) {
    let takes_turns = acceptor.acceptors.len() > 1 || acceptor.last.watches.len() > 1;
    match threads {
        0 | 1 if acceptor.threads.len() > 1 || !has_help(acceptor) => (Dispatch::WorkersAccept, Way::OwnAccept),
        // A thread for each connection may have come and gone.
        0 | 1 => (Dispatch::Threads, Way::Handover),
        _ if takes_turns || is_thread_lock(acceptor) => (Dispatch::Threads, Way::ThreadsAccept),
        _ => (Dispatch::Threads, Way::Handover),
    }
}
