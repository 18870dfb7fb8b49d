//! How fast the machine is beside a run. A virtual CPU changes its speed with what its neighbours do, for seconds or
//! minutes, and no counter in the guest says so; a fixed piece of work does.

use std::hint::black_box;
use std::time::Instant;

use nix::unistd::getppid;
use serde::{Deserialize, Serialize};

use crate::cpu;

/// About half a millisecond of each kind in a release build.
const STEPS: u64 = 300_000;
const CALLS: usize = 3_000;
/// The shortest of so many tries: what else ran meanwhile made the others longer.
const TRIES: usize = 3;

/// The times of one CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    pub cpu: usize,
    /// A fixed loop in user space.
    pub loop_us: f64,
    /// A fixed number of system calls.
    pub calls_us: f64,
}

/// Tries the first CPU of the server and the last of the client, once if they are the same. Where a sandbox refuses to
/// pin a thread, nothing is known.
pub fn beside(server_cpus: &[usize], client_cpus: &[usize]) -> Vec<Speed> {
    let mut cpus: Vec<usize> = server_cpus.first().into_iter().chain(client_cpus.last()).copied().collect();
    cpus.dedup();
    cpus.into_iter().filter_map(of_cpu).collect()
}

/// In a thread of its own, whose CPUs are nobody else's business.
fn of_cpu(cpu: usize) -> Option<Speed> {
    let measure = || {
        cpu::pin_to(&[cpu]).ok()?;
        Some(Speed { cpu, loop_us: shortest(work), calls_us: shortest(call) })
    };
    std::thread::scope(|scope| scope.spawn(measure).join().ok().flatten())
}

fn shortest(run: fn()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64() * 1e6
    };
    (0..TRIES).map(time).fold(f64::INFINITY, f64::min)
}

/// Each step needs the last one's result, so that no compiler and no processor shortens it (Knuth's MMIX generator).
fn work() {
    let step = |x: u64, _| x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    black_box((0..black_box(STEPS)).fold(black_box(1), step));
}

/// The cheapest call that no library answers by itself.
fn call() {
    for _ in 0..CALLS {
        black_box(getppid());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cpu_has_a_speed_and_a_shared_one_is_tried_once() {
        let cpu = cpu::allowed()[0];
        let speeds = beside(&[cpu], &[cpu]);
        assert_eq!(speeds.iter().map(|speed| speed.cpu).collect::<Vec<_>>(), [cpu]);
        assert!(speeds[0].loop_us > 0.0 && speeds[0].calls_us > 0.0, "{speeds:?}");
        assert_eq!(cpu::allowed()[0], cpu);
        assert_eq!(beside(&[], &[]), []);
    }
}
