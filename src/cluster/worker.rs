//! One worker process and what the master knows of it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::rc::Rc;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::args::MasterArgs;
use super::token::Uid;
use crate::failure::Failure;
use crate::server::Ipc;
use crate::sys::epoll::Interest;
use crate::sys::process;
use crate::units::monotonic_ns;

/// A worker that does not read is sent no more messages while so many bytes wait for it.
const MOST_UNREAD: usize = 64 << 20;

/// How far a worker has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Forked, and not listening. It may be the candidate to take the place of another.
    Starting {
        candidate_for: Option<Uid>,
    },
    Serving,
    /// It was asked to go, or has said that it will.
    Leaving,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::Starting { .. } => "starting",
            State::Serving => "serving",
            State::Leaving => "leaving",
        }
    }
}

/// A process that has not been reaped.
pub struct Worker {
    pub uid: Uid,
    /// `WORKER_ID`: what it is to its clients.
    pub number: usize,
    pub pid: Pid,
    pub state: State,
    pub started_ns: u64,
    /// `None` once it has disconnected.
    pub ipc: Option<Ipc>,
    /// What its channel is registered for.
    pub interest: Interest,
    /// Its channel takes no descriptors, and is to be tried again.
    pub is_flush_due: bool,
    /// Connections that it was given and has not answered for.
    pub unanswered: Vec<Unanswered>,
    /// Why it could not listen.
    pub trouble: Option<String>,
    /// It has listened.
    pub has_served: bool,
    /// That it ends is no surprise: it was asked to, or has said that it will.
    pub was_expected: bool,
    /// When to kill it; `None` while it may live.
    pub deadline_ns: Option<u64>,
    /// What it has sent against the protocol.
    pub violations: u64,
    /// It has said something, so its library looks at the channel.
    pub is_online: bool,
    /// It counts in the scoreboard by itself.
    pub counts: bool,
    pub heard_ns: u64,
    /// Since when it owes a sign of life.
    pub silent_since_ns: Option<u64>,
    /// That it gives none has been told.
    pub is_hung: bool,
}

/// Should the worker refuse or die, the connection is still ours.
pub struct Unanswered {
    pub seq: u64,
    /// The handle it came from.
    pub handle: u64,
    pub connection: Rc<OwnedFd>,
}

impl Worker {
    /// Starts a process as worker `number`, which writes to these two pipes and counts in this scoreboard.
    pub fn start(
        args: &MasterArgs,
        number: usize,
        uid: Uid,
        candidate_for: Option<Uid>,
        output: [OwnedFd; 2],
        scoreboard: BorrowedFd,
    ) -> Result<Worker, Failure> {
        let (ipc, theirs) = Ipc::pair()?;
        let program = &args.program[0];
        let mut command = Command::new(program);
        let [stdout, stderr] = output;
        command
            .args(&args.program[1..])
            .envs(args.env.iter().map(|(name, value)| (name, value)))
            .env("NODE_CHANNEL_FD", theirs.as_raw_fd().to_string())
            .env("NODE_CHANNEL_SERIALIZATION_MODE", "json")
            .env("NODE_UNIQUE_ID", uid.to_string())
            .env("WORKER_ID", number.to_string())
            .env("ACCEPTLAB_SCOREBOARD_FD", scoreboard.as_raw_fd().to_string())
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr);
        if let Some(gid) = args.gid {
            command.gid(gid);
        }
        if let Some(uid) = args.uid {
            command.uid(uid);
        }
        let pid = process::spawn(&mut command, &[theirs.as_fd(), scoreboard]).map_err(|error| {
            let advice = match error.kind() {
                std::io::ErrorKind::NotFound => "install it, or give its path",
                std::io::ErrorKind::PermissionDenied if args.uid.is_none() && args.gid.is_none() => {
                    "make it executable: chmod +x"
                }
                std::io::ErrorKind::PermissionDenied => {
                    "only root may choose --uid and --gid, and that user must be able to reach the program"
                }
                _ => "start fewer with --workers, or raise ulimit -u",
            };
            Failure::new(format_args!("start {}", program.display()), error).advise(advice)
        })?;
        let now_ns = monotonic_ns();
        Ok(Worker {
            uid,
            number,
            pid,
            state: State::Starting { candidate_for },
            started_ns: now_ns,
            ipc: Some(ipc),
            interest: Interest::empty(),
            is_flush_due: false,
            unanswered: Vec::new(),
            trouble: None,
            has_served: false,
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
        self.ipc.as_ref().is_some_and(|ipc| ipc.unsent_bytes() < MOST_UNREAD)
    }

    pub fn terminate(&self) {
        // As below.
        let _ = kill(self.pid, Signal::SIGTERM);
    }

    /// With all that it has started and that has stayed in its group.
    pub fn kill(&self) {
        // It may be gone; then there is nobody to kill.
        let _ = killpg(self.pid, Signal::SIGKILL);
    }
}
