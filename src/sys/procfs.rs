//! What the kernel tells of a process in files: proc(5).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;

/// What we read of `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Clone, Debug, PartialEq)]
pub struct Stat {
    pub pid: i32,
    pub state: char,
    pub parent: i32,
    pub group: i32,
    pub session: i32,
    pub threads: u64,
    /// Minor page faults of children that have ended and were waited for.
    pub child_faults: u64,
    /// CPU time in the kernel's ticks of 10 ms.
    pub cpu_ticks: u64,
    /// In ticks since the machine was started.
    pub started: u64,
}

impl Stat {
    /// `None` when there is no such process.
    pub fn of(pid: i32) -> Option<Stat> {
        // The kernel gives it whole: 52 numbers and a name of 15 bytes, which may be any but NUL.
        let mut content = [0; 1200];
        let length = File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut content).ok()?;
        Stat::parse(pid, &String::from_utf8_lossy(&content[..length]))
    }

    pub fn all_processes() -> impl Iterator<Item = Stat> {
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(number).filter_map(Stat::of)
    }

    /// Fields are counted from the state on, because the name before it may contain anything.
    fn parse(pid: i32, text: &str) -> Option<Stat> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Stat {
            pid,
            state: fields.first()?.chars().next()?,
            parent: number(1)? as i32,
            group: number(2)? as i32,
            session: number(3)? as i32,
            child_faults: number(8)?,
            cpu_ticks: number(11)? + number(12)?,
            threads: number(17)?,
            started: number(19)?,
        })
    }

    pub fn is_zombie(&self) -> bool {
        self.state == 'Z'
    }

    pub fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

/// What we read of a thread: proc_pid_status(5), and `schedstat` (Linux, Documentation/scheduler/sched-stats.rst).
pub struct TaskStat {
    pub name: String,
    /// The time on a CPU, and that in which it was ready for one.
    pub cpu_ns: u64,
    pub wait_ns: u64,
    /// Voluntary context switches.
    pub voluntary: u64,
}

impl TaskStat {
    /// `None` when there is no such thread any more.
    pub fn of(pid: i32, tid: i32) -> Option<TaskStat> {
        let folder = format!("/proc/{pid}/task/{tid}");
        let status = fs::read_to_string(format!("{folder}/status")).ok()?;
        let schedstat = fs::read_to_string(format!("{folder}/schedstat")).unwrap_or_default();
        let mut times = schedstat.split_ascii_whitespace().map(|word| word.parse().unwrap_or(0));
        Some(TaskStat {
            name: status_field(&status, "Name:").unwrap_or_default().to_string(),
            cpu_ns: times.next().unwrap_or(0),
            wait_ns: times.next().unwrap_or(0),
            voluntary: status_field(&status, "voluntary_ctxt_switches:").and_then(|n| n.parse().ok()).unwrap_or(0),
        })
    }
}

/// The processes that belong to something, and all that descend from them.
pub fn with_descendants(all: &[Stat], belongs: impl Fn(&Stat) -> bool) -> Vec<&Stat> {
    let mut found: BTreeSet<i32> = all.iter().filter(|stat| belongs(stat)).map(|stat| stat.pid).collect();
    loop {
        let is_new = |stat: &&Stat| !found.contains(&stat.pid) && found.contains(&stat.parent);
        let new: Vec<i32> = all.iter().filter(is_new).map(|stat| stat.pid).collect();
        if new.is_empty() {
            return all.iter().filter(|stat| found.contains(&stat.pid)).collect();
        }
        found.extend(new);
    }
}

/// The environment that a process was started with, of variables that are text. `None` when there is no such process,
/// or it is another user's.
pub fn environment(pid: i32) -> Option<BTreeMap<String, String>> {
    let content = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let variables = content.split(|&byte| byte == 0).filter_map(|variable| str::from_utf8(variable).ok());
    Some(variables.filter_map(|variable| variable.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect())
}

/// The command line of a process, of words that are text.
pub fn command_line(pid: i32) -> Vec<String> {
    let content = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = content.split_inclusive(|&byte| byte == 0).filter_map(|word| word.strip_suffix(b"\0"));
    words.filter_map(|word| String::from_utf8(word.to_vec()).ok()).collect()
}

/// The name of a program, at most 15 bytes of it.
pub fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_string()
}

