//! Request objects: work that would block the loop goes to one of N helper threads, and its result comes back as a
//! report of an eventfd(2), like any other event.
//!
//! There are two classes of work, as in libuv (`src/threadpool.c`): slow work (a name to be looked up) may occupy at
//! most (N + 1) / 2 of the threads, so that it cannot hold up all fast work (a file to be read).

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::slots::SlotKey;

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
pub type Work = Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>;

/// What the loop and its helper threads share.
pub struct HelperPool {
    size: usize,
    requests: Mutex<Requests>,
    /// Something may be begun.
    changed: Condvar,
    /// Readable while something is finished. A write fails only when 2^64 - 2 results wait.
    pub event: EventFd,
}

#[derive(Default)]
struct Requests {
    waiting: VecDeque<(SlotKey, RequestClass, Work)>,
    slow_running: usize,
    threads: usize,
    finished: Vec<(SlotKey, Outcome)>,
    is_closed: bool,
}

impl HelperPool {
    /// A pool of at least one thread. None is started before the first request: until then the process may fork.
    pub fn new(size: usize) -> nix::Result<Arc<HelperPool>> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Arc::new(HelperPool { size: size.max(1), requests: Mutex::default(), changed: Condvar::new(), event }))
    }

    /// # Errors
    /// When not a single thread could be started. With fewer than asked for, the pool goes on, and the next request
    /// tries again.
    pub fn submit(self: &Arc<Self>, request: SlotKey, class: RequestClass, work: Work) -> std::io::Result<()> {
        let mut requests = self.lock();
        while requests.threads < self.size {
            let pool = self.clone();
            match thread::Builder::new().name(format!("helper {}", requests.threads)).spawn(move || pool.run_helper()) {
                Ok(_) => requests.threads += 1,
                Err(error) if requests.threads == 0 => return Err(error),
                Err(_) => break,
            }
        }
        requests.waiting.push_back((request, class, work));
        drop(requests);
        self.changed.notify_one();
        Ok(())
    }

    /// Takes back a request that no thread has begun; it is finished, without a result. False when it is too late.
    pub fn cancel(&self, request: SlotKey) -> bool {
        let mut requests = self.lock();
        let at = requests.waiting.iter().position(|(waiting, ..)| *waiting == request);
        let is_cancelled = at.and_then(|at| requests.waiting.remove(at)).is_some();
        if is_cancelled {
            requests.finished.push((request, Err(NoResult::Cancelled)));
            let _ = self.event.write(1);
        }
        is_cancelled
    }

    /// What has been finished since the last call, in that order.
    pub fn take_finished(&self) -> Vec<(SlotKey, Outcome)> {
        // Emptied first: what is finished from here on makes it readable again. It fails when it is empty already.
        let _ = self.event.read();
        std::mem::take(&mut self.lock().finished)
    }

    /// The threads end after the work they are at; nobody waits for them.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// The life of a helper thread.
    fn run_helper(&self) {
        // Exact sleeps, as in every worker (prctl(2), PR_SET_TIMERSLACK); an older kernel sleeps a little longer.
        let _ = nix::sys::prctl::set_timerslack(1);
        let mut requests = self.lock();
        while !requests.is_closed {
            let Some((request, class, work)) = requests.take_next() else {
                requests = self.changed.wait(requests).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(requests);
            let outcome = catch_unwind(AssertUnwindSafe(work)).map_err(|_| NoResult::Panicked);
            requests = self.lock();
            if class == RequestClass::Slow {
                requests.slow_running -= 1;
                // Another thread may be asleep beside slow work that it was not allowed to begin.
                self.changed.notify_one();
            }
            requests.finished.push((request, outcome));
            if requests.finished.len() == 1 {
                drop(requests);
                let _ = self.event.write(1);
                requests = self.lock();
            }
        }
    }

    /// No code that can panic runs under this lock.
    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Requests {
    /// The request that was submitted first, among those that may begin now.
    fn take_next(&mut self) -> Option<(SlotKey, RequestClass, Work)> {
        let may_be_slow = self.slow_running < self.threads.div_ceil(2);
        let at = self.waiting.iter().position(|(_, class, _)| *class == RequestClass::Fast || may_be_slow)?;
        let next = self.waiting.remove(at)?;
        self.slow_running += usize::from(next.1 == RequestClass::Slow);
        Some(next)
    }
}
