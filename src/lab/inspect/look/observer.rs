//! Finds the processes that belong to a target, and looks at them again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use super::connections::Tracker;
use super::process::{Memory, Process};
use super::{Listener, Look, Machine, Recording};
use crate::cpu;
use crate::lab::observe::processes::Process as Identity;
use crate::lab::observe::tracepoints::AcceptCounters;
use crate::lab::target::{Found, Target, all_listeners, no_sockets};
use crate::machine::{Counters, network_counter, sysctl};
use crate::sys::descriptors::Descriptors;
use crate::sys::procfs::{Stat, comm, title, with_descendants};
use crate::sys::sock_diag::unix_sockets;
use crate::units::{monotonic_ns, thread_cpu_ns};

/// In ticks of 10 ms: a worker that was started so long ago listens, if it ever will.
const TICKS_TO_LISTEN: u64 = 1_000;

pub struct Observer {
    target: Target,
    /// Distinguishes a target that is a process from a later one of its number.
    identity: Option<Identity>,
    addresses: Vec<String>,
    /// Processes that hold a listener: pid and start.
    members: BTreeSet<(i32, u64)>,
    /// Children of the same parents that held none.
    non_members: BTreeSet<(i32, u64)>,
    /// Processes that were started later may still be about to listen.
    young_since: u64,
    /// For each process those at the other ends of its Unix sockets.
    channels: BTreeMap<i32, BTreeSet<i32>>,
    memory: Memory,
    tracker: Tracker,
    is_exact: bool,
    counters: Option<AcceptCounters>,
    /// What all looks have in common.
    pub recording: Recording,
}

