//! A file or a pipe that a run writes to. Its reader may be slow, stalled, gone or not there yet: nothing here waits
//! for it longer than a second, and what it did not take is reported as missing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::console::{MOST_WAITING, write_within};
use crate::failure::Failure;

/// How long the end of a run waits for a reader that takes nothing.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Destination {
    path: PathBuf,
    /// Absent while nobody has opened a named pipe for reading.
    file: Option<File>,
    waiting: Vec<u8>,
    dropped: u64,
    outcome: Result<(), String>,
}

impl Destination {
    pub fn create(path: &Path) -> Result<Destination, String> {
        let file = open(path).map_err(|error| {
            let advice = "does its folder exist, and may this user write there?";
            Failure::new(format_args!("create {}", path.display()), error).advise(advice)
        })?;
        Ok(Destination { path: path.into(), file, waiting: Vec::new(), dropped: 0, outcome: Ok(()) })
    }

    /// Writes all of this, or none of it if the reader is too far behind. The first failure ends the file.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.waiting.len() > MOST_WAITING {
            self.dropped += 1;
        } else {
            self.waiting.extend_from_slice(bytes);
        }
        self.flush(Duration::ZERO);
    }

    pub fn finish(mut self) -> Result<(), String> {
        self.flush(FLUSH_TIMEOUT);
        self.outcome?;
        let missing = match (self.waiting.len(), self.dropped) {
            (0, 0) => return Ok(()),
            (bytes, 0) => format!("{bytes} bytes are missing"),
            (bytes, parts) => format!("{parts} parts and {bytes} bytes are missing"),
        };
        Err(format!("write {}: it is not read: {missing}", self.path.display()))
    }

    fn flush(&mut self, timeout: Duration) {
        if self.outcome.is_ok() {
            self.outcome = self.write_waiting(timeout).map_err(|error| {
                let failure = Failure::new(format_args!("write {}", self.path.display()), error);
                failure.advise("the file is not complete: is there room, and does its reader stay?").into()
            });
        }
    }

    fn write_waiting(&mut self, timeout: Duration) -> io::Result<()> {
        if self.file.is_none() {
            self.file = open(&self.path)?;
        }
        let Some(file) = &self.file else { return Ok(()) };
        Ok(write_within(file, &mut self.waiting, timeout)?)
    }
}

/// Opens a file so that nothing waits. `None`: a pipe that nobody reads yet (ENXIO: fifo(7)).
fn open(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK).open(path);
    match opened {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        opened => opened.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use tempfile::TempDir;

    use super::*;

    /// In a folder of its own.
    fn pipe() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        (folder, path)
    }

    #[test]
    fn a_pipe_that_nobody_reads_costs_its_content_and_no_time() {
        let (_folder, path) = pipe();
        let mut destination = Destination::create(&path).unwrap();
        let kib = [b'x'; 1024];
        (0..2000).for_each(|_| destination.write(&kib));
        let line = destination.finish().unwrap_err();
        assert!(line.ends_with(": it is not read: 975 parts and 1049600 bytes are missing"), "{line}");
    }

    #[test]
    fn a_reader_that_comes_late_gets_all_that_was_kept_for_it() {
        let (_folder, path) = pipe();
        let mut destination = Destination::create(&path).unwrap();
        destination.write(b"early\n");
        let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        destination.write(b"late\n");
        assert_eq!(destination.finish(), Ok(()));
        let mut text = String::new();
        reader.unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "early\nlate\n");
    }

    #[test]
    fn a_reader_that_stalls_or_goes_costs_what_it_does_not_take() {
        for goes in [false, true] {
            let (_folder, path) = pipe();
            let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
            let mut destination = Destination::create(&path).unwrap();
            destination.write(&[b'x'; 100_000]);
            let reader = (!goes).then_some(reader);
            let line = destination.finish().unwrap_err();
            let expected = if goes {
                ": broken pipe; the file is not complete: is there room, and does its reader stay?"
            } else {
                "34464 bytes are missing"
            };
            assert!(line.ends_with(expected), "{line}");
            drop(reader);
        }
    }
}
