//! Locks that processes share: flock(2), a System V semaphore (semop(2)), and a robust mutex in shared memory
//! (pthread_mutexattr_setrobust(3)). The kernel takes each of them back from a holder that dies.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::unistd::{Pid, getpid};

use super::memory::shared_words;

/// LOCK_EX sleeps until this open file description holds the only lock on the file; EINTR when a signal came instead.
///
/// # Errors
/// EINTR when a signal came instead; ENOLCK without memory for it.
pub fn flock(file: impl AsFd, operation: libc::c_int) -> nix::Result<()> {
    // SAFETY: flock(2) touches no memory, and the borrowed descriptor is open.
    Errno::result(unsafe { libc::flock(file.as_fd().as_raw_fd(), operation) }).map(drop)
}

/// A System V semaphore that one process at a time takes. It is no descriptor: the kernel keeps it until somebody
/// removes it. The process that made it does so when it drops it; one that is killed cannot, so the set says whether
/// its maker lives, and the next maker removes what the dead have left.
#[derive(Debug)]
pub struct Semaphore {
    set: libc::c_int,
    maker: Pid,
}

/// The semaphores of a set: one when the lock is free, one while the maker lives, and [`OURS`] in a set of ours.
const FREE: u16 = 0;
const MAKER_LIVES: u16 = 1;
const SIGNED: u16 = 2;
const SEMAPHORES: libc::c_int = 3;

const OURS: i16 = i16::from_be_bytes(*b"al");

/// Where our sets are: as many servers may have one at the same time.
const KEYS: std::ops::Range<libc::key_t> = {
    let first = libc::key_t::from_be_bytes(*b"alk\0");
    first..first + 256
};

