//! The group: its sockets and the processes that accept from them, and one of its listeners, through which a program is
//! attached. A duplicate of a listener keeps its queue in the group after its worker has closed it, so ours lives for
//! the time of one call, and the watchdog has another one for as long as the listener is the server's, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::AddressFamily;
use nix::unistd::Pid;

use super::probe::{Probe, acceptors, await_answers};
use crate::classic_bpf::BpfProgram;
use crate::failure::Failure;
use crate::lab::target::{Target, all_listeners, no_sockets};
use crate::machine::sysctl;
use crate::sys::bpf::{Instruction, attach_classic, attach_extended, load_filter};
use crate::sys::descriptors::{Descriptors, Link, epoll_entries};
use crate::sys::foreign_listener::{duplicate, inode};
use crate::sys::pidfd::PidFd;
use crate::sys::procfs::{Stat, comm, with_descendants};
use crate::sys::sock_diag::{Extra, LISTEN, tcp_sockets};
use crate::units::thread_cpu_ns;

/// Processes are looked for again after this time, longer where it costs more.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
const PAUSE_PER_COST: u32 = 400;

/// So many connections go to one of two sockets by chance once in 2^15 times.
const TRIED: usize = 16;

pub struct Group {
    pub address: SocketAddr,
    /// Those that have a socket of the group, their parents, and the descendants of both.
    processes: Vec<Process>,
    next_refresh: Instant,
    pub holder: Holder,
}

/// In either of the kernel's languages.
#[derive(PartialEq)]
pub enum Program {
    Classic(BpfProgram),
    Extended(Vec<Instruction>),
}

/// What a process has of the group.
#[derive(Clone, Default)]
struct Process {
    pid: i32,
    started: u64,
    holds: BTreeSet<u32>,
    /// Those of them that its epoll instances watch.
    watches: BTreeSet<u32>,
}

/// A process and its descriptor of one of the sockets.
pub struct Holder {
    pub pidfd: PidFd,
    pid: i32,
    number: RawFd,
    inode: u32,
}

impl Group {
    /// # Errors
    /// One line: why nothing can be chosen there, and what to do.
    pub fn find(target: &Target) -> Result<Group, String> {
        let found = target.find().map_err(|why| why + &datagrams(target))?;
        let (all, addresses) = (all_listeners()?, &found.addresses);
        let sockets = |address: &str| all.iter().filter(|listener| listener.address == address).count();
        let groups: Vec<SocketAddr> =
            addresses.iter().filter(|a| sockets(a) > 1).filter_map(|a| a.parse().ok()).collect();
        let address = match groups[..] {
            [one] => one,
            [] if addresses.iter().all(|address| address.starts_with("unix:")) => {
                return Err(format!("{target} is a Unix socket, which has one queue: there is nothing to choose"));
            }
            [] => {
                let named = addresses.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                return Err(format!(
                    "{named} has one socket: there is no group to choose in; let each worker listen with \
                     SO_REUSEPORT (nginx: `listen … reuseport`), with 2 workers at least"
                ));
            }
            [..] => {
                let named = groups.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ");
                return Err(format!("{target} has several groups: {named}; name one of these addresses"));
            }
        };
        let holders =
            found.holders.into_iter().map(|(pid, holds)| Process { pid, holds, ..Process::default() }).collect();
        let processes = read_processes(holders, &queues(address)?, None);
        let hidden = || format!("who has the sockets of {address} cannot be seen; run it as root");
        let holder = Holder::find(&processes)?.ok_or_else(hidden)?;
        Ok(Group { address, processes, next_refresh: Instant::now() + REFRESH_EVERY, holder })
    }

    /// The sockets of the group and how many connections wait in each, in no order that means anything.
    pub fn queues(&self) -> Result<BTreeMap<u32, u32>, String> {
        queues(self.address)
    }

    pub fn is_refresh_due(&self) -> bool {
        Instant::now() >= self.next_refresh || self.holder.duplicate().is_err()
    }

    /// Looks for the processes again, and for another holder if this one has closed the listener. False when nobody has
    /// one any more but the watchdog.
    pub fn refresh(&mut self, watchdog: i32) -> Result<bool, String> {
        let begun_ns = thread_cpu_ns();
        let known = std::mem::take(&mut self.processes);
        self.processes = read_processes(known, &self.queues()?, Some(watchdog));
        let cost = Duration::from_nanos(thread_cpu_ns() - begun_ns);
        self.next_refresh = Instant::now() + REFRESH_EVERY.max(cost * PAUSE_PER_COST);
        if self.holder.duplicate().is_err() {
            let Some(holder) = Holder::find(&self.processes)? else { return Ok(false) };
            self.holder = holder;
        }
        Ok(true)
    }

    pub fn pids(&self) -> Vec<i32> {
        self.processes.iter().map(|process| process.pid).collect()
    }

    /// The name of the server's program.
    pub fn program(&self) -> String {
        comm(self.holder.pid)
    }

