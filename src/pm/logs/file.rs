//! A file that whole lines are added to, and that several writers may share: each batch of lines is one write(2) with
//! O_APPEND, so lines of different processes never mix (open(2)).
//!
//! It is rotated by renaming, between two batches: `api.log` → `api.log.1` → `api.log.2` …, and lines go to a new
//! `api.log`. Nobody who writes ever waits: where the disk is full or the folder may not be written, lines are lost and
//! counted; this is said once, and what is lost in all is said when it goes on. A line of which only the beginning was
//! written is completed first, so even then each line in the file is whole.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;

use memchr::memchr;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::write;

use crate::console::count_lines;
use crate::failure::Failure;
use crate::sys::errno_of;
use crate::sys::fd::until_uninterrupted;
use crate::units::monotonic_ns;

/// Between two attempts at a file that could not be written.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// When a file gets a number behind its name, and how many of those stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// In bytes. A file is larger only where it has a single batch of lines.
    pub largest: u64,
    /// Besides the file itself.
    pub kept: usize,
}

/// The files that are being written, each open once. A copy is the same set.
#[derive(Clone, Default)]
pub struct LogFiles {
    files: Rc<RefCell<BTreeMap<PathBuf, Weak<RefCell<AppendFile>>>>>,
    problems: Rc<RefCell<Vec<String>>>,
    buffers: Rc<RefCell<Buffers>>,
}

/// Of all writers, since only one works at a time.
pub(super) struct Buffers {
    pub input: Vec<u8>,
    pub output: Vec<u8>,
}

impl Default for Buffers {
    /// What a pipe holds, if nobody has changed it (pipe(7)).
    fn default() -> Buffers {
        Buffers { input: vec![0; 64 << 10], output: Vec::new() }
    }
}

impl LogFiles {
    /// The file at this path. It is opened with the first line; who asks first decides about its rotation.
    pub(super) fn at(&self, path: &Path, rotation: Option<Rotation>) -> Rc<RefCell<AppendFile>> {
        let mut files = self.files.borrow_mut();
        files.retain(|_, file| file.strong_count() > 0);
        if let Some(file) = files.get(path).and_then(Weak::upgrade) {
            return file;
        }
        let file = Rc::new(RefCell::new(AppendFile::new(path, rotation)));
        files.insert(path.to_owned(), Rc::downgrade(&file));
        file
    }

    /// For SIGUSR2 and `pm reload-logs`: opens every path anew, because another file has its name now.
    pub fn reopen(&self) {
        self.for_each(AppendFile::reopen);
    }

    /// What has to be said elsewhere since this was last asked: which file cannot be written and why, and how many
    /// lines were lost when it goes on.
    pub fn take_problems(&self) -> Vec<String> {
        self.problems.take()
    }

    /// Lines that could not be written, of the files that are open.
    pub fn lost(&self) -> u64 {
        self.files.borrow().values().filter_map(Weak::upgrade).map(|file| file.borrow().all_lost).sum()
    }

    pub(super) fn report(&self, problem: Option<String>) {
        self.problems.borrow_mut().extend(problem);
    }

    pub(super) fn buffers(&self) -> Rc<RefCell<Buffers>> {
        Rc::clone(&self.buffers)
    }

    fn for_each(&self, action: impl Fn(&mut AppendFile) -> Option<String>) {
        for file in self.files.borrow().values().filter_map(Weak::upgrade) {
            self.report(action(&mut file.borrow_mut()));
        }
    }
}

pub(super) struct AppendFile {
    path: PathBuf,
    wanted_rotation: Option<Rotation>,
    /// `None`, too, when it could not be rotated.
    rotation: Option<Rotation>,
    file: Option<File>,
    /// The rest of a line of which only the beginning is in the file.
    rest: Vec<u8>,
    /// The last lines could not be written, and that was said.
    is_failing: bool,
    /// What has to be said of a file that can be written.
    problem: Option<String>,
    /// Lines since the last that could be written.
    lost: u64,
    all_lost: u64,
    /// When to try again, of CLOCK_MONOTONIC.
    retry_ns: u64,
}

impl AppendFile {
    fn new(path: &Path, rotation: Option<Rotation>) -> AppendFile {
        AppendFile {
            path: path.to_owned(),
            wanted_rotation: rotation,
            rotation,
            file: None,
            rest: Vec::new(),
            is_failing: false,
            problem: None,
            lost: 0,
            all_lost: 0,
            retry_ns: 0,
        }
    }

    /// Adds whole lines, all in one write(2) if the kernel takes them. Returns what has to be said elsewhere.
    #[must_use]
    pub fn append(&mut self, lines: &[u8]) -> Option<String> {
        if self.retry_ns > 0 && monotonic_ns() < self.retry_ns {
            self.lose(count_lines(lines));
            return None;
        }
        match self.prepare(lines.len()).and_then(|()| self.write_all(lines)) {
            Ok(()) => {
                self.retry_ns = 0;
                let lost = std::mem::take(&mut self.lost);
                let goes_on = || format!("write {}: it goes on; {lost} lines were lost", self.path.display());
                std::mem::take(&mut self.is_failing).then(goes_on).or(self.problem.take())
            }
            Err((errno, written)) => {
                let is_first = !std::mem::replace(&mut self.is_failing, true);
                self.lose_behind(lines, written);
                // A FIFO may have room at any moment; a disk is not looked at for every line.
                let wait = if errno == Errno::EAGAIN { 0 } else { RETRY_EVERY.as_nanos() as u64 };
                self.retry_ns = monotonic_ns() + wait;
                is_first.then(|| self.failure(errno).advise("lines are lost until it can be written").to_string())
            }
        }
    }

