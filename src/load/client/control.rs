//! What the main thread and the measuring threads tell each other: stop, ready, done. All of them wait in epoll, so
//! each message is an eventfd; the values behind it are read once per event, never in a loop.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use nix::sys::eventfd::{EfdFlags, EventFd};

pub struct RunControl {
    stopped_at_ns: AtomicU64,
    pub aborted: AtomicBool,
    /// A first connection is established: the server is there, and what fails from then on is a part of the result.
    pub reached: AtomicBool,
    pub interrupted: AtomicBool,
    pub stop_event: EventFd,
    pub thread_event: EventFd,
}

impl RunControl {
    pub fn new() -> nix::Result<RunControl> {
        let eventfd = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(RunControl {
            stopped_at_ns: AtomicU64::new(u64::MAX),
            aborted: AtomicBool::new(false),
            reached: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
            stop_event: eventfd()?,
            thread_event: eventfd()?,
        })
    }

    /// Ends the measured window now; outstanding answers are waited for a moment longer.
    pub fn stop(&self, now_ns: u64) {
        self.stopped_at_ns.fetch_min(now_ns, Relaxed);
        add(&self.stop_event, 1);
    }

    pub fn abort(&self, now_ns: u64) {
        self.aborted.store(true, Relaxed);
        self.stop(now_ns);
    }

    /// A person wants the run to end: the first time the measurement, the second time everything.
    pub fn interrupt(&self, now_ns: u64) {
        self.interrupted.store(true, Relaxed);
        match self.stopped_at_ns() {
            None => self.stop(now_ns),
            Some(_) => self.abort(now_ns),
        }
    }

    pub fn stopped_at_ns(&self) -> Option<u64> {
        let stopped_at_ns = self.stopped_at_ns.load(Relaxed);
        (stopped_at_ns != u64::MAX).then_some(stopped_at_ns)
    }
}

/// What the main thread knows of a measuring thread: each is marked ready once and done once, also if it panics.
pub struct ThreadStatus<'a> {
    control: &'a RunControl,
    marks_left: u64,
}

impl<'a> ThreadStatus<'a> {
    pub const MARKS: u64 = 2;

    pub fn new(control: &'a RunControl) -> ThreadStatus<'a> {
        ThreadStatus { control, marks_left: ThreadStatus::MARKS }
    }

    pub fn mark_ready(&mut self) {
        self.marks_left -= 1;
        add(&self.control.thread_event, 1);
    }
}

impl Drop for ThreadStatus<'_> {
    fn drop(&mut self) {
        add(&self.control.thread_event, self.marks_left);
    }
}

fn add(eventfd: &EventFd, count: u64) {
    // Fails only when the counter would overflow, and then it is readable already (eventfd(2)).
    let _ = eventfd.write(count);
}
