//! What the workers write: read from their pipes as it comes, and told line by line with who wrote it and when, so that
//! lines of several workers never mix.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use memchr::memchr;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::journal::Journal;
use super::token::{Stream, Token, Uid};
use crate::console::Console;
use crate::failure::Failure;
use crate::sys::epoll::{Epoll, Interest};
use crate::units::utc_now_ms;

/// A longer line is told in pieces: its writer must not make us keep any amount.
const LONGEST_LINE: usize = 64 * 1024;

/// All pipes that somebody may still write to: a worker that is dead may have left more to be read.
pub struct Outputs {
    pipes: BTreeMap<(Uid, Stream), Pipe>,
    console: Rc<RefCell<Console>>,
    log: Option<Journal>,
    silent: bool,
}

struct Pipe {
    file: File,
    number: usize,
    /// The beginning of a line, whose end has not come.
    line: Vec<u8>,
}

impl Outputs {
    pub fn new(console: Rc<RefCell<Console>>, log: Option<&Path>, silent: bool) -> Result<Outputs, Failure> {
        Ok(Outputs { pipes: BTreeMap::new(), console, log: log.map(Journal::open).transpose()?, silent })
    }

    /// A pipe for worker `number`: the end that it writes to. Ours is watched.
    pub fn open(&mut self, epoll: &Epoll, uid: Uid, stream: Stream, number: usize) -> nix::Result<OwnedFd> {
        // Ours alone must not block; a worker that finds the pipe full waits, as at a terminal.
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(&ours)?;
        epoll.add(&ours, Token::Output(uid, stream).encode(), Interest::EPOLLIN)?;
        self.pipes.insert((uid, stream), Pipe { file: File::from(ours), number, line: Vec::new() });
        Ok(theirs)
    }

    /// Reads once, so that a worker that writes without end leaves the others their turn. What is returned is to be
    /// told as an event.
    #[must_use]
    pub fn read(&mut self, uid: Uid, stream: Stream, buffer: &mut [u8]) -> Option<String> {
        let pipe = self.pipes.get_mut(&(uid, stream))?;
        match pipe.file.read(buffer) {
            Ok(length @ 1..) => {
                let lines = pipe.take(&buffer[..length]);
                self.tell(&lines)
            }
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => None,
            // The last who could write is gone. The pipe leaves the epoll set with its descriptor, which is ours alone.
            Ok(0) | Err(_) => self.close(uid, stream),
        }
    }

    /// Takes what a dead worker has left, without waiting for whom it may have started.
    #[must_use]
    pub fn drain(&mut self, buffer: &mut [u8]) -> Vec<String> {
        let mut troubles = Vec::new();
        for (uid, stream) in self.pipes.keys().copied().collect::<Vec<_>>() {
            while let Some(pipe) = self.pipes.get_mut(&(uid, stream)) {
                let Ok(length @ 1..) = pipe.file.read(buffer) else {
                    troubles.extend(self.close(uid, stream));
                    break;
                };
                let lines = pipe.take(&buffer[..length]);
                troubles.extend(self.tell(&lines));
            }
        }
        troubles
    }

    fn close(&mut self, uid: Uid, stream: Stream) -> Option<String> {
        let mut pipe = self.pipes.remove(&(uid, stream))?;
        let rest = if pipe.line.is_empty() { Vec::new() } else { pipe.take(b"\n") };
        self.tell(&rest)
    }

    fn tell(&mut self, lines: &[u8]) -> Option<String> {
        match &mut self.log {
            Some(log) if !lines.is_empty() => log.write(lines),
            None if !self.silent => {
                self.console.borrow_mut().write(lines);
                None
            }
            _ => None,
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
    fn lines_are_told_whole_with_their_writer_and_endless_ones_in_pieces() {
        let file = File::open("/dev/null").unwrap();
        let mut pipe = Pipe { file, number: 3, line: Vec::new() };
        assert!(pipe.take(b"half").is_empty());
        let told = String::from_utf8(pipe.take(b" and half\n\nrest")).unwrap();
        let lines: Vec<&str> = told.lines().map(|line| line.split_once("Z ").unwrap().1).collect();
        assert_eq!(lines, ["worker 3: half and half", "worker 3: "]);
        assert_eq!(pipe.line, b"rest");
        assert!(pipe.take(&vec![b'x'; LONGEST_LINE]).len() > LONGEST_LINE);
        assert!(pipe.line.is_empty());
    }
}
