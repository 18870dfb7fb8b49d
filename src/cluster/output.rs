//! What the workers write: read from their pipes as it comes, and written line by line with the worker's number and the
//! time, so that lines of several workers never mix.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use memchr::memchr;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::event_log::EventLog;
use super::log_file::LogFile;
use super::poller::Poller;
use super::token::{Stream, Token, UniqueId};
use crate::failure::Failure;
use crate::sys::epoll::Interest;
use crate::units::utc_now_ms;

/// A longer line is written in pieces: its writer must not make us keep any amount.
const LONGEST_LINE: usize = 64 * 1024;

const BUFFER_BYTES: usize = 64 * 1024;

/// The pipes that some process may still write to: a dead worker may have left more to be read.
pub struct Outputs {
    pipes: BTreeMap<(UniqueId, Stream), Pipe>,
    /// Instead of standard error.
    file: Option<LogFile>,
    is_silent: bool,
    buffer: Vec<u8>,
}

struct Pipe {
    file: File,
    number: usize,
    /// The beginning of a line, whose end has not come.
    line: Vec<u8>,
}

impl Outputs {
    pub fn new(file: Option<&Path>, is_silent: bool) -> Result<Outputs, Failure> {
        let file = file.map(LogFile::open).transpose()?;
        Ok(Outputs { pipes: BTreeMap::new(), file, is_silent, buffer: vec![0; BUFFER_BYTES] })
    }

    /// A pipe for worker `number`: the end that it writes to. The poller watches ours.
    pub fn open(&mut self, poller: &Poller, id: UniqueId, stream: Stream, number: usize) -> nix::Result<OwnedFd> {
        // Only our end must not block; a worker that finds the pipe full waits, as at a terminal.
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(&ours)?;
        poller.add(&ours, Token::Output(id, stream), Interest::EPOLLIN)?;
        self.pipes.insert((id, stream), Pipe { file: File::from(ours), number, line: Vec::new() });
        Ok(theirs)
    }

    /// Reads once, so that a worker that writes without end leaves the others their turn.
    pub fn read(&mut self, id: UniqueId, stream: Stream, log: &mut EventLog) {
        let Some(pipe) = self.pipes.get_mut(&(id, stream)) else { return };
        match pipe.file.read(&mut self.buffer) {
            Ok(length @ 1..) => {
                let lines = pipe.take(&self.buffer[..length]);
                self.write(&lines, log);
            }
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => {}
            // No process can write to it any more. It leaves the epoll set with its descriptor, which only we hold.
            Ok(0) | Err(_) => self.close(id, stream, log),
        }
    }

    /// Reads what dead workers have left, without waiting for processes that they may have started.
    pub fn drain(&mut self, log: &mut EventLog) {
        for (id, stream) in self.pipes.keys().copied().collect::<Vec<_>>() {
            while let Some(pipe) = self.pipes.get_mut(&(id, stream)) {
                let Ok(length @ 1..) = pipe.file.read(&mut self.buffer) else {
                    self.close(id, stream, log);
                    break;
                };
                let lines = pipe.take(&self.buffer[..length]);
                self.write(&lines, log);
            }
        }
    }

    /// After a rotation.
    pub fn reopen(&mut self, log: &mut EventLog) {
        if let Some(Err(failure)) = self.file.as_mut().map(LogFile::reopen) {
            log.log_failure(&failure.to_string());
        }
    }

    /// Lines that the file did not take.
    pub fn lines_dropped(&self) -> u64 {
        self.file.as_ref().map_or(0, |file| file.all_dropped)
    }

    fn close(&mut self, id: UniqueId, stream: Stream, log: &mut EventLog) {
        let Some(mut pipe) = self.pipes.remove(&(id, stream)) else { return };
        let rest = if pipe.line.is_empty() { Vec::new() } else { pipe.take(b"\n") };
        self.write(&rest, log);
    }

    fn write(&mut self, lines: &[u8], log: &mut EventLog) {
        match &mut self.file {
            Some(file) if !lines.is_empty() => {
                if let Some(problem) = file.write(lines) {
                    log.log_failure(&problem);
                }
            }
            None if !self.is_silent => log.console.write(lines),
            _ => {}
        }
    }
}

impl Pipe {
    /// The lines that these bytes complete, each with its head.
    fn take(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let head = format!("{} worker {}: ", utc_now_ms(), self.number);
        let mut lines = Vec::new();
        while let Some(end) = memchr(b'\n', bytes) {
            self.line.extend_from_slice(&bytes[..end]);
            self.finish_line(&head, &mut lines);
            bytes = &bytes[end + 1..];
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() > LONGEST_LINE {
            self.finish_line(&head, &mut lines);
        }
        lines
    }

    fn finish_line(&mut self, head: &str, lines: &mut Vec<u8>) {
        lines.extend_from_slice(head.as_bytes());
        lines.append(&mut self.line);
        lines.push(b'\n');
    }
}

fn set_nonblocking(pipe: &OwnedFd) -> nix::Result<()> {
    nix::fcntl::fcntl(pipe, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_written_whole_with_their_worker_and_endless_ones_in_pieces() {
        let file = File::open("/dev/null").unwrap();
        let mut pipe = Pipe { file, number: 3, line: Vec::new() };
        assert!(pipe.take(b"half").is_empty());
        let written = String::from_utf8(pipe.take(b" and half\n\nrest")).unwrap();
        let lines: Vec<&str> = written.lines().map(|line| line.split_once("Z ").unwrap().1).collect();
        assert_eq!(lines, ["worker 3: half and half", "worker 3: "]);
        assert_eq!(pipe.line, b"rest");
        assert!(pipe.take(&vec![b'x'; LONGEST_LINE]).len() > LONGEST_LINE);
        assert!(pipe.line.is_empty());
    }
}
