//! One process: started in a session of its own, watched by a descriptor, writing to FIFOs that outlive the daemon.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::time::ClockId;
use nix::unistd::{Pid, mkfifo};
use serde::{Deserialize, Serialize};

use super::json_lines::JsonLines;
use crate::failure::Failure;
use crate::sys::pidfd::PidFd;
use crate::sys::process::spawn_in_session;
use crate::sys::procfs::Stat;
use crate::units::{clock_ns, monotonic_ns, wall_ms};

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

impl ProcessIdentity {
    pub fn of(stat: &Stat) -> ProcessIdentity {
        // The kernel counts its start in ticks of 10 ms of CLOCK_BOOTTIME (proc_pid_stat(5)).
        let age_ms = (clock_ns(ClockId::CLOCK_BOOTTIME) / 1_000_000).saturating_sub(stat.started * 10);
        ProcessIdentity {
            pid: stat.pid,
            started: stat.started,
            since_ns: monotonic_ns().saturating_sub(age_ms * 1_000_000),
            since_ms: wall_ms().saturating_sub(age_ms),
        }
    }
}

/// A process that has been started, by this daemon or one before it, and has not been seen to end.
pub struct RunningProcess {
    pub identity: ProcessIdentity,
    pub pidfd: PidFd,
}

impl RunningProcess {
    /// Starts this program. `kept` is open there, too; `watch` is to report its end.
    pub fn start(
        command: &mut Command,
        kept: Option<BorrowedFd>,
        watch: impl FnOnce(&PidFd) -> nix::Result<()>,
    ) -> Result<RunningProcess, Failure> {
        let tried = format!("start {}", Path::new(command.get_program()).display());
        let child = spawn_in_session(command, kept).map_err(|error| Failure::new(tried, error))?;
        let pid = Pid::from_raw(child.id() as i32);
        let watched = PidFd::open(pid).and_then(|pidfd| {
            watch(&pidfd)?;
            // It is our child, so even if it has ended its entry is there.
            let stat = Stat::of(pid.as_raw()).ok_or(Errno::ESRCH)?;
            Ok(RunningProcess { identity: ProcessIdentity::of(&stat), pidfd })
        });
        watched.map_err(|errno| {
            // Nobody would notice its end.
            let _ = killpg(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
            Failure::new(format_args!("watch process {pid}"), errno).advise("it was killed")
        })
    }

    /// The process of this number, if it is still the one that was started then.
    pub fn adopt(identity: ProcessIdentity) -> Option<RunningProcess> {
        // First the descriptor: a process that is looked at through it cannot be replaced by another meanwhile.
        let pidfd = PidFd::open(Pid::from_raw(identity.pid)).ok()?;
        let is_same = Stat::of(identity.pid).is_some_and(|stat| stat.started == identity.started && stat.is_alive());
        is_same.then_some(RunningProcess { identity, pidfd })
    }

    pub fn uptime(&self) -> Duration {
        Duration::from_nanos(monotonic_ns().saturating_sub(self.identity.since_ns))
    }
}

/// Where a process says that it is ready, by `process.send('ready')` of a Node program: our end, and the one that the
/// program inherits, as of Node's fork().
pub fn open_channel(command: &mut Command) -> Result<(JsonLines<UnixStream>, UnixStream), Failure> {
    let pair = UnixStream::pair().and_then(|pair| pair.0.set_nonblocking(true).map(|()| pair));
    let (ours, theirs) = pair.map_err(|error| Failure::new("open a channel", error))?;
    command.env("NODE_CHANNEL_FD", theirs.as_raw_fd().to_string()).env("NODE_CHANNEL_SERIALIZATION_MODE", "json");
    Ok((JsonLines::new(ours), theirs))
}

/// A FIFO that is open for reading too, so that its reader can go and come: nothing is lost, and nobody gets SIGPIPE
/// (fifo(7)). It is as large as any: a user may have 512 applications before the kernel makes their pipes smaller, and
/// would have 128 if ours held four times as much (pipe(7), pipe-user-pages-soft).
pub fn open_fifo(path: &Path, flags: OFlag) -> Result<File, Failure> {
    let failed = |error: io::Error| Failure::new(format_args!("open {}", path.display()), error);
    match mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    OpenOptions::new().read(true).write(true).custom_flags(flags.bits()).open(path).map_err(failed)
}