    /// Finds out whether the kernel's hash chooses, by connections of ours: it gives those from one address and port the
    /// same socket each time, and those from different ports different ones. The kernel does not tell it. Returns why it
    /// cannot be seen, where that is so.
    ///
    /// # Errors
    /// When the group has a program of its own, which nobody could give back.
    pub fn has_no_program(&self) -> Result<Option<String>, String> {
        let (address, sockets) = (self.address, self.queues()?);
        // Of threads it cannot be seen which of them accepts.
        if self.processes.iter().filter(|it| !it.watches.is_empty() || it.holds.len() == 1).count() < 2 {
            return Ok(None);
        }
        let answers = |ours: &[Option<SocketAddr>]| {
            let failed = |error| Failure::new(format_args!("connect to {address}"), error).to_string();
            from_addresses(address, ours, &self.pids()).map_err(failed)
        };
        let first = answers(&[None; TRIED])?;
        let second = answers(&first.keys().copied().map(Some).collect::<Vec<_>>())?;
        let unseen = |why| format!("whether {address} has a program cannot be seen: {why}; --replace takes its place");
        if self.queues()?.keys().ne(sockets.keys()) {
            return Ok(Some(unseen("its sockets come and go")));
        }
        let pairs = || first.iter().filter_map(|(ours, one)| Some((*one, *second.get(ours)?)));
        let Some((pid, _)) = pairs().next() else {
            return Ok(Some(unseen("no worker has accepted two connections from one address and port")));
        };
        let found = match pairs().find(|(one, other)| one != other) {
            Some((one, other)) => {
                format!("two connections from one address and port went to pid {one} and to pid {other}")
            }
            None if first.len() == TRIED && first.values().all(|other| *other == pid) => {
                format!("{TRIED} connections from different ports went to pid {pid}")
            }
            None => return Ok(None),
        };
        Err(format!(
            "{address} has a program of its own ({found}), which could not be given back at the end; --replace takes its \
             place"
        ))
    }

    /// The process that accepts from a socket: the latest that has it in an epoll instance, or else that has it alone.
    pub fn acceptor(&self, socket: u32) -> Option<i32> {
        let all = self.processes.iter().filter(|process| process.socket() == Some(socket));
        all.max_by_key(|it| (!it.watches.is_empty(), it.started, it.pid)).map(|process| process.pid)
    }

    /// The socket that a process accepts from, if it is one.
    pub fn socket_of(&self, pid: i32) -> Option<u32> {
        self.processes.iter().find(|process| process.pid == pid)?.socket()
    }

    /// # Errors
    /// ESRCH or EBADF when the listener is gone meanwhile.
    pub fn attach(&self, program: &Program) -> nix::Result<()> {
        let member = self.holder.duplicate()?;
        match program {
            Program::Classic(program) => attach_classic(member, program),
            Program::Extended(program) => attach_extended(member, load_filter(program)?),
        }
    }
}

/// Connections from these addresses of ours, new ones where they are absent: who has accepted each, where that is seen.
fn from_addresses(
    server: SocketAddr,
    ours: &[Option<SocketAddr>],
    pids: &[i32],
) -> io::Result<BTreeMap<SocketAddr, i32>> {
    let bound = ours.iter().map(|ours| Probe::bind(server, *ours));
    // Somebody else may have an address meanwhile.
    let is_ours =
        |probe: &io::Result<Probe>| !probe.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    let mut probes = bound.filter(is_ours).collect::<io::Result<Vec<Probe>>>()?;
    probes.iter_mut().try_for_each(Probe::connect)?;
    await_answers(&mut probes)?;
    Ok(probes.iter().zip(acceptors(&probes, pids)).filter_map(|(probe, pid)| Some((probe.ours, pid?))).collect())
}

fn queues(address: SocketAddr) -> Result<BTreeMap<u32, u32>, String> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let all = tcp_sockets(family, 1 << LISTEN, address.port(), 0, Extra::Nothing).map_err(no_sockets)?;
    let ours = all.into_iter().filter(|socket| socket.local == address);
    Ok(ours.map(|socket| (socket.inode, socket.received)).collect())
}

/// The processes of a server as they are now. A process that watches its socket goes on to do so: the kernel keeps an
/// epoll instance locked while it lists it, so it is asked once.
fn read_processes(known: Vec<Process>, sockets: &BTreeMap<u32, u32>, watchdog: Option<i32>) -> Vec<Process> {
    let stats: Vec<Stat> = Stat::all_processes().filter(|stat| Some(stat.pid) != watchdog).collect();
    let before = |pid: i32| known.iter().find(|process| process.pid == pid);
    let holds = |stat: &&Stat| before(stat.pid).is_some_and(|process| !process.holds.is_empty());
    // A master that has no socket yet may open one. What process 1 has started is not one server.
    let parents: BTreeSet<i32> =
        stats.iter().filter(holds).map(|stat| stat.parent).filter(|&parent| parent > 1).collect();
    let family = with_descendants(&stats, |stat| before(stat.pid).is_some() || parents.contains(&stat.pid));
    let read = |stat: &Stat| {
        let descriptors = Descriptors::of(stat.pid)?;
        let holds: BTreeSet<u32> = descriptors.sockets().filter(|inode| sockets.contains_key(inode)).collect();
        let is_same = |process: &&Process| process.started == stat.started && process.holds == holds;
        let watches = match before(stat.pid).filter(is_same).filter(|process| !process.watches.is_empty()) {
            Some(process) => process.watches.clone(),
            None if holds.is_empty() => BTreeSet::new(),
            None => {
                let watched = descriptors.with(Link::Epoll).flat_map(|number| epoll_entries(stat.pid, number));
                watched.map(|(inode, _)| inode).filter(|inode| holds.contains(inode)).collect()
            }
        };
        Some(Process { pid: stat.pid, started: stat.started, holds, watches })
    };
    family.into_iter().filter(|stat| stat.is_alive()).filter_map(read).collect()
}

