//! Standard error and standard output, whose reader may be slow, stalled or gone. No program of ours panics or stops
//! serving because of that:
//!
//! - a line of the log ([`log`]) is written if there is room for it; otherwise it is dropped and counted, and the next
//!   line for which there is room comes with the number of those that are missing;
//! - a document ([`print`], [`print_last`]) is written completely, however slowly it is read;
//! - a reader that is gone is no error anywhere: it wants no more, and the exit status is what it would have been.
//!
//! Room is what poll(2) reports, and a piece is no longer than a pipe then takes at once. Two processes that share a
//! pipe may both be told of its last free page; the one that comes second waits for the reader.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;

use crate::failure::Failure;
use crate::sys::signal::{end_at_once_on_termination, has_termination_arrived};

/// A pipe that is writable takes so much at once without blocking (pipe(7), PIPE_BUF).
const PIECE: usize = 4096;

/// How long a program that ends waits for room for its last line.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Lines of this process that found no room, and of which nobody has been told.
static DROPPED: Mutex<u64> = Mutex::new(0);

/// Writes a line to standard error, or drops it if there is no room.
pub fn log(line: impl fmt::Display) {
    log_within(line, Duration::ZERO);
}

/// Writes a line that replaces itself on a terminal, or drops it if there is no room: a stopped terminal stops nothing.
pub fn redraw(text: &str) {
    let _ = write_if_room(io::stderr().as_fd(), text.as_bytes(), Duration::ZERO);
}

/// As [`log`], for a program's last line: waits for room for a second.
pub fn log_last(line: impl fmt::Display) {
    log_within(line, LAST_WAIT);
}

fn log_within(line: impl fmt::Display, wait: Duration) {
    let mut dropped = DROPPED.lock().unwrap_or_else(PoisonError::into_inner);
    let text = format!("{}{line}\n", describe_loss(*dropped));
    let mut left = text.as_bytes();
    while !left.is_empty() {
        match write_if_room(io::stderr().as_fd(), left, wait) {
            Ok(written) => left = &left[written..],
            Err(Errno::EAGAIN) => {
                *dropped += 1;
                return;
            }
            Err(_) => break,
        }
    }
    *dropped = 0;
}

fn describe_loss(dropped: u64) -> String {
    match dropped {
        0 => String::new(),
        1 => "1 line was dropped here: standard error was not read\n".to_owned(),
        _ => format!("{dropped} lines were dropped here: standard error was not read\n"),
    }
}

/// The end of a program: prints its document, or the line that says what went wrong, and gives the exit status, 0 or 1.
/// While it prints, a second signal to stop ends it.
pub fn end(outcome: Result<String, impl fmt::Display>) -> ExitCode {
    let printed = match outcome {
        Ok(document) => print_last(&format!("{document}\n")),
        Err(failure) => Err(Failure::relay(failure.to_string())),
    };
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            log_last(failure);
            ExitCode::FAILURE
        }
    }
}

/// Writes a document to standard output, all of it.
///
/// # Errors
/// When it cannot be written, as on a full disk.
pub fn print(document: &str) -> Result<(), Failure> {
    print_while(document, || true)
}

/// As [`print`], for a program that has nothing else left to do. From now on the signals that stop a server end it at
/// once, by their default action: a second signal is how to interrupt it when nobody reads.
///
/// # Errors
/// As for [`print`].
pub fn print_last(document: &str) -> Result<(), Failure> {
    end_at_once_on_termination();
    print(document)
}

/// As [`print`], but not any more when a signal to stop has arrived, whether it has been handled or is blocked.
///
/// # Errors
/// As for [`print`].
pub fn print_unless_stopping(line: &str) -> Result<(), Failure> {
    print_while(line, || !has_termination_arrived())
}

/// As [`print`], for as long as `goes_on`.
///
/// # Errors
/// As for [`print`].
pub fn print_while(document: &str, goes_on: impl Fn() -> bool) -> Result<(), Failure> {
    /// Between two looks at whether a blocked signal has arrived; one that is handled interrupts the wait.
    const LOOK_EVERY: Duration = Duration::from_millis(100);
    let mut left = document.as_bytes();
    while !left.is_empty() && goes_on() {
        match write_if_room(io::stdout().as_fd(), left, LOOK_EVERY) {
            Ok(written) => left = &left[written..],
            Err(Errno::EAGAIN) => {}
            Err(Errno::EPIPE) => return Ok(()),
            Err(errno) => return Err(Failure::new("write to standard output", errno)),
        }
    }
    Ok(())
}

/// Writes a piece of these bytes as soon as there is room for one.
///
/// # Errors
/// EAGAIN when there was none for so long, or a signal came; otherwise those of write(2).
fn write_if_room(out: BorrowedFd, bytes: &[u8], wait: Duration) -> nix::Result<usize> {
    let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
    match poll(&mut [PollFd::new(out, PollFlags::POLLOUT)], wait) {
        Ok(0) | Err(Errno::EINTR) => return Err(Errno::EAGAIN),
        // Where poll fails, write says why.
        _ => {}
    }
    match write(out, &bytes[..bytes.len().min(PIECE)]) {
        Err(Errno::EINTR) => Err(Errno::EAGAIN),
        written => written,
    }
}

/// Writes what the other end of a non-blocking descriptor takes, until nothing is left, or it has taken nothing for so
/// long. The rest stays in `waiting`.
///
/// # Errors
/// Those of write(2), but for EAGAIN.
pub fn write_within(out: impl AsFd, waiting: &mut Vec<u8>, patience: Duration) -> nix::Result<()> {
    let wait = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    while !waiting.is_empty() {
        match write(out.as_fd(), waiting) {
            Ok(taken) => drop(waiting.drain(..taken)),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                if poll(&mut [PollFd::new(out.as_fd(), PollFlags::POLLOUT)], wait) == Ok(0) {
                    return Ok(());
                }
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The log of a program that writes much of it, such as what its workers say: what finds no room waits here, up to a
/// bound, and is written later.
#[derive(Default)]
pub struct Console {
    waiting: VecDeque<u8>,
    dropped: u64,
    all_dropped: u64,
}

/// What waits for a reader.
const MOST_WAITING: usize = 1 << 20;

impl Console {
    /// Whole lines, which nobody else's come between.
    pub fn write(&mut self, lines: &[u8]) {
        if self.waiting.len() + lines.len() > MOST_WAITING {
            self.count_dropped(lines.iter().filter(|&&byte| byte == b'\n').count());
        } else {
            self.waiting.extend(describe_loss(std::mem::take(&mut self.dropped)).as_bytes());
            self.waiting.extend(lines);
        }
        self.flush(Duration::ZERO);
    }

    /// Writes what is taken now, or at most within this time.
    pub fn flush(&mut self, within: Duration) {
        while !self.waiting.is_empty() {
            match write_if_room(io::stderr().as_fd(), self.waiting.as_slices().0, within) {
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(Errno::EAGAIN) => return,
                // A reader that is gone wants none of it.
                Err(_) => {
                    let lines = self.waiting.iter().filter(|&&byte| byte == b'\n').count();
                    self.all_dropped += lines as u64;
                    self.waiting.clear();
                }
            }
        }
    }

    /// Lines that no reader got.
    pub fn all_dropped(&self) -> u64 {
        self.all_dropped
    }

    fn count_dropped(&mut self, lines: usize) {
        self.dropped += lines as u64;
        self.all_dropped += lines as u64;
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.flush(LAST_WAIT);
    }
}
