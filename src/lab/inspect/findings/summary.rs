//! One process over all looks: by how much its counters grew, and which ways to wait for a listener it was seen in.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::lab::inspect::look::{Call, Look, Process, Recording, Task};
use crate::sys::epoll::Interest;

/// How a worker waits for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wait {
    Accept,
    Poll,
    Select,
    Epoll,
    EpollEdge,
    EpollExclusive,
    #[serde(rename = "io_uring")]
    IoUring,
    Lock,
    Other,
}

impl Wait {
    /// The name of the contract.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_string)).unwrap_or_default()
    }

    pub fn is_epoll(self) -> bool {
        matches!(self, Wait::Epoll | Wait::EpollEdge | Wait::EpollExclusive)
    }

    /// The kernel wakes every worker that sleeps like this in a call of its own.
    pub fn wakes_all(self) -> bool {
        matches!(self, Wait::Poll | Wait::Select | Wait::Epoll | Wait::EpollEdge)
    }
}

/// Threads that event loops start for work that blocks (Node, libuv, ours), and those in which io_uring works for its
/// process: they take no connections.
const HELPERS: [&str; 7] =
    ["libuv-worker", "V8Worker", "DelayedTaskSche", "SignalInspector", "helper", "iou-wrk", "iou-sqp"];

pub fn is_helper(task: &Task) -> bool {
    HELPERS.iter().any(|helper| task.name.starts_with(helper))
}

pub struct Summary<'a> {
    pub first: &'a Process,
    pub last: &'a Process,
    /// How it was seen to wait for one of the listeners, and whether it was seen at all.
    pub wait: Option<Wait>,
    /// Its epoll instance is also another process's.
    pub shares_epoll: bool,
    /// Threads that were seen to wait for a listener.
    pub acceptors: BTreeSet<i32>,
    pub cpu_ns: u64,
    pub wait_ns: u64,
    pub voluntary: u64,
    /// Those of them that threads made which were seen to wait for a listener; all, where none was.
    pub voluntary_of_acceptors: u64,
    /// The CPU time of each thread that was seen.
    pub cpu_of: BTreeMap<i32, u64>,
    /// Threads that may serve connections, at any look.
    pub threads: BTreeSet<i32>,
    /// Connections of the listener that it had open, summed over all looks.
    pub open: u64,
    /// Where its main thread was seen most often, when it did not run.
    pub sleeps_in: Option<Call>,
    /// How often its threads were seen in each call.
    pub calls: BTreeMap<Call, usize>,
}

/// All processes that were there at any look.
pub fn summarize(recording: &Recording) -> BTreeMap<i32, Summary<'_>> {
    let pids = recording.looks.iter().flat_map(|look| &look.processes).map(|process| process.pid);
    let pids: BTreeSet<i32> = pids.collect();
    let of = |pid| Some((pid, Summary::of(&recording.process(pid).collect::<Vec<_>>())?));
    let mut found: BTreeMap<i32, Summary> = pids.into_iter().filter_map(of).collect();
    // The first with an epoll instance does not know that others have it.
    let firsts = found.values().flat_map(|summary| &summary.last.watches).filter_map(|watch| watch.instance_of);
    for first in firsts.collect::<BTreeSet<i32>>() {
        found.entry(first).and_modify(|summary| summary.shares_epoll = true);
    }
    found
}

