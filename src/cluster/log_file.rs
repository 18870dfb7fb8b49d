//! A file that lines are added to without ever waiting: on a full disk, or in a FIFO that nobody reads, lines are dropped
//! and counted.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;

use crate::console::{count_lines, write_within};
use crate::failure::Failure;

pub struct LogFile {
    file: File,
    path: PathBuf,
    /// Lines dropped since the last that could be written.
    dropped: u64,
    /// Lines dropped in all.
    pub all_dropped: u64,
    /// Only the beginning of the last line was written.
    is_cut: bool,
}

impl LogFile {
    pub fn open(path: &Path) -> Result<LogFile, Failure> {
        Ok(LogFile { file: open_to_append(path)?, path: path.to_owned(), dropped: 0, all_dropped: 0, is_cut: false })
    }

    /// Opens the path anew: after a rotation another file has the name. When that fails, the old file stays in use.
    pub fn reopen(&mut self) -> Result<(), Failure> {
        (self.file, self.is_cut) = (open_to_append(&self.path)?, false);
        Ok(())
    }

    /// Adds whole lines. It returns what has to be logged elsewhere: that lines are dropped from now on, and later how many
    /// were.
    #[must_use]
    pub fn write(&mut self, lines: &[u8]) -> Option<String> {
        // The rest of the last line was dropped; the next must not continue it.
        let text = if self.is_cut { [b"\n", lines].concat() } else { lines.to_vec() };
        let mut rest = text.clone();
        let outcome = write_within(&self.file, &mut rest, Duration::ZERO);
        let written = text.len() - rest.len();
        self.is_cut = if written == 0 { self.is_cut } else { text[written - 1] != b'\n' };
        let path = self.path.display();
        if rest.is_empty() {
            let dropped = std::mem::take(&mut self.dropped);
            return (dropped > 0).then(|| format!("write {path}: it goes on; {dropped} lines were dropped"));
        }
        let is_first = self.dropped == 0;
        let dropped = count_lines(&rest[rest.len().saturating_sub(lines.len())..]);
        (self.dropped, self.all_dropped) = (self.dropped + dropped, self.all_dropped + dropped);
        let why = match outcome {
            Ok(()) => io::Error::other("it is full and nobody reads it"),
            Err(errno) => errno.into(),
        };
        let failure = Failure::new(format_args!("write {path}"), why).advise("lines are dropped until there is room");
        is_first.then(|| failure.to_string())
    }
}

/// Opened for reading too, a FIFO needs no reader (fifo(7)): it is there before its reader, and after.
fn open_to_append(path: &Path) -> Result<File, Failure> {
    let is_fifo = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    let mut options = OpenOptions::new();
    options.append(true).create(true).read(is_fifo).custom_flags(OFlag::O_NONBLOCK.bits());
    options.open(path).map_err(|error| {
        Failure::new(format_args!("open {}", path.display()), error)
            .advise("choose a file you may write, in a folder that exists")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_fifo_without_a_reader_blocks_nothing_and_its_reader_gets_whole_lines_and_the_loss_is_counted() {
        let path = std::env::temp_dir().join(format!("acceptlab-log-fifo-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut log = LogFile::open(&path).unwrap();
        let line = [&[b'x'; 999][..], b"\n"].concat();
        let problems: Vec<String> = (0..200).filter_map(|_| log.write(&line)).collect();
        assert!(problems.len() == 1 && problems[0].contains("nobody reads it"), "{problems:?}");
        assert!(log.all_dropped > 100);
        let mut reader = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path).unwrap();
        let mut taken = vec![0; 1 << 20];
        let length = reader.read(&mut taken).unwrap();
        assert_eq!(length % 1000, 0);
        let problem = log.write(&line).unwrap();
        assert!(problem.ends_with(&format!("{} lines were dropped", log.all_dropped)), "{problem}");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn after_a_rotation_lines_go_to_the_new_file() {
        let path = std::env::temp_dir().join(format!("acceptlab-log-rotated-{}", std::process::id()));
        let old = path.with_extension("1");
        let mut log = LogFile::open(&path).unwrap();
        assert_eq!(log.write(b"one\n"), None);
        fs::rename(&path, &old).unwrap();
        log.reopen().unwrap();
        assert_eq!(log.write(b"two\n"), None);
        assert_eq!([&old, &path].map(|path| fs::read_to_string(path).unwrap()), ["one\n", "two\n"]);
        [old, path].iter().for_each(|path| fs::remove_file(path).unwrap());
    }
}
