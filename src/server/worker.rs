//! What each worker has: a number, a row of the scoreboard, its answers and its work.

use std::sync::Arc;
use std::time::Duration;

use super::args::ServerArgs;
use super::selector::heartbeat::Heartbeat;
use super::spin::Spin;
use crate::console;
use crate::cpu;
use crate::failure::Failure;
use crate::http::Responses;
use crate::membership;
use crate::scoreboard::{Count, Scoreboard, WorkerRow};
use crate::sys::process::Usage;
use crate::units::monotonic_ns;
use crate::work::{Cost, Work};

#[derive(Debug)]
pub struct Worker {
    pub row: WorkerRow,
    pub responses: Arc<Responses>,
    pub idle_timeout: Duration,
    /// Where the blocking handler receives; empty until the first connection.
    pub buffer: Vec<u8>,
    /// What it shows of itself, where the kernel or the parent chooses by that.
    pub heartbeat: Option<Heartbeat>,
    /// How long its event loop looks before it sleeps.
    pub spin: Spin,
    /// Whether somebody else does work of this cost, so that this worker may serve others meanwhile. An event loop has
    /// a timer for a wait.
    pub is_free_during: fn(Cost) -> bool,
    work: Arc<Work>,
    random: fastrand::Rng,
}

impl Worker {
    /// Worker `id`; in a cluster the master gives the number.
    pub fn new(id: usize, args: &ServerArgs, scoreboard: &Scoreboard) -> Worker {
        let pid = std::process::id();
        let number = membership::of_this_process().ok().flatten().map_or(id, |membership| membership.number);
        let worker = Worker {
            row: scoreboard.row(id),
            responses: Arc::new(Responses::new(number, pid, args.body)),
            idle_timeout: args.idle_timeout,
            buffer: Vec::new(),
            heartbeat: None,
            spin: Spin::default(),
            is_free_during: |cost| matches!(cost, Cost::Wait(_)),
            work: Arc::new(args.work.clone()),
            // Another seed for every worker and every run: repeated runs show how much is chance.
            random: fastrand::Rng::with_seed(monotonic_ns() ^ u64::from(pid) << 32 ^ id as u64),
        };
        worker.row.set_pid(pid);
        worker
    }

    /// A worker for a single connection: the same number and row, but random numbers of its own.
    pub fn for_one_connection(&mut self) -> Worker {
        Worker {
            row: self.row,
            responses: self.responses.clone(),
            idle_timeout: self.idle_timeout,
            buffer: Vec::new(),
            heartbeat: None,
            spin: Spin::default(),
            is_free_during: self.is_free_during,
            work: self.work.clone(),
            random: self.random.fork(),
        }
    }

    /// Its answers name the calling process from now on: one that was forked for a connection, after
    /// [`Worker::for_one_connection`].
    pub fn answer_as_this_process(&mut self, id: usize, args: &ServerArgs) {
        self.responses = Arc::new(Responses::new(id, std::process::id(), args.body));
    }

    /// As [`Worker::new`], for a worker that is a process: first prepares it ([`pin_and_prepare`]).
    ///
    /// # Errors
    /// With `--pin`, when the process cannot be pinned to its CPU.
    pub fn start(id: usize, args: &ServerArgs, scoreboard: &Scoreboard) -> Result<Worker, Failure> {
        pin_and_prepare(args.pin.then_some(id))?;
        Ok(Worker::new(id, args, scoreboard))
    }

    pub fn draw_cost(&mut self) -> Cost {
        self.work.draw(&mut self.random)
    }

    /// Requests cost more than their answers.
    pub fn has_work(&self) -> bool {
        self.work.mean_s() > 0.0
    }

    pub fn count(&self, count: Count) {
        self.row.add(count, 1);
    }

    pub fn opened(&self) {
        // In this order: a reader that reads accepted first never takes an open connection for a closed one.
        self.row.add(Count::Active, 1);
        self.row.add(Count::Accepted, 1);
    }

    pub fn closed(&self) {
        // Before the row: a reader that sees the connection closed there must also see the lower load.
        self.heartbeat.iter().for_each(Heartbeat::closed);
        self.row.subtract(Count::Active, 1);
    }

    pub fn record_thread_usage(&self) {
        self.row.set_usage(Usage::of_thread());
    }

    pub fn record_usage(&self) {
        self.row.set_usage(Usage::of_process());
    }
}

/// Prepares the calling thread: pins it to CPU `pin` mod CPUs (of those it was started with), and sets its timer slack
/// to 1 ns: with the default, `block:1.8ms` would take up to 50 µs longer.
pub fn pin_and_prepare(pin: Option<usize>) -> Result<(), Failure> {
    if let Some(i) = pin {
        let cpus = cpu::allowed();
        let cpu = cpus[i % cpus.len()];
        cpu::pin_to(&[cpu]).map_err(|errno| Failure::new(format_args!("pin worker {i} to CPU {cpu}"), errno))?;
    }
    // It fails only on a kernel without the option (prctl(2), PR_SET_TIMERSLACK), where sleeps are a little longer.
    let _ = nix::sys::prctl::set_timerslack(1);
    Ok(())
}

/// As [`pin_and_prepare`], but a thread that cannot be pinned logs why, and serves nevertheless.
pub fn pin_or_log(pin: Option<usize>) {
    if let Err(failure) = pin_and_prepare(pin) {
        console::log(failure);
    }
}
