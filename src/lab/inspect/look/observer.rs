//! Finds the processes that belong to a target, and looks at them again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use nix::errno::Errno;

use super::connections::Tracker;
use super::listeners::{Target, addresses_of};
use super::process::{Memory, Process};
use super::{Listener, Look, Machine, Recording};
use crate::cpu;
use crate::failure::Failure;
use crate::lab::observe::processes::Process as Identity;
use crate::lab::observe::tracepoints::AcceptCounters;
use crate::machine::{Counters, network_counter, sysctl};
use crate::sys::descriptors::Descriptors;
use crate::sys::procfs::{Stat, comm, resident_kib, title, with_descendants};
use crate::sys::sock_diag::{listeners, listens_in_network_of, unix_sockets};
use crate::units::{monotonic_ns, thread_cpu_ns};

pub struct Observer {
    target: Target,
    /// Distinguishes a target that is a process from a later one of its number.
    identity: Option<Identity>,
    addresses: Vec<String>,
    /// Processes that hold a listener, and all that descend from them.
    members: BTreeSet<i32>,
    /// Brothers of these that hold none: pid and start.
    strangers: BTreeSet<(i32, u64)>,
    /// By inode of a Unix socket: who has it.
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
        let all = all_listeners()?;
        let identity = match target {
            Target::Process(pid) => Some(identify(pid)?),
            _ => None,
        };
        let addresses = match target {
            Target::Process(pid) => addresses_of_process(pid, &all)?,
            _ => addresses_of(&target, &all),
        };
        if addresses.is_empty() {
            return Err(format!("nobody listens on {target} in this network namespace{}", elsewhere(&target)));
        }
        let inodes = inodes_of(&all, &addresses);
        let (holders, hidden) = holders_of(&inodes);
        if matches!(target, Target::Port(_)) {
            is_one_server(&target, &all, &addresses, &holders)?;
        }
        let mut unseen = Vec::new();
        for listener in all.iter().filter(|listener| inodes.contains(&listener.inode)) {
            if !holders.values().any(|held| held.contains(&listener.inode)) {
                let (address, uid) = (&listener.address, listener.uid);
                let closed = match hidden {
                    0 => {
                        "/proc shows us no process that has it, because of hidepid or another PID namespace".to_string()
                    }
                    _ => format!("we may not look into {hidden} processes of others"),
                };
                let line =
                    format!("who has the socket of {address}, which user {uid} has opened: {closed}; run it as root");
                unseen.push(line);
            }
        }
        unseen.dedup();
        let cpus = holders.keys().next().and_then(|&pid| cpu::count_of(pid)).unwrap_or(cpu::allowed().len());
        let somaxconn = sysctl("net.core.somaxconn").and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Observer {
            target,
            identity,
            addresses: addresses.into_iter().collect(),
            members: holders.into_keys().collect(),
            strangers: BTreeSet::new(),
            channels: BTreeMap::new(),
            memory: Memory::default(),
            tracker: Tracker::default(),
            is_exact: false,
            counters: None,
            recording: Recording { machine: Machine { cpus, somaxconn }, unseen, ..Recording::default() },
        })
    }

    /// From the first look on the kernel counts what each process accepts and how often it is woken, where we may ask it.
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
        let elsewhere: BTreeMap<u32, &str> = all
            .iter()
            .filter(|other| other.inode != 0 && !inodes.contains(&other.inode))
            .map(|other| (other.inode, other.address.as_str()))
            .collect();
        let (mut processes, sockets) = self.processes(&inodes, &elsewhere);
        let seen = self.tracker.look(&self.addresses, &sockets, at_ns);
        self.find_channels(&sockets);
        for process in &mut processes {
            let owned = seen.owned.get(&process.pid).copied().unwrap_or_default();
            (process.open, process.new, process.unread) = (owned.open, owned.new, owned.unread);
            process.channels = self.channels.get(&process.pid).cloned().unwrap_or_default();
        }
        self.add_counts(&mut processes);
        let snmp = fs::read_to_string("/proc/self/net/snmp").unwrap_or_default();
        self.recording.looks.push(Look {
            at_ns,
            listeners,
            processes,
            open: seen.open,
            unaccepted: seen.unaccepted,
            unaccepted_long: seen.unaccepted_long,
            new: seen.new,
            requests: seen.requests,
            listen_overflows: Counters::now().listen_overflows,
            passive_opens: network_counter(&snmp, "Tcp:", "PassiveOpens"),
        });
        if self.memory.calls_hidden {
            let line = "the arguments of the calls that threads wait in (/proc/PID/syscall): Yama or a security module \
                        forbids it; run it as root";
            self.not_seen(line.to_string());
        }
        Ok(Duration::from_nanos(thread_cpu_ns() - cpu_ns))
    }

    /// Tasks that begin later are not counted.
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
        self.adopt_brothers(&stats, inodes);
        let members = &self.members;
        // What a service manager has started is not its server.
        let is_manager = |pid: i32| pid == 1 && matches!(comm(1).as_str(), "systemd" | "init");
        let of_members = with_descendants(&stats, |stat| {
            members.contains(&stat.pid) || (members.contains(&stat.parent) && !is_manager(stat.parent))
        });
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
            self.recording.commands.entry(stat.pid).or_insert_with(|| title(stat.pid));
        }
        // One that has just ended is closed, too.
        if let Some(pid) = closed.into_iter().find(|&pid| Identity::find(pid).is_some()) {
            let line = format!("pid {pid}, which belongs to the server: it is another user's; run it as root");
            self.not_seen(line);
        }
        (processes, sockets)
    }

    /// Children of the members' parents that hold a listener, too: workers of a master that holds none.
    fn adopt_brothers(&mut self, stats: &[Stat], inodes: &BTreeSet<u32>) {
        let is_member = |stat: &&Stat| self.members.contains(&stat.pid);
        let parents: BTreeSet<i32> =
            stats.iter().filter(is_member).map(|stat| stat.parent).filter(|&parent| parent > 1).collect();
        let brothers = stats.iter().filter(|stat| parents.contains(&stat.parent) && !self.members.contains(&stat.pid));
        for stat in brothers.collect::<Vec<_>>() {
            if self.strangers.insert((stat.pid, stat.started))
                && Descriptors::of(stat.pid).is_some_and(|found| found.sockets().any(|inode| inodes.contains(&inode)))
            {
                self.members.insert(stat.pid);
            }
        }
    }

    /// Who is at the other end of each process's Unix sockets; asked for again when there are other processes.
    fn find_channels(&mut self, sockets: &BTreeMap<i32, Vec<u32>>) {
        if sockets.keys().eq(self.channels.keys()) {
            return;
        }
        let peers: BTreeMap<u32, u32> =
            unix_sockets().unwrap_or_default().iter().map(|socket| (socket.inode, socket.peer)).collect();
        let mut owners: BTreeMap<u32, Vec<i32>> = BTreeMap::new();
        for (&pid, inodes) in sockets {
            inodes.iter().for_each(|&inode| owners.entry(inode).or_default().push(pid));
        }
        let others = |pid: i32, inodes: &[u32]| {
            let peers = inodes.iter().filter_map(|inode| peers.get(inode)).filter_map(|peer| owners.get(peer));
            peers.flatten().copied().filter(|&other| other != pid).collect()
        };
        self.channels = sockets.iter().map(|(&pid, inodes)| (pid, others(pid, inodes))).collect();
    }
}

