//! One file that somebody changes and all workers want to know: the master looks at it for all of them, and pushes what
//! it says. The kernel tells of a change (inotify(7)), or it looks every so often.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::failure::Failure;
use crate::units::monotonic_ns;

/// Longer contents are not pushed.
const LONGEST_VALUE: u64 = 1 << 20;

pub struct Notifier {
    path: PathBuf,
    name: OsString,
    how: How,
    /// What was pushed last; `None` while there is no file.
    value: Option<String>,
    pub looks: u64,
}

enum How {
    Told(Inotify),
    Looks { every: Duration, next_ns: u64 },
}

impl Notifier {
    pub fn new(path: &Path, every: Option<Duration>) -> Result<Notifier, Failure> {
        let odd = |errno| {
            Failure::new(format_args!("watch {}", path.display()), errno)
                .advise("its folder must exist; with --notify-every it is looked at instead")
        };
        let name = path.file_name().ok_or_else(|| odd(nix::errno::Errno::EISDIR))?.to_owned();
        let how = match every {
            Some(every) => How::Looks { every, next_ns: monotonic_ns() + every.as_nanos() as u64 },
            None => {
                let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
                let inotify = Inotify::init(flags).map_err(odd)?;
                // The folder, not the file: who changes a file with care writes another and renames it.
                let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                let events = AddWatchFlags::IN_CLOSE_WRITE
                    | AddWatchFlags::IN_MOVED_TO
                    | AddWatchFlags::IN_MOVED_FROM
                    | AddWatchFlags::IN_DELETE;
                inotify.add_watch(folder.unwrap_or(Path::new(".")), events).map_err(odd)?;
                How::Told(inotify)
            }
        };
        let mut notifier = Notifier { path: path.to_owned(), name, how, value: None, looks: 0 };
        notifier.look();
        Ok(notifier)
    }

    /// Readable when the kernel has something to tell.
    pub fn inotify(&self) -> Option<&Inotify> {
        match &self.how {
            How::Told(inotify) => Some(inotify),
            How::Looks { .. } => None,
        }
    }

    /// When to look again, in nanoseconds of CLOCK_MONOTONIC.
    pub fn next_look_ns(&self) -> Option<u64> {
        match self.how {
            How::Told(_) => None,
            How::Looks { next_ns, .. } => Some(next_ns),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }

    /// True: the contents are others than they were.
    pub fn has_changed(&mut self, now_ns: u64) -> bool {
        let is_about_it = match &mut self.how {
            How::Looks { every, next_ns } => {
                // From the time that was due, so that the looks do not drift; from now where several are overdue.
                *next_ns = (*next_ns + every.as_nanos() as u64).max(now_ns);
                true
            }
            How::Told(inotify) => {
                let mut any = false;
                while let Ok(events) = inotify.read_events() {
                    // An overflow has no name, and may have been about anything.
                    any |=
                        events.iter().any(|event| event.name.as_ref().is_none_or(|name| *name == self.name));
                }
                any
            }
        };
        is_about_it && self.look()
    }

    fn look(&mut self) -> bool {
        self.looks += 1;
        let is_short = |path: &Path| fs::metadata(path).is_ok_and(|metadata| metadata.len() <= LONGEST_VALUE);
        let value = Some(&self.path).filter(|path| is_short(path)).and_then(|path| fs::read(path).ok());
        let value = value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let is_new = value != self.value;
        self.value = value;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_once_however_it_is_looked_for() {
        let folder = std::env::temp_dir().join(format!("acceptlab-notifier-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("value");
        for every in [None, Some(Duration::from_millis(1))] {
            let _ = fs::remove_file(&path);
            let mut notifier = Notifier::new(&path, every).unwrap();
            assert_eq!(notifier.value(), None);
            fs::write(folder.join("new"), "1").unwrap();
            fs::rename(folder.join("new"), &path).unwrap();
            assert!(notifier.has_changed(monotonic_ns()));
            assert_eq!(notifier.value(), Some("1"));
            assert!(!notifier.has_changed(monotonic_ns()));
            fs::write(&path, "2").unwrap();
            assert!(notifier.has_changed(monotonic_ns()) && notifier.value() == Some("2"));
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
