//! What the kernel counted for a server while its client ran: context switches of every task, and, with the privilege
//! for them, the tracepoints of waking and of leaving the CPU. The server's start and stop are in neither.
//!
//! The lab reads the counters when the server is ready and asleep, and again when the client is done. In between it
//! reads no counter, because that would take CPU time from what is measured.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lab::observe::processes::{cpu_ns, members, poll_until};
use crate::lab::observe::tracepoints::Tracepoints;
use crate::report::ServerReport;
use crate::sys::procfs::Stat;

/// Reading so many tasks twice takes a tenth of a second. For a server with more, there are no counts.
const MOST_TASKS: usize = 1024;

/// How long a server may take to fall asleep.
const ASLEEP_WITHIN: Duration = Duration::from_secs(1);

/// What is kept in a row.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct KernelCounts {
    /// The server's processes; many workers are added up into one entry with the number 0.
    pub processes: Vec<ProcessCounts>,
    /// Why `processes` is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// Why they have no counts of tracepoints, where the table asks for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracepoints_missing: Option<String>,
}

/// By how much the counts of one process grew, all its threads together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessCounts {
    pub pid: i32,
    /// Its number as a worker; absent when it is none, or when several workers share the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<usize>,
    /// `voluntary_ctxt_switches` and `nonvoluntary_ctxt_switches` of proc_pid_status(5).
    pub voluntary_switches: u64,
    pub involuntary_switches: u64,
    /// CPU time, user and system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_us: Option<u64>,
    /// `sched:sched_wakeup` of this process, by any waker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wakeups: Option<u64>,
    /// `sched:sched_switch` away from this process, voluntary or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switches: Option<u64>,
}

impl KernelCounts {
    /// A total over all processes; `None` when one of them has no count.
    pub fn total(&self, of: fn(&ProcessCounts) -> Option<u64>) -> Option<u64> {
        if self.missing.is_some() { None } else { self.processes.iter().map(of).sum() }
    }

    /// Gives the workers their numbers, and adds them up when they are more than `most`.
    pub fn name_workers(&mut self, report: &ServerReport, most: usize) {
        for counts in &mut self.processes {
            let mut its = report.workers.iter().filter(|worker| worker.pid == counts.pid);
            counts.worker = its.next().map(|worker| worker.id).filter(|_| its.next().is_none());
        }
        let (workers, mut rest): (Vec<ProcessCounts>, Vec<ProcessCounts>) =
            self.processes.drain(..).partition(|counts| counts.worker.is_some());
        match workers.len() > most {
            true => rest.push(fold(&workers)),
            false => rest.extend(workers),
        }
        self.processes = rest;
    }
}

fn fold(workers: &[ProcessCounts]) -> ProcessCounts {
    ProcessCounts {
        pid: 0,
        worker: Some(0),
        voluntary_switches: workers.iter().map(|counts| counts.voluntary_switches).sum(),
        involuntary_switches: workers.iter().map(|counts| counts.involuntary_switches).sum(),
        cpu_us: workers.iter().map(|counts| counts.cpu_us).sum(),
        wakeups: workers.iter().map(|counts| counts.wakeups).sum(),
        switches: workers.iter().map(|counts| counts.switches).sum(),
    }
}

/// The counters at the beginning of the measurement.
pub struct KernelCounter {
    group: i32,
    before: Option<Reading>,
    /// Absent when the table does not ask for them.
    tracepoints: Option<Result<Tracepoints, String>>,
}

impl KernelCounter {
    /// Waits until the server sleeps, and begins. `group` is its process group.
    pub fn begin(group: i32, with_tracepoints: bool) -> KernelCounter {
        let before = Reading::when_asleep(group);
        let tasks = |reading: &Reading| reading.tasks.keys().copied().collect::<Vec<i32>>();
        let tracepoints = with_tracepoints.then(|| match &before {
            Some(before) => Tracepoints::begin(&tasks(before)),
            None => Err(unseen()),
        });
        KernelCounter { group, before, tracepoints }
    }

