//! fork(2), starting programs, die-with-parent, and waiting for children with their accounts (wait4(2)).

use std::fmt;
use std::ops::Add;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{ForkResult, Pid, getpid, getppid, setsid};

use crate::sys::namespace::{self, NetworkNamespace};

pub enum Fork {
    Parent { child: Pid },
    Child,
}

/// Forks. The child is killed by the kernel when its parent dies, however the parent dies.
///
/// # Errors
/// EAGAIN at a limit of processes (RLIMIT_NPROC, pids.max of a cgroup), ENOMEM.
///
/// # Panics
/// When a second thread exists: the child would inherit the locks of threads it does not have (fork(2)).
pub fn fork() -> nix::Result<Fork> {
    assert!(has_one_thread()?, "a process with several threads must not fork");
    let parent = getpid();
    // SAFETY: this process has exactly one thread, as asserted above, so every lock, the allocator's included, is
    // in a state the child can go on from (fork(2), signal-safety(7)).
    match unsafe { nix::unistd::fork()? } {
        ForkResult::Parent { child } => Ok(Fork::Parent { child }),
        ForkResult::Child => {
            // Without the promise to die with its parent a child must not live at all, and it must not return to
            // code that takes it for the parent. The parent may also have died before the promise was given.
            if let Err(errno) = prctl::set_pdeathsig(Signal::SIGKILL) {
                let line = format!("fork: PR_SET_PDEATHSIG: {}; a worker must not outlive its parent\n", errno.desc());
                let _ = nix::unistd::write(std::io::stderr(), line.as_bytes());
                std::process::exit(1);
            }
            if getppid() != parent {
                std::process::exit(1);
            }
            Ok(Fork::Child)
        }
    }
}

/// What a started program inherits beside the standard streams.
pub const MOST_KEPT: usize = 2;

/// Starts a program that the kernel kills when this thread dies, with `kept`, [`MOST_KEPT`] at most, open under the
/// numbers they have here; otherwise as [`spawn_child`].
///
/// # Errors
/// As [`spawn_child`].
pub fn spawn(command: &mut Command, kept: &[BorrowedFd]) -> std::io::Result<Pid> {
    let child = spawn_child(command, kept, Signal::SIGKILL, None)?;
    Ok(Pid::from_raw(child.id() as i32))
}

/// Starts a program that gets `at_our_death` from the kernel when this thread dies, with no signal blocked. It leads a
/// process group of its own: a terminal's Ctrl-C is ours to pass on, and a signal to the group reaches what the program
/// has started. It runs in the namespace, where one is given.
///
/// # Errors
/// The program is not there or may not be executed; EAGAIN or ENOMEM as for [`fork`]; EPERM when we may not enter the
/// namespace.
///
/// # Panics
/// With more than [`MOST_KEPT`] descriptors.
pub fn spawn_child(
    command: &mut Command,
    kept: &[BorrowedFd],
    at_our_death: Signal,
    namespace: Option<&NetworkNamespace>,
) -> std::io::Result<Child> {
    let parent = getpid();
    let mut numbers = [-1; MOST_KEPT];
    numbers[..kept.len()].iter_mut().zip(kept).for_each(|(number, fd)| *number = fd.as_raw_fd());
    let count = kept.len();
    let namespace = namespace.map(NetworkNamespace::numbers);
    let prepare = move || {
        // First: a change of privileges may take the signal at our death back (PR_SET_PDEATHSIG, prctl(2)).
        namespace.map_or(Ok(()), namespace::enter)?;
        prctl::set_pdeathsig(at_our_death)?;
        if getppid() != parent {
            return Err(Errno::ESRCH.into());
        }
        for &number in &numbers[..count] {
            // SAFETY: fcntl(2) with F_SETFD touches no memory.
            Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, 0) })?;
        }
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure only makes system calls and allocates nothing (signal-safety(7)).
    unsafe { command.process_group(0).pre_exec(prepare) }.spawn()
}

/// Starts a program that outlives us: in a session of its own, so that no terminal reaches it, and with no signal
/// blocked or ignored (execve(2) keeps what is ignored: a shell's background job ignores SIGINT). It leads a process
/// group, too: a signal to the group reaches what the program has started. Of our descriptors above 2 only `kept` is
/// open there, under the number it has here.
///
/// # Errors
/// The program is not there or may not be executed; EAGAIN or ENOMEM as for [`fork`].
pub fn spawn_in_session(command: &mut Command, kept: Option<BorrowedFd>) -> std::io::Result<Child> {
    let number = kept.map(|fd| fd.as_raw_fd());
    let prepare = move || {
        setsid()?;
        // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC marks descriptors and touches no memory. A kernel before 5.11
        // does not know it, and what we have inherited without the mark stays open there.
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        if let Some(number) = number {
            // SAFETY: fcntl(2) with F_SETFD touches no memory.
            Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, 0) })?;
        }
        for signal in Signal::iterator().filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP)) {
            // SAFETY: SIG_DFL is no function of ours (signal(2)).
            unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
        }
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure only makes system calls and allocates nothing (signal-safety(7)).
    unsafe { command.pre_exec(prepare) }.spawn()
}

/// The limit of open descriptors (RLIMIT_NOFILE, getrlimit(2)) that this process was started with: soft and hard.
#[derive(Clone, Copy, Debug)]
pub struct DescriptorLimit(libc::rlimit);

