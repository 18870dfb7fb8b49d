//! One process as /proc shows it: which sockets it has, what watches the listening ones, and what its threads do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::{Deserialize, Serialize};

use crate::lab::observe::processes::cpu_ns;
use crate::sys::descriptors::{Descriptors, Link, epoll_entries, open_flags, ring_accepts};
use crate::sys::fd::is_same_file;
use crate::sys::procfs::{Stat, TaskStat};
use crate::sys::waiting::{Call, waiting};

/// A process with more descriptors is asked only once what its epoll instances watch: the kernel keeps them locked
/// while it writes the list.
const FEW_DESCRIPTORS: usize = 1_000;

/// A process at one look.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// In ticks since the machine was started: a later process of the same number has another.
    pub started: u64,
    /// As in proc_pid_stat(5): R, S, D, T, Z.
    pub state: char,
    /// The inodes of the listening sockets that are inspected, of which it has a descriptor.
    pub holds: BTreeSet<u32>,
    /// Whether accept(2) on them waits.
    pub is_blocking: bool,
    /// Where it listens beside them.
    pub listens_elsewhere: Vec<String>,
    /// What its epoll instances are told of the listening sockets.
    pub watches: Vec<Watch>,
    /// Requests to accept that wait in its io_uring instances; `None` where it has none.
    pub ring_accepts: Option<u32>,
    /// The other ends of its Unix socket pairs: processes of the same server.
    pub channels: BTreeSet<i32>,
    pub tasks: Vec<Task>,
    /// CPU time of all its threads, also of those that have ended.
    pub cpu_ns: u64,
    /// Minor page faults of its children that have ended: they grow where a child is forked for each connection.
    pub child_faults: u64,
    /// Connections of the listener: open ones, different ones since the first look, and those in which bytes have
    /// waited for a second.
    pub open: u64,
    pub new: u64,
    pub unread: u64,
    /// What its tasks have accepted since the first look, and how often they were woken; where the kernel counts it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub woken: Option<u64>,
}

/// One listening socket in one epoll instance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Watch {
    /// The descriptor of the instance.
    pub instance: i32,
    pub listener: u32,
    /// As epoll_ctl(2) was given them.
    pub events: u32,
    /// The first process with a descriptor of the same instance, if that is another.
    pub instance_of: Option<i32>,
}

impl Watch {
    /// Whether this descriptor of the process means the same instance.
    fn is_in(&self, pid: i32, number: i32) -> bool {
        self.instance == number || is_same_file((pid, self.instance), (pid, number)) == Ok(true)
    }
}

/// A thread at one look.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Task {
    pub tid: i32,
    pub name: String,
    pub call: Call,
    /// It waits in `call` for one of the listening sockets, perhaps by an epoll instance that watches it.
    pub is_at_listener: bool,
    /// It waits in `call` for one of the connections.
    pub is_at_socket: bool,
    /// The address of a futex that it waits for.
    pub address: u64,
    /// The time on a CPU, and that in which it was ready for one (Linux, Documentation/scheduler/sched-stats.rst).
    pub cpu_ns: u64,
    pub wait_ns: u64,
    pub voluntary: u64,
}

/// What has been found out about processes at earlier looks.
#[derive(Default)]
pub struct Memory {
    /// The watches of each process, by its pid and start.
    watches: BTreeMap<(i32, u64), Vec<Watch>>,
    /// The first process with an epoll instance that watches a listener, by the descriptor's number. An instance that
    /// is shared was inherited, so it has the same number in all.
    instances: BTreeMap<i32, i32>,
    /// Whether the calls of threads are known only in part.
    pub calls_hidden: bool,
}