    /// Reads the counters again and takes the difference.
    pub fn end(self) -> KernelCounts {
        // Before anything else: what the kernel does for the lab from here on is not the server's.
        let traced = self.tracepoints.map(|begun| begun.and_then(|tracepoints| tracepoints.read()));
        let readings = match (self.before, Reading::when_asleep(self.group)) {
            (Some(before), Some(after)) if after.holds_all_of(&before) => Ok((before, after)),
            (Some(_), after) if after.is_some() || members(self.group).is_empty() => {
                Err("a process or thread of the server ended while the client ran, and took its counts along"
                    .to_string())
            }
            _ => Err(unseen()),
        };
        let (before, after) = match readings {
            Ok(readings) => readings,
            Err(why) => {
                let tracepoints_missing = traced.map(|traced| traced.err().unwrap_or(why.clone()));
                return KernelCounts { missing: Some(why), tracepoints_missing, ..KernelCounts::default() };
            }
        };
        let (traced, tracepoints_missing) = match traced {
            None => (None, None),
            Some(Err(why)) => (None, Some(why)),
            Some(Ok(_)) if after.tasks.len() > before.tasks.len() => {
                (None, Some("a process or thread of the server was born while the client ran".to_string()))
            }
            Some(Ok(traced)) => (Some(traced), None),
        };
        let mut processes: BTreeMap<i32, ProcessCounts> = BTreeMap::new();
        for (tid, task) in &after.tasks {
            let (voluntary, involuntary) =
                before.tasks.get(tid).map_or((0, 0), |then| (then.voluntary, then.involuntary));
            let counts = processes.entry(task.pid).or_default();
            counts.pid = task.pid;
            counts.voluntary_switches += task.voluntary.saturating_sub(voluntary);
            counts.involuntary_switches += task.involuntary.saturating_sub(involuntary);
            if let Some((wakeups, switches)) = traced.as_ref().and_then(|traced| traced.get(tid)) {
                *counts.wakeups.get_or_insert(0) += wakeups;
                *counts.switches.get_or_insert(0) += switches;
            }
        }
        for (pid, counts) in &mut processes {
            let used_ns = |reading: &Reading| reading.accounts.get(pid).map_or(0, |account| account.process_ns);
            counts.cpu_us = Some(used_ns(&after).saturating_sub(used_ns(&before)) / 1000);
        }
        KernelCounts { processes: processes.into_values().collect(), missing: None, tracepoints_missing }
    }
}

fn unseen() -> String {
    format!("the server has more than {MOST_TASKS} tasks, or /proc does not show what they did")
}

/// The kernel's counts of every task at one moment.
struct Reading {
    tasks: BTreeMap<i32, Task>,
    /// The account of each process.
    accounts: BTreeMap<i32, Account>,
}

struct Task {
    pid: i32,
    is_awake: bool,
    voluntary: u64,
    involuntary: u64,
}

/// What a process has used, with signs of tasks that have ended: they may have started and ended between two readings.
struct Account {
    /// CPU time of the process, all its threads and those that have ended.
    process_ns: u64,
    /// CPU time of threads that have ended: that of the process less that of its living threads.
    thread_ns: u64,
    /// Page faults of children that have been reaped (`cminflt` of proc_pid_stat(5)); every process has some.
    child_faults: u64,
}

impl Reading {
    /// The counters while the whole group sleeps, or the last reading before the time is up.
    fn when_asleep(group: i32) -> Option<Reading> {
        let mut last = None;
        poll_until(ASLEEP_WITHIN, || {
            last = Reading::of(group);
            let awake = last.as_ref().is_some_and(|reading| reading.tasks.values().any(|task| task.is_awake));
            (!awake).then_some(())
        });
        last
    }

    fn of(group: i32) -> Option<Reading> {
        let mut reading = Reading { tasks: BTreeMap::new(), accounts: BTreeMap::new() };
        for pid in members(group).iter().map(|stat| stat.pid) {
            // The process before its threads: a thread that runs on meanwhile must not look like one that has ended. A
            // process that has just ended is left out, like all that have ended before.
            let (Some(of_process), Some(Stat { child_faults, .. })) = (cpu_ns(pid), Stat::of(pid)) else {
                continue;
            };
            let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            let tids: Vec<i32> = tasks.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
            if reading.tasks.len() + tids.len() > MOST_TASKS {
                return None;
            }
            let mut of_threads = 0;
            for tid in tids {
                let Some((task, cpu_ns)) = Task::read(pid, tid) else { continue };
                of_threads += cpu_ns;
                reading.tasks.insert(tid, task);
            }
            let thread_ns = of_process.saturating_sub(of_threads);
            reading.accounts.insert(pid, Account { process_ns: of_process, thread_ns, child_faults });
        }
        (!reading.tasks.is_empty()).then_some(reading)
    }

