//! One worker process and what the master knows of it.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::args::MasterArgs;
use super::poller::{Due, Poller, Token, UniqueId};
use crate::failure::Failure;
use crate::scoreboard::{Count, WorkerRow};
use crate::server::accept::BACK_OFF;
use crate::server::ipc::Ipc;
use crate::sys::epoll::Interest;
use crate::sys::process;
use crate::sys::procfs::resident_kib;
use crate::units::monotonic_ns;

/// A worker is sent no more messages while so many bytes wait to be read by it.
const MOST_UNREAD: usize = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// Started, and not listening. `must_listen`: it is to replace a worker that has listened.
    Starting { must_listen: bool },
    /// It listens.
    Serving,
    /// It has lived for `--listen-timeout` without listening: it reads a queue, say, or listens by itself.
    Running,
    /// It was asked to leave, or has said that it will.
    Leaving,
}

impl WorkerState {
    pub fn name(self) -> &'static str {
        match self {
            WorkerState::Starting { .. } => "starting",
            WorkerState::Serving => "serving",
            WorkerState::Running => "running",
            WorkerState::Leaving => "leaving",
        }
    }

    pub fn is_working(self) -> bool {
        matches!(self, WorkerState::Serving | WorkerState::Running)
    }
}

pub struct WorkerProcess {
    pub id: UniqueId,
    /// `WORKER_ID`, which its successor will have too.
    pub number: usize,
    pub pid: Pid,
    pub state: WorkerState,
    pub started_ns: u64,
    /// `None` once it has disconnected.
    pub ipc: Option<Ipc>,
    interest: Interest,
    /// Its channel takes no descriptors, and is to be tried again.
    is_flush_due: bool,
    /// Connections that it was given and has not answered for.
    pub unanswered: Vec<Unanswered>,
    pub last_error: Option<String>,
    pub has_listened: bool,
    /// Its end is expected: it was asked to leave, or has said that it will.
    pub was_expected: bool,
    /// When to kill it; `None` while it may live.
    pub deadline_ns: Option<u64>,
    pub violations: u64,
    /// It has sent something, so its library reads the channel.
    pub is_online: bool,
    /// It counts in the scoreboard by itself.
    pub counts: bool,
    heard_ns: u64,
    /// The time since which it owes a sign of life.
    silent_since_ns: Option<u64>,
    pub is_hung: bool,
}

/// A connection that a worker was given: should it refuse or die, another gets it.
pub struct Unanswered {
    pub seq: u64,
    pub socket: u64,
    pub connection: Arc<OwnedFd>,
}

/// What the user can do about a program that could not be started.
fn advice(error: ErrorKind, has_other_user: bool) -> &'static str {
    match error {
        ErrorKind::NotFound => "install it, or give its path",
        ErrorKind::PermissionDenied if has_other_user => {
            "only root may choose --uid and --gid, and that user must be able to reach the program"
        }
        ErrorKind::PermissionDenied => "make it executable: chmod +x",
        _ => "start fewer with --workers, or raise ulimit -u",
    }
}

impl WorkerProcess {
    pub fn start(
        mut command: Command,
        args: &MasterArgs,
        number: usize,
        id: UniqueId,
        must_listen: bool,
        scoreboard: BorrowedFd,
    ) -> Result<WorkerProcess, Failure> {
        let (ipc, theirs) = Ipc::pair()?;
        let program = args.program[0].display();
        command
            .env("NODE_CHANNEL_FD", theirs.as_raw_fd().to_string())
            .env("NODE_CHANNEL_SERIALIZATION_MODE", "json")
            .env("NODE_UNIQUE_ID", id.0.to_string())
            .env("WORKER_ID", number.to_string())
            .env("ACCEPTLAB_SCOREBOARD_FD", scoreboard.as_raw_fd().to_string())
            .stdin(Stdio::null());
        if let Some(gid) = args.gid {
            command.gid(gid);
        }
        if let Some(uid) = args.uid {
            command.uid(uid);
        }
        let pid = process::spawn(&mut command, &[theirs.as_fd(), scoreboard]).map_err(|error| {
            let advice = advice(error.kind(), args.uid.is_some() || args.gid.is_some());
            Failure::new(format_args!("start {program}"), error).advise(advice)
        })?;
        let now_ns = monotonic_ns();
        Ok(WorkerProcess {
            id,
            number,
            pid,
            state: WorkerState::Starting { must_listen },
            started_ns: now_ns,
            ipc: Some(ipc),
            interest: Interest::empty(),
            is_flush_due: false,
            unanswered: Vec::new(),
            last_error: None,
            has_listened: false,
            was_expected: false,
            deadline_ns: None,
            violations: 0,
            is_online: false,
            counts: false,
            heard_ns: now_ns,
            silent_since_ns: None,
            is_hung: false,
        })
    }

