//! What the workers write: read from their pipes as it comes, and written line by line with the worker's number and the
//! time, so that lines of several workers never mix.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;

use memchr::memchr;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use super::log::Log;
use super::poller::{OutputStream, Poller, Token, UniqueId};
use crate::sys::epoll::Interest;
use crate::units::utc_now_ms;

/// A longer line is written in pieces: its writer must not make us keep any amount.
const LONGEST_LINE: usize = 64 * 1024;

const BUFFER_BYTES: usize = 64 * 1024;

/// The pipes that some process may still write to: a dead worker may have left more to be read.
pub struct Outputs {
    pipes: BTreeMap<(UniqueId, OutputStream), Pipe>,
    buffer: Vec<u8>,
}

struct Pipe {
    file: File,
    number: usize,
    line: Vec<u8>,
}

impl Default for Outputs {
    fn default() -> Outputs {
        Outputs { pipes: BTreeMap::new(), buffer: vec![0; BUFFER_BYTES] }
    }
}

impl Outputs {
    /// A pipe for worker `number`: the end that it writes to. The poller watches ours.
    pub fn open(&mut self, poller: &Poller, id: UniqueId, stream: OutputStream, number: usize) -> nix::Result<OwnedFd> {
        // Only our end must not block; a worker that finds the pipe full waits, as at a terminal.
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        poller.epoll.add(&ours, Token::Output(id, stream).encode(), Interest::EPOLLIN)?;
        self.pipes.insert((id, stream), Pipe { file: File::from(ours), number, line: Vec::new() });
        Ok(theirs)
    }

    /// Reads once, so that a worker that writes without end leaves the others their turn. True: there may be more.
    pub fn read(&mut self, id: UniqueId, stream: OutputStream, log: &mut Log) -> bool {
        let Some(pipe) = self.pipes.get_mut(&(id, stream)) else { return false };
        match pipe.file.read(&mut self.buffer) {
            Ok(length @ 1..) => {
                log.write_output(&pipe.take(&self.buffer[..length]));
                return true;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // No process can write to it any more. It leaves the epoll set with its descriptor, which only we hold.
            Ok(0) | Err(_) => self.close(id, stream, log),
        }
        false
    }

    /// Reads what dead workers have left, without waiting for processes that they may have started.
    pub fn drain(&mut self, log: &mut Log) {
        for (id, stream) in self.pipes.keys().copied().collect::<Vec<_>>() {
            while self.read(id, stream, log) {}
            self.close(id, stream, log);
        }
    }

    fn close(&mut self, id: UniqueId, stream: OutputStream, log: &mut Log) {
        let pipe = self.pipes.remove(&(id, stream)).filter(|pipe| !pipe.line.is_empty());
        pipe.into_iter().for_each(|mut pipe| log.write_output(&pipe.take(b"\n")));
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
