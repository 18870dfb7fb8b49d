//! Worker threads, from the first spawn to the end of the last one, and the bounded queue that gives them work.

use std::fmt::Display;
use std::process::exit;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender};

use super::args::ServerArgs;
use super::blocking::STACK_BYTES;
use super::termination::wait_for_threads;
use super::worker::{Worker, pin_or_log};
use crate::console;
use crate::failure::Failure;
use crate::sys::signal::{is_leaving, is_stopping};

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
    /// Spawns the thread of worker `id`. It records what it has used when `serve` returns; should that fail, the
    /// process ends. A thread that panics leaves the others serving.
    pub fn spawn(
        &self,
        id: usize,
        args: &ServerArgs,
        mut worker: Worker,
        serve: impl FnOnce(&mut Worker) -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), Failure> {
        let pin = args.pin.then_some(id);
        self.spawn_thread(format_args!("worker {id}"), move || {
            pin_or_log(pin);
            serve(&mut worker)?;
            worker.record_thread_usage();
            Ok(())
        })
    }

    /// As [`WorkerThreads::spawn`], for a thread that accounts for itself. `top -H` shows its name.
    pub fn spawn_thread(
        &self,
        name: impl Display,
        run: impl FnOnce() -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), Failure> {
        let alive = self.alive.clone();
        let spawned = thread::Builder::new().name(name.to_string()).stack_size(STACK_BYTES).spawn(move || {
            let _held_until_the_end = alive;
            if let Err(failure) = run() {
                console::log_last(failure);
                exit(1);
            }
        });
        let failed = |error| Failure::new(format_args!("spawn {name}"), error);
        spawned.map(drop).map_err(|error| failed(error).advise("start fewer with --workers"))
    }

    /// Waits until every thread has ended. When the server is to stop they have the grace period for that.
    ///
    /// # Errors
    /// When all of them have ended before: they have panicked, and nobody serves.
    pub fn wait_for_end(self) -> Result<(), Failure> {
        drop(self.alive);
        // No signal interrupts this wait, so it checks by itself.
        while !is_stopping() && self.all_gone.recv_timeout(CHECK_EVERY) == Err(RecvTimeoutError::Timeout) {}
        let is_asked_to = is_stopping() || is_leaving();
        wait_for_threads(&self.all_gone);
        if is_asked_to { Ok(()) } else { Err(Failure::relay("every thread has ended: nobody serves".to_owned())) }
    }
}

/// Starts so many threads and ends them again, for a server that could not say that one cannot be started.
///
/// # Errors
/// When one cannot be started.
pub fn try_threads(count: usize) -> Result<(), Failure> {
    let threads = WorkerThreads::default();
    // Nothing is ever sent: they wait for its end.
    let (hold, held) = crossbeam_channel::bounded::<()>(0);
    for id in 0..count {
        let held = held.clone();
        threads.spawn_thread(format_args!("worker {id}"), move || {
            held.into_iter().for_each(drop);
            Ok(())
        })?;
    }
    drop((hold, threads.alive));
    wait_for_threads(&threads.all_gone);
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_every_thread_has_panicked_the_end_is_an_error() {
        let threads = WorkerThreads::default();
        for id in 0..2 {
            threads.spawn_thread(id, || panic!("a defect of a handler")).unwrap();
        }
        let failure = threads.wait_for_end().unwrap_err();
        assert_eq!(failure.to_string(), "every thread has ended: nobody serves");
    }

    #[test]
    fn threads_that_were_only_tried_are_gone() {
        try_threads(3).unwrap();
        // A thread that has let go of the channel has a few system calls left.
        let begin = std::time::Instant::now();
        let is_there = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let mut names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
            names.any(|name| name.starts_with("worker "))
        };
        while is_there() {
            assert!(begin.elapsed() < Duration::from_secs(60), "a thread that was only tried is there");
            thread::yield_now();
        }
    }
}