    /// Empties the file for `pm flush`.
    #[must_use]
    pub fn flush(&mut self) -> Option<String> {
        self.rest.clear();
        let emptied = match &self.file {
            Some(file) => file.set_len(0),
            None => OpenOptions::new().write(true).open(&self.path).and_then(|file| file.set_len(0)),
        };
        let error = emptied.err().filter(|error| error.kind() != io::ErrorKind::NotFound)?;
        // What cannot be emptied has no length: a FIFO, a terminal, /dev/null.
        (error.kind() != io::ErrorKind::InvalidInput)
            .then(|| Failure::new(format_args!("empty {}", self.path.display()), error).to_string())
    }

    /// When that fails, the old file stays in use.
    #[must_use]
    pub fn reopen(&mut self) -> Option<String> {
        self.retry_ns = 0;
        self.rotation = self.wanted_rotation;
        self.file.as_ref()?;
        match open_to_append(&self.path) {
            Ok(file) => {
                // The rest of a line belongs to the file with its beginning.
                if !self.rest.is_empty() && self.write_rest().is_err() {
                    self.rest.clear();
                    self.lose(1);
                }
                self.file = Some(file);
                None
            }
            Err(errno) => Some(self.failure(errno).advise("lines go on to the file that was open").to_string()),
        }
    }

    /// The file is open and has room for a batch of this length. Errors come with the bytes written, of which there are
    /// none yet.
    fn prepare(&mut self, length: usize) -> Result<(), (Errno, usize)> {
        if self.file.is_none() {
            self.file = Some(open_to_append(&self.path).map_err(|errno| (errno, 0))?);
        }
        if !self.rest.is_empty() {
            self.write_rest().map_err(|errno| (errno, 0))?;
        }
        let metadata = self.file.as_ref().and_then(|file| file.metadata().ok());
        let Some(metadata) = metadata.filter(|metadata| metadata.is_file()) else { return Ok(()) };
        if metadata.nlink() == 0 || self.rotate_if_full(metadata.len(), length as u64) {
            self.file = Some(open_to_append(&self.path).map_err(|errno| (errno, 0))?);
        }
        Ok(())
    }

    /// True: another file is to have the path. Where the folder refuses, lines go on to this one.
    fn rotate_if_full(&mut self, size: u64, length: u64) -> bool {
        let is_full = |rotation: &Rotation| size > 0 && size + length > rotation.largest;
        let Some(rotation) = self.rotation.filter(is_full) else { return false };
        match rotate(&self.path, rotation.kept) {
            Ok(()) => true,
            Err(errno) => {
                let failure = Failure::new(format_args!("rotate {}", self.path.display()), errno);
                self.problem = Some(failure.advise("it grows on until the logs are reopened").to_string());
                self.rotation = None;
                false
            }
        }
    }

    fn write_rest(&mut self) -> nix::Result<()> {
        let rest = std::mem::take(&mut self.rest);
        self.write_all(&rest).map_err(|(errno, written)| {
            self.rest = rest[written..].to_vec();
            errno
        })
    }

    /// Errors come with the bytes written before them.
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), (Errno, usize)> {
        let file = self.file.as_ref().ok_or((Errno::EBADF, 0))?;
        let mut written = 0;
        while written < bytes.len() {
            match until_uninterrupted(|| write(file, &bytes[written..])) {
                Ok(0) => return Err((Errno::ENOSPC, written)),
                Ok(length) => written += length,
                Err(errno) => return Err((errno, written)),
            }
        }
        Ok(())
    }

    /// Of these lines only so many bytes were written. The line that was cut is kept, and the others are lost.
    fn lose_behind(&mut self, lines: &[u8], written: usize) {
        let (done, left) = lines.split_at(written);
        let is_cut = done.last().is_some_and(|&byte| byte != b'\n');
        let rest = if is_cut { memchr(b'\n', left).map_or(left.len(), |end| end + 1) } else { 0 };
        if is_cut {
            self.rest = left[..rest].to_vec();
        }
        self.lose(count_lines(&left[rest..]));
    }

    fn lose(&mut self, lines: u64) {
        self.lost += lines;
        self.all_lost += lines;
    }

    fn failure(&self, errno: Errno) -> Failure {
        let tried = format!("write {}", self.path.display());
        match errno {
            Errno::EAGAIN => Failure::new(tried, io::Error::other("it is full and nobody reads it")),
            Errno::ENXIO => Failure::new(tried, io::Error::other("it is a FIFO that nobody reads")),
            errno => Failure::new(tried, errno),
        }
    }
}

/// The newest gets number 1; what had the last number is gone.
fn rotate(path: &Path, kept: usize) -> nix::Result<()> {
    let used = (1..kept).take_while(|&number| rotated(path, number).exists()).count();
    for number in (1..=used).rev() {
        let _ = fs::rename(rotated(path, number), rotated(path, number + 1));
    }
    let done = if kept == 0 { fs::remove_file(path) } else { fs::rename(path, rotated(path, 1)) };
    match done {
        // Somebody else has moved it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(errno_of),
    }
}

/// The name of a file that was rotated so many times.
pub fn rotated(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Without waiting for anybody: a FIFO may have no reader.
fn open_to_append(path: &Path) -> nix::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let open = || OpenOptions::new().append(true).create(true).custom_flags(flags.bits()).open(path);
    let opened = open().or_else(|error| match (error.kind(), path.parent()) {
        (io::ErrorKind::NotFound, Some(folder)) => fs::create_dir_all(folder).and_then(|()| open()),
        _ => Err(error),
    });
    opened.map_err(errno_of)
}
