//! The tests that look at times, in one place and one after another; the last of all, since libtest starts tests in the
//! order of their names, so that nothing else runs beside them. Those of [`theory`] run side by side at the very end,
//! because their programs wake up for a few hundred requests per second and sleep otherwise. A machine that is busy
//! with something else makes anybody late, so each test says how much of that it tolerates, and the machine is measured
//! beside it: where the bar is missed on a machine that was quiet enough the test fails at once; where the machine was
//! not, it looks again, twice at most, and is then inconclusive. A bar that is met counts on any machine: nothing here
//! gets better by being late.
//!
//! Lower bounds that a sleep gives (sleeping never ends early) hold on any machine and stand beside their subject.

mod clients;
mod herd;
mod order;
mod readme;
mod servers;
mod theory;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use acceptlab::cpu;
use nix::sys::prctl;

use crate::support::{Needs, inconclusive};

const LOOKS: u32 = 3;

static MEASURING: RwLock<()> = RwLock::new(());

/// Held by the test that measures.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    MEASURING.write().unwrap_or_else(PoisonError::into_inner)
}

/// Held by tests that may measure side by side.
pub fn together() -> RwLockReadGuard<'static, ()> {
    MEASURING.read().unwrap_or_else(PoisonError::into_inner)
}

/// Looks until the bar is met, or was missed while the machine withheld no more than `tolerated`.
#[track_caller]
pub fn judged(tolerated: Duration, mut look: impl FnMut() -> Result<(), String>) {
    let _alone = alone();
    for last in (1..=LOOKS).map(|look| look == LOOKS) {
        let machine = Machine::watch();
        let found = look();
        let withheld = machine.withheld();
        match found {
            Ok(()) => return,
            Err(why) if withheld <= tolerated => panic!("{why} (the machine withheld only {withheld:?})"),
            Err(why) if last => {
                let noise = format!("the machine withheld {withheld:?}, {tolerated:?} is tolerated");
                return inconclusive(Needs::QuietMachine, format!("{why}; {noise}"));
            }
            Err(_) => {}
        }
    }
}

/// `Err` with what was found, for [`judged`].
pub fn bar(is_met: bool, found: impl FnOnce() -> String) -> Result<(), String> {
    if is_met { Ok(()) } else { Err(found()) }
}

/// On each CPU a thread that does nothing but wake up: how late it does is what the machine withholds from everybody.
pub struct Machine {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Duration>>,
}

impl Machine {
    pub fn watch() -> Machine {
        let is_over = Arc::new(AtomicBool::new(false));
        let watch = |cpu| {
            let is_over = is_over.clone();
            std::thread::spawn(move || {
                // Where pinning is forbidden it watches wherever it runs.
                let _ = cpu::pin_to(&[cpu]);
                let _ = prctl::set_timerslack(1);
                lateness(&is_over)
            })
        };
        let threads = cpu::allowed().into_iter().map(watch).collect();
        Machine { is_over, threads }
    }

    /// The sum on the worst CPU.
    pub fn withheld(mut self) -> Duration {
        self.is_over.store(true, Ordering::Relaxed);
        let threads = std::mem::take(&mut self.threads).into_iter();
        threads.map(|thread| thread.join().expect("it only sleeps")).max().unwrap_or_default()
    }
}

/// A look that panics leaves no thread behind.
impl Drop for Machine {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// How late the wake-ups were until it is over, those left out that a machine with nothing to do needs, too.
fn lateness(is_over: &AtomicBool) -> Duration {
    const PAUSE: Duration = Duration::from_millis(1);
    const IDLE: Duration = Duration::from_micros(200);
    let mut total = Duration::ZERO;
    while !is_over.load(Ordering::Relaxed) {
        let asleep = Instant::now();
        std::thread::sleep(PAUSE);
        let late = asleep.elapsed().saturating_sub(PAUSE);
        total += if late > IDLE { late } else { Duration::ZERO };
    }
    total
}

#[test]
fn a_machine_that_is_busy_is_seen_to_withhold_time() {
    let _alone = alone();
    let threads = 4 * cpu::allowed().len();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let machine = Machine::watch();
        for _ in 0..threads {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        std::thread::sleep(Duration::from_millis(500));
        let withheld = machine.withheld();
        is_over.store(true, Ordering::Relaxed);
        assert!(withheld > Duration::from_millis(5), "{threads} busy threads withhold {withheld:?}");
    });
}

#[test]
#[should_panic(expected = "too slow")]
fn a_bar_that_is_missed_on_a_quiet_machine_fails() {
    judged(Duration::MAX, || bar(false, || "too slow".into()));
}
