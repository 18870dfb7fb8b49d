//! Worker threads, from the first spawn to the end of the last one, and the bounded queue that gives them work.

use std::fmt::Display;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender};

use super::args::ServerArgs;
use super::blocking::STACK_BYTES;
use super::termination::wait_for_threads;
use super::worker::{Worker, pin_or_log};
use crate::failure::Failure;
use crate::sys::signal::is_stopping;

/// How long a wait for a queue or a thread lasts before it checks whether the server is to stop.
const CHECK_EVERY: Duration = Duration::from_millis(100);

pub struct WorkerThreads {
    /// Nothing is ever sent: the channel ends when the last thread that holds a sender has ended.
    alive: Sender<()>,
    all_gone: Receiver<()>,
}

impl Default for WorkerThreads {
    fn default() -> WorkerThreads {
        let (alive, all_gone) = crossbeam_channel::bounded(0);
        WorkerThreads { alive, all_gone }
    }
}

impl WorkerThreads {
    /// Spawns the thread of worker `id`. It records what it has used when `serve` returns.
    pub fn spawn(
        &self,
        id: usize,
        args: &ServerArgs,
        mut worker: Worker,
        serve: impl FnOnce(&mut Worker) + Send + 'static,
    ) -> Result<(), Failure> {
        let pin = args.pin.then_some(id);
        self.spawn_thread(format_args!("worker {id}"), move || {
            pin_or_log(pin);
            serve(&mut worker);
            worker.record_thread_usage();
        })
    }

    /// As [`WorkerThreads::spawn`], for a thread that accounts for itself. `top -H` shows its name.
    pub fn spawn_thread(&self, name: impl Display, run: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
        let alive = self.alive.clone();
        let spawned = thread::Builder::new().name(name.to_string()).stack_size(STACK_BYTES).spawn(move || {
            let _held_until_the_end = alive;
            run();
        });
        let failed = |error| Failure::new(format_args!("spawn {name}"), error);
        spawned.map(drop).map_err(|error| failed(error).advise("start fewer with --workers"))
    }

    /// Waits until every thread has ended. When the server is to stop they have the grace period for that.
    pub fn wait_for_end(self) {
        drop(self.alive);
        // No signal interrupts this wait, so it checks by itself.
        while !is_stopping() && self.all_gone.recv_timeout(CHECK_EVERY) == Err(RecvTimeoutError::Timeout) {}
        wait_for_threads(&self.all_gone);
    }
}

/// Waits for room in the queue: the back-pressure. False when `gives_up` says so before there is room.
pub fn send<T>(queue: &Sender<T>, mut item: T, gives_up: fn() -> bool) -> bool {
    loop {
        match queue.send_timeout(item, CHECK_EVERY) {
            Ok(()) => return true,
            // No signal interrupts this wait, so it checks by itself.
            Err(SendTimeoutError::Timeout(back)) if !gives_up() => item = back,
            Err(_) => return false,
        }
    }
}
