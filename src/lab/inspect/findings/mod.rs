//! What a recording says: a pure function of what was read. [`summary`] adds up each process, [`roles`] tells who
//! accepts and who serves, [`workers`] measures each of them, [`wrong`] finds what is wrong, [`advice`] what to do.

mod advice;
mod roles;
mod summary;
mod workers;
mod wrong;

#[cfg(test)]
pub(super) mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::look::{LONG_NS, Look, Process, Recording, Task};
use crate::report::Evenness;
use crate::terminal::printable;
use crate::units::{grouped, over};
pub use roles::{Dispatch, Roles, Way};
pub use summary::Wait;
use summary::{Summary, summarize};
pub use workers::{State, Worker};
pub use wrong::{Finding, IDS};

/// A number of them, in words.
pub fn connections(count: u64) -> String {
    if count == 1 { "1 connection".to_string() } else { format!("{} connections", grouped(count)) }
}

/// What `lab inspect --format json` prints (contract, section 6); `schema/inspect.schema.json` defines the numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diagnosis {
    pub schema: u32,
    /// The command line of the first process.
    pub command: String,
    pub duration_s: f64,
    pub listeners: Vec<ListenerState>,
    pub dispatch: Dispatch,
    pub way: Way,
    pub workers: Vec<Worker>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<Worker>,
    pub totals: Totals,
    /// The evenness of the connections seen at each worker, or, where few were seen, of the workers' CPU time.
    #[serde(skip)]
    pub evenness: Option<Evenness>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evenness_of: Option<Basis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_over_mean: Option<f64>,
    /// The evenness of connections only: chance deals out connections, and not CPU time.
    #[serde(rename = "evenness", skip_serializing_if = "Option::is_none")]
    pub evenness_of_counts: Option<Evenness>,
    pub findings: Vec<Finding>,
    pub unseen: Vec<String>,
}

/// What the workers' shares were measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    Connections,
    Cpu,
}

