//! One worker process and what the master knows of it.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::rc::Rc;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::token::Uid;
use crate::failure::Failure;
use crate::server::Ipc;
use crate::sys::epoll::Interest;
use crate::sys::process;

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

/// A process that has not been reaped.
pub struct Worker {
    pub uid: Uid,
    /// `WORKER_ID`: what it is to its clients.
    pub number: usize,
    pub pid: Pid,
    pub state: State,
    /// `None` once it has disconnected.
    pub ipc: Option<Ipc>,
    /// What its channel is registered for.
    pub interest: Interest,
    /// Its channel takes no descriptors, and is to be tried again.
    pub is_flush_due: bool,
    /// Connections that it was given and has not answered for.
    pub unanswered: Vec<Unanswered>,
    /// When to kill it; `None` while it may live.
    pub deadline_ns: Option<u64>,
    /// What it has sent against the protocol.
    pub violations: u64,
}

/// Should the worker refuse or die, the connection is still ours.
pub struct Unanswered {
    pub seq: u64,
    /// The handle it came from.
    pub handle: u64,
    pub connection: Rc<OwnedFd>,
}

impl Worker {
    /// Starts a process as worker `number`. What it writes to its standard output goes to our standard error: ours is for the ready line
    /// and the report.
    pub fn start(command_line: &[OsString], number: usize, uid: Uid) -> Result<Worker, Failure> {
        let (ipc, theirs) = Ipc::pair()?;
        let output = std::io::stderr()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Failure::new("copy standard error", error).advise("raise ulimit -n"))?;
        let program = &command_line[0];
        let mut command = Command::new(program);
        command
            .args(&command_line[1..])
            .env("NODE_CHANNEL_FD", theirs.as_raw_fd().to_string())
            .env("NODE_CHANNEL_SERIALIZATION_MODE", "json")
            .env("NODE_UNIQUE_ID", uid.to_string())
            .env("WORKER_ID", number.to_string())
            .stdin(Stdio::null())
            .stdout(output);
        let pid = process::spawn(&mut command, theirs.as_fd()).map_err(|error| {
            let advice = match error.kind() {
                std::io::ErrorKind::NotFound => "install it, or give its path",
                std::io::ErrorKind::PermissionDenied => "make it executable: chmod +x",
                _ => "start fewer with --workers, or raise ulimit -u",
            };
            Failure::new(format_args!("start {}", program.display()), error).advise(advice)
        })?;
        Ok(Worker {
            uid,
            number,
            pid,
            state: State::Starting { candidate_for: None },
            ipc: Some(ipc),
            interest: Interest::empty(),
            is_flush_due: false,
            unanswered: Vec::new(),
            deadline_ns: None,
            violations: 0,
        })
    }

    /// With all that it has started and that has stayed in its group.
    pub fn kill(&self) {
        // It may be gone; then there is nobody to kill.
        let _ = killpg(self.pid, Signal::SIGKILL);
    }
}
