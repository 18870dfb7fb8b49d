//! What a server occupies while it runs, from /proc: processes, threads, descriptors and proportional memory of its
//! process group and of everything that descends from it (a master may give each worker a group of its own); and by how
//! much its first process grows. A server that runs for years must not grow.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::lab::observe::processes::members;
use crate::sys::procfs::{Stat, descriptors, proportional_kib, resident_kib};

/// A server while its connections are open.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Footprint {
    pub processes: u64,
    pub threads: u64,
    pub fds: u64,
    /// Those of the server's first process: of the master where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master_fds: Option<u64>,
    /// Proportional set size: a page shared by n processes counts 1/n in each (proc_pid_smaps_rollup in
    /// proc(5)). The kernel's own memory, socket buffers above all, is not in it.
    pub pss_kib: u64,
    /// How long reading /proc took; with thousands of processes that is noticeable.
    pub took_ms: f64,
}

/// Reads until the server holds at least `fds` descriptors and two readings agree. The client's connections are
/// established long before they are accepted, so `fds` is what the server held before the client came, and one for each
/// connection. `None` when that has not happened by the deadline: a reading in the measured window would take CPU time
/// from the server.
pub fn settled(group: i32, fds: u64, deadline: Instant) -> Option<Footprint> {
    let start = Instant::now();
    let mut last = of_group(group);
    while Instant::now() < deadline {
        let next = of_group(group);
        let agree = (last.threads, last.fds) == (next.threads, next.fds);
        if agree && last.fds >= fds && Instant::now() < deadline {
            return Some(Footprint { took_ms: start.elapsed().as_secs_f64() * 1e3, ..next });
        }
        last = next;
    }
    None
}

/// Reads every process of the server once; `group` is also the number of its first process.
pub fn of_group(group: i32) -> Footprint {
    let mut footprint = Footprint::default();
    for Stat { pid, threads, .. } in members(group) {
        footprint.processes += 1;
        footprint.threads += threads;
        let fds = descriptors(pid).unwrap_or(0);
        footprint.fds += fds;
        footprint.master_fds = footprint.master_fds.or((pid == group).then_some(fds));
        footprint.pss_kib += proportional_kib(pid).unwrap_or(0);
    }
    footprint
}

/// The size of the server's first process, or by how much it grew during the measurement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSize {
    pub rss_kib: i64,
    pub fds: i64,
    pub zombies: i64,
}

impl ProcessSize {
    /// `None` when there is no such process.
    pub fn of(pid: i32) -> Option<ProcessSize> {
        Some(ProcessSize {
            rss_kib: resident_kib(pid)? as i64,
            fds: descriptors(pid)? as i64,
            zombies: Stat::all_processes().filter(|stat| stat.parent == pid && stat.is_zombie()).count() as i64,
        })
    }

    pub fn since(self, before: ProcessSize) -> ProcessSize {
        ProcessSize {
            rss_kib: self.rss_kib - before.rss_kib,
            fds: self.fds - before.fds,
            zombies: self.zombies - before.zombies,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::observe::processes::poll_until;
    use nix::unistd::getpgrp;
    use std::io::Read;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    #[test]
    fn our_own_group_occupies_something() {
        let footprint = of_group(getpgrp().as_raw());
        assert!(footprint.processes >= 1 && footprint.threads >= 1, "{footprint:?}");
        assert!(footprint.fds >= 3 && footprint.pss_kib > 0, "{footprint:?}");
    }

    #[test]
    fn a_server_that_does_not_hold_its_connections_in_time_has_no_footprint() {
        let soon = Instant::now() + Duration::from_millis(50);
        assert_eq!(settled(getpgrp().as_raw(), u64::MAX, soon), None);
    }

    #[test]
    fn a_footprint_is_complete_when_the_server_holds_its_own_descriptors_and_the_connections() {
        // Not a program that is still being loaded: its loader has the libraries open for a moment.
        let script = ["-c", "echo loaded; read line"];
        let mut shell = Command::new("sh");
        let shell = shell.args(script).process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().expect("sh starts");
        let mut said = [0; 7];
        child.stdout.as_mut().expect("a pipe").read_exact(&mut said).expect("it says that it is loaded");
        let group = child.id() as i32;
        let before = of_group(group).fds;
        let within = |ms| Instant::now() + Duration::from_millis(ms);
        // Long for what comes, on a busy machine; short for the one more that never comes.
        let (held, more) = (settled(group, before, within(30_000)), settled(group, before + 1, within(50)));
        child.kill().and_then(|()| child.wait()).expect("sh ends");
        assert_eq!(held.map(|footprint| footprint.fds), Some(before));
        assert_eq!(more, None);
    }

    #[test]
    fn descriptors_and_zombies_are_seen() {
        let mut child = Command::new("sh")
            .args(["-c", "exec 9</dev/null; true & exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("sh starts");
        let pid = child.id() as i32;
        // cat never waits for the child that the shell left to it.
        let seen = poll_until(Duration::from_secs(5), || ProcessSize::of(pid).filter(|size| size.zombies == 1));
        drop(child.stdin.take());
        child.wait().expect("cat ends");
        let size = seen.expect("a zombie");
        assert!(size.fds >= 4 && size.rss_kib > 0, "{size:?}");
        assert!(ProcessSize::of(pid).is_none());
    }

    #[test]
    fn growth_is_a_difference() {
        let before = ProcessSize { rss_kib: 100, fds: 7, zombies: 0 };
        let growth = ProcessSize { rss_kib: 90, fds: 9, zombies: 1 }.since(before);
        assert_eq!(growth, ProcessSize { rss_kib: -10, fds: 2, zombies: 1 });
    }
}