fn all_listeners() -> Result<Vec<Listener>, String> {
    listeners().map_err(|errno| {
        let failure = Failure::new("ask the kernel for its sockets (sock_diag)", errno);
        match errno {
            Errno::EPERM | Errno::EACCES => failure.advise("a sandbox forbids it: run it outside").to_string(),
            _ => failure.to_string(),
        }
    })
}

fn inodes_of(all: &[Listener], addresses: &BTreeSet<String>) -> BTreeSet<u32> {
    all.iter().filter(|listener| addresses.contains(&listener.address)).map(|listener| listener.inode).collect()
}

/// The processes that have a descriptor of one of these sockets, and how many could not be asked.
fn holders_of(inodes: &BTreeSet<u32>) -> (BTreeMap<i32, BTreeSet<u32>>, usize) {
    let (mut holders, mut hidden) = (BTreeMap::new(), 0);
    for stat in Stat::all_processes().filter(Stat::is_alive) {
        match Descriptors::of(stat.pid) {
            None => hidden += 1,
            Some(descriptors) => {
                let held: BTreeSet<u32> = descriptors.sockets().filter(|inode| inodes.contains(inode)).collect();
                if !held.is_empty() {
                    holders.insert(stat.pid, held);
                }
            }
        }
    }
    (holders, hidden)
}

