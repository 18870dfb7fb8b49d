//! What `lab inspect` and `lab steer` are pointed at: a process, a port, an address or a Unix socket, and the listeners
//! and processes that it means.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::failure::Failure;
use crate::lab::observe::processes::Process;
use crate::sys::descriptors::Descriptors;
use crate::sys::namespace::enter_network_of;
use crate::sys::procfs::{Stat, comm, resident_kib, with_descendants};
use crate::sys::sock_diag::{Listener, listeners, listens_in_network_of};
use crate::terminal::printable;

/// A server, as the user names it.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    Process(i32),
    Port(u16),
    Address(SocketAddr),
    /// The path of a Unix socket; of an abstract one with `@` in front.
    Unix(String),
}

/// The listeners that a target means, and who has them.
pub struct Found {
    /// The process, where the target is one: distinguishes it from a later process with its number.
    pub identity: Option<Process>,
    pub addresses: BTreeSet<String>,
    /// The processes that have a descriptor of one of the listeners, and of which.
    pub holders: BTreeMap<i32, BTreeSet<u32>>,
    /// What could not be seen, and why, a line each.
    pub unseen: Vec<String>,
}

impl Target {
    /// `PID`, `:PORT`, `ADDR:PORT`, or `unix:PATH`. An IPv6 address may name its interface: `[fe80::1%eth0]:80`.
    pub fn parse(text: &str) -> Result<Target, String> {
        let odd = || format!("{text:?} is none of PID, :PORT, ADDR:PORT and unix:PATH");
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Target::Unix(path.to_string()));
        }
        if let Some(port) = text.strip_prefix(':') {
            return port.parse().ok().filter(|&port| port > 0).map(Target::Port).ok_or_else(odd);
        }
        if let Ok(pid) = text.parse::<i32>() {
            return if pid > 0 { Ok(Target::Process(pid)) } else { Err(odd()) };
        }
        with_interface_number(text)?.parse().map(Target::Address).map_err(|_| odd())
    }

    /// Finds its listeners and the processes that have them.
    ///
    /// # Errors
    /// One line: what there is instead, and what the user can do.
    pub fn find(&self) -> Result<Found, String> {
        let all = all_listeners()?;
        let identity = match *self {
            Target::Process(pid) => Some(identify(pid)?),
            _ => None,
        };
        let addresses = match *self {
            Target::Process(pid) => addresses_of_process(pid, &all)?,
            _ => addresses_of(self, &all),
        };
        if addresses.is_empty() {
            return Err(format!("nobody listens on {self} in this network namespace{}", elsewhere(self)));
        }
        let inodes = inodes_of(&all, &addresses);
        let (holders, hidden) = holders_of(&inodes);
        if matches!(self, Target::Port(_)) {
            is_one_server(self, &all, &addresses, &holders)?;
        }
        let is_held = |listener: &&Listener| holders.values().any(|held| held.contains(&listener.inode));
        let without_owner = all.iter().filter(|listener| inodes.contains(&listener.inode) && !is_held(listener));
        let mut unseen: Vec<String> = without_owner.map(|listener| no_owner(listener, hidden)).collect();
        unseen.dedup();
        Ok(Found { identity, addresses, holders, unseen })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Target::Process(pid) => write!(out, "pid {pid}"),
            Target::Port(port) => write!(out, "port {port}"),
            Target::Address(address) => write!(out, "{address}"),
            Target::Unix(path) => write!(out, "unix:{path}"),
        }
    }
}

/// Makes the network namespace of a process ours. Call it before any other thread exists.
pub fn enter_namespace_of(pid: i32) -> Result<(), String> {
    enter_network_of(pid).map_err(|error| {
        let what = format!("enter the network namespace of pid {pid}");
        Failure::new(what, error).advise("needs CAP_SYS_ADMIN in it: run it as root").to_string()
    })
}

