//! A file that lines are added to, and that may be on a disk that is full: then lines are dropped and counted, and
//! nobody waits.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

pub struct Journal {
    file: File,
    path: PathBuf,
    /// Lines that could not be written since the last that could; the first of them may be there in part.
    dropped: u64,
}

impl Journal {
    pub fn open(path: &Path) -> Result<Journal, Failure> {
        let file = OpenOptions::new().append(true).create(true).open(path).map_err(|error| {
            Failure::new(format_args!("open {}", path.display()), error)
                .advise("choose a file you may write, in a folder that exists")
        })?;
        Ok(Journal { file, path: path.to_owned(), dropped: 0 })
    }

    /// Adds lines. What it returns is to be told: that lines get lost, once, and how many, when it is over.
    #[must_use]
    pub fn write(&mut self, lines: &[u8]) -> Option<String> {
        // What is left of a line must not run into the next.
        let begun = if self.dropped > 0 { self.file.write_all(b"\n") } else { Ok(()) };
        match (begun.and_then(|()| self.file.write_all(lines)), self.dropped) {
            (Ok(()), 0) => None,
            (Ok(()), dropped) => {
                self.dropped = 0;
                Some(format!("write {}: it goes on; {dropped} lines were dropped", self.path.display()))
            }
            (Err(error), dropped) => {
                self.dropped += lines.iter().filter(|&&byte| byte == b'\n').count() as u64;
                let failure = Failure::new(format_args!("write {}", self.path.display()), error)
                    .advise("lines are dropped until there is room");
                (dropped == 0).then(|| failure.to_string())
            }
        }
    }
}