/// Several addresses of one port are one server if the same processes hold them.
fn is_one_server(
    target: &Target,
    all: &[Listener],
    addresses: &BTreeSet<String>,
    holders: &BTreeMap<i32, BTreeSet<u32>>,
) -> Result<(), String> {
    let pids = |address: &String| -> BTreeSet<i32> {
        let inodes = inodes_of(all, &BTreeSet::from([address.clone()]));
        holders.iter().filter(|(_, held)| !held.is_disjoint(&inodes)).map(|(pid, _)| *pid).collect()
    };
    let first = addresses.first().map(&pids).unwrap_or_default();
    if addresses.iter().skip(1).all(|address| !pids(address).is_disjoint(&first)) {
        return Ok(());
    }
    let named = addresses.iter().map(|address| match pids(address).first() {
        Some(pid) => format!("{address} (pid {pid})"),
        None => address.clone(),
    });
    let named = named.collect::<Vec<_>>().join(", ");
    Err(format!("{target} belongs to several servers: {named}; name an address instead of the port"))
}

/// A process that can be looked at, or a line that says why not.
fn identify(pid: i32) -> Result<Identity, String> {
    let stat = Stat::of(pid).ok_or(format!("there is no process {pid}, or /proc hides it (hidepid)"))?;
    if stat.is_zombie() {
        return Err(format!("pid {pid} has ended; its parent, pid {}, has not asked how (a zombie)", stat.parent));
    }
    // It has no memory of its own. A process in a PID namespace may have the number of kthreadd.
    if resident_kib(pid).is_none() {
        return Err(format!("pid {pid} is a thread of the kernel ({}), which has no descriptors", comm(pid)));
    }
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net"));
    match (namespace(&pid.to_string()), namespace("self")) {
        (Ok(theirs), Ok(ours)) if theirs != ours => {
            Err(format!("pid {pid} is in another network namespace; add --netns {pid}"))
        }
        (Err(_), _) if fs::read_dir(format!("/proc/{pid}/fd")).is_err() => {
            Err(format!("pid {pid} ({}) is another user's; run it as root or as that user", comm(pid)))
        }
        _ => Identity::find(pid).ok_or(format!("pid {pid} has ended")),
    }
}

/// Where a process listens, or, where it does not, its descendants.
fn addresses_of_process(pid: i32, all: &[Listener]) -> Result<BTreeSet<String>, String> {
    let of = |pid: i32| -> BTreeSet<String> {
        let Some(descriptors) = Descriptors::of(pid) else { return BTreeSet::new() };
        let inodes: BTreeSet<u32> = descriptors.sockets().collect();
        all.iter().filter(|listener| inodes.contains(&listener.inode)).map(|found| found.address.clone()).collect()
    };
    let own = of(pid);
    if !own.is_empty() {
        return Ok(own);
    }
    let stats: Vec<Stat> = Stat::all_processes().collect();
    let descendants = with_descendants(&stats, |stat| stat.parent == pid);
    let theirs: BTreeSet<String> = descendants.iter().flat_map(|stat| of(stat.pid)).collect();
    if !theirs.is_empty() {
        return Ok(theirs);
    }
    let parent = stats.iter().find(|stat| stat.pid == pid).map_or(0, |stat| stat.parent);
    let of_parent = if parent > 1 { of(parent) } else { BTreeSet::new() };
    let hint = match of_parent.first() {
        Some(address) => format!("; its parent, pid {parent}, listens on {address}"),
        None => String::new(),
    };
    Err(format!("pid {pid} ({}) does not listen, nor does a process that it has started{hint}", comm(pid)))
}

/// A process in another network namespace where somebody listens on the same port.
fn elsewhere(target: &Target) -> String {
    let port = match target {
        Target::Port(port) => *port,
        Target::Address(address) => address.port(),
        Target::Process(_) | Target::Unix(_) => return String::new(),
    };
    let ours = fs::read_link("/proc/self/ns/net").ok();
    let mut looked: BTreeSet<_> = ours.into_iter().collect();
    for stat in Stat::all_processes() {
        let pid = stat.pid;
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/net")) else { continue };
        if !looked.insert(namespace) {
            continue;
        }
        if listens_in_network_of(pid, port) {
            return format!("; in that of pid {pid} somebody does: add --netns {pid}");
        }
    }
    String::new()
}