/// The standard library reads `%2`, and no name.
fn with_interface_number(text: &str) -> Result<String, String> {
    let parts = text.split_once('%').and_then(|(address, rest)| Some((address, rest.split_once(']')?)));
    let Some((address, (name, port))) = parts else { return Ok(text.to_string()) };
    let number = name.parse().or_else(|_| if_nametoindex(name));
    let number =
        number.map_err(|errno: Errno| format!("{text}: no interface {name}: {}", errno.desc().to_lowercase()))?;
    Ok(format!("{address}%{number}]{port}"))
}

/// The addresses among these that a port or an address means. An address that nobody has bound is served by the one
/// that is bound to any address of the machine.
fn addresses_of(target: &Target, all: &[Listener]) -> BTreeSet<String> {
    let with = |is_meant: &dyn Fn(&Listener) -> bool| {
        all.iter().filter(|listener| is_meant(listener)).map(|listener| listener.address.clone()).collect()
    };
    match target {
        Target::Process(_) => BTreeSet::new(),
        Target::Port(port) => with(&|listener| listener.ip().is_some_and(|ip| ip.port() == *port)),
        Target::Unix(path) => with(&|listener| listener.address.strip_prefix("unix:") == Some(path)),
        Target::Address(wanted) => {
            let exact: BTreeSet<String> = with(&|listener| listener.ip() == Some(*wanted));
            if !exact.is_empty() {
                return exact;
            }
            with(&|listener| {
                let serves = |ip: IpAddr| ip.is_unspecified() && (ip.is_ipv4() == wanted.is_ipv4() || listener.is_dual);
                listener.ip().is_some_and(|ip| ip.port() == wanted.port() && serves(ip.ip()))
            })
        }
    }
}

/// All sockets of this network namespace that listen.
pub fn all_listeners() -> Result<Vec<Listener>, String> {
    listeners().map_err(no_sockets)
}

/// Why the kernel tells nothing of its sockets.
pub fn no_sockets(errno: Errno) -> String {
    let failure = Failure::new("ask the kernel for its sockets (sock_diag)", errno);
    match errno {
        Errno::EPERM | Errno::EACCES => failure.advise("a sandbox forbids it: run it outside").to_string(),
        Errno::ENOENT => failure.advise("the kernel's module tcp_diag is not there: modprobe tcp_diag").to_string(),
        _ => failure.to_string(),
    }
}

fn inodes_of(all: &[Listener], addresses: &BTreeSet<String>) -> BTreeSet<u32> {
    all.iter().filter(|listener| addresses.contains(&listener.address)).map(|listener| listener.inode).collect()
}

