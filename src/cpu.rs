//! The CPUs this process may use, and pinning to one of them (sched_setaffinity(2)).

use std::fs;
use std::path::Path;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The CPUs the calling thread is allowed on, in ascending order; never empty.
pub fn allowed() -> Vec<usize> {
    // The call fails only when the kernel has more CPUs than the set has bits; then CPU 0 is a safe answer.
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// On how many CPUs a process may run; `None` when there is no such process.
pub fn count_of(pid: i32) -> Option<usize> {
    let set = sched_getaffinity(Pid::from_raw(pid)).ok()?;
    Some((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).count())
}

/// How many CPUs the cgroups of a process let it use at a time, as a container is given one and a half; `None` where
/// nothing limits it, or where it is not a cgroup of version 2 (Linux, Documentation/admin-guide/cgroup-v2.rst).
pub fn quota_of(pid: i32) -> Option<f64> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let folder = Path::new("/sys/fs/cgroup").join(path);
    let quotas = folder.ancestors().filter_map(|folder| fs::read_to_string(folder.join("cpu.max")).ok());
    quotas.filter_map(|text| parse_quota(&text)).min_by(f64::total_cmp)
}

/// `150000 100000`, quota and period in microseconds; `max` instead of the quota is none.
fn parse_quota(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
}

/// Pins the calling thread to these CPUs; what it starts afterwards, thread or process, inherits them.
pub fn pin_to(cpus: &[usize]) -> nix::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_a_part_of_a_period_or_none() {
        assert_eq!(parse_quota("150000 100000\n"), Some(1.5));
        assert_eq!(parse_quota("max 100000\n"), None);
        assert_eq!(quota_of(i32::MAX), None);
    }
}