impl Semaphore {
    /// # Errors
    /// ENOSPC when the system has as many sets as it may (semget(2), SEMMNI); EEXIST when 256 servers have theirs.
    pub fn new() -> nix::Result<Semaphore> {
        for key in KEYS {
            remove_orphan(key);
            match semget(key, libc::IPC_CREAT | libc::IPC_EXCL | 0o600) {
                Ok(set) => {
                    let semaphore = Semaphore { set, maker: getpid() };
                    // In one step, and Linux begins with zeros (semget(2), NOTES): no set of a living maker looks like
                    // an orphan. Only the sign of life is taken back by the kernel when we end; children do not
                    // inherit that (semop(2)).
                    let signed = [(FREE, 1, 0), (SIGNED, OURS, 0), (MAKER_LIVES, 1, libc::SEM_UNDO)];
                    semaphore.change(signed)?;
                    return Ok(semaphore);
                }
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EEXIST)
    }

    /// Sleeps until it is free. With SEM_UNDO the kernel gives it back when this process ends, however it ends.
    ///
    /// # Errors
    /// EINTR when a signal came instead; EIDRM or EINVAL when somebody has removed it (ipcrm(1)).
    pub fn take(&self) -> nix::Result<()> {
        self.change([(FREE, -1, libc::SEM_UNDO)])
    }

    /// # Errors
    /// EIDRM or EINVAL when somebody has removed it (ipcrm(1)).
    pub fn give(&self) -> nix::Result<()> {
        self.change([(FREE, 1, libc::SEM_UNDO)])
    }

    /// All of the changes (which semaphore, by how much, flags) at once.
    fn change<const N: usize>(&self, changes: [(u16, i16, libc::c_int); N]) -> nix::Result<()> {
        let mut operations = changes.map(|(semaphore, by, flags)| libc::sembuf {
            sem_num: semaphore,
            sem_op: by,
            sem_flg: flags as i16,
        });
        // SAFETY: semop(2) reads the N operations, which are there for the whole call.
        Errno::result(unsafe { libc::semop(self.set, operations.as_mut_ptr(), N) }).map(drop)
    }
}

impl Drop for Semaphore {
    fn drop(&mut self) {
        if self.maker == getpid() {
            remove(self.set);
        }
    }
}

/// Removes the set with this key if it is one of ours whose maker is dead. Whoever else finds the same orphan may
/// remove it as well: the number of a set does not come back for long (ipc/util.c), and a maker does not come back.
fn remove_orphan(key: libc::key_t) {
    let Ok(set) = semget(key, 0) else { return };
    if value(set, SIGNED) == Ok(OURS.into()) && value(set, MAKER_LIVES) == Ok(0) {
        remove(set);
    }
}

fn semget(key: libc::key_t, flags: libc::c_int) -> nix::Result<libc::c_int> {
    // SAFETY: semget(2) touches no memory.
    Errno::result(unsafe { libc::semget(key, SEMAPHORES, flags) })
}

fn value(set: libc::c_int, semaphore: u16) -> nix::Result<libc::c_int> {
    // SAFETY: GETVAL takes no fourth argument (semctl(2)) and touches no memory of ours.
    Errno::result(unsafe { libc::semctl(set, semaphore.into(), libc::GETVAL) })
}

fn remove(set: libc::c_int) {
    // SAFETY: IPC_RMID takes no fourth argument (semctl(2)) and touches no memory of ours.
    unsafe { libc::semctl(set, 0, libc::IPC_RMID) };
}

/// A mutex in memory that this process shares with those it forks. Robust: the next
/// process that takes it after a holder died gets EOWNERDEAD, where a plain mutex would stay taken for ever.
#[derive(Clone, Copy, Debug)]
pub struct RobustMutex {
    words: &'static [AtomicU64],
}

const MUTEX_WORDS: usize = size_of::<libc::pthread_mutex_t>().div_ceil(size_of::<u64>());
const _: () = assert!(align_of::<libc::pthread_mutex_t>() <= align_of::<u64>());

impl RobustMutex {
    /// # Errors
    /// ENOMEM.
    pub fn new() -> nix::Result<RobustMutex> {
        let words = shared_words(const { NonZeroUsize::new(MUTEX_WORDS).unwrap() }, None)?;
        let mutex = RobustMutex { words };
        let mut attributes = std::mem::MaybeUninit::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: the attributes are initialised by the first call and live to the last. The mutex's place is mapped
        // for ever, large and aligned enough (asserted above), and nobody else knows it yet.
        unsafe {
            check(libc::pthread_mutexattr_init(attributes))?;
            check(libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED))?;
            check(libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST))?;
            check(libc::pthread_mutex_init(mutex.place(), attributes))?;
            check(libc::pthread_mutexattr_destroy(attributes))?;
        }
        Ok(mutex)
    }

    /// Sleeps until it is free; signals do not interrupt it. A waiter that is killed between being woken and
    /// taking the mutex passes the wake-up on: after a release since Linux 5.5 (ca16d5bee598), after a death since 6.2
    /// (90d758896787).
    ///
    /// # Errors
    /// ENOTRECOVERABLE only: a holder has given it back in the state of a dead one (pthread_mutex_consistent(3)), which
    /// no holder here does.
    pub fn take(&self) -> nix::Result<()> {
        // SAFETY: the place holds a mutex since `new`, and is never unmapped.
        self.recover_from_owner_death(unsafe { libc::pthread_mutex_lock(self.place()) })
    }

    /// Takes it if it is free; false when somebody has it.
    ///
    /// # Errors
    /// As [`RobustMutex::take`].
    pub fn try_take(&self) -> nix::Result<bool> {
        // SAFETY: as in `take`.
        match self.recover_from_owner_death(unsafe { libc::pthread_mutex_trylock(self.place()) }) {
            Err(Errno::EBUSY) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// # Errors
    /// EPERM when the caller does not hold it: a robust mutex knows its owner.
    pub fn give(&self) -> nix::Result<()> {
        // SAFETY: as in `take`.
        check(unsafe { libc::pthread_mutex_unlock(self.place()) })
    }

    /// The dead holder has left it to us. Whatever it guards was left in the middle; callers guard the right to call
    /// accept(2), and the accept queue is the kernel's, so there is nothing to repair.
    fn recover_from_owner_death(&self, result: libc::c_int) -> nix::Result<()> {
        match check(result) {
            // SAFETY: as in `take`; EOWNERDEAD says that the caller holds the mutex and may call this.
            Err(Errno::EOWNERDEAD) => check(unsafe { libc::pthread_mutex_consistent(self.place()) }),
            other => other,
        }
    }

    fn place(&self) -> *mut libc::pthread_mutex_t {
        // Atomics may be written through a shared reference, and so may what lies in their place.
        self.words.as_ptr().cast_mut().cast()
    }
}

/// The pthread functions return their error instead of setting errno.
fn check(result: libc::c_int) -> nix::Result<()> {
    if result == 0 { Ok(()) } else { Err(Errno::from_raw(result)) }
}
