//! What the kernel counts about the whole machine: a run reads it before and after, to know whether it was disturbed.

use std::fmt::Display;
use std::fs;

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

    /// With the network's counters as this process has them: `self`, or a pid.
    pub fn seen_by(process: impl Display) -> Counters {
        let netstat = fs::read_to_string(format!("/proc/{process}/net/netstat")).unwrap_or_default();
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        Counters {
            listen_overflows: tcp_ext(&netstat, "ListenOverflows"),
            listen_drops: tcp_ext(&netstat, "ListenDrops"),
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

/// A kernel setting such as `net.core.somaxconn`, its words separated by single blanks.
pub fn sysctl(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The number a text begins with; 0 when there is none.
pub(crate) fn number(text: &str) -> u64 {
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// One counter of the `TcpExt:` pair of lines, names above values.
fn tcp_ext(netstat: &str, name: &str) -> u64 {
    let mut lines = netstat.lines().filter(|line| line.starts_with("TcpExt:"));
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
        assert_eq!(tcp_ext(netstat, "ListenOverflows"), 22);
        assert_eq!(tcp_ext(netstat, "Missing"), 0);
        assert_eq!(tcp_ext("", "ListenDrops"), 0);
    }
}
