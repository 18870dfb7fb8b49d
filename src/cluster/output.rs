//! What the workers write: read from their pipes as it comes, and written line by line with the worker's number and the
//! time, so that lines of several workers never mix.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use super::log::Log;
use super::poller::{OutputStream, Poller, Token, UniqueId};
use crate::logs::lines::{END_OF_OUTPUT, LineFormat, LineSplitter};
use crate::sys::epoll::Interest;
use crate::units::utc_now_ms;

const BUFFER_BYTES: usize = 64 * 1024;

/// The pipes that some process may still write to: a dead worker may have left more to be read.
pub struct Outputs {
    pipes: BTreeMap<(UniqueId, OutputStream), Pipe>,
    buffer: Vec<u8>,
}

struct Pipe {
    file: File,
    number: usize,
    splitter: LineSplitter,
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
        self.pipes.insert(
            (id, stream),
            Pipe { file: File::from(ours), number, splitter: LineSplitter::new(LineFormat::Plain) },
        );
        Ok(theirs)
    }

    /// Reads once, so that a worker that writes without end leaves the others their turn. True: there may be more.
    pub fn read(&mut self, id: UniqueId, stream: OutputStream, log: &mut Log) -> bool {
        let Some(pipe) = self.pipes.get_mut(&(id, stream)) else { return false };
        match pipe.file.read(&mut self.buffer) {
            Ok(length @ 1..) => {
                let mut lines = Vec::new();
                pipe.splitter.take(&self.buffer[..length], &pipe.head(), &mut lines);
                log.write_output(&lines);
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
        let Some(mut pipe) = self.pipes.remove(&(id, stream)) else { return };
        let mut lines = Vec::new();
        pipe.splitter.end(&pipe.head(), &mut lines);
        log.write_output(&lines);
    }
}

impl Pipe {
    /// What stands before a line.
    fn head(&self) -> String {
        format!("{} worker {}", utc_now_ms(), self.number)
    }
}

/// The path that a worker writes this stream to, with `--worker-output`.
pub fn path_of_worker(base: &Path, number: usize, stream: OutputStream) -> PathBuf {
    let word = if stream == OutputStream::Output { "out" } else { "err" };
    format!("{}.{number}-{word}", base.display()).into()
}

/// The worker has ended, or is about to: whoever reads its FIFOs learns it between its last byte and the first of its
/// successor. Where a FIFO is full nobody waits, and a line without an end is continued.
pub fn end_worker(base: &Path, number: usize) {
    for stream in [OutputStream::Output, OutputStream::Error] {
        let mut options = OpenOptions::new();
        options.read(true).append(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let fifo = options.open(path_of_worker(base, number, stream)).ok();
        let fifo = fifo.filter(|fifo| fifo.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo()));
        // As few bytes as these are written together, or not at all (pipe(7), PIPE_BUF).
        let _ = fifo.map(|mut fifo| fifo.write(END_OF_OUTPUT));
    }
}