/// The processes that have a descriptor of one of these sockets, and how many could not be asked.
fn holders_of(inodes: &BTreeSet<u32>) -> (BTreeMap<i32, BTreeSet<u32>>, usize) {
    let (mut holders, mut hidden) = (BTreeMap::new(), 0);
    for stat in Stat::all_processes().filter(Stat::is_alive) {
        match Descriptors::of(stat.pid) {
            // One that has ended meanwhile, or a thread of the kernel, has none.
            None => hidden += usize::from(is_hidden(stat.pid)),
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

/// Whether a process has memory, so that it is not the kernel's, and its descriptors are not shown to us.
fn is_hidden(pid: i32) -> bool {
    resident_kib(pid).is_some() && !is_shown(pid)
}

fn is_shown(pid: i32) -> bool {
    fs::read_dir(format!("/proc/{pid}/fd")).is_ok()
}

/// Why nobody was found who has a listener; so many processes could not be asked.
fn no_owner(listener: &Listener, hidden: usize) -> String {
    let closed = match hidden {
        0 => "/proc shows us no process that has it, because of hidepid or another PID namespace".to_string(),
        _ => format!("we may not look into {hidden} processes of others"),
    };
    let Listener { address, uid, .. } = listener;
    format!("who has the socket of {address}, which user {uid} has opened: {closed}; run it as root")
}

/// Several addresses of one port are one server if the same processes hold them. Those whose holders we may not see say
/// nothing.
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
    let mut seen = addresses.iter().map(&pids).filter(|pids| !pids.is_empty());
    let first = seen.next().unwrap_or_default();
    if seen.all(|pids| !pids.is_disjoint(&first)) {
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
fn identify(pid: i32) -> Result<Process, String> {
    let stat = Stat::of(pid).ok_or(format!("there is no process {pid}, or /proc hides it (hidepid)"))?;
    if stat.is_zombie() {
        return Err(format!("pid {pid} has ended; its parent, pid {}, has not asked how (a zombie)", stat.parent));
    }
    let is_still_there = || Process::find(pid).is_some();
    // It has no memory of its own. A process in a PID namespace may have the number of kthreadd.
    if resident_kib(pid).is_none() && is_still_there() {
        return Err(format!(
            "pid {pid} is a thread of the kernel ({}), which has no descriptors",
            printable(&comm(pid))
        ));
    }
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net"));
    match (namespace(&pid.to_string()), namespace("self")) {
        (Ok(theirs), Ok(ours)) if theirs != ours => {
            Err(format!("pid {pid} is in another network namespace; add --netns {pid}"))
        }
        (Err(_), _) if !is_shown(pid) && is_still_there() => {
            Err(format!("pid {pid} ({}) is another user's; run it as root or as that user", printable(&comm(pid))))
        }
        _ => Process::find(pid).ok_or(format!("pid {pid} has ended")),
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
    Err(format!("pid {pid} ({}) does not listen, nor does a process that it has started{hint}", printable(&comm(pid))))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_process_a_port_an_address_or_a_path() {
        assert_eq!(Target::parse("604"), Ok(Target::Process(604)));
        assert_eq!(Target::parse(":80"), Ok(Target::Port(80)));
        assert_eq!(Target::parse("127.0.0.1:80"), Ok(Target::Address("127.0.0.1:80".parse().unwrap())));
        assert_eq!(Target::parse("unix:/run/x"), Ok(Target::Unix("/run/x".to_string())));
        for odd in ["", "0", "-1", ":0", ":70000", "localhost:80", "1.2.3.4", "[::1]", "80x"] {
            assert!(Target::parse(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn an_ipv6_address_may_name_its_interface() {
        let number = if_nametoindex("lo").expect("every Linux has it");
        let expected: SocketAddr = format!("[fe80::1%{number}]:80").parse().unwrap();
        assert_eq!(Target::parse("[fe80::1%lo]:80"), Ok(Target::Address(expected)));
        assert!(Target::parse("[fe80::1%nowhere0]:80").is_err_and(|why| why.contains("no interface nowhere0")));
    }

    #[test]
    fn an_address_means_the_socket_bound_to_it_or_else_to_any() {
        let listener =
            |address: &str, is_dual| Listener { address: address.to_string(), is_dual, ..Listener::default() };
        let all = [listener("127.0.0.1:80", false), listener("[::]:80", true), listener("0.0.0.0:81", false)];
        let meant = |target: &str| addresses_of(&Target::parse(target).unwrap(), &all).into_iter().collect::<Vec<_>>();
        assert_eq!(meant("127.0.0.1:80"), ["127.0.0.1:80"]);
        assert_eq!(meant("10.0.0.1:80"), ["[::]:80"]);
        assert_eq!(meant("[::1]:81"), [""; 0]);
        assert_eq!(meant(":80"), ["127.0.0.1:80", "[::]:80"]);
    }

    #[test]
    fn addresses_of_a_port_are_one_server_unless_other_processes_are_seen_to_hold_them() {
        let listener = |address: &str, inode| Listener { address: address.to_string(), inode, ..Listener::default() };
        let all = [listener("0.0.0.0:80", 1), listener("[::]:80", 2)];
        let addresses = all.iter().map(|listener| listener.address.clone()).collect();
        let is_one = |holders: &[(i32, u32)]| {
            let holders = holders.iter().map(|&(pid, inode)| (pid, BTreeSet::from([inode]))).collect();
            is_one_server(&Target::Port(80), &all, &addresses, &holders).is_ok()
        };
        assert!(!is_one(&[(604, 1), (605, 2)]));
        assert!(is_one(&[(604, 1)]) && is_one(&[]), "who has the others may not be shown to us");
    }
}
