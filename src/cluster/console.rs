//! Standard error, which may be a pipe that nobody reads: what it does not take waits here, up to a bound, and the master
//! goes on. Whatever else does not fit is dropped and counted.

use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A pipe that is writable takes so much at once without blocking (pipe(7), PIPE_BUF).
const PIECE: usize = 4096;

/// What waits for a reader.
const MOST_WAITING: usize = 1 << 20;

#[derive(Default)]
pub struct Console {
    waiting: VecDeque<u8>,
    dropped: u64,
}

impl Console {
    /// Whole lines, which nobody else's come between.
    pub fn write(&mut self, lines: &[u8]) {
        if self.waiting.len() + lines.len() > MOST_WAITING {
            self.dropped += lines.iter().filter(|&&byte| byte == b'\n').count() as u64;
        } else {
            if self.dropped > 0 {
                let told = format!("{} lines were dropped here: standard error was not read\n", self.dropped);
                self.waiting.extend(told.as_bytes());
                self.dropped = 0;
            }
            self.waiting.extend(lines);
        }
        self.flush(Duration::ZERO);
    }

    /// Writes what is taken now, or at most within this time.
    pub fn flush(&mut self, within: Duration) {
        let mut out = std::io::stderr();
        while !self.waiting.is_empty() {
            let patience = PollTimeout::try_from(within.as_millis() as i32).unwrap_or(PollTimeout::ZERO);
            let is_able = poll(&mut [PollFd::new(out.as_fd(), PollFlags::POLLOUT)], patience) == Ok(1);
            if !is_able {
                return;
            }
            let (front, _) = self.waiting.as_slices();
            let piece = &front[..front.len().min(PIECE)];
            match out.write(piece) {
                Ok(length) => drop(self.waiting.drain(..length)),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // Who has closed it wants none of it.
                Err(_) => self.waiting.clear(),
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.flush(Duration::from_secs(1));
    }
}
