//! A file that whole lines are added to, and that several writers may share: each batch of lines is one write(2) with
//! O_APPEND, so lines of different processes never mix (open(2)).
//!
//! It is rotated by renaming, between two batches: `api.log` → `api.log.1` → `api.log.2` …, and lines go to a new
//! `api.log`. Nobody who writes ever waits: where the disk is full or the folder may not be written, lines are lost and
//! counted; this is said once, and what is lost in all is said when it goes on. A line of which only the beginning was
//! written is completed first, so even then each line in the file is whole.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
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

#[derive(Default)]
pub struct AppendFile {
    path: PathBuf,
    rotation: Option<Rotation>,
    /// It could not be rotated, and grows on until it is opened anew.
    is_stuck: bool,
    file: Option<File>,
    /// The rest of a line of which only the beginning is in the file.
    rest: Vec<u8>,
    /// Why lines are lost, as long as they are.
    problem: Option<String>,
    /// Lines since the last that could be written.
    lost: u64,
    all_lost: u64,
    /// When to try again, of CLOCK_MONOTONIC.
    retry_ns: u64,
}

impl AppendFile {
    /// It is opened with the first line, and its folder made.
    pub fn new(path: &Path, rotation: Option<Rotation>) -> AppendFile {
        AppendFile { path: path.to_owned(), rotation, ..AppendFile::default() }
    }

    /// Why lines are lost; `None` while they are not.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Lines that could not be written.
    pub fn all_lost(&self) -> u64 {
        self.all_lost
    }

    /// Opens it before the first line.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn open(&mut self) -> Result<(), Failure> {
        self.file = Some(open_to_append(&self.path).map_err(|errno| self.failure(errno))?);
        Ok(())
    }

    /// Adds whole lines, all in one write(2) if the kernel takes them. Returns what has to be said elsewhere.
    #[must_use]
    pub fn append(&mut self, lines: &[u8]) -> Option<String> {
        if self.retry_ns > 0 && monotonic_ns() < self.retry_ns {
            self.lose(count_lines(lines));
            return None;
        }
        match self.prepare(lines.len()).and_then(|notice| self.write_all(lines).map(|()| notice)) {
            Ok(notice) => {
                self.retry_ns = 0;
                let lost = std::mem::take(&mut self.lost);
                let goes_on = |_| format!("write {}: it goes on; {lost} lines were lost", self.path.display());
                self.problem.take().map(goes_on).or(notice)
            }
            Err((errno, written)) => {
                self.lose_behind(lines, written);
                // A FIFO may have room at any moment; a disk is not looked at for every line.
                let wait = if errno == Errno::EAGAIN { 0 } else { RETRY_EVERY.as_nanos() as u64 };
                self.retry_ns = monotonic_ns() + wait;
                let is_first = self.problem.is_none();
                let problem = self.failure(errno).advise("lines are lost until it can be written").to_string();
                self.problem = Some(problem);
                self.problem.clone().filter(|_| is_first)
            }
        }
    }

    /// Empties the file.
    #[must_use]
    pub fn empty(&mut self) -> Option<String> {
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

    /// Opens the path anew, because another file has its name now. When that fails, the old file stays in use.
    #[must_use]
    pub fn reopen(&mut self) -> Option<String> {
        self.retry_ns = 0;
        self.is_stuck = false;
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

    /// The file is open and has room for a batch of this length. Returns what has to be said about that. Errors come
    /// with the bytes written, of which there are none yet.
    fn prepare(&mut self, length: usize) -> Result<Option<String>, (Errno, usize)> {
        if self.file.is_none() {
            self.file = Some(open_to_append(&self.path).map_err(|errno| (errno, 0))?);
        }
        if !self.rest.is_empty() {
            self.write_rest().map_err(|errno| (errno, 0))?;
        }
        let metadata = self.file.as_ref().and_then(|file| file.metadata().ok());
        let Some(metadata) = metadata.filter(|metadata| metadata.is_file()) else { return Ok(None) };
        let is_full = |rotation: &Rotation| metadata.len() > 0 && metadata.len() + length as u64 > rotation.largest;
        let rotation = self.rotation.filter(|rotation| !self.is_stuck && is_full(rotation));
        match rotation.map(|rotation| rotate(&self.path, rotation.kept)) {
            Some(Err(errno)) => {
                self.is_stuck = true;
                let failure = Failure::new(format_args!("rotate {}", self.path.display()), errno);
                return Ok(Some(failure.advise("it grows on until the logs are reopened").to_string()));
            }
            None if metadata.nlink() > 0 => {}
            _ => self.file = Some(open_to_append(&self.path).map_err(|errno| (errno, 0))?),
        }
        Ok(None)
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
            errno => Failure::new(tried, errno),
        }
    }
}

/// The newest gets number 1; what had the last number is gone.
pub fn rotate(path: &Path, kept: usize) -> nix::Result<()> {
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

/// Without waiting for anybody. Opened for reading too, a FIFO needs no reader: it is there before its reader, and
/// after (fifo(7)).
fn open_to_append(path: &Path) -> nix::Result<File> {
    let is_fifo = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let open = || OpenOptions::new().append(true).create(true).read(is_fifo).custom_flags(flags.bits()).open(path);
    let opened = open().or_else(|error| match (error.kind(), path.parent()) {
        (io::ErrorKind::NotFound, Some(folder)) => fs::create_dir_all(folder).and_then(|()| open()),
        _ => Err(error),
    });
    opened.map_err(errno_of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_fifo_without_a_reader_blocks_nothing_and_its_reader_gets_whole_lines_and_the_loss_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut file = AppendFile::new(&path, None);
        let line = [&[b'x'; 999][..], b"\n"].concat();
        let problems: Vec<String> = (0..200).filter_map(|_| file.append(&line)).collect();
        assert!(problems.len() == 1 && problems[0].contains("nobody reads it"), "{problems:?}");
        assert_eq!(file.problem(), Some(&*problems[0]));
        assert!(file.all_lost() > 100);
        let mut reader = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path).unwrap();
        let mut taken = vec![0; 1 << 20];
        let length = reader.read(&mut taken).unwrap();
        let notice = file.append(&line).unwrap();
        assert!(notice.ends_with(&format!("{} lines were lost", file.all_lost())), "{notice}");
        let more = reader.read(&mut taken[length..]).unwrap();
        let lines = taken[..length + more].split_inclusive(|&byte| byte == b'\n');
        assert!(lines.clone().all(|taken| taken == line));
        assert_eq!(lines.count() as u64, 201 - file.all_lost());
    }
}
