//! The kernel's tracepoints of waking and of leaving the CPU, counted for each task of a server.
//!
//! They are counted on every CPU with a filter for the task. A counter in the task's own context would count the
//! wake-ups it makes, not those it gets: `sched_wakeup` happens in the waker.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use crate::failure::Failure;
use crate::sys::perf::Counter;

/// With more filters, the filters would cost more than what they count.
const MOST_TASKS: usize = 130;

/// Where tracefs may be mounted (Linux, Documentation/trace/ftrace.rst).
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Mounts tracefs where it is not mounted and we may, for this process and what it starts: the rest of the machine does
/// not see it, and it ends with us (mount_namespaces(7)). Call it before any other thread exists.
pub fn mount_for_ourselves() {
    if Path::new(TRACEFS[0]).join("events").exists() || !geteuid().is_root() {
        return;
    }
    let nothing = None::<&str>;
    // Where that is not allowed, the tables that need it say that it is missing.
    let _ = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing))
        .and_then(|()| mount(Some("tracefs"), TRACEFS[0], Some("tracefs"), MsFlags::empty(), nothing));
}

/// Running counters, each with its task.
pub struct Tracepoints {
    wakeups: Vec<(i32, Counter)>,
    switches: Vec<(i32, Counter)>,
}

impl Tracepoints {
    /// Begins to count for these tasks, or says in one line why not.
    pub fn begin(tasks: &[i32]) -> Result<Tracepoints, String> {
        // The filters compare numbers of the kernel's first PID namespace (pid_namespaces(7)); in another one, our
        // numbers belong to other processes.
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        if namespace != Path::new("pid:[4026531836]") {
            return Err("tracepoints: they count only in the machine's first PID namespace".to_string());
        }
        if tasks.len() > MOST_TASKS {
            return Err(format!("tracepoints: {} tasks; we filter for {MOST_TASKS} at most", tasks.len()));
        }
        Ok(Tracepoints {
            wakeups: count("sched_wakeup", "pid", tasks)?,
            switches: count("sched_switch", "prev_pid", tasks)?,
        })
    }

    /// For each task how often it was woken, and how often it left a CPU.
    pub fn read(&self) -> Result<BTreeMap<i32, (u64, u64)>, String> {
        let mut counts: BTreeMap<i32, (u64, u64)> = BTreeMap::new();
        let read = |counter: &Counter| counter.read().map_err(|error| format!("tracepoints: read a counter: {error}"));
        for (task, counter) in &self.wakeups {
            counts.entry(*task).or_default().0 += read(counter)?;
        }
        for (task, counter) in &self.switches {
            counts.entry(*task).or_default().1 += read(counter)?;
        }
        Ok(counts)
    }
}

/// Running counters of what tasks accept, and of how often they are woken.
///
/// The kernel takes a longer way through every system call of the whole machine while one of its calls is counted.
pub struct AcceptCounters {
    accepts: Vec<(i32, Counter)>,
    wakeups: Vec<(i32, Counter)>,
}

impl AcceptCounters {
    /// Begins to count for these tasks, or says in one line why not.
    pub fn begin(tasks: &[i32]) -> Result<AcceptCounters, String> {
        let Tracepoints { wakeups, .. } = Tracepoints::begin(tasks)?;
        let mut accepts = Vec::new();
        for call in ["sys_exit_accept4", "sys_exit_accept"] {
            // The events of system calls are in a folder beside those of the scheduler.
            accepts.extend(count(&format!("../syscalls/{call}"), "ret >= 0 && common_pid", tasks)?);
        }
        Ok(AcceptCounters { accepts, wakeups })
    }

    /// For each task how many connections it has accepted, and how often it was woken.
    pub fn read(&self) -> BTreeMap<i32, (u64, u64)> {
        let mut counts: BTreeMap<i32, (u64, u64)> = BTreeMap::new();
        let read = |counter: &Counter| counter.read().unwrap_or(0);
        self.accepts.iter().for_each(|(task, counter)| counts.entry(*task).or_default().0 += read(counter));
        self.wakeups.iter().for_each(|(task, counter)| counts.entry(*task).or_default().1 += read(counter));
        counts
    }
}

/// A counter for each task on each CPU, all of them running.
fn count(name: &str, field: &str, tasks: &[i32]) -> Result<Vec<(i32, Counter)>, String> {
    let id = id(name)?;
    let mut counters = Vec::new();
    for task in tasks {
        let filter = CString::new(format!("{field} == {task}")).expect("it holds no zero byte");
        for cpu in online_cpus()? {
            let run = || {
                let counter = Counter::open(id, cpu)?;
                counter.filter(&filter)?;
                counter.enable()?;
                Ok(counter)
            };
            counters.push((*task, run().map_err(|errno| refused(name, errno))?));
        }
    }
    Ok(counters)
}

fn refused(name: &str, errno: Errno) -> String {
    let tried = format!("tracepoints: count sched:{name} on every CPU: {}", errno.desc().to_lowercase());
    match errno {
        Errno::EACCES | Errno::EPERM => format!("{tried}; needs CAP_PERFMON"),
        Errno::EMFILE => format!("{tried}; raise ulimit -n"),
        _ => tried,
    }
}

/// The number by which perf_event_open(2) knows a tracepoint of the scheduler.
fn id(name: &str) -> Result<u64, String> {
    let Some(tracefs) = TRACEFS.iter().map(Path::new).find(|folder| folder.join("events").exists()) else {
        return Err(unreadable());
    };
    let path = tracefs.join("events/sched").join(name).join("id");
    let text = fs::read_to_string(&path).map_err(|error| {
        let tried = format!("tracepoints: read {}", path.display());
        Failure::new(tried, error).advise("needs CAP_PERFMON").to_string()
    })?;
    text.trim().parse().map_err(|_| format!("tracepoints: {} does not hold a number", path.display()))
}

/// Without root, the inside of the folder is hidden, mounted or not.
fn unreadable() -> String {
    let [tracefs, _] = TRACEFS;
    match fs::read_dir(tracefs) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            format!("tracepoints: read {tracefs}: permission denied; needs root for tracefs, and CAP_PERFMON")
        }
        _ => format!(
            "tracepoints: nothing is mounted at {tracefs} (mount -t tracefs nodev {tracefs}); needs CAP_PERFMON"
        ),
    }
}

/// A wake-up is counted on the CPU of the waker, so the server's own CPUs are not enough.
fn online_cpus() -> Result<Vec<usize>, String> {
    let path = "/sys/devices/system/cpu/online";
    let text = fs::read_to_string(path).map_err(|error| format!("tracepoints: read {path}: {error}"))?;
    parse_cpus(text.trim()).ok_or_else(|| format!("tracepoints: {path} does not hold a list of CPUs: {text:?}"))
}

/// `0-3,8` as the kernel writes it.
pub fn parse_cpus(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cpus_is_read_as_the_kernel_writes_it() {
        assert_eq!(parse_cpus("0-1"), Some(vec![0, 1]));
        assert_eq!(parse_cpus("0,2-3,8"), Some(vec![0, 2, 3, 8]));
        assert_eq!(parse_cpus(""), None);
    }

    #[test]
    fn more_tasks_than_filters_are_refused_with_their_number() {
        let tasks: Vec<i32> = (1..200).collect();
        assert!(Tracepoints::begin(&tasks).is_err_and(|why| why.contains("199 tasks")));
    }
}
