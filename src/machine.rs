//! What the kernel counts about the whole machine, which a run reads before and after to know whether it was disturbed,
//! and the limits that the kernel sets it.

use std::fmt::Display;
use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

/// Kernel counters whose growth during a run says that the run was disturbed, or that the server was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Connections refused or delayed because an accept queue was full (TcpExt in /proc/net/netstat).
    pub listen_overflows: u64,
    pub listen_drops: u64,
    /// Time the hypervisor gave to somebody else, all CPUs, in clock ticks (/proc/stat).
    pub steal_ticks: u64,
}

impl Counters {
    pub fn now() -> Counters {
        Counters::seen_by("self")
    }

    /// The counters, those of the network as this process has them: `self`, or a pid.
    pub fn seen_by(process: impl Display) -> Counters {
        let netstat = fs::read_to_string(format!("/proc/{process}/net/netstat")).unwrap_or_default();
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        Counters {
            listen_overflows: network_counter(&netstat, "TcpExt:", "ListenOverflows"),
            listen_drops: network_counter(&netstat, "TcpExt:", "ListenDrops"),
            steal_ticks: number(stat.split_whitespace().nth(8).unwrap_or_default()),
        }
    }

    pub fn since(&self, before: &Counters) -> Counters {
        Counters {
            listen_overflows: self.listen_overflows.saturating_sub(before.listen_overflows),
            listen_drops: self.listen_drops.saturating_sub(before.listen_drops),
            steal_ticks: self.steal_ticks.saturating_sub(before.steal_ticks),
        }
    }

    /// The share of the machine's time that was stolen, when these are the counts of so many seconds.
    pub fn steal_share(&self, seconds: f64) -> f64 {
        // Both are known on every Linux; 100 ticks per second is what user space has always been told.
        let of = |name, otherwise| sysconf(name).ok().flatten().unwrap_or(otherwise) as f64;
        let all_ticks = of(SysconfVar::CLK_TCK, 100) * of(SysconfVar::_NPROCESSORS_ONLN, 1) * seconds;
        if all_ticks > 0.0 { self.steal_ticks as f64 / all_ticks } else { 0.0 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// RLIMIT_NOFILE, the hard limit.
    pub descriptors: u64,
    /// Source ports of one address: net.ipv4.ip_local_port_range without ip_local_reserved_ports.
    pub ports: u64,
    /// net.ipv4.tcp_tw_reuse: 0 never, 1 always, 2 on the loopback.
    pub time_wait_reuse: u64,
    /// net.ipv4.tcp_tw_reuse_delay: how long a port in TIME_WAIT is held even so.
    pub time_wait_reuse_delay_s: f64,
    /// net.core.somaxconn, which caps every listen(2) backlog of this machine.
    pub somaxconn: u64,
}

impl Limits {
    /// The limits of this machine and process; what cannot be read has the kernel's default.
    pub fn now() -> Limits {
        let range = sysctl("net.ipv4.ip_local_port_range").unwrap_or_default();
        let reserved = sysctl("net.ipv4.ip_local_reserved_ports").unwrap_or_default();
        let value = |name, default| sysctl(name).and_then(|text| text.parse().ok()).unwrap_or(default);
        Limits {
            descriptors: descriptor_limits().1,
            ports: count_ports(&range, &reserved),
            time_wait_reuse: value("net.ipv4.tcp_tw_reuse", 2),
            time_wait_reuse_delay_s: value("net.ipv4.tcp_tw_reuse_delay", 1000) as f64 / 1e3,
            somaxconn: value("net.core.somaxconn", 4096),
        }
    }
}

/// A kernel setting such as `net.core.somaxconn`, its words separated by single blanks.
pub fn sysctl(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The soft and the hard limit (RLIMIT_NOFILE).
pub fn descriptor_limits() -> (u64, u64) {
    getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit(2) fails only on bad arguments")
}

/// How many ports `first last` holds beside those of `8080,9148-9150`.
fn count_ports(range: &str, reserved: &str) -> u64 {
    // The default of ip_local_port_range (ip(7)).
    const DEFAULT: (u64, u64) = (32_768, 60_999);
    let pair = |text: &str, separator: fn(char) -> bool| {
        let mut ends = text.split(separator).filter_map(|end| end.trim().parse::<u64>().ok());
        let first = ends.next()?;
        Some((first, ends.next().unwrap_or(first)))
    };
    let (first, last) = pair(range, char::is_whitespace).unwrap_or(DEFAULT);
    let reserved = reserved.split(',').filter_map(|part| pair(part, |c| c == '-'));
    let taken: u64 = reserved.map(|(from, to)| (to.min(last) + 1).saturating_sub(from.max(first))).sum();
    (last + 1).saturating_sub(first).saturating_sub(taken)
}

/// The number a text begins with; 0 when there is none.
pub(crate) fn number(text: &str) -> u64 {
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// One counter of /proc/net/netstat or /proc/net/snmp, whose lines are pairs: names above values. `group` begins both.
pub fn network_counter(text: &str, group: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(key, _)| *key == name).map_or(0, |(_, value)| number(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_below_its_name() {
        let netstat = "TcpExt: A ListenOverflows ListenDrops\nTcpExt: 1 22 333\nIpExt: A\nIpExt: 4\n";
        assert_eq!(network_counter(netstat, "TcpExt:", "ListenOverflows"), 22);
        assert_eq!(network_counter(netstat, "TcpExt:", "Missing"), 0);
        assert_eq!(network_counter("", "TcpExt:", "ListenDrops"), 0);
    }

    #[test]
    fn reserved_ports_are_not_there() {
        assert_eq!(count_ports("32768\t60999", ""), 28_232);
        assert_eq!(count_ports("40000 40099", "8080,40010,40090-40200"), 100 - 1 - 10);
        assert_eq!(count_ports("", ""), 28_232);
        assert_eq!(count_ports("5 4", "1-9"), 0);
    }

    #[test]
    fn this_machine_has_limits() {
        let limits = Limits::now();
        assert!(limits.descriptors > 0 && limits.ports > 0 && limits.somaxconn > 0);
    }
}
