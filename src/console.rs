//! Standard error and standard output, whose reader may be slow, stalled or gone. No program of ours panics or stops
//! serving because of that:
//!
//! - a line of the log ([`log`]) is written if there is room for it; otherwise it is dropped and counted, and the next
//!   line for which there is room comes with the number of those that are missing;
//! - a document ([`print()`], [`print_last`]) is written completely, however slowly it is read;
//! - a reader that is gone is not an error anywhere: it wants no more, and the exit status is what it would have been.
//!
//! Room is what poll(2) reports, and a piece is no longer than a pipe then takes at once. When two
//! processes share a pipe, poll may report its last free page to both; the second to write waits for the reader.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use memchr::memchr_iter;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;

use crate::failure::Failure;
use crate::sys::fd::until_uninterrupted;
use crate::sys::signal::{end_at_once_on_termination, has_termination_arrived};

/// A pipe that is writable takes so much at once without blocking (pipe(7), PIPE_BUF).
const PIECE: usize = 4096;

/// How long a program that ends waits for room for its last line.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// How a program prints its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// Lines of this process that found no room and have not been reported yet.
static DROPPED: Mutex<u64> = Mutex::new(0);

pub fn log(line: impl fmt::Display) {
    log_within(line, Duration::ZERO);
}

/// Writes a line that replaces itself on a terminal, or drops it if there is no room: a stopped terminal stops nothing.
pub fn redraw(text: &str) {
    let _ = write_within(io::stderr(), &mut text.into(), Duration::ZERO);
}

/// As [`log`], for a program's last line: waits for room for a second.
pub fn log_last(line: impl fmt::Display) {
    log_within(line, LAST_WAIT);
}

fn log_within(line: impl fmt::Display, wait: Duration) {
    let mut dropped = DROPPED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut waiting = format!("{}{line}\n", describe_loss(*dropped, "error")).into_bytes();
    let is_read = write_within(io::stderr(), &mut waiting, wait).is_ok();
    *dropped = if is_read && !waiting.is_empty() { *dropped + 1 } else { 0 };
}

fn describe_loss(dropped: u64, stream: &str) -> String {
    match dropped {
        0 => String::new(),
        1 => format!("1 line was dropped here: standard {stream} was not read\n"),
        _ => format!("{dropped} lines were dropped here: standard {stream} was not read\n"),
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

/// As [`print()`], for a program that has nothing else left to do. From now on the signals that stop a server end it at
/// once, by their default action: a second signal is how to interrupt it when nobody reads.
pub fn print_last(document: &str) -> Result<(), Failure> {
    end_at_once_on_termination();
    print(document)
}

/// As [`print()`], but not any more when a signal to stop has arrived, whether it has been handled or is blocked.
pub fn print_unless_stopping(line: &str) -> Result<(), Failure> {
    print_while(line, || !has_termination_arrived())
}

pub fn print_while(document: &str, goes_on: impl Fn() -> bool) -> Result<(), Failure> {
    /// Between two looks at whether a blocked signal has arrived; one that is handled interrupts the wait.
    const LOOK_EVERY: Duration = Duration::from_millis(100);
    let mut left = document.as_bytes();
    while !left.is_empty() && goes_on() {
        match write_if_room(io::stdout().as_fd(), left, LOOK_EVERY) {
            Ok(written) => left = &left[written..],
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(Errno::EPIPE) => return Ok(()),
            Err(errno) => return Err(Failure::new("write to standard output", errno)),
        }
    }
    Ok(())
}

/// Writes a piece of these bytes as soon as there is room for one; all that fits, where the descriptor never blocks.
///
/// # Errors
/// EAGAIN when there was no room for so long, EINTR when a signal came, and those of write(2).
fn write_if_room(out: BorrowedFd, bytes: &[u8], wait: Duration) -> nix::Result<usize> {
    let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(out, PollFlags::POLLOUT)], wait) {
        Ok(0) => return Err(Errno::EAGAIN),
        Err(Errno::EINTR) => return Err(Errno::EINTR),
        // Where poll fails, write says why.
        _ => {}
    }
    let never_blocks = fcntl(out, FcntlArg::F_GETFL).is_ok_and(|flags| flags & libc::O_NONBLOCK != 0);
    let most = if never_blocks { bytes.len() } else { bytes.len().min(PIECE) };
    write(out, &bytes[..most])
}

/// Writes what the reader takes, until nothing is left, or it has taken nothing for so long. The rest stays in
/// `waiting`.
///
/// # Errors
/// Those of write(2), but for EAGAIN and EINTR.
pub fn write_within(out: impl AsFd, waiting: &mut Vec<u8>, timeout: Duration) -> nix::Result<()> {
    let mut written = 0;
    let mut outcome = Ok(());
    while written < waiting.len() {
        match until_uninterrupted(|| write_if_room(out.as_fd(), &waiting[written..], timeout)) {
            Ok(length) => written += length,
            Err(errno) => {
                outcome = if errno == Errno::EAGAIN { Ok(()) } else { Err(errno) };
                break;
            }
        }
    }
    waiting.drain(..written);
    outcome
}

pub fn count_lines(bytes: &[u8]) -> u64 {
    memchr_iter(b'\n', bytes).count() as u64
}

/// The log of a program that writes much of it, such as what its workers say: what finds no room waits here, up to a
/// bound, and is written later.
#[derive(Default)]
pub struct Console {
    /// Whether it writes to standard output, and not to standard error.
    is_output: bool,
    waiting: Vec<u8>,
    dropped: u64,
    all_dropped: u64,
}

/// What waits for a reader, of any program and any file.
pub const MOST_WAITING: usize = 1 << 20;

impl Console {
    pub fn on_standard_output() -> Console {
        Console { is_output: true, waiting: Vec::new(), dropped: 0, all_dropped: 0 }
    }

    /// Whole lines, which nobody else's come between.
    pub fn write(&mut self, lines: &[u8]) {
        if self.waiting.len() + lines.len() > MOST_WAITING {
            self.dropped += count_lines(lines);
            self.all_dropped += count_lines(lines);
        } else {
            let stream = if self.is_output { "output" } else { "error" };
            self.waiting.extend(describe_loss(std::mem::take(&mut self.dropped), stream).as_bytes());
            self.waiting.extend(lines);
        }
        self.flush(Duration::ZERO);
    }

    /// Writes what is taken now, or at most within this time.
    pub fn flush(&mut self, within: Duration) {
        let written = match self.is_output {
            true => write_within(io::stdout(), &mut self.waiting, within),
            false => write_within(io::stderr(), &mut self.waiting, within),
        };
        if written.is_err() {
            // A reader that is gone wants none of it.
            self.all_dropped += count_lines(&self.waiting);
            self.waiting.clear();
        }
    }

    pub fn all_dropped(&self) -> u64 {
        self.all_dropped
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.flush(LAST_WAIT);
    }
}
