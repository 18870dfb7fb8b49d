//! epoll(7): one instance, tokens instead of pointers, and waiting with nanosecond time-outs.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll as Instance, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;

pub use nix::sys::epoll::EpollFlags as Interest;

/// One readiness report: the token given at registration, and what the descriptor is ready for.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    pub token: u64,
    pub flags: EpollFlags,
}

pub struct Epoll {
    instance: Instance,
    events: Vec<EpollEvent>,
}

impl Epoll {
    /// `capacity` is the most reports one wait returns; the rest comes with the next.
    ///
    /// # Errors
    /// EMFILE or ENFILE without a descriptor left, ENOMEM.
    pub fn new(capacity: usize) -> nix::Result<Epoll> {
        Ok(Epoll {
            instance: Instance::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            events: vec![EpollEvent::empty(); capacity],
        })
    }

    /// Another descriptor of the same instance: one thread waits, and others register.
    ///
    /// # Errors
    /// EMFILE without a descriptor left.
    pub fn try_clone(&self) -> nix::Result<Epoll> {
        let copy = self.instance.0.try_clone().map_err(|error| Errno::try_from(error).unwrap_or(Errno::EMFILE))?;
        Ok(Epoll { instance: Instance(copy), events: vec![EpollEvent::empty(); self.events.len()] })
    }

    /// # Errors
    /// EEXIST when it is registered already; EPERM for a file that cannot be waited for; ENOSPC when this user has as
    /// many registrations as it may (/proc/sys/fs/epoll/max_user_watches); ENOMEM.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> nix::Result<()> {
        self.instance.add(fd, EpollEvent::new(interest, token))
    }

    /// # Errors
    /// ENOENT when it is not registered; EINVAL when it was registered with EPOLLEXCLUSIVE.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> nix::Result<()> {
        self.instance.modify(fd, &mut EpollEvent::new(interest, token))
    }

    /// Needed before closing a descriptor that another process holds too: the registration belongs to the open
    /// file description and outlives our descriptor (epoll(7), "Questions and answers", 6).
    ///
    /// # Errors
    /// ENOENT when it is not registered.
    pub fn delete(&self, fd: impl AsFd) -> nix::Result<()> {
        self.instance.delete(fd)
    }

    /// Waits until something is ready or the time is up, and returns how many reports [`Epoll::report`] holds.
    /// An interrupting signal counts as "nothing yet". `None` waits for ever.
    pub fn wait(&mut self, timeout: Option<Duration>) -> nix::Result<usize> {
        match self.wait_once(timeout) {
            Err(Errno::EINTR) => Ok(0),
            other => other,
        }
    }

    /// Waits for ever, for a caller to whom "nothing yet" would look like a wake-up that found nothing.
    ///
    /// # Errors
    /// EINTR when a signal came instead.
    pub fn sleep(&mut self) -> nix::Result<()> {
        self.wait_once(None).map(drop)
    }

    pub fn report(&self, i: usize) -> Ready {
        Ready { token: self.events[i].data(), flags: self.events[i].events() }
    }

    fn wait_once(&mut self, timeout: Option<Duration>) -> nix::Result<usize> {
        /// Set once epoll_pwait2 was refused, by a kernel before 5.11 or by a sandbox whose list is older (seccomp(2)
        /// leaves the errno to the filter, and many say EPERM). Milliseconds must do there.
        static NO_PWAIT2: AtomicBool = AtomicBool::new(false);

        let Some(timeout) = timeout.filter(|timeout| !timeout.is_zero()) else {
            let timeout = if timeout.is_some() { EpollTimeout::ZERO } else { EpollTimeout::NONE };
            return self.instance.wait(&mut self.events, timeout);
        };
        if !NO_PWAIT2.load(Ordering::Relaxed) {
            match self.wait_ns(timeout) {
                Err(Errno::ENOSYS | Errno::EPERM) => NO_PWAIT2.store(true, Ordering::Relaxed),
                other => return other,
            }
        }
        // Rounded up: waking before the due time would spin until it.
        let milliseconds = timeout.as_nanos().div_ceil(1_000_000);
        self.instance.wait(&mut self.events, EpollTimeout::try_from(milliseconds).unwrap_or(EpollTimeout::MAX))
    }

    fn wait_ns(&mut self, timeout: Duration) -> nix::Result<usize> {
        let timeout = TimeSpec::from_duration(timeout);
        // SAFETY: EpollEvent is a transparent epoll_event; the kernel writes at most `events.len()` of them into the
        // vector, which is borrowed mutably; the timespec outlives the call, and a null signal mask means "leave it
        // alone" (epoll_pwait2(2)).
        let result = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.instance.0.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.len() as libc::c_int,
                std::ptr::from_ref(timeout.as_ref()),
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        Errno::result(result).map(|count| count as usize)
    }
}

/// Readable while anything in it is ready (epoll(7)): one instance can wait for another.
impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.instance.0.as_fd()
    }
}
