//! The CPUs this process may use, and pinning to one of them (sched_setaffinity(2)).

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

/// Pins the calling thread to these CPUs; what it starts afterwards, thread or process, inherits them.
pub fn pin_to(cpus: &[usize]) -> nix::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)
}