impl DescriptorLimit {
    /// Raises ours as far as it may be, and returns what it was.
    ///
    /// # Errors
    /// EPERM where a security module forbids it.
    pub fn raise() -> nix::Result<DescriptorLimit> {
        let (rlim_cur, rlim_max) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, rlim_max, rlim_max)?;
        Ok(DescriptorLimit(libc::rlimit { rlim_cur, rlim_max }))
    }

    /// A program that we start gets it back: some take a high one for a number of descriptors to close or to keep room
    /// for.
    pub fn restore_in(self, command: &mut Command) {
        let limit = self.0;
        // SAFETY: setrlimit(2) reads the struct, which the closure owns.
        let restore = move || Errno::result(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).map(drop);
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing (signal-safety(7)).
        unsafe { command.pre_exec(move || restore().map_err(Into::into)) };
    }
}

/// Runs `last` when the process exits, after main has returned or exit(3) was called; not when a signal kills it.
pub fn at_exit(last: extern "C" fn()) {
    // SAFETY: atexit(3) keeps a pointer to a function that lives as long as the program and takes no argument.
    let result = unsafe { libc::atexit(last) };
    assert_eq!(result, 0, "atexit(3) fails only without memory");
}

/// Where there is no /proc, the kernel still answers: to leave a group of threads that has others is an error
/// (unshare(2), CLONE_THREAD), and to leave one that has none changes nothing.
fn has_one_thread() -> nix::Result<bool> {
    if let Ok(threads) = std::fs::read_dir("/proc/self/task") {
        return Ok(threads.count() == 1);
    }
    match unshare(CloneFlags::CLONE_THREAD) {
        Err(Errno::EINVAL) => Ok(false),
        other => other.map(|()| true),
    }
}

/// What the kernel accounted to a process or thread (getrusage(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_user_us: u64,
    pub cpu_system_us: u64,
    pub voluntary_switches: u64,
    pub involuntary_switches: u64,
    pub max_rss_kib: u64,
}

impl Usage {
    pub fn of_process() -> Usage {
        Usage::of(UsageWho::RUSAGE_SELF)
    }

    /// The usage of the calling thread; `max_rss_kib` is the process's.
    pub fn of_thread() -> Usage {
        Usage::of(UsageWho::RUSAGE_THREAD)
    }

    pub fn of_children() -> Usage {
        Usage::of(UsageWho::RUSAGE_CHILDREN)
    }

    pub fn cpu_us(&self) -> u64 {
        self.cpu_user_us + self.cpu_system_us
    }

    /// The CPU time from then to now; the rest of it is 0.
    pub fn cpu_since(&self, then: &Usage) -> Usage {
        Usage {
            cpu_user_us: self.cpu_user_us.saturating_sub(then.cpu_user_us),
            cpu_system_us: self.cpu_system_us.saturating_sub(then.cpu_system_us),
            ..Usage::default()
        }
    }

    fn of(who: UsageWho) -> Usage {
        Usage::from(*getrusage(who).expect("getrusage(2) fails only for a bad argument").as_ref())
    }
}

/// The usage of both together.
impl Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        Usage {
            cpu_user_us: self.cpu_user_us + other.cpu_user_us,
            cpu_system_us: self.cpu_system_us + other.cpu_system_us,
            voluntary_switches: self.voluntary_switches + other.voluntary_switches,
            involuntary_switches: self.involuntary_switches + other.involuntary_switches,
            max_rss_kib: self.max_rss_kib.max(other.max_rss_kib),
        }
    }
}

impl From<libc::rusage> for Usage {
    fn from(raw: libc::rusage) -> Usage {
        let microseconds = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
        Usage {
            cpu_user_us: microseconds(raw.ru_utime),
            cpu_system_us: microseconds(raw.ru_stime),
            voluntary_switches: raw.ru_nvcsw as u64,
            involuntary_switches: raw.ru_nivcsw as u64,
            max_rss_kib: raw.ru_maxrss as u64,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Exited(i32),
    KilledBy(i32),
}

impl Ending {
    /// Out of the number in which wait(2) packs the two cases.
    pub fn of_wait_status(status: i32) -> Ending {
        if libc::WIFSIGNALED(status) {
            Ending::KilledBy(libc::WTERMSIG(status))
        } else {
            Ending::Exited(libc::WEXITSTATUS(status))
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match *self {
            Ending::Exited(status) => write!(formatter, "ended with status {status}"),
            Ending::KilledBy(signal) => match Signal::try_from(signal) {
                Ok(signal) => write!(formatter, "was killed by {signal}"),
                Err(_) => write!(formatter, "was killed by signal {signal}"),
            },
        }
    }
}

/// A child that has ended and is still to be reaped, if there is one: until then its number, which may be its process
/// group's, is not given to anybody else (waitid(2), WNOWAIT).
pub fn ended() -> Option<Pid> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, flags).ok()?.pid()
}

/// Reaps one child that has ended, if there is one: who, how, and its account.
///
/// # Errors
/// ECHILD when there is no child left, ended or not.
pub fn reap() -> nix::Result<Option<(Pid, Ending, Usage)>> {
    let mut status = 0;
    // SAFETY: rusage is a plain struct of integers, for which all zeros is a value.
    let mut raw: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: wait4(2) writes one int and one rusage to places that are that; WNOHANG never blocks.
    let pid = Errno::result(unsafe { libc::wait4(-1, &mut status, libc::WNOHANG, &mut raw) })?;
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some((Pid::from_raw(pid), Ending::of_wait_status(status), Usage::from(raw))))
}
