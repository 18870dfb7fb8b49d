//! The processes of a server as proc(5) shows them: their descriptors, their CPU time, and signals to them.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use crate::lab::deadline::Deadline;
use crate::sys::procfs::{Stat, descriptors, environment, with_descendants};
use crate::units::clock_ns;

/// A process, distinguished from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Process {
    pub pid: i32,
    started: u64,
}

impl Process {
    /// The process with this number, if there is one that has not ended.
    pub fn find(pid: i32) -> Option<Process> {
        let stat = Stat::of(pid).filter(|stat| pid > 0 && stat.is_alive())?;
        Some(Process { pid, started: stat.started })
    }

    /// How long ago it was started, in seconds, to the kernel's tick of 10 ms. Time asleep with the machine counts.
    pub fn age_s(&self) -> f64 {
        clock_ns(ClockId::CLOCK_BOOTTIME) as f64 / 1e9 - self.started as f64 / 100.0
    }

    /// It has been stopped by a signal, and does nothing until SIGCONT.
    pub fn is_stopped(&self) -> bool {
        Stat::of(self.pid).is_some_and(|stat| matches!(stat.state, 'T' | 't') && stat.started == self.started)
    }

    /// False for a zombie, too: it has ended and waits for its parent to ask how.
    pub fn is_alive(&self) -> bool {
        Process::find(self.pid) == Some(*self)
    }

    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Sends a signal to this process, and to no later one of the same number.
    pub fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // Should it end between the two lines, it is a zombie, and no other process has its number yet.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Stops it until SIGCONT. False when it did not stop within `within`.
    pub fn stop(&self, within: Duration) -> bool {
        self.signal_and_await(Signal::SIGSTOP, within, |state| state == 'T')
    }

    /// Lets it go on, and waits until it sleeps again. False when that took longer than `within`.
    pub fn resume(&self, within: Duration) -> bool {
        self.signal_and_await(Signal::SIGCONT, within, |state| state == 'S')
    }

    fn signal_and_await(&self, signal: Signal, within: Duration, is_there: impl Fn(char) -> bool) -> bool {
        let is_there = || Stat::of(self.pid).filter(|stat| is_there(stat.state)).map(drop);
        self.signal(signal);
        self.is_alive() && poll_until(within, is_there).is_some()
    }

    pub fn open_descriptors(&self) -> usize {
        descriptors(self.pid).unwrap_or(0) as usize
    }

    /// CPU time used so far, in the kernel's ticks of 10 ms.
    pub fn cpu_time(&self) -> Duration {
        Duration::from_millis(10 * Stat::of(self.pid).map_or(0, |stat| stat.cpu_ticks))
    }
}

/// CPU time of a process, threads that have ended included (clock_getcpuclockid(3); no right is needed).
pub fn cpu_ns(pid: i32) -> Option<u64> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid)).ok()?;
    let time: TimeSpec = clock_gettime(clock).ok()?;
    Some(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// Whether the kernel shows us processes at all. Without, a server's workers could not be found or counted.
pub fn proc_is_mounted() -> Result<(), String> {
    match Process::find(std::process::id() as i32) {
        Some(_) => Ok(()),
        None => Err("/proc does not show our own process; mount it: mount -t proc proc /proc".to_string()),
    }
}

/// The process `root` and all living processes that descend from it, root first.
pub fn family(root: i32) -> Vec<Process> {
    let all: Vec<Stat> = Stat::all_processes().collect();
    let mut family = with_descendants(&all, |stat| stat.pid == root || stat.parent == root);
    family.retain(|stat| stat.is_alive());
    family.sort_by_key(|stat| stat.pid != root);
    family.iter().map(|stat| Process { pid: stat.pid, started: stat.started }).collect()
}

/// The living children of a process, in the order in which they were started.
pub fn children(parent: i32) -> Vec<Process> {
    let mut children: Vec<Stat> =
        Stat::all_processes().filter(|stat| stat.parent == parent && stat.is_alive()).collect();
    children.sort_by_key(|stat| (stat.started, stat.pid));
    children.iter().map(|stat| Process { pid: stat.pid, started: stat.started }).collect()
}

/// The processes of a group and all that descend from them, zombies included.
pub fn members(group: i32) -> Vec<Stat> {
    let all: Vec<Stat> = Stat::all_processes().collect();
    let found = with_descendants(&all, |stat| stat.group == group || stat.parent == group);
    found.into_iter().cloned().collect()
}

/// The living processes whose environment was started with this variable: what a program has left behind that no parent
/// connects with it any more.
pub fn with_variable(name: &str, value: &str) -> Vec<Process> {
    let has_it = |stat: &Stat| environment(stat.pid).is_some_and(|found| found.get(name).is_some_and(|v| v == value));
    let found = Stat::all_processes().filter(Stat::is_alive).filter(has_it);
    found.map(|stat| Process { pid: stat.pid, started: stat.started }).collect()
}

/// Calls `probe` again and again until it returns a value or the time is up. For states that the kernel shows but does
/// not announce.
pub fn poll_until<T>(within: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let mut deadline = Deadline::after(within);
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        deadline.next_look()?;
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_can_be_stopped_and_resumed() {
        let mut sleeper = Command::new("sleep").arg("60").spawn().expect("every Linux has sleep");
        let process = Process::find(sleeper.id() as i32).unwrap();
        let within = Duration::from_secs(5);
        assert!(process.stop(within) && process.resume(within));
        process.kill();
        sleeper.wait().unwrap();
        assert!(!process.stop(within));
    }

    #[test]
    fn a_family_is_the_process_and_its_descendants() {
        let mut shell = Command::new("sh")
            .args(["-c", "cat & cat"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("every Linux has sh and cat");
        let pid = shell.id() as i32;
        // The first cat is in the background and reads /dev/null, so it may be gone again.
        let grown = poll_until(Duration::from_secs(5), || (family(pid).len() >= 2).then_some(()));
        let members = family(pid);
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert_eq!(grown, Some(()));
        assert_eq!(members[0].pid, pid);
        assert!(!members[0].is_alive());
    }

    #[test]
    fn a_child_in_a_group_of_its_own_belongs_to_the_server() {
        // A shell with job control gives each job its group.
        let mut shell = Command::new("sh");
        shell.args(["-c", "set -m; cat & read line; kill $!"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut shell = shell.stderr(Stdio::null()).process_group(0).spawn().expect("sh starts");
        let grown = poll_until(Duration::from_secs(5), || (members(shell.id() as i32).len() == 2).then_some(()));
        drop(shell.stdin.take());
        shell.wait().expect("sh ends");
        assert_eq!(grown, Some(()));
    }
}