impl<'a> Summary<'a> {
    pub fn of(looks: &[(&Look, &'a Process)]) -> Option<Summary<'a>> {
        let (first, last) = (looks.first()?.1, looks.last()?.1);
        let mut summary = Summary {
            first,
            last,
            wait: None,
            shares_epoll: looks.iter().flat_map(|(_, process)| &process.watches).any(|w| w.instance_of.is_some()),
            acceptors: BTreeSet::new(),
            cpu_ns: last.cpu_ns.saturating_sub(first.cpu_ns),
            wait_ns: 0,
            voluntary: 0,
            voluntary_of_acceptors: 0,
            cpu_of: BTreeMap::new(),
            threads: BTreeSet::new(),
            open: looks.iter().map(|(_, process)| process.open).sum(),
            sleeps_in: None,
            calls: BTreeMap::new(),
        };
        let (mut before, mut voluntary_of): (BTreeMap<i32, &Task>, BTreeMap<i32, u64>) = Default::default();
        for (i, (_, process)) in looks.iter().enumerate() {
            for task in &process.tasks {
                *summary.calls.entry(task.call).or_default() += 1;
                if task.is_at_listener {
                    summary.acceptors.insert(task.tid);
                }
                if !is_helper(task) {
                    summary.threads.insert(task.tid);
                }
                // A thread that was not there before began with nothing.
                let nothing = Task::default();
                let then = before.get(&task.tid).copied().unwrap_or(if i == 0 { task } else { &nothing });
                let cpu_ns = task.cpu_ns.saturating_sub(then.cpu_ns);
                *summary.cpu_of.entry(task.tid).or_default() += cpu_ns;
                summary.wait_ns += task.wait_ns.saturating_sub(then.wait_ns);
                *voluntary_of.entry(task.tid).or_default() += task.voluntary.saturating_sub(then.voluntary);
            }
            before = process.tasks.iter().map(|task| (task.tid, task)).collect();
        }
        let main = looks.iter().flat_map(|(_, process)| &process.tasks).filter(|task| task.tid == last.pid);
        let asleep: Vec<Call> = main.map(|task| task.call).filter(|call| *call != Call::Running).collect();
        let how_often = |wanted: &&Call| asleep.iter().filter(|call| call == wanted).count();
        summary.sleeps_in = asleep.iter().max_by_key(how_often).copied();
        summary.voluntary = voluntary_of.values().sum();
        let of_acceptors = summary.acceptors.iter().filter_map(|tid| voluntary_of.get(tid)).sum();
        summary.voluntary_of_acceptors = if summary.acceptors.is_empty() { summary.voluntary } else { of_acceptors };
        summary.wait = looks.iter().find_map(|(_, process)| seen_wait(process));
        Some(summary)
    }

    pub fn pid(&self) -> i32 {
        self.last.pid
    }

    /// Whether this thread was seen to wait for a listener; the main thread, where none was.
    pub fn accepts(&self, task: &Task) -> bool {
        self.acceptors.contains(&task.tid) || (self.acceptors.is_empty() && task.tid == self.pid())
    }

    /// Different connections that were seen at this process.
    pub fn seen(&self) -> u64 {
        self.first.open + self.last.new - self.first.new
    }

    /// Connections that it has accepted, where the kernel counted them.
    pub fn accepted(&self) -> Option<u64> {
        Some(self.last.accepted?.saturating_sub(self.first.accepted?))
    }

    /// CPU time of other threads than the busiest, also of those that have begun and ended between two looks.
    pub fn cpu_ns_of_others(&self) -> u64 {
        self.cpu_ns.saturating_sub(self.cpu_of.values().copied().max().unwrap_or(0))
    }
}

/// How the process waits for a listener at this look, if it does.
pub fn seen_wait(process: &Process) -> Option<Wait> {
    if let Some(watch) = process.watches.first() {
        return Some(match Interest::from_bits_retain(watch.events as i32) {
            events if events.contains(Interest::EPOLLEXCLUSIVE) => Wait::EpollExclusive,
            events if events.contains(Interest::EPOLLET) => Wait::EpollEdge,
            _ => Wait::Epoll,
        });
    }
    if !process.holds.is_empty() && process.ring_accepts.is_some_and(|accepts| accepts > 0) {
        return Some(Wait::IoUring);
    }
    process.tasks.iter().filter(|task| task.is_at_listener).find_map(|task| match task.call {
        // A process that was stopped in the middle of a call that does not wait was not waiting.
        Call::Accept => process.is_blocking.then_some(Wait::Accept),
        Call::Poll => Some(Wait::Poll),
        Call::Select => Some(Wait::Select),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::inspect::look::Watch;

    #[test]
    fn the_flags_of_epoll_say_whom_the_kernel_wakes() {
        let wait = |events| {
            let watches = vec![Watch { events, ..Watch::default() }];
            seen_wait(&Process { watches, ..Process::default() }).map(Wait::name)
        };
        let names = [0x19, 0x8000_0019, 0x1000_0019].map(|events| wait(events).unwrap());
        assert_eq!(names, ["epoll", "epoll-edge", "epoll-exclusive"]);
        assert_eq!(seen_wait(&Process::default()), None);
    }

    #[test]
    fn counters_of_threads_that_end_and_begin_are_added_up() {
        let task = |tid, cpu_ns| Task { tid, cpu_ns, ..Task::default() };
        let process = |tasks: &[Task]| Process { pid: 7, tasks: tasks.to_vec(), ..Process::default() };
        let looks = [&[task(1, 100), task(2, 50)][..], &[task(1, 110), task(2, 60)], &[task(1, 110), task(3, 5)]];
        let mut looks = looks.map(|tasks| (Look::default(), process(tasks)));
        looks[2].1.cpu_ns = 40;
        let looks: Vec<_> = looks.iter().map(|(look, process)| (look, process)).collect();
        let summary = Summary::of(&looks).unwrap();
        assert_eq!((summary.cpu_of[&1], summary.cpu_of[&2], summary.cpu_of[&3]), (10, 10, 5));
        // The second thread used more before it ended.
        assert_eq!((summary.cpu_ns, summary.cpu_ns_of_others()), (40, 30));
    }
}
