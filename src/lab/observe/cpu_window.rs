//! CPU time of a server in exactly the window in which its client measures: neither its start nor the client's warm-up,
//! in which a just-in-time compiler works more than it ever will again.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::lab::observe::processes::{cpu_ns, members};

/// Reading so many clocks takes a millisecond, which the server lacks. For a server with more there is no window.
const MOST_PROCESSES: usize = 1024;

/// What a server used between two looks: when the client began to measure, and when it stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuWindow {
    /// Between the two looks, by the lab's clock; the client's own window is a little longer or shorter.
    pub length_us: u64,
    /// The CPU time of all processes.
    pub cpu_us: u64,
    /// The CPU time of the first process, which is the master where there is one.
    pub first_us: u64,
}

impl CpuWindow {
    /// CPUs in use, on average.
    pub fn cpus(&self) -> f64 {
        self.cpu_us as f64 / self.length_us as f64
    }
}

/// The clocks of a server's processes.
pub struct CpuMeter {
    group: i32,
    pids: Vec<i32>,
    begun: Option<(Instant, Vec<u64>)>,
}

impl CpuMeter {
    /// Finds the processes, so that [`CpuMeter::begin`] has nothing to do but read clocks.
    pub fn of(group: i32) -> CpuMeter {
        CpuMeter { group, pids: pids_of(group), begun: None }
    }

    pub fn begin(&mut self) {
        let now = Instant::now();
        self.begun = self.read().map(|clocks| (now, clocks));
    }

    /// `None` when a process has come or gone: its share is not known.
    pub fn end(self) -> Option<CpuWindow> {
        let after = self.read()?;
        let now = Instant::now();
        let (began, before) = self.begun?;
        if pids_of(self.group) != self.pids {
            return None;
        }
        let used = |i: usize| Some(after.get(i)?.saturating_sub(*before.get(i)?) / 1000);
        let first = self.pids.iter().position(|pid| *pid == self.group)?;
        Some(CpuWindow {
            length_us: (now - began).as_micros() as u64,
            cpu_us: (0..self.pids.len()).map(used).sum::<Option<u64>>()?,
            first_us: used(first)?,
        })
    }

    fn read(&self) -> Option<Vec<u64>> {
        (self.pids.len() <= MOST_PROCESSES).then(|| self.pids.iter().map(|pid| cpu_ns(*pid)).collect())?
    }
}

fn pids_of(group: i32) -> Vec<i32> {
    let mut pids: Vec<i32> = members(group).iter().map(|stat| stat.pid).collect();
    pids.sort();
    pids
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::observe::processes::poll_until;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};
    use std::time::Duration;

    /// A shell in a group of its own, killed when dropped.
    struct Shell(Child);

    impl Shell {
        fn run(script: &str) -> Shell {
            Shell(Command::new("sh").args(["-c", script]).process_group(0).spawn().expect("sh starts"))
        }

        fn group(&self) -> i32 {
            self.0.id() as i32
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            for stat in members(self.group()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(stat.pid), nix::sys::signal::Signal::SIGKILL);
            }
            let _ = self.0.wait();
        }
    }

    #[test]
    fn what_a_process_used_before_the_window_is_not_in_it() {
        let shell = Shell::run("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; kill -STOP $$");
        let used = || cpu_ns(shell.group()).filter(|ns| *ns > 1_000_000);
        let stopped = || members(shell.group()).iter().any(|stat| stat.state == 'T').then_some(());
        poll_until(Duration::from_secs(30), stopped).expect("it stops itself");
        let before = used().expect("it has worked");
        let mut meter = CpuMeter::of(shell.group());
        meter.begin();
        let window = meter.end().expect("nothing came or went");
        assert_eq!((window.cpu_us, window.first_us), (0, 0), "{before} ns before");
    }

    #[test]
    fn a_busy_process_uses_no_more_than_one_cpu() {
        let shell = Shell::run("while :; do :; done");
        let mut meter = CpuMeter::of(shell.group());
        meter.begin();
        let used = || cpu_ns(shell.group()).filter(|ns| *ns > 50_000_000);
        poll_until(Duration::from_secs(30), used).expect("it works");
        let window = meter.end().expect("nothing came or went");
        assert!(window.cpu_us > 0 && window.cpus() <= 1.0, "{window:?}");
        assert_eq!(window.cpu_us, window.first_us);
    }

    #[test]
    fn a_process_that_goes_takes_the_window_with_it() {
        let shell = Shell::run("sleep 60 & read line; wait");
        let group = shell.group();
        poll_until(Duration::from_secs(30), || (members(group).len() == 2).then_some(())).expect("a child");
        let mut meter = CpuMeter::of(group);
        meter.begin();
        let child = members(group).iter().map(|stat| stat.pid).find(|pid| *pid != group).expect("a child");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).expect("ours");
        poll_until(Duration::from_secs(30), || (members(group).len() == 1).then_some(())).expect("it is reaped");
        assert_eq!(meter.end(), None);
    }
}
