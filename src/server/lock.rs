//! Locks around accept: one worker at a time may take a connection, the others wait for the lock instead of the
//! listening socket (Stevens, Fenner, Rudoff, *UNIX Network Programming* 1, section 30.7 and figure 30.1).
//!
//! A wait for the lock does not count as a wake-up in the scoreboard, because it is not about the listening socket; it
//! shows in `voluntary_switches`. The kernel takes every lock here back from a holder that dies. A holder that is only
//! stopped (SIGSTOP) keeps it: then no worker accepts.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::failure::Failure;
use crate::sys::lock::{RobustMutex, Semaphore, flock};
use crate::sys::signal::is_stopping;

/// A lock that workers sleep for. Made before the fork.
#[derive(Debug)]
pub enum Lock {
    Fcntl(OwnedFd),
    /// A lock of the open file description.
    Flock(File),
    Semaphore(Semaphore),
    Mutex(RobustMutex),
}

impl Lock {
    /// # Errors
    /// The file to lock cannot be made (memfd_create(2)), as without a descriptor left.
    pub fn fcntl() -> Result<Lock, Failure> {
        nameless_file().map(Lock::Fcntl)
    }

    /// # Errors
    /// As [`Lock::fcntl`].
    pub fn flock() -> Result<Lock, Failure> {
        nameless_file().map(|file| Lock::Flock(file.into()))
    }

    /// A parent that is killed cannot remove its semaphore; the next server with one does. Other locks leave nothing.
    ///
    /// # Errors
    /// The system has as many semaphores as it may, or 256 servers have one each.
    pub fn semaphore() -> Result<Lock, Failure> {
        let made = Semaphore::new().map_err(|errno| Failure::new("make a semaphore", errno));
        made.map(Lock::Semaphore).map_err(|failure| {
            failure.advise("remove some that nobody needs: ipcs -s shows them, ipcrm -s ID removes one")
        })
    }

    /// # Errors
    /// There is no memory for it.
    pub fn mutex() -> Result<Lock, Failure> {
        shared_mutex().map(Lock::Mutex)
    }

    /// A worker's first step. An inherited descriptor is the same open file description, and a flock belongs to
    /// that: all workers would hold it at once. So each opens the file anew. A record lock belongs to the process, so
    /// there the inherited descriptor will do (fcntl(2), flock(2)).
    ///
    /// # Errors
    /// A flock's file cannot be opened anew: no descriptor is left, or there is no /proc.
    pub fn join(&mut self) -> Result<(), Failure> {
        if let Lock::Flock(file) = self {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            *file = File::open(&path).map_err(|error| Failure::new(format_args!("open {path}"), error))?;
        }
        Ok(())
    }

    /// Does something while no other worker does. `None` when the server is to stop.
    ///
    /// A worker that is told to stop just before it falls asleep here sleeps on, but not for long: the listener has
    /// been shut, so the holder comes back from accept and gives the lock to the next, who finds the same.
    ///
    /// # Errors
    /// Those of `action`; and when the lock cannot be taken or given back, as where somebody has removed the semaphore
    /// (ipcrm(1)).
    pub fn hold<T>(&self, action: impl FnOnce() -> Result<Option<T>, Failure>) -> Result<Option<T>, Failure> {
        while !is_stopping() {
            match self.take() {
                Ok(()) => {
                    let outcome = action();
                    self.give().map_err(|errno| self.explain("give back", errno))?;
                    return outcome;
                }
                // By a signal that tells us to stop, or by SIGCONT (signal(7)). With one lock there is no deadlock,
                // but the kernel may take a record lock's waiters for one (fcntl(2), BUGS).
                Err(Errno::EINTR | Errno::EDEADLK) => {}
                Err(errno) => return Err(self.explain("take", errno)),
            }
        }
        Ok(None)
    }

    fn take(&self) -> nix::Result<()> {
        match self {
            Lock::Fcntl(file) => fcntl(file, FcntlArg::F_SETLKW(&whole_file(libc::F_WRLCK))).map(drop),
            Lock::Flock(file) => flock(file, libc::LOCK_EX),
            Lock::Semaphore(semaphore) => semaphore.take(),
            Lock::Mutex(mutex) => mutex.take(),
        }
    }

    fn give(&self) -> nix::Result<()> {
        match self {
            Lock::Fcntl(file) => fcntl(file, FcntlArg::F_SETLK(&whole_file(libc::F_UNLCK))).map(drop),
            Lock::Flock(file) => flock(file, libc::LOCK_UN),
            Lock::Semaphore(semaphore) => semaphore.give(),
            Lock::Mutex(mutex) => mutex.give(),
        }
    }

    fn explain(&self, tried: &str, errno: Errno) -> Failure {
        let name = match self {
            Lock::Fcntl(_) => "record lock",
            Lock::Flock(_) => "flock",
            Lock::Semaphore(_) => "semaphore",
            Lock::Mutex(_) => "mutex",
        };
        Failure::new(format_args!("{tried} the {name}"), errno)
    }
}

/// A lock that workers try and do not sleep for: a worker that does not get it serves its connections and tries
/// again (nginx, `accept_mutex`). nginx lets the master take it from a dead worker; a robust mutex needs no master.
#[derive(Debug)]
pub struct AcceptMutex {
    mutex: RobustMutex,
    /// A worker that has not got it tries again after this long at most.
    pub retry: Duration,
}

impl AcceptMutex {
    /// # Errors
    /// There is no memory for it.
    pub fn new(retry: Duration) -> Result<AcceptMutex, Failure> {
        Ok(AcceptMutex { mutex: shared_mutex()?, retry })
    }

    /// False: another worker has it.
    ///
    /// # Errors
    /// Those of [`RobustMutex::try_take`].
    pub fn try_take(&self) -> Result<bool, Failure> {
        self.mutex.try_take().map_err(|errno| Failure::new("try for the accept mutex", errno))
    }

    /// # Errors
    /// This process does not hold it.
    pub fn give(&self) -> Result<(), Failure> {
        self.mutex.give().map_err(|errno| Failure::new("give back the accept mutex", errno))
    }
}

/// For locks on a file. Without a name nothing is left behind, however we end (memfd_create(2)).
fn nameless_file() -> Result<OwnedFd, Failure> {
    memfd_create("accept-lock", MFdFlags::MFD_CLOEXEC).map_err(|errno| Failure::new("create a file to lock", errno))
}

fn shared_mutex() -> Result<RobustMutex, Failure> {
    RobustMutex::new().map_err(|errno| Failure::new("make a mutex for several processes", errno))
}

/// `l_len` 0 reaches to the end of the file, wherever that will be (fcntl(2)).
fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}