    /// Whether no task ended between `before` and this: then no count is lost.
    fn holds_all_of(&self, before: &Reading) -> bool {
        let now: BTreeSet<_> = self.tasks.iter().map(|(tid, task)| (tid, task.pid)).collect();
        let has_no_ended_task = |(pid, account): (&i32, &Account)| {
            let then = before.accounts.get(pid).map_or((0, 0), |then| (then.thread_ns, then.child_faults));
            account.thread_ns <= then.0 && account.child_faults <= then.1
        };
        before.tasks.iter().all(|(tid, task)| now.contains(&(tid, task.pid)))
            && self.accounts.iter().all(has_no_ended_task)
    }
}

impl Task {
    /// A task and its CPU time in nanoseconds.
    fn read(pid: i32, tid: i32) -> Option<(Task, u64)> {
        let folder = format!("/proc/{pid}/task/{tid}");
        let task = Task::parse(pid, &fs::read_to_string(format!("{folder}/status")).ok()?)?;
        let schedstat = fs::read_to_string(format!("{folder}/schedstat")).ok()?;
        // Time on the CPU, time waiting for it, turns (Linux, Documentation/scheduler/sched-stats.rst).
        Some((task, schedstat.split_whitespace().next()?.parse().ok()?))
    }

    fn parse(pid: i32, status: &str) -> Option<Task> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        Some(Task {
            pid,
            is_awake: field("State:")?.starts_with('R'),
            voluntary: field("voluntary_ctxt_switches:")?.parse().ok()?,
            involuntary: field("nonvoluntary_ctxt_switches:")?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::WorkerReport;

    #[test]
    fn a_task_is_read_from_its_status() {
        let status = "Name:\tx\nState:\tR (running)\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t2\n";
        let task = Task::parse(3, status).unwrap();
        assert_eq!((task.pid, task.is_awake, task.voluntary, task.involuntary), (3, true, 7, 2));
        assert!(Task::parse(3, "State:\tS (sleeping)\n").is_none());
    }

    fn observed(wakeups: Option<u64>) -> KernelCounts {
        let process = |pid| ProcessCounts { pid, voluntary_switches: 5, wakeups, ..ProcessCounts::default() };
        KernelCounts { processes: (1..=4).map(process).collect(), ..KernelCounts::default() }
    }

    #[test]
    fn a_total_that_lacks_a_part_has_no_value() {
        assert_eq!(observed(Some(2)).total(|counts| counts.wakeups), Some(8));
        assert_eq!(observed(None).total(|counts| counts.wakeups), None);
        let lost = KernelCounts { missing: Some("a task ended".to_string()), ..observed(Some(2)) };
        assert_eq!(lost.total(|counts| counts.wakeups), None);
    }

    #[test]
    fn workers_get_their_numbers_and_many_are_added_up() {
        let worker = |id, pid| WorkerReport { id, pid, ..WorkerReport::default() };
        let report =
            ServerReport { workers: vec![worker(0, 2), worker(1, 3), worker(2, 4)], ..ServerReport::default() };
        let mut few = observed(None);
        few.name_workers(&report, 16);
        let numbers: Vec<_> = few.processes.iter().map(|counts| (counts.pid, counts.worker)).collect();
        assert_eq!(numbers, [(1, None), (2, Some(0)), (3, Some(1)), (4, Some(2))]);
        let mut many = observed(Some(2));
        many.name_workers(&report, 2);
        assert_eq!(many.processes.len(), 2);
        assert_eq!(many.total(|counts| counts.wakeups), Some(8));
        assert_eq!(many.total(|counts| Some(counts.voluntary_switches)), Some(20));
    }
}
