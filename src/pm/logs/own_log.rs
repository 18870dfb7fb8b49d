//! What the daemon itself says: `pm.log`, which is its standard error.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::fstat;
use nix::unistd::dup2_stderr;

use crate::logs::append_file::{Rotation, rotate};
use crate::pm::home::PmHome;

const ROTATION: Rotation = Rotation { largest: 10 << 20, kept: 1 };

/// Keeps `pm.log` small, and goes on with the new one where somebody has moved it. Standard error may also be something
/// else, of systemd or of a terminal, and then stays what it is.
pub struct OwnLog {
    home: PmHome,
}

impl OwnLog {
    /// `None`: standard error is not `pm.log`.
    pub fn find(home: &PmHome) -> Option<OwnLog> {
        let log = OwnLog { home: home.clone() };
        log.is_standard_error().then_some(log)
    }

    /// When something was said. Where it cannot be done the old file stays in use, and it is tried again.
    pub fn check(&self) {
        let is_full = fstat(io::stderr()).is_ok_and(|found| found.st_size as u64 > ROTATION.largest);
        let is_moved = !self.is_standard_error();
        if is_moved || is_full && rotate(&self.home.log(), ROTATION.kept).is_ok() {
            let _ = self.home.open_log().map(|log: File| dup2_stderr(&log));
        }
    }

    fn is_standard_error(&self) -> bool {
        let (Ok(ours), Ok(named)) = (fstat(io::stderr()), fs::metadata(self.home.log())) else { return false };
        (ours.st_dev, ours.st_ino) == (named.dev(), named.ino())
    }
}
