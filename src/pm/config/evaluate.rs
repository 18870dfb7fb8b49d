//! An ecosystem file in JavaScript: `node` evaluates it, as a child that has ten seconds.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use crate::failure::Failure;
use crate::sys::fd::until_uninterrupted;
use crate::sys::process::spawn_child;
use crate::units::format_duration;

/// What node runs: it writes its result to a descriptor of its own, so nothing that the file prints can spoil it.
const PROGRAM: &str = include_str!("evaluate.js");

pub const TIME: Duration = Duration::from_secs(10);

/// No ecosystem file comes near it.
const LONGEST_RESULT: usize = 16 << 20;

/// Evaluates the file with this `node`: what it exports, as JSON, and notes about what JSON cannot express. What the file
/// prints appears on standard error.
///
/// # Errors
/// One line: there is no node, the file does not end in time, or what is wrong with it, with file and line.
pub fn evaluate(node: &str, path: &Path, time: Duration) -> Result<(Value, Vec<String>), Failure> {
    let failure = |why: String| Failure::relay(format!("{}: {why}", path.display()));
    let (mut result, result_end) = io::pipe().map_err(|error| Failure::new("pipe", error))?;
    let mut command = Command::new(node);
    command.args(["--no-warnings", "--eval", PROGRAM, "--"]).arg(path).arg(result_end.as_raw_fd().to_string());
    command.stdin(Stdio::null()).stdout(io::stderr());
    let child = spawn_child(&mut command, &[result_end.as_fd()], Signal::SIGKILL, None);
    let mut child = child.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::relay(format!("{}: there is no {node}", path.display()))
            .advise("a configuration in JavaScript needs it, one in JSON, YAML or TOML does not"),
        _ => Failure::new(format!("{}: {node}", path.display()), error),
    })?;
    drop(result_end);
    let line = read_line(&mut result, Instant::now() + time);
    // It may have started others, and may not end by itself.
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    let status = child.wait().map_err(|error| Failure::new("wait for node", error))?;
    let line = line.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => failure(format!("{node} has not evaluated it within {}", format_duration(time)))
            .advise("it may only describe applications, and is to end by itself"),
        _ => Failure::new(format!("{}: read from {node}", path.display()), error),
    })?;
    if !line.ends_with(b"\n") {
        return Err(failure(match line.len() {
            LONGEST_RESULT.. => format!("it exports more than {} MiB", LONGEST_RESULT >> 20),
            _ => format!("{node} ended before the file was evaluated ({status})"),
        }));
    }
    let evaluated: Result<_, String> =
        serde_json::from_slice(&line).map_err(|error| failure(format!("{node} answered something else: {error}")))?;
    evaluated.map_err(Failure::relay)
}

/// The line, or what there is of it when its writer has ended or it is too long.
fn read_line(result: &mut io::PipeReader, deadline: Instant) -> io::Result<Vec<u8>> {
    let (mut line, mut piece) = (Vec::new(), [0; 65536]);
    while !line.ends_with(b"\n") && line.len() < LONGEST_RESULT {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if until_uninterrupted(|| poll(&mut [PollFd::new(result.as_fd(), PollFlags::POLLIN)], left))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match result.read(&mut piece)? {
            0 => break,
            n => line.extend_from_slice(&piece[..n]),
        }
    }
    Ok(line)
}