/// All sockets that are bound to one address.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ListenerState {
    pub address: String,
    pub sharing: Sharing,
    pub sockets: usize,
    pub is_dual: bool,
    pub backlog: u32,
    pub queued: u32,
    pub most_queued: u32,
    pub drops: u32,
    pub queues: Vec<Queue>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Queue {
    pub inode: u32,
    pub pids: Vec<i32>,
    pub queued: u32,
    pub least_queued: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    One,
    Shared,
    Reuseport,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Totals {
    pub new_connections: u64,
    pub connections: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub more_requests: Option<u64>,
    pub unaccepted: u64,
    pub unaccepted_long: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switches_per_connection: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_connection: Option<f64>,
}

/// With fewer connections there is no number per connection.
const ENOUGH: u64 = 10;

pub fn diagnose(recording: &Recording) -> Diagnosis {
    let summaries = summarize(recording);
    let roles = roles::roles(recording, &summaries);
    let totals = totals(recording, &summaries, &roles);
    let listeners = listeners(recording, &roles);
    let worker = |pid: &i32| Worker::of(recording, &summaries[pid], &roles, &listeners);
    let mut workers: Vec<Worker> = roles.workers.iter().map(worker).collect();
    let (evenness, basis) = workers::share_out(&mut workers, totals.new_connections);
    let master = roles.acceptors.keys().find(|pid| !roles.workers.contains(pid)).map(worker);
    let mut diagnosis = Diagnosis {
        schema: 1,
        command: command(recording, &roles),
        duration_s: recording.seconds(),
        listeners,
        dispatch: roles.dispatch,
        way: roles.way,
        workers,
        master,
        totals,
        max_over_mean: evenness.as_ref().map(|even| even.max_over_mean),
        evenness_of_counts: evenness.clone().filter(|_| basis == Some(Basis::Connections)),
        evenness,
        evenness_of: basis,
        findings: Vec::new(),
        unseen: unseen(recording, &roles),
    };
    diagnosis.findings = wrong::findings(recording, &summaries, &roles, &diagnosis);
    diagnosis
}

fn unseen(recording: &Recording, roles: &Roles) -> Vec<String> {
    let (guessed, others) = (&roles.guessed, recording.machine.other_listeners);
    let requests =
        "requests on connections that stay, and so whether there is a herd: there are too many to read of each";
    let waits = format!(
        "how {} of the workers (pid {} is one) wait for a connection: none was seen to; look longer with --duration, or \
         when there is less load",
        guessed.len(),
        guessed.first().unwrap_or(&0),
    );
    let whose =
        format!("which new connections were this server's: {others} other sockets listen in its network namespace");
    let long = "what takes a second: a worker that hangs and is not stopped, nobody-accepts, blind-selector";
    let lines = [
        (recording.looks.iter().any(|look| look.requests.is_none()), requests.to_string()),
        (!guessed.is_empty(), waits),
        (others > 0 && of_namespace(recording).is_some(), whose),
        (recording.seconds() < LONG_NS as f64 / 1e9, long.to_string()),
    ];
    let lines = lines.into_iter().filter(|(is_so, _)| *is_so).map(|(_, line)| line);
    recording.unseen.iter().cloned().chain(lines).collect()
}

/// The command of the process whose parent is not a member of the server.
fn command(recording: &Recording, roles: &Roles) -> String {
    let all = &recording.last().processes;
    let is_root = |parent: i32| !all.iter().any(|other| other.pid == parent);
    let root = all.iter().find(|process| is_root(process.parent)).map(|process| process.pid);
    let root = root.or(roles.workers.first().copied());
    let words = root.and_then(|pid| recording.commands.get(&pid)).cloned().unwrap_or_default();
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    // A title that the process has given itself is one word with blanks.
    if let Some(first) = words.first_mut().filter(|first| !first.contains(' ')) {
        *first = first.rsplit('/').next().unwrap_or(first);
    }
    printable(&words.join(" "))
}

/// On the loopback every closed connection leaves its TIME_WAIT on this machine, so all are seen. Elsewhere a client that
/// closes first keeps it, and the count of the whole network namespace says more, unless others listen there, too, and
/// most of its connections were seen at ours.
fn of_namespace(recording: &Recording) -> Option<u64> {
    let (first, last) = (recording.first(), recording.last());
    let is_local = last.listeners.iter().all(|listener| listener.ip().is_none_or(|ip| ip.ip().is_loopback()));
    let (of_all, seen) = (last.passive_opens.saturating_sub(first.passive_opens), last.new - first.new);
    let are_ours = recording.machine.other_listeners > 0 && 2 * seen >= of_all;
    (!is_local && seen < of_all && !are_ours).then_some(of_all)
}

fn totals(recording: &Recording, summaries: &BTreeMap<i32, Summary>, roles: &Roles) -> Totals {
    let (first, last) = (recording.first(), recording.last());
    // What a client resets leaves no TIME_WAIT anywhere.
    let accepted = roles.acceptors.keys().filter_map(|pid| summaries[pid].accepted()).sum::<u64>();
    let new_connections = of_namespace(recording).unwrap_or(accepted.max(last.new - first.new));
    let who: BTreeSet<i32> = roles.acceptors.keys().chain(&roles.workers).copied().collect();
    let sum = |of: fn(&Summary) -> u64| who.iter().map(|pid| of(&summaries[pid])).sum::<u64>() as f64;
    let requests: Option<Vec<u64>> = recording.looks.iter().map(|look| look.requests).collect();
    let requests = requests.unwrap_or_default();
    let per = |amount: f64| (new_connections >= ENOUGH).then(|| over(amount, new_connections as f64));
    Totals {
        new_connections,
        connections: last.open,
        more_requests: requests.last().zip(requests.first()).map(|(last, first)| last - first),
        unaccepted: last.unaccepted,
        unaccepted_long: last.unaccepted_long,
        switches_per_connection: per(sum(|summary| summary.voluntary)),
        cpu_us_per_connection: per(sum(|summary| summary.cpu_ns) / 1e3),
    }
}

fn listeners(recording: &Recording, roles: &Roles) -> Vec<ListenerState> {
    let (first, last) = (recording.first(), recording.last());
    let accepting = |inode: u32| -> Vec<i32> {
        // A worker may have inherited the sockets of all, and watch its own.
        let is_own = |process: &&Process| {
            let watches = &process.watches;
            process.holds.contains(&inode) && (watches.is_empty() || watches.iter().any(|own| own.listener == inode))
        };
        let all = last.processes.iter().filter(is_own);
        all.map(|process| process.pid).filter(|pid| roles.acceptors.contains_key(pid)).collect()
    };
    let mut found: Vec<ListenerState> = Vec::new();
    for listener in &last.listeners {
        let pids = accepting(listener.inode);
        let at = |looks: &'_ [Look]| -> Vec<u32> {
            let all = looks.iter().flat_map(|look| &look.listeners);
            all.filter(|other| other.inode == listener.inode).map(|other| other.queued).collect()
        };
        let before = first.listeners.iter().find(|other| other.inode == listener.inode);
        let drops = listener.drops.saturating_sub(before.map_or(0, |before| before.drops));
        let most_queued = at(&recording.looks).into_iter().max().unwrap_or(0);
        let least_queued = at(recording.recent()).into_iter().min().unwrap_or(0);
        let queue = Queue { inode: listener.inode, pids, queued: listener.queued, least_queued };
        match found.iter_mut().find(|other| other.address == printable(&listener.address)) {
            Some(group) => {
                group.sockets += 1;
                group.sharing = Sharing::Reuseport;
                group.queued += listener.queued;
                group.most_queued = group.most_queued.max(most_queued);
                group.drops += drops;
                group.queues.push(queue);
            }
            None => found.push(ListenerState {
                address: printable(&listener.address),
                sharing: if queue.pids.len() > 1 { Sharing::Shared } else { Sharing::One },
                sockets: 1,
                is_dual: listener.is_dual,
                backlog: listener.backlog,
                queued: listener.queued,
                most_queued,
                drops,
                queues: vec![queue],
            }),
        }
    }
    found
}

/// The thread of a process that had most of its CPU time, of those that live.
fn busiest<'a>(summary: &Summary<'a>) -> Option<(&'a Task, u64)> {
    let of = |task: &'a Task| (task, summary.cpu_of.get(&task.tid).copied().unwrap_or(0));
    summary.last.tasks.iter().map(of).max_by_key(|(_, cpu_ns)| *cpu_ns)
}
