//! One output of one process: read from its pipe as it comes, and written in whole lines to its files.
//!
//! The pipe is a FIFO that outlives both ends: the process may be restarted, and the next daemon reads on. So a writer
//! stays when its process ends; [`LogWriter::finish`] then completes a line that has no end.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::read;

use super::file::{AppendFile, Buffers, LogFiles, Rotation};
use super::lines::{LineFormat, LineSplitter, USUAL_CAPACITY};
use super::time_stamp::TimeStamps;
use crate::sys::fd::until_uninterrupted;
use crate::units::utc_now_ms;

/// What is read before another output has its turn.
const MOST_AT_ONCE: usize = 1 << 20;

/// So many bytes of lines are one write(2), or a little more.
const BATCH: usize = 256 << 10;

/// Where the lines of one output go, and how they look.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// Each gets every line: the log of this output, and perhaps one for all outputs of the application.
    pub paths: Vec<PathBuf>,
    pub format: LineFormat,
    /// `log_date_format`. Without it text has no time, and JSON has that of UTC (RFC 3339).
    pub date_format: Option<String>,
    pub rotation: Option<Rotation>,
}

pub struct LogWriter {
    fifo: OwnedFd,
    splitter: LineSplitter,
    clock: Clock,
    destinations: Destinations,
    has_ended: bool,
}

enum Clock {
    Silent,
    Utc(String),
    Local(TimeStamps),
}

struct Destinations {
    files: Vec<Rc<RefCell<AppendFile>>>,
    shared: LogFiles,
}

impl LogWriter {
    /// Makes the FIFO's reading end non-blocking. The files are opened with the first line, and their folders made.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn open(fifo: OwnedFd, settings: &LogSettings, files: &LogFiles) -> nix::Result<LogWriter> {
        let flags = OFlag::from_bits_retain(fcntl(&fifo, FcntlArg::F_GETFL)?);
        fcntl(&fifo, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let clock = match (&settings.date_format, &settings.format) {
            (Some(format), _) if !format.is_empty() => Clock::Local(TimeStamps::new(format)),
            (_, LineFormat::Json { .. }) => Clock::Utc(String::new()),
            (_, LineFormat::Plain) => Clock::Silent,
        };
        let splitter = LineSplitter::new(settings.format.clone());
        let shared = files.clone();
        let files = settings.paths.iter().map(|path| files.at(path, settings.rotation)).collect();
        Ok(LogWriter { fifo, splitter, clock, destinations: Destinations { files, shared }, has_ended: false })
    }

    /// Reads what is there, at most 1 MiB, and writes the lines that it completes. True: there is more.
    ///
    /// # Errors
    /// Those of read(2) but for EAGAIN. A file that cannot be written is none: see [`LogFiles::take_problems`].
    pub fn read_available(&mut self) -> nix::Result<bool> {
        let buffers = self.destinations.shared.buffers();
        let Buffers { input, output } = &mut *buffers.borrow_mut();
        let time = self.clock.now();
        let mut left = MOST_AT_ONCE;
        let outcome = loop {
            match until_uninterrupted(|| read(&self.fifo, input)) {
                Ok(0) => {
                    self.has_ended = true;
                    break Ok(false);
                }
                Ok(length) => {
                    self.has_ended = false;
                    self.splitter.take(&input[..length], time, output);
                    if output.len() >= BATCH {
                        self.destinations.write(output);
                    }
                    // A read that could take more has emptied the pipe (pipe(7)).
                    if length < input.len() {
                        break Ok(false);
                    }
                    left = left.saturating_sub(length);
                    if left == 0 {
                        break Ok(true);
                    }
                }
                Err(Errno::EAGAIN) => break Ok(false),
                Err(errno) => break Err(errno),
            }
        };
        self.destinations.write(output);
        outcome
    }

    /// The process has ended: reads what it has left, and completes its last line. A process that it has started may
    /// still write; that is read later.
    ///
    /// # Errors
    /// As of [`LogWriter::read_available`].
    pub fn finish(&mut self) -> nix::Result<()> {
        // One call reads as much as any pipe holds that an ordinary user may have (pipe(7), /proc/sys/fs/pipe-max-size).
        let outcome = self.read_available();
        let mut lines = Vec::new();
        self.splitter.end(self.clock.now(), &mut lines);
        self.destinations.write(&mut lines);
        outcome.map(drop)
    }

    /// True when no process has the FIFO open for writing, as the last read found: epoll will say so again and again.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// For `pm flush`: its files are empty again.
    pub fn flush(&self) {
        self.destinations.for_each(AppendFile::flush);
    }

    /// For the logs of one application; [`LogFiles::reopen`] does it for all.
    pub fn reopen(&self) {
        self.destinations.for_each(AppendFile::reopen);
    }
}

impl Destinations {
    fn write(&self, lines: &mut Vec<u8>) {
        if !lines.is_empty() {
            self.for_each(|file| file.append(lines));
        }
        lines.clear();
        lines.shrink_to(USUAL_CAPACITY);
    }

    fn for_each(&self, action: impl Fn(&mut AppendFile) -> Option<String>) {
        self.files.iter().for_each(|file| self.shared.report(action(&mut file.borrow_mut())));
    }
}

impl Clock {
    fn now(&mut self) -> &str {
        match self {
            Clock::Silent => "",
            Clock::Utc(text) => {
                *text = utc_now_ms();
                text
            }
            Clock::Local(stamps) => stamps.now(),
        }
    }
}

impl AsFd for LogWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fifo.as_fd()
    }
}