/// The command line, or the name where there is none.
pub fn title(pid: i32) -> Vec<String> {
    let words = command_line(pid);
    if words.is_empty() { vec![comm(pid)] } else { words }
}

/// Open descriptors. `None` when there is no such process, or it is another user's.
pub fn descriptors(pid: i32) -> Option<u64> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64)
}

/// The same at less cost: since Linux 6.2 the size of the folder is their number.
pub fn open_descriptors(pid: i32) -> Option<u64> {
    let size = fs::metadata(format!("/proc/{pid}/fd")).ok()?.len();
    if size > 0 { Some(size) } else { descriptors(pid) }
}

/// A line of a file such as proc_pid_status(5), without its name.
pub fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// `VmRSS` of proc_pid_status(5).
pub fn resident_kib(pid: i32) -> Option<u64> {
    kib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:")
}

/// `VmHWM`: the most that was resident. `ru_maxrss` would be at least what the parent had when it forked, since that
/// survives execve(2); this belongs to the address space.
pub fn peak_resident_kib(pid: i32) -> Option<u64> {
    kib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmHWM:")
}

/// Proportional set size: a page shared by n processes counts 1/n in each (proc_pid_smaps_rollup in proc(5)).
pub fn proportional_kib(pid: i32) -> Option<u64> {
    kib(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?, "Pss:")
}

/// How often the threads of a process have gone to sleep in the kernel: `voluntary_ctxt_switches` of
/// proc_pid_status(5), of those that live. `None` when there is no such process.
pub fn voluntary_switches(pid: i32) -> Option<u64> {
    let of = |status: String| status_field(&status, "voluntary_ctxt_switches:")?.parse::<u64>().ok();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    // A thread that has just ended has no status any more.
    Some(tasks.filter_map(|task| of(fs::read_to_string(task.path().join("status")).ok()?)).sum())
}

fn kib(text: &str, name: &str) -> Option<u64> {
    status_field(text, name)?.strip_suffix(" kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_behind_a_name_with_brackets() {
        let stat = "12 (a) b) S 1 77 12 0 -1 0 0 5 0 0 1 2 0 0 20 0 3 0 100 0";
        let read = Stat {
            pid: 12,
            state: 'S',
            parent: 1,
            group: 77,
            session: 12,
            threads: 3,
            child_faults: 5,
            cpu_ticks: 3,
            started: 100,
        };
        assert_eq!(Stat::parse(12, stat), Some(read));
        assert_eq!(Stat::parse(12, "12 (a) S 1 77"), None);
    }

    #[test]
    fn a_size_is_a_line_of_its_name() {
        let rollup = "55d0 [rollup]\nRss:    1864 kB\nPss:     121 kB\nPss_Dirty:  80 kB\n";
        assert_eq!((kib(rollup, "Pss:"), kib(rollup, "Rss:"), kib("", "Pss:")), (Some(121), Some(1864), None));
    }

    #[test]
    fn we_are_somebody_and_nobody_is_number_0() {
        let we = std::process::id() as i32;
        assert!(Stat::all_processes().any(|stat| stat.pid == we && stat.is_alive()));
        assert!(descriptors(we) >= Some(3));
        // In this order: other tests need more memory meanwhile.
        let resident = resident_kib(we);
        assert!(resident > Some(0) && peak_resident_kib(we) >= resident);
        assert!(proportional_kib(we) > Some(0));
        assert!(voluntary_switches(we).is_some() && voluntary_switches(0).is_none());
        assert!(Stat::of(0).is_none() && descriptors(0).is_none() && resident_kib(0).is_none());
    }
}