    /// It reads what it is sent, or has not been sent much.
    pub fn has_room(&self) -> bool {
        self.ipc.as_ref().is_some_and(|ipc| ipc.unsent_bytes < MOST_UNREAD)
    }

    /// Lets the poller wait for what the channel needs now. False: the channel takes nothing any more.
    pub fn watch(&mut self, poller: &mut Poller) -> bool {
        let Some(ipc) = &self.ipc else { return true };
        if ipc.is_broken {
            return false;
        }
        let interest = ipc.interest();
        if interest != self.interest {
            // A registration is changed without allocating, so this cannot fail (epoll_ctl(2)).
            let _ = poller.epoll.modify(ipc, Token::Worker(self.id).encode(), interest);
            self.interest = interest;
        }
        if ipc.is_starved && !self.is_flush_due {
            self.is_flush_due = true;
            poller.after(BACK_OFF, Due::Flush(self.id));
        }
        true
    }

    pub fn flush(&mut self) {
        self.is_flush_due = false;
        if let Some(ipc) = &mut self.ipc {
            ipc.flush();
        }
    }

    /// For how long it has given no sign of life, if it owes one. A worker that was given something answers for it; one
    /// that owes no answer is asked for a sign of life now and then, which its library gives without asking the program
    /// (`Ipc::ping`): so it shows that the process's event loop turns, and no more.
    pub fn silence_ns(&mut self, now_ns: u64, beat_ns: u64) -> Option<u64> {
        // A worker that leaves has its time for that.
        let is_watched = self.is_online && self.state != WorkerState::Leaving;
        let ipc = self.ipc.as_mut().filter(|_| is_watched)?;
        if ipc.awaits_acknowledgement() || !self.unanswered.is_empty() {
            return Some(now_ns - *self.silent_since_ns.get_or_insert(now_ns));
        }
        if self.heard_ns + beat_ns <= now_ns {
            ipc.ping();
            self.silent_since_ns = Some(now_ns);
        }
        None
    }

    /// Something has come from it. True: it was taken for hung.
    pub fn shows_life(&mut self, now_ns: u64) -> bool {
        self.heard_ns = now_ns;
        self.silent_since_ns = None;
        std::mem::take(&mut self.is_hung)
    }

    /// What only the program knows (requests, open connections) is there where it counts in the scoreboard. Counts are
    /// of all processes that had this number.
    pub fn status(&self, row: WorkerRow) -> Value {
        json!({
            "worker": self.number,
            "unique_id": self.id.0,
            "pid": self.pid.as_raw(),
            "state": if self.is_hung { "hung" } else { self.state.name() },
            "age_s": (monotonic_ns() - self.started_ns) as f64 / 1e9,
            "accepted": row.get(Count::Accepted),
            "requests": self.counts.then(|| row.get(Count::Requests)),
            "active": self.counts.then(|| row.get(Count::Active)),
            "unanswered": self.unanswered.len(),
            "rss_kib": resident_kib(self.pid.as_raw()),
        })
    }

    pub fn terminate(&self) {
        // It fails where the process is gone, and then it has ended already.
        let _ = kill(self.pid, Signal::SIGTERM);
    }

    /// Kills it, and all that it has started and that has stayed in its group.
    pub fn kill(&self) {
        // It may be gone; then there is nothing to kill.
        let _ = killpg(self.pid, Signal::SIGKILL);
    }
}
