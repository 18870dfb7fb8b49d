//! The measuring threads: started, given the schedule at the same moment, awaited, and what they counted added up.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, SystemTime};

use crate::console;
use crate::cpu;
use crate::failure::Failure;
use crate::load::client::control::{RunControl, ThreadStatus};
use crate::load::client::engine::Engine;
use crate::load::client::{Assignment, ClientLoop, ClientSettings};
use crate::load::counts::tally::{Measures, Tally};
use crate::load::counts::window::Window;
use crate::load::options::plan::{Plan, PlannedWindow, Progress};
use crate::load::run::observers::Observers;
use crate::load::run::settings::unreachable;
use crate::load::run::supervisor::Supervisor;
use crate::load::schedule::{Schedule, ScheduleLimits, Thinker, nth_part};
use crate::sys::fd::leave_shared_table;
use crate::sys::process::Usage;
use crate::units::monotonic_ns;

/// The schedule begins this much after the threads have received it, so that none of them is late.
const LEAD_NS: u64 = 1_000_000;
/// A longer wait for --start-at is announced.
const SILENT_WAIT: Duration = Duration::from_secs(2);

pub struct Counted {
    /// What all threads together have counted.
    pub tally: Tally,
    pub window: Window,
    /// The CPU time of the window; the rest of it is 0.
    pub cpu: Usage,
    pub began: SystemTime,
    pub observed: Result<(), String>,
}

/// Starts the threads, gives them the schedule, waits for them and adds up what they counted.
pub fn measure<E: Engine>(
    plan: &Plan,
    settings: &ClientSettings,
    control: &RunControl,
    supervisor: &mut Supervisor,
    mut observers: Observers,
) -> Result<Counted, Failure> {
    let threads = u64::from(plan.threads.count);
    let Window { open_ns: measured_from_ns, close_ns: end_ns, .. } = window(&plan.window, 0);
    let limits = ScheduleLimits { measured_from_ns, end_ns, requests: plan.window.requests.unwrap_or(u64::MAX) };
    let mut senders = observers.senders(plan);
    thread::scope(|scope| {
        let (mut starters, mut handles) = (Vec::new(), Vec::new());
        for thread in 0..threads {
            let (starter, start) = mpsc::channel();
            starters.push(starter);
            let cpu = plan.threads.pin.then_some(thread as usize);
            let share = Assignment {
                connections: nth_part(u64::from(plan.connections.count), thread, threads),
                schedule: Schedule::new(plan.pacing.arrivals.clone(), limits, thread, threads),
                thinker: Thinker::new(plan.pacing.think, plan.pacing.seed, thread),
                intervals: senders.pop(),
            };
            handles.push(scope.spawn(move || measure_thread::<E>(settings, control, share, cpu, &start)));
        }
        supervisor.await_ready(threads)?;
        if plan.threads.pin && plan.progress == Progress::Live {
            leave_pinned_cpus(threads as usize);
        }
        let (start_ns, began) = start(plan);
        let window = window(&plan.window, start_ns);
        for starter in starters {
            // A thread that does not receive has panicked; joining it says so.
            let _ = starter.send(window);
        }
        let (mut window, cpu) = supervisor.await_done(threads, window, &mut observers)?;
        let tally = add_up(handles, settings.measures)?;
        // One thread may have found no server while another was served.
        let is_unreached = tally.totals.established == 0 && !control.interrupted.load(Relaxed);
        if let Some(errno) = tally.unreachable.filter(|_| is_unreached) {
            return Err(unreachable(plan, settings, errno));
        }
        if window.close_ns == u64::MAX {
            // The number of requests ended it, with the last answer; the wait for one that never came is no part of it.
            let last_ns = if tally.last_answer_ns > 0 { tally.last_answer_ns } else { tally.last_end_ns };
            window.close_ns = last_ns.max(window.open_ns);
        }
        let observed = observers.finish(&window);
        Ok(Counted { tally, window, cpu, began, observed })
    })
}

/// When the schedule begins: by the monotonic clock, and by the clock on the wall.
fn start(plan: &Plan) -> (u64, SystemTime) {
    let (soon_ns, now) = (monotonic_ns() + LEAD_NS, SystemTime::now());
    let soon = now + Duration::from_nanos(LEAD_NS);
    // If that time is over, the run starts at once; the report says how late.
    let wait = plan.window.start_at.and_then(|at| at.duration_since(soon).ok()).unwrap_or_default();
    // While the live view draws, nothing else is written to the terminal.
    if wait > SILENT_WAIT && plan.progress != Progress::Live {
        console::log(format_args!("loadgen: waiting {:.0} s for --start-at", wait.as_secs_f64()));
    }
    (soon_ns + wait.as_nanos() as u64, soon + wait)
}

fn measure_thread<E: Engine>(
    settings: &ClientSettings,
    control: &RunControl,
    share: Assignment,
    cpu: Option<usize>,
    start: &Receiver<Window>,
) -> Result<Tally, Failure> {
    let mut status = ThreadStatus::new(control);
    if let Some(number) = cpu {
        let allowed = cpu::allowed();
        let number = allowed[number % allowed.len()];
        let advice = "does a sandbox forbid it? measure without --pin";
        let refused = |errno| Failure::new(format_args!("pin a thread to CPU {number}"), errno).advise(advice);
        cpu::pin_to(&[number]).map_err(refused)?;
    }
    leave_shared_table(&[control.stop_event.as_fd(), control.thread_event.as_fd()]);
    let failed = |errno| Failure::new("set up a thread's engine", errno).advise("fewer --threads, or --engine epoll");
    let mut client = ClientLoop::<E>::new(settings, control, share).map_err(failed)?;
    // Handshakes belong to a closed loop, and to a connection per request, but not to an open loop whose
    // connections are kept: there they would only make its first requests late.
    if settings.open_loop && settings.requests_per_connection.is_none() && !settings.connect_only {
        client.open_all();
    }
    status.mark_ready();
    match start.recv() {
        Ok(window) => Ok(client.run(window)),
        // The main thread gave up before the start, and says why.
        Err(_) => Ok(Tally::new(settings.measures)),
    }
}

fn window(planned: &PlannedWindow, start_ns: u64) -> Window {
    let open_ns = start_ns + planned.warmup.as_nanos() as u64;
    let close_ns = planned.duration.map_or(u64::MAX, |duration| open_ns + duration.as_nanos() as u64);
    Window { start_ns, open_ns, close_ns }
}

fn add_up(handles: Vec<ScopedJoinHandle<Result<Tally, Failure>>>, measures: Measures) -> Result<Tally, Failure> {
    let mut sum = Tally::new(measures);
    for handle in handles {
        sum.add(handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
    }
    if !measures.from_due {
        // In a closed loop a request is due when it is sent.
        sum.times.response = sum.times.service.clone();
    }
    Ok(sum)
}

/// Moves the thread that draws off the CPUs that so many pinned threads measure on, if there are others. The threads
/// must run already, since they would inherit it. (Without `--pin` the kernel wakes a thread where a CPU is idle.)
fn leave_pinned_cpus(threads: usize) {
    if let Some(others) = cpu::allowed().get(threads..).filter(|others| !others.is_empty()) {
        // A refusal costs nothing but a little accuracy.
        let _ = cpu::pin_to(others);
    }
}
