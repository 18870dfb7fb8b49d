//! One process: started in a session and process group of its own, watched by a descriptor, and asked to end together
//! with what it has started.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde::{Deserialize, Serialize};

use super::home::PmHome;
use super::logs::LogStream;
use crate::failure::Failure;
use crate::sys::pidfd::PidFd;
use crate::sys::process::{Ending, spawn_in_session};
use crate::sys::procfs::Stat;
use crate::units::{monotonic_ns, wall_ms};

/// What a FIFO holds while nobody reads, if the kernel lets us have it (pipe(7), pipe-user-pages-soft).
const FIFO_BYTES: i32 = 256 << 10;

/// What names one process for ever: its number and its start, in ticks since the machine was started. The state file
/// has it, so that the next daemon finds the process, and no other that has its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    pub pid: i32,
    pub started: u64,
    /// The same start by two clocks: CLOCK_MONOTONIC to measure, and the wall's to show.
    pub since_ns: u64,
    pub since_ms: u64,
}

/// A process that has been started, by this daemon or one before it, and has not been seen to end.
pub struct RunningProcess {
    pub identity: ProcessIdentity,
    pub pidfd: PidFd,
}

impl RunningProcess {
    /// Starts this program; it writes to these FIFOs, and reads nothing.
    ///
    /// # Errors
    /// What cannot be executed, and what to do about it.
    pub fn start(command: &mut Command, home: &PmHome, id: u32) -> Result<RunningProcess, Failure> {
        let tried = || format!("start {}", Path::new(command.get_program()).display());
        let open = |stream| open_fifo(home, id, stream);
        let (out, error) = (open(LogStream::Out)?, open(LogStream::Error)?);
        if let Some(folder) = command.get_current_dir().filter(|folder| !folder.is_dir()) {
            let cwd = format!("{} in {}", tried(), folder.display());
            return Err(Failure::new(cwd, Errno::ENOENT).advise("cwd has to be a folder"));
        }
        let (tried, program) = (tried(), command.get_program().to_owned());
        command.stdin(Stdio::null()).stdout(out).stderr(error);
        let child = spawn_in_session(command, None).map_err(|error| {
            let failure = Failure::new(tried, error);
            let mode = fs::metadata(&program).map(|metadata| metadata.permissions().mode());
            if mode.is_ok_and(|mode| mode & 0o111 == 0) {
                return failure.advise("make it executable (chmod +x), or name an --interpreter");
            }
            failure
        })?;
        let pid = Pid::from_raw(child.id() as i32);
        let failed = |errno: Errno| Failure::new(format_args!("watch process {pid}"), errno);
        let pidfd = PidFd::open(pid).map_err(failed)?;
        // It is our child, so even if it has ended its entry is there.
        let started = Stat::of(pid.as_raw()).ok_or(Errno::ESRCH).map_err(failed)?.started;
        let identity = ProcessIdentity { pid: pid.as_raw(), started, since_ns: monotonic_ns(), since_ms: wall_ms() };
        Ok(RunningProcess { identity, pidfd })
    }

    /// The process of this number, if it is still the one that was started then.
    pub fn adopt(identity: ProcessIdentity) -> Option<RunningProcess> {
        // First the descriptor: a process that is looked at through it cannot be replaced by another meanwhile.
        let pidfd = PidFd::open(Pid::from_raw(identity.pid)).ok()?;
        let is_same = Stat::of(identity.pid).is_some_and(|stat| stat.started == identity.started && stat.is_alive());
        is_same.then_some(RunningProcess { identity, pidfd })
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.identity.pid)
    }

    pub fn uptime(&self, now_ns: u64) -> Duration {
        Duration::from_nanos(now_ns.saturating_sub(self.identity.since_ns))
    }

    /// How it has ended, once its descriptor says that it has. `None` where nobody knows: it was the child of a daemon
    /// before us, and the kernel does not tell.
    pub fn reap(&self) -> Option<Ending> {
        self.pidfd.reap().unwrap_or_else(|_| self.pidfd.ending())
    }

    /// Sends a signal to the process and, with `tree`, to its group and to its descendants in other groups.
    ///
    /// # Errors
    /// Those of the process itself: ESRCH when it has ended.
    pub fn signal(&self, signal: Signal, tree: bool) -> nix::Result<()> {
        let others = if tree { descendants(self.identity.pid) } else { Vec::new() };
        let sent = self.pidfd.signal(signal);
        for other in others {
            // One that has ended meanwhile needs no signal.
            let _ = kill(Pid::from_raw(other), signal);
        }
        sent
    }
}

/// Kills what is left of a group whose leader has ended.
pub fn kill_group(leader: Pid) {
    let _ = killpg(leader, Signal::SIGKILL);
}

/// Whether a process of the group is left.
pub fn has_group(leader: Pid) -> bool {
    killpg(leader, None).is_ok()
}

/// Processes that this one has started, and theirs, and all others of its group.
fn descendants(root: i32) -> Vec<i32> {
    let all: Vec<Stat> = Stat::everybody().collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        let children = all.iter().filter(|stat| stat.parent == parent || stat.group == parent && parent == root);
        let new: Vec<i32> = children.map(|stat| stat.pid).filter(|pid| !found.contains(pid)).collect();
        found.extend(new);
        next += 1;
    }
    found.split_off(1)
}

/// A FIFO that is open for reading too, so that its reader can go and come: nothing is lost, and nobody gets SIGPIPE
/// (fifo(7)).
pub fn open_fifo(home: &PmHome, id: u32, stream: LogStream) -> Result<File, Failure> {
    let path = home.fifo(id, stream);
    let failed = |error: std::io::Error| Failure::new(format_args!("open {}", path.display()), error);
    match mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    let fifo = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
    // A user who has many pipes gets no larger ones (EPERM), which is as good.
    let _ = fcntl(&fifo, FcntlArg::F_SETPIPE_SZ(FIFO_BYTES));
    Ok(fifo)
}
