//! An ecosystem file in JavaScript: `node` evaluates it, as a child that has ten seconds.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
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

/// What the file exports, as JSON, and notes about what JSON cannot express.
#[derive(Debug, PartialEq)]
pub struct Evaluated {
    pub value: Value,
    pub notes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum EvaluationLine {
    Failed { error: String, file: Option<PathBuf>, line: Option<u64> },
    Done { value: Value, notes: Vec<String> },
}

/// Evaluates the file with this `node`. What the file prints appears on standard error.
///
/// # Errors
/// One line: there is no node, the file does not end in time, or what is wrong with it, with file and line.
pub fn evaluate(node: &str, path: &Path, time: Duration) -> Result<Evaluated, Failure> {
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
    let line = match line.map_err(|error| Failure::new(format!("{}: read from {node}", path.display()), error))? {
        NodeOutput::Line(line) => line,
        NodeOutput::TooLong => return Err(failure(format!("it exports more than {} MiB", LONGEST_RESULT >> 20))),
        NodeOutput::TimedOut => {
            let time = format_duration(time);
            let advice = "it may only describe applications, and is to end by itself";
            return Err(failure(format!("{node} has not evaluated it within {time}")).advise(advice));
        }
        NodeOutput::Closed => return Err(failure(format!("{node} ended before the file was evaluated ({status})"))),
    };
    match serde_json::from_slice(&line).map_err(|error| failure(format!("{node} answered something else: {error}")))? {
        EvaluationLine::Done { value, notes } => Ok(Evaluated { value, notes }),
        EvaluationLine::Failed { error, file: Some(file), line: Some(line) } => {
            Err(Failure::relay(format!("{}:{line}: {error}", file.display())))
        }
        EvaluationLine::Failed { error, .. } => Err(failure(error)),
    }
}

enum NodeOutput {
    Line(Vec<u8>),
    TooLong,
    TimedOut,
    Closed,
}

fn read_line(result: &mut io::PipeReader, deadline: Instant) -> io::Result<NodeOutput> {
    let (mut line, mut piece) = (Vec::new(), [0; 65536]);
    while !line.ends_with(b"\n") {
        let left =
            PollTimeout::try_from(deadline.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::MAX);
        if until_uninterrupted(|| poll(&mut [PollFd::new(result.as_fd(), PollFlags::POLLIN)], left))? == 0 {
            return Ok(NodeOutput::TimedOut);
        }
        match result.read(&mut piece)? {
            0 => return Ok(NodeOutput::Closed),
            n => line.extend_from_slice(&piece[..n]),
        }
        if line.len() > LONGEST_RESULT {
            return Ok(NodeOutput::TooLong);
        }
    }
    Ok(NodeOutput::Line(line))
}
