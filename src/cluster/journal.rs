//! A file that lines are added to, and that may be on a disk that is full: then lines are dropped and counted, and
//! nobody waits.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

pub struct Journal {
    file: File,
    path: PathBuf,
    /// Lines that could not be written since the last that could.
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

    /// Adds a line. What it returns is to be told: that lines get lost, once, and how many, when it is over.
    #[must_use]
    pub fn write(&mut self, line: &[u8]) -> Option<String> {
        match (self.file.write_all(line), self.dropped) {
            (Ok(()), 0) => None,
            (Ok(()), dropped) => {
                self.dropped = 0;
                Some(format!("write {}: it goes on; {dropped} lines were dropped", self.path.display()))
            }
            (Err(error), dropped) => {
                self.dropped += 1;
                let failure = Failure::new(format_args!("write {}", self.path.display()), error)
                    .advise("lines are dropped until there is room");
                (dropped == 0).then(|| failure.to_string())
            }
        }
    }
}
