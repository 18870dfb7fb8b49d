//! Request objects: work that would block the loop goes to one of N helper threads, and its result comes back as a
//! report of an eventfd(2), like any other event.
//!
//! There are two classes of work, as in libuv (`src/threadpool.c`): slow work (a name to be looked up) may occupy at
//! most (N + 1) / 2 of the threads, so that it cannot hold up all fast work (a file to be read).

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::slots::SlotKey;

/// As many as libuv has.
pub const DEFAULT_THREADS: usize = 4;

/// The part of a command line that is about the pool.
#[derive(Args, Clone, Copy, Debug)]
pub struct PoolArgs {
    /// Helper threads for work that blocks
    #[arg(long = "pool", value_name = "N", default_value_t = DEFAULT_THREADS,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub threads: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestClass {
    Fast,
    Slow,
}

/// Why a request has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoResult {
    Cancelled,
    /// The work panicked; the helper thread lives on.
    Panicked,
}

pub type Outcome = Result<Box<dyn Any + Send>, NoResult>;

pub type HelperWork = Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>;

struct Job {
    request: SlotKey,
    class: RequestClass,
    work: HelperWork,
}

/// The helper threads as the loop sees them.
pub struct HelperPool {
    shared: Arc<SharedPool>,
    size: usize,
    started: usize,
}

struct SharedPool {
    queue: Mutex<JobQueue>,
    queue_changed: Condvar,
    finished: Mutex<Vec<(SlotKey, Outcome)>>,
    /// Readable while something is finished.
    event: EventFd,
}

#[derive(Default)]
struct JobQueue {
    waiting: VecDeque<Job>,
    slow_running: usize,
    most_slow: usize,
    is_closed: bool,
}

impl HelperPool {
    /// A pool of at least one thread. None is started before the first job: until then the process may fork.
    pub fn new(size: usize) -> nix::Result<HelperPool> {
        let shared = SharedPool {
            queue: Mutex::default(),
            queue_changed: Condvar::new(),
            finished: Mutex::default(),
            event: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        };
        Ok(HelperPool { shared: Arc::new(shared), size: size.max(1), started: 0 })
    }

    /// # Errors
    /// When not a single thread could be started. With fewer than asked for, the pool goes on.
    pub fn submit(&mut self, request: SlotKey, class: RequestClass, work: HelperWork) -> io::Result<()> {
        while self.started < self.size {
            let shared = self.shared.clone();
            match thread::Builder::new().name(format!("helper {}", self.started)).spawn(move || shared.run_helper()) {
                Ok(_) => self.started += 1,
                Err(_) if self.started > 0 => self.size = self.started,
                Err(error) => return Err(error),
            }
        }
        let mut queue = lock(&self.shared.queue);
        queue.most_slow = self.started.div_ceil(2);
        queue.waiting.push_back(Job { request, class, work });
        drop(queue);
        self.shared.queue_changed.notify_one();
        Ok(())
    }

    /// Takes back a job that no thread has begun; it is finished, without a result. False when it is too late.
    pub fn cancel(&self, request: SlotKey) -> bool {
        let mut queue = lock(&self.shared.queue);
        let at = queue.waiting.iter().position(|job| job.request == request);
        let cancelled = at.and_then(|at| queue.waiting.remove(at)).is_some();
        drop(queue);
        if cancelled {
            self.shared.finish(request, Err(NoResult::Cancelled));
        }
        cancelled
    }

    /// What has been finished since the last call, in that order.
    pub fn take_finished(&self) -> Vec<(SlotKey, Outcome)> {
        // Emptied first: what is finished from here on makes it readable again. It fails when it is empty already.
        let _ = self.shared.event.read();
        std::mem::take(&mut *lock(&self.shared.finished))
    }
}

impl AsFd for HelperPool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

/// The threads end after the job they are at; nobody waits for them.
impl Drop for HelperPool {
    fn drop(&mut self) {
        lock(&self.shared.queue).is_closed = true;
        self.shared.queue_changed.notify_all();
    }
}

impl SharedPool {
    /// The life of a helper thread.
    fn run_helper(&self) {
        // Exact sleeps, as in every worker (prctl(2), PR_SET_TIMERSLACK); an older kernel sleeps a little longer.
        let _ = nix::sys::prctl::set_timerslack(1);
        while let Some(Job { request, class, work }) = self.wait_for_job() {
            let outcome = catch_unwind(AssertUnwindSafe(work)).map_err(|_| NoResult::Panicked);
            if class == RequestClass::Slow {
                lock(&self.queue).slow_running -= 1;
                // Another thread may be asleep beside slow work that it was not allowed to begin.
                self.queue_changed.notify_one();
            }
            self.finish(request, outcome);
        }
    }

    fn wait_for_job(&self) -> Option<Job> {
        let mut queue = lock(&self.queue);
        while !queue.is_closed {
            if let Some(job) = queue.take_next() {
                return Some(job);
            }
            queue = self.queue_changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    fn finish(&self, request: SlotKey, outcome: Outcome) {
        let mut finished = lock(&self.finished);
        finished.push((request, outcome));
        if finished.len() == 1 {
            // It fails only when 2^64 - 2 results wait.
            let _ = self.event.write(1);
        }
    }
}

impl JobQueue {
    /// The job that was submitted first, among those that may begin now.
    fn take_next(&mut self) -> Option<Job> {
        let may_be_slow = self.slow_running < self.most_slow;
        let at = self.waiting.iter().position(|job| job.class == RequestClass::Fast || may_be_slow)?;
        let job = self.waiting.remove(at)?;
        self.slow_running += usize::from(job.class == RequestClass::Slow);
        Some(job)
    }
}

/// No code that can panic runs under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