impl Observer {
    /// Finds the listeners and the processes of a target.
    ///
    /// # Errors
    /// One line: what there is instead, and what the user can do.
    pub fn begin(target: Target) -> Result<Observer, String> {
        let Found { identity, addresses, holders, unseen } = target.find()?;
        let first = holders.keys().next().copied();
        let cpus = first.and_then(cpu::count_of).unwrap_or(cpu::allowed().len()) as f64;
        let cpus = cpus.min(first.and_then(cpu::quota_of).unwrap_or(f64::INFINITY));
        let stats: Vec<Stat> = Stat::all_processes().collect();
        let newest = stats.iter().map(|stat| stat.started).max().unwrap_or(0);
        let members = stats.iter().filter(|stat| holders.contains_key(&stat.pid)).map(key_of).collect();
        let somaxconn = sysctl("net.core.somaxconn").and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Observer {
            target,
            identity,
            addresses: addresses.into_iter().collect(),
            members,
            non_members: BTreeSet::new(),
            young_since: newest.saturating_sub(TICKS_TO_LISTEN),
            channels: BTreeMap::new(),
            memory: Memory::default(),
            tracker: Tracker::default(),
            is_exact: false,
            counters: None,
            recording: Recording {
                machine: Machine { cpus, somaxconn, other_listeners: 0 },
                unseen,
                ..Recording::default()
            },
        })
    }

    /// From the first look on the kernel counts what each process accepts and how often it is woken, where we may ask.
    pub fn exactly(self, is_exact: bool) -> Observer {
        Observer { is_exact, ..self }
    }

    /// Looks once, and returns the CPU time that it took.
    ///
    /// # Errors
    /// When the target has ended, or does not listen any more.
    pub fn look(&mut self) -> Result<Duration, String> {
        let (at_ns, cpu_ns) = (monotonic_ns(), thread_cpu_ns());
        if self.identity.is_some_and(|identity| !identity.is_alive()) {
            return Err(format!("{} has ended", self.target));
        }
        let all = all_listeners()?;
        let listeners: Vec<Listener> =
            all.iter().filter(|listener| self.addresses.contains(&listener.address)).cloned().collect();
        if listeners.is_empty() {
            return Err(format!("nobody listens on {} any more", self.addresses.join(", ")));
        }
        let inodes: BTreeSet<u32> = listeners.iter().map(|listener| listener.inode).collect();
        let is_tcp = |listener: &&Listener| listener.ip().is_some();
        self.recording.machine.other_listeners =
            all.iter().filter(is_tcp).count() - listeners.iter().filter(is_tcp).count();
        let elsewhere: BTreeMap<u32, &str> = all
            .iter()
            .filter(|other| other.inode != 0 && !inodes.contains(&other.inode))
            .map(|other| (other.inode, other.address.as_str()))
            .collect();
        let (mut processes, sockets) = self.processes(&inodes, &elsewhere);
        let (seen, owned) = self.tracker.look(&self.addresses, &sockets, at_ns).map_err(no_sockets)?;
        self.find_channels(&sockets).map_err(no_sockets)?;
        for process in &mut processes {
            let owned = owned.get(&process.pid).copied().unwrap_or_default();
            (process.open, process.new, process.unread) = (owned.open, owned.new, owned.unread);
            process.channels = self.channels.get(&process.pid).cloned().unwrap_or_default();
        }
        self.add_counts(&mut processes);
        let snmp = fs::read_to_string("/proc/self/net/snmp").unwrap_or_default();
        self.recording.looks.push(Look {
            listeners,
            processes,
            listen_overflows: Counters::now().listen_overflows,
            passive_opens: network_counter(&snmp, "Tcp:", "PassiveOpens"),
            ..seen
        });
        if self.memory.calls_hidden {
            let line = "the arguments of the calls that threads wait in (/proc/PID/syscall): Yama or a security module \
                        forbids it; run it as root";
            self.not_seen(line.to_string());
        }
        Ok(Duration::from_nanos(thread_cpu_ns() - cpu_ns))
    }

    fn add_counts(&mut self, processes: &mut [Process]) {
        if self.is_exact && self.counters.is_none() {
            let tasks: Vec<i32> = processes.iter().flat_map(|process| &process.tasks).map(|task| task.tid).collect();
            match AcceptCounters::begin(&tasks) {
                Ok(counters) => self.counters = Some(counters),
                Err(why) => {
                    self.is_exact = false;
                    self.not_seen(format!("exact accepts and wake-ups: {why}"));
                }
            }
        }
        let Some(counts) = self.counters.as_ref().map(AcceptCounters::read) else { return };
        if processes.iter().flat_map(|process| &process.tasks).any(|task| !counts.contains_key(&task.tid)) {
            self.not_seen("accepts and wake-ups of threads that began after the first look".to_string());
        }
        for process in processes {
            for (accepted, woken) in process.tasks.iter().filter_map(|task| counts.get(&task.tid)) {
                *process.accepted.get_or_insert(0) += accepted;
                *process.woken.get_or_insert(0) += woken;
            }
        }
    }

    fn not_seen(&mut self, line: String) {
        if !self.recording.unseen.contains(&line) {
            self.recording.unseen.push(line);
        }
    }

    /// The processes of the server as they are now, and the sockets of each.
    fn processes(
        &mut self,
        inodes: &BTreeSet<u32>,
        elsewhere: &BTreeMap<u32, &str>,
    ) -> (Vec<Process>, BTreeMap<i32, Vec<u32>>) {
        let stats: Vec<Stat> = Stat::all_processes().collect();
        self.adopt(&stats, inodes);
        // What a service manager has started is not its server.
        let is_manager = |stat: &Stat| stat.pid == 1 && matches!(comm(1).as_str(), "systemd" | "init");
        let of_members = with_descendants(&stats, |stat| self.members.contains(&key_of(stat)) && !is_manager(stat));
        let before = self.recording.looks.last().into_iter().flat_map(|look| &look.processes);
        let known: BTreeSet<(i32, u64)> = before.map(|process| (process.pid, process.started)).collect();
        let (mut processes, mut sockets, mut closed) = (Vec::new(), BTreeMap::new(), Vec::new());
        for stat in of_members.into_iter().filter(|stat| stat.is_alive()) {
            let Some(descriptors) = Descriptors::of(stat.pid) else {
                closed.push(stat.pid);
                continue;
            };
            let mut process = self.memory.read(stat, &descriptors, inodes);
            let others = descriptors.sockets().filter_map(|inode| elsewhere.get(&inode));
            process.listens_elsewhere = others.map(|address| address.to_string()).collect();
            processes.push(process);
            sockets.insert(stat.pid, descriptors.sockets().filter(|inode| !inodes.contains(inode)).collect());
            if !known.contains(&key_of(stat)) {
                self.recording.commands.insert(stat.pid, title(stat.pid));
            }
        }
        // One that has just ended is closed, too.
        if let Some(pid) = closed.into_iter().find(|&pid| Identity::find(pid).is_some()) {
            let line = format!("pid {pid}, which belongs to the server: it is another user's; run it as root");
            self.not_seen(line);
        }
        (processes, sockets)
    }

    /// Adds processes that hold a listener by now: children of the members' parents, workers of a master that holds
    /// none; and, while nobody is known to hold one of the listeners, whoever was started lately.
    fn adopt(&mut self, stats: &[Stat], inodes: &BTreeSet<u32>) {
        let is_member = |stat: &&Stat| self.members.contains(&key_of(stat));
        let parents: BTreeSet<i32> =
            stats.iter().filter(is_member).map(|stat| stat.parent).filter(|&parent| parent > 1).collect();
        let is_held = |look: &Look, inode| look.processes.iter().any(|process| process.holds.contains(inode));
        let before = self.recording.looks.last();
        let is_complete = before.is_none_or(|look| inodes.iter().all(|inode| is_held(look, inode)));
        let others: Vec<&Stat> = stats.iter().filter(|stat| stat.is_alive() && !is_member(stat)).collect();
        for stat in others {
            let is_new_sibling = parents.contains(&stat.parent) && self.non_members.insert(key_of(stat));
            let may_be_owner = !is_complete && stat.started >= self.young_since;
            if (is_new_sibling || may_be_owner)
                && Descriptors::of(stat.pid).is_some_and(|found| found.sockets().any(|inode| inodes.contains(&inode)))
            {
                self.members.insert(key_of(stat));
            }
        }
    }

    /// Who is at the other end of each process's Unix sockets; asked for again when there are other processes.
    fn find_channels(&mut self, sockets: &BTreeMap<i32, Vec<u32>>) -> nix::Result<()> {
        if sockets.keys().eq(self.channels.keys()) {
            return Ok(());
        }
        let peers: BTreeMap<u32, u32> = unix_sockets()?.iter().map(|socket| (socket.inode, socket.peer)).collect();
        let mut owners: BTreeMap<u32, Vec<i32>> = BTreeMap::new();
        for (&pid, inodes) in sockets {
            inodes.iter().for_each(|&inode| owners.entry(inode).or_default().push(pid));
        }
        let others = |pid: i32, inodes: &[u32]| {
            let peers = inodes.iter().filter_map(|inode| peers.get(inode)).filter_map(|peer| owners.get(peer));
            peers.flatten().copied().filter(|&other| other != pid).collect()
        };
        self.channels = sockets.iter().map(|(&pid, inodes)| (pid, others(pid, inodes))).collect();
        Ok(())
    }
}

/// Distinguishes a process from a later one of its number.
fn key_of(stat: &Stat) -> (i32, u64) {
    (stat.pid, stat.started)
}