impl Process {
    fn socket(&self) -> Option<u32> {
        let sockets = if self.watches.is_empty() { &self.holds } else { &self.watches };
        sockets.first().filter(|_| sockets.len() == 1).copied()
    }
}

impl Holder {
    /// The process that has most of the sockets: a master keeps them when its workers come and go.
    fn find(processes: &[Process]) -> Result<Option<Holder>, String> {
        let mut holders: Vec<&Process> = processes.iter().filter(|process| !process.holds.is_empty()).collect();
        holders.sort_by_key(|process| (std::cmp::Reverse(process.holds.len()), process.started, process.pid));
        let mut why = None;
        for process in holders {
            match Holder::of(process) {
                Ok(holder) => return Ok(Some(holder)),
                // It has ended, or closed it, meanwhile.
                Err(Errno::ESRCH | Errno::EBADF) => {}
                Err(errno) => why = Some(explain(process.pid, errno)),
            }
        }
        why.map_or(Ok(None), Err)
    }

    fn of(process: &Process) -> nix::Result<Holder> {
        let (pid, inode) = (process.pid, *process.holds.first().ok_or(Errno::EBADF)?);
        let pidfd = PidFd::open(Pid::from_raw(pid))?;
        let descriptors = Descriptors::of(pid).ok_or(Errno::ESRCH)?;
        let number = descriptors.with(Link::Socket(inode)).next().ok_or(Errno::EBADF)?;
        let holder = Holder { pidfd, pid, number, inode };
        holder.duplicate().map(|_| holder)
    }

    pub fn socket(&self) -> u32 {
        self.inode
    }

    /// # Errors
    /// ESRCH or EBADF when the listener is the server's no more.
    pub fn duplicate(&self) -> nix::Result<OwnedFd> {
        let socket = duplicate(&self.pidfd, self.number)?;
        // Another descriptor may have this number now.
        if inode(&socket)? == self.inode { Ok(socket) } else { Err(Errno::EBADF) }
    }
}

fn explain(pid: i32, errno: Errno) -> String {
    let failure = Failure::new(format_args!("take a duplicate of a listener of pid {pid} (pidfd_getfd)"), errno);
    let scope = sysctl("kernel.yama.ptrace_scope").filter(|scope| scope != "0");
    let failure = match (errno, scope) {
        (Errno::EPERM, Some(scope)) => failure.advise(format_args!(
            "Yama (kernel.yama.ptrace_scope = {scope}) allows it to the process that has started the server: \
             `lab steer --select … -- COMMAND`, or run it as root"
        )),
        (Errno::EPERM, None) => failure.advise("run it as root, or as the server's user"),
        (Errno::ENOSYS, _) => failure.advise("it needs Linux 5.6"),
        _ => failure,
    };
    failure.to_string()
}

/// What to add where a port has datagrams only.
fn datagrams(target: &Target) -> String {
    let port = match target {
        Target::Port(port) => *port,
        Target::Address(address) => address.port(),
        Target::Process(_) | Target::Unix(_) => return String::new(),
    };
    // Number, local address, remote address (proc_pid_net(5)).
    let is_local = |line: &str| line.split_whitespace().nth(1).is_some_and(|at| at.ends_with(&format!(":{port:04X}")));
    let has_it = |table: &&str| fs::read_to_string(table).is_ok_and(|text| text.lines().any(is_local));
    match ["/proc/self/net/udp", "/proc/self/net/udp6"].iter().any(has_it) {
        true => "; UDP is there, which has no connections to choose a socket for".to_string(),
        false => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn an_address_that_somebody_else_has_taken_is_left_out() {
        let [server, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = server.local_addr().unwrap();
        let ours = [Some(other.local_addr().unwrap()), None];
        let accepted = std::thread::scope(|scope| {
            let accepted = scope.spawn(|| server.accept().unwrap());
            (from_addresses(address, &ours, &[Pid::this().as_raw()]).unwrap(), accepted.join().unwrap())
        });
        assert_eq!(accepted.0, BTreeMap::from([(accepted.1.1, Pid::this().as_raw())]));
    }
}