impl Memory {
    /// Reads a process. `listeners` are the inodes that are inspected.
    pub fn read(&mut self, stat: &Stat, descriptors: &Descriptors, listeners: &BTreeSet<u32>) -> Process {
        let pid = stat.pid;
        let holds: BTreeSet<u32> = descriptors.sockets().filter(|inode| listeners.contains(inode)).collect();
        let watches = if holds.is_empty() { Vec::new() } else { self.watches(stat, descriptors, &holds) };
        let ring_accepts = descriptors.with(Link::Ring).map(|ring| ring_accepts(pid, ring)).reduce(|a, b| a + b);
        let waits = |inode: &u32| {
            let mut numbers = descriptors.with(Link::Socket(*inode));
            numbers.next().is_some_and(|number| open_flags(pid, number) & libc::O_NONBLOCK == 0)
        };
        Process {
            pid,
            parent: stat.parent,
            started: stat.started,
            state: stat.state,
            cpu_ns: cpu_ns(pid).unwrap_or(0),
            child_faults: stat.child_faults,
            is_blocking: holds.iter().any(waits),
            ring_accepts,
            tasks: self.tasks(pid, descriptors, &holds, &watches),
            watches,
            holds,
            ..Process::default()
        }
    }

    fn watches(&mut self, stat: &Stat, descriptors: &Descriptors, holds: &BTreeSet<u32>) -> Vec<Watch> {
        let (pid, key) = (stat.pid, (stat.pid, stat.started));
        if descriptors.count() > FEW_DESCRIPTORS
            && let Some(known) = self.watches.get(&key)
        {
            return known.clone();
        }
        let mut found: Vec<Watch> = Vec::new();
        for number in descriptors.with(Link::Epoll) {
            // Another descriptor of an instance that was read.
            if found.iter().any(|watch| watch.is_in(pid, number)) {
                continue;
            }
            let held = epoll_entries(pid, number).into_iter().filter(|(inode, _)| holds.contains(inode));
            let mut watches: Vec<Watch> = held
                .map(|(listener, events)| Watch { instance: number, listener, events, instance_of: None })
                .collect();
            if watches.is_empty() {
                continue;
            }
            let first = *self.instances.entry(number).or_insert(pid);
            if first != pid && is_same_file((first, number), (pid, number)) == Ok(true) {
                watches.iter_mut().for_each(|watch| watch.instance_of = Some(first));
            }
            found.extend(watches);
        }
        self.watches.insert(key, found.clone());
        found
    }

    fn tasks(&mut self, pid: i32, descriptors: &Descriptors, holds: &BTreeSet<u32>, watches: &[Watch]) -> Vec<Task> {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
        let tids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let mut tasks = Vec::new();
        for tid in tids {
            let Some(TaskStat { name, cpu_ns, wait_ns, voluntary }) = TaskStat::of(pid, tid) else { continue };
            let waiting = waiting(pid, tid).unwrap_or_default();
            self.calls_hidden |= waiting.is_a_guess;
            let sockets = || waiting.descriptors.iter().filter_map(|number| descriptors.socket(*number));
            let is_in_watch = waiting.call == Call::Epoll
                && watches.iter().any(|watch| waiting.descriptors.iter().any(|&number| watch.is_in(pid, number)));
            tasks.push(Task {
                tid,
                name,
                call: waiting.call,
                // A guess names no descriptor: whoever has the socket may wait for it.
                is_at_listener: is_in_watch
                    || sockets().any(|inode| holds.contains(&inode))
                    || (waiting.is_a_guess && waiting.call == Call::Accept),
                is_at_socket: waiting.call == Call::Transfer && sockets().any(|inode| !holds.contains(&inode)),
                address: waiting.address,
                cpu_ns,
                wait_ns,
                voluntary,
            });
        }
        tasks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    use crate::sys::epoll::{Epoll, Interest};

    #[test]
    fn our_own_listener_and_what_watches_it_are_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let epoll = Epoll::new(1).unwrap();
        epoll.add(&listener, 0, Interest::EPOLLIN | Interest::EPOLLEXCLUSIVE).unwrap();
        let pid = std::process::id() as i32;
        let descriptors = Descriptors::of(pid).unwrap();
        let inode = descriptors.socket(listener.as_raw_fd()).unwrap();
        let stat = Stat::of(pid).unwrap();
        let process = Memory::default().read(&stat, &descriptors, &BTreeSet::from([inode]));
        assert!(process.is_blocking && process.holds.contains(&inode), "{process:?}");
        let exclusive = process.watches.iter().find(|watch| watch.events & (1 << 28) != 0);
        assert_eq!(exclusive.map(|watch| watch.listener), Some(inode));
        assert!(process.tasks.iter().any(|task| task.cpu_ns > 0 && !task.name.is_empty()), "{process:?}");
    }
}
