//! The group: its sockets and the processes that accept from them, and one of its listeners, through which a program is
//! attached. A duplicate of a listener keeps its queue in the group after its worker has closed it, so ours lives for
//! the time of one call, and the watchdog has another one for as long as the listener is the server's, too.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::time::{Duration, Instant};

use libc::sock_filter;
use nix::errno::Errno;
use nix::sys::socket::AddressFamily;
use nix::unistd::Pid;

use super::probe::{Probe, acceptors};
use crate::failure::Failure;
use crate::lab::inspect::look::{Look, Process};
use crate::lab::inspect::{Observer, Target};
use crate::machine::sysctl;
use crate::sys::bpf::attach_classic;
use crate::sys::descriptors::{Descriptors, Link};
use crate::sys::foreign_listener::{duplicate, inode};
use crate::sys::pidfd::PidFd;
use crate::sys::sock_diag::{Extra, LISTEN, tcp_sockets};

/// Processes are looked for again after this time, longer where it costs more.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
const PAUSE_PER_COST: u32 = 50;

/// So many connections go to one of two sockets by chance once in 2^15 times.
const TRIED: usize = 16;

pub struct Group {
    pub address: SocketAddr,
    observer: Observer,
    next_refresh: Instant,
    pub holder: Holder,
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
    pub fn find(target: Target) -> Result<Group, String> {
        let mut observer = Observer::begin(target.clone()).map_err(|why| why + &datagrams(&target))?;
        observer.look()?;
        let all = &last(&observer).listeners;
        let sockets = |address: &str| all.iter().filter(|listener| listener.address == address).count();
        let addresses: BTreeSet<&str> = all.iter().map(|listener| listener.address.as_str()).collect();
        let groups: Vec<SocketAddr> =
            addresses.iter().filter(|a| sockets(a) > 1).filter_map(|a| a.parse().ok()).collect();
        let address = match groups[..] {
            [one] => one,
            [] if addresses.iter().all(|address| address.starts_with("unix:")) => {
                return Err(format!("{target} is a Unix socket, which has one queue: there is nothing to choose"));
            }
            [] => {
                let named = addresses.into_iter().collect::<Vec<_>>().join(", ");
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
        // From now on this address alone.
        let mut observer = Observer::begin(Target::Address(address))?;
        observer.look()?;
        let hidden = || format!("who has the sockets of {address} cannot be seen; run it as root");
        let holder = Holder::find(last(&observer))?.ok_or_else(hidden)?;
        Ok(Group { address, observer, next_refresh: Instant::now() + REFRESH_EVERY, holder })
    }

    /// The sockets of the group and how many connections wait in each, in no order that means anything.
    pub fn queues(&self) -> Vec<(u32, u32)> {
        let family = if self.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let all = tcp_sockets(family, 1 << LISTEN, self.address.port(), 0, Extra::Nothing).unwrap_or_default();
        let ours = all.into_iter().filter(|socket| socket.local == self.address);
        ours.map(|socket| (socket.inode, socket.received)).collect()
    }

    pub fn is_refresh_due(&self) -> bool {
        Instant::now() >= self.next_refresh || !self.holder.holds()
    }

    /// Looks for the processes again, and for another holder if this one has closed the listener. False when nobody has
    /// one any more but the watchdog.
    pub fn refresh(&mut self) -> Result<bool, String> {
        let cost = self.observer.look()?;
        let looks = &mut self.observer.recording.looks;
        looks.drain(..looks.len() - 1);
        self.next_refresh = Instant::now() + REFRESH_EVERY.max(cost * PAUSE_PER_COST);
        if !self.holder.holds() {
            let Some(holder) = Holder::find(last(&self.observer))? else { return Ok(false) };
            self.holder = holder;
        }
        Ok(true)
    }

    pub fn pids(&self) -> Vec<i32> {
        last(&self.observer).processes.iter().map(|process| process.pid).collect()
    }

    /// The name of the server's program.
    pub fn program(&self) -> String {
        let name = fs::read_to_string(format!("/proc/{}/comm", self.holder.pid));
        name.unwrap_or_default().trim().to_string()
    }

    /// Finds out whether the kernel's hash chooses, by connections of ours: it gives those from one address and port the
    /// same socket each time, and those from different ports different ones. The kernel does not tell it.
    ///
    /// # Errors
    /// When the group has a program of its own, which nobody could give back.
    pub fn has_no_program(&self) -> Result<(), String> {
        let (sockets, pids) = (self.queues(), self.pids());
        let acceptors: BTreeSet<Option<i32>> = sockets.iter().map(|(inode, _)| self.acceptor(*inode)).collect();
        // Of threads it cannot be seen which of them accepts.
        if acceptors.len() < 2 {
            return Ok(());
        }
        let failed = |error| Failure::new(format_args!("connect to {}", self.address), error).to_string();
        let first = from_addresses(self.address, &[None; TRIED], &pids).map_err(failed)?;
        let again: Vec<Option<SocketAddr>> = first.iter().map(|(ours, _)| Some(*ours)).collect();
        let second = from_addresses(self.address, &again, &pids).map_err(failed)?;
        if self.queues().iter().map(|(inode, _)| inode).ne(sockets.iter().map(|(inode, _)| inode)) {
            // Still growing.
            return self.has_no_program();
        }
        let pids = |found: &[(SocketAddr, Option<i32>)]| found.iter().map(|(_, pid)| *pid).collect::<Vec<_>>();
        let (first, second) = (pids(&first), pids(&second));
        let found =
            match first.iter().zip(&second).find(|(one, other)| one.is_some() && other.is_some() && one != other) {
                Some((Some(one), Some(other))) => {
                    format!("two connections from one address and port went to pid {one} and to pid {other}")
                }
                _ if first[0].is_some() && first.iter().all(|pid| *pid == first[0]) => {
                    format!("{TRIED} connections from different ports went to pid {}", first[0].unwrap_or_default())
                }
                _ => return Ok(()),
            };
        Err(format!(
            "{} has a program of its own ({found}), which could not be given back at the end; --replace takes its place",
            self.address
        ))
    }

    /// The process that accepts from a socket: the latest that has it in an epoll instance, or that has it alone.
    pub fn acceptor(&self, socket: u32) -> Option<i32> {
        let with = |accepts: fn(&Process, u32) -> bool| {
            let all = last(&self.observer).processes.iter().filter(|process| accepts(process, socket));
            all.max_by_key(|process| (process.started, process.pid)).map(|process| process.pid)
        };
        with(|process, socket| process.watches.iter().any(|watch| watch.listener == socket))
            .or_else(|| with(|process, socket| process.holds == BTreeSet::from([socket])))
    }

    /// # Errors
    /// ESRCH or EBADF when the listener is gone meanwhile.
    pub fn attach(&self, program: &[sock_filter]) -> nix::Result<()> {
        attach_classic(self.holder.duplicate()?, program)
    }
}

/// Connections from these addresses of ours, new ones where they are absent: from where each came, and who accepted it.
fn from_addresses(
    server: SocketAddr,
    ours: &[Option<SocketAddr>],
    pids: &[i32],
) -> io::Result<Vec<(SocketAddr, Option<i32>)>> {
    let mut probes = ours.iter().map(|ours| Probe::bind(server, *ours)).collect::<io::Result<Vec<Probe>>>()?;
    probes.iter_mut().try_for_each(Probe::connect)?;
    let acceptors = acceptors(&probes, pids);
    Ok(probes.iter().map(Probe::ours).zip(acceptors).collect())
}

fn last(observer: &Observer) -> &Look {
    observer.recording.looks.last().expect("it has looked")
}

impl Holder {
    /// The process that has most of the sockets: a master keeps them when its workers come and go.
    fn find(look: &Look) -> Result<Option<Holder>, String> {
        let mut holders: Vec<&Process> = look.processes.iter().filter(|process| !process.holds.is_empty()).collect();
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

    pub fn duplicate(&self) -> nix::Result<OwnedFd> {
        let socket = duplicate(&self.pidfd, self.number)?;
        // Another descriptor may have this number now.
        if inode(&socket)? == self.inode { Ok(socket) } else { Err(Errno::EBADF) }
    }

    /// Whether the listener is the server's still.
    pub fn holds(&self) -> bool {
        let link = fs::read_link(format!("/proc/{}/fd/{}", self.pid, self.number));
        link.is_ok_and(|link| link.to_str() == Some(&format!("socket:[{}]", self.inode)))
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
