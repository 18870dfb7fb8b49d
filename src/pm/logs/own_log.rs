//! What the daemon itself says: `pm.log`, if that is its standard error, and not something of systemd or a terminal.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::fstat;
use nix::unistd::dup2_stderr;

use crate::logs::append_file::{Rotation, rotate};
use crate::pm::home::PmHome;

const ROTATION: Rotation = Rotation { largest: 10 << 20, kept: 1 };

pub fn is_standard_error(home: &PmHome) -> bool {
    let (Ok(ours), Ok(named)) = (fstat(io::stderr()), fs::metadata(home.log())) else { return false };
    (ours.st_dev, ours.st_ino) == (named.dev(), named.ino())
}

/// Keeps it small, and goes on with the new one where somebody has moved it. Where that cannot be done the old file stays
/// in use, and it is tried again.
pub fn check(home: &PmHome) {
    let is_full = fstat(io::stderr()).is_ok_and(|found| found.st_size as u64 > ROTATION.largest);
    if !is_standard_error(home) || is_full && rotate(&home.log(), ROTATION.kept).is_ok() {
        let _ = home.open_log().map(|log| dup2_stderr(&log));
    }
}
