//! What the main thread and the measuring threads tell each other: stop, ready, done. Everybody waits in
//! epoll, so everything is said through an eventfd; the values behind it are read once per ring, never in a
//! loop.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

pub struct Control {
    stopped_at_ns: AtomicU64,
    aborted: AtomicBool,
    reached: AtomicBool,
    bell: EventFd,
    news: EventFd,
}

impl Control {
    pub fn new() -> nix::Result<Control> {
        let eventfd = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Control {
            stopped_at_ns: AtomicU64::new(u64::MAX),
            aborted: AtomicBool::new(false),
            reached: AtomicBool::new(false),
            bell: eventfd()?,
            news: eventfd()?,
        })
    }

    /// Ends the measured window now; outstanding answers are waited for a moment longer.
    pub fn stop(&self, now_ns: u64) {
        self.stopped_at_ns.fetch_min(now_ns, Ordering::Relaxed);
        ring(&self.bell, 1);
    }

    /// Ends everything now.
    pub fn abort(&self, now_ns: u64) {
        self.aborted.store(true, Ordering::Relaxed);
        self.stop(now_ns);
    }

    /// A first connection came about: the server is there, and whatever fails from now on is a part of the result.
    pub fn say_reached(&self) {
        self.reached.store(true, Ordering::Relaxed);
    }

    pub fn is_reached(&self) -> bool {
        self.reached.load(Ordering::Relaxed)
    }

    /// When the run was stopped, if it was.
    pub fn stopped_at_ns(&self) -> Option<u64> {
        let stopped_at_ns = self.stopped_at_ns.load(Ordering::Relaxed);
        (stopped_at_ns != u64::MAX).then_some(stopped_at_ns)
    }

    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Relaxed)
    }

    /// Readable when [`Control::stop`] or [`Control::abort`] was called.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// All that a measuring thread needs of what was open before it.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.bell.as_fd(), self.news.as_fd()]
    }

    /// Readable when a thread has something to say.
    pub fn news(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// How often threads have said something since the last call.
    pub fn hear(&self) -> u64 {
        self.news.read().unwrap_or(0)
    }
}

/// A measuring thread's voice: it says "ready" once and "done" once, also if it panics.
pub struct Voice<'a> {
    control: &'a Control,
    words_left: u64,
}

impl<'a> Voice<'a> {
    pub const WORDS: u64 = 2;

    pub fn new(control: &'a Control) -> Voice<'a> {
        Voice { control, words_left: Voice::WORDS }
    }

    pub fn say_ready(&mut self) {
        self.words_left -= 1;
        ring(&self.control.news, 1);
    }
}

impl Drop for Voice<'_> {
    fn drop(&mut self) {
        ring(&self.control.news, self.words_left);
    }
}

fn ring(eventfd: &EventFd, times: u64) {
    // Fails only when the counter would overflow, and then it is readable already (eventfd(2)).
    let _ = eventfd.write(times);
}
