//! One file that changes and whose contents all workers need: the master reads it for all of them, and pushes its
//! contents. The kernel reports a change in the file's folder at once (inotify(7)). A file may also be replaced
//! elsewhere: by a link with a new target, or with its whole folder (Kubernetes does both with a ConfigMap). So twice
//! a second the master looks for another or a changed file at its path. With `--notify-every` it reads it instead.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::Inotify;

use crate::failure::Failure;
use crate::sys::inotify;
use crate::units::monotonic_ns;

/// Longer contents are not pushed.
const LONGEST_VALUE: u64 = 1 << 20;

/// How often to look where the path leads.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub struct Notifier {
    pub path: PathBuf,
    name: OsString,
    /// `None` where the file is read every so often, or the kernel cannot report changes.
    pub inotify: Option<Inotify>,
    read_every: Option<Duration>,
    /// When to look again, of CLOCK_MONOTONIC.
    pub next_ns: u64,
    /// Which file was read last, and in which state.
    version: Option<Version>,
    /// What was pushed last; `None` while there is no file.
    pub value: Option<String>,
    pub looks: u64,
}

/// Device and inode, size, time of the last change to the second and beyond.
type Version = (u64, u64, u64, i64, i64);

impl Notifier {
    pub fn new(path: &Path, read_every: Option<Duration>) -> Result<Notifier, Failure> {
        let cannot = |errno| {
            Failure::new(format_args!("watch {}", path.display()), errno)
                .advise("its folder must exist; with --notify-every it is read every so often instead")
        };
        let name = path.file_name().ok_or_else(|| cannot(Errno::EISDIR))?.to_owned();
        let inotify = match (read_every, watch_folder_of(path)) {
            (Some(_), _) => None,
            (None, Ok(inotify)) => Some(inotify),
            (None, Err(errno @ (Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES))) => {
                return Err(cannot(errno));
            }
            // A sandbox forbids it, or this user has no instance left.
            (None, Err(_)) => None,
        };
        let mut notifier = Notifier {
            path: path.to_owned(),
            name,
            inotify,
            read_every,
            next_ns: monotonic_ns(),
            version: None,
            value: None,
            looks: 0,
        };
        notifier.has_changed(notifier.next_ns);
        Ok(notifier)
    }

    /// True: the contents are not what they were.
    pub fn has_changed(&mut self, now_ns: u64) -> bool {
        let events = self.inotify.as_ref().map(inotify::events).unwrap_or_default();
        // An overflow has no name, and may have been about anything.
        let mut is_to_be_read = events.iter().any(|event| event.name.as_ref().is_none_or(|name| *name == self.name));
        if now_ns >= self.next_ns {
            // From the time that was due, so that the looks do not drift; from now where several are overdue.
            let every = self.read_every.unwrap_or(LOOK_EVERY).as_nanos() as u64;
            self.next_ns = (self.next_ns + every).max(now_ns);
            is_to_be_read |= self.read_every.is_some() || version(&self.path) != self.version;
        }
        is_to_be_read && self.read()
    }

    fn read(&mut self) -> bool {
        self.looks += 1;
        // Before the contents: a change between the two is found by the next look.
        self.version = version(&self.path);
        let is_short = self.version.is_some_and(|(_, _, size, ..)| size <= LONGEST_VALUE);
        let bytes = Some(&self.path).filter(|_| is_short).and_then(|path| fs::read(path).ok());
        let value = bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let is_new = value != self.value;
        self.value = value;
        is_new
    }
}

/// `None` for what is not a file.
fn version(path: &Path) -> Option<Version> {
    let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some((metadata.dev(), metadata.ino(), metadata.len(), metadata.ctime(), metadata.ctime_nsec()))
}

fn watch_folder_of(path: &Path) -> nix::Result<Inotify> {
    let inotify = inotify::open()?;
    inotify.add_watch(inotify::folder_of(path), inotify::REPLACED)?;
    Ok(inotify)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// As if the next look were due.
    #[track_caller]
    fn changes_to(notifier: &mut Notifier, value: &str) {
        assert!(notifier.has_changed(notifier.next_ns), "nothing was seen");
        assert_eq!(notifier.value.as_deref(), Some(value));
    }

    #[test]
    fn a_change_is_seen_once_whether_reported_or_read() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let path = folder.join("value");
        for every in [None, Some(Duration::from_millis(1))] {
            let _ = fs::remove_file(&path);
            let mut notifier = Notifier::new(&path, every).unwrap();
            assert_eq!(notifier.value.as_deref(), None);
            fs::write(folder.join("new"), "1").unwrap();
            fs::rename(folder.join("new"), &path).unwrap();
            changes_to(&mut notifier, "1");
            assert!(!notifier.has_changed(notifier.next_ns));
            fs::write(&path, "2").unwrap();
            changes_to(&mut notifier, "2");
        }
    }

    #[test]
    fn a_file_that_is_replaced_with_its_folder_or_its_links_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let version = |name: &str, value: &str| {
            fs::create_dir(folder.join(name)).unwrap();
            fs::write(folder.join(name).join("c"), value).unwrap();
        };
        // As Kubernetes does it: c → ..data/c, ..data → ..1, and ..data is replaced by a rename.
        version("..1", "1");
        symlink("..1", folder.join("..data")).unwrap();
        symlink("..data/c", folder.join("c")).unwrap();
        let mut notifier = Notifier::new(&folder.join("c"), None).unwrap();
        assert_eq!(notifier.value.as_deref(), Some("1"));
        for (new, value) in [("..2", "2"), ("..3", "3")] {
            version(new, value);
            symlink(new, folder.join("..data_tmp")).unwrap();
            fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
            changes_to(&mut notifier, value);
        }
        // In its last folder it is just a file.
        fs::write(folder.join("..3").join("c"), "4").unwrap();
        changes_to(&mut notifier, "4");
        // The link itself leads elsewhere.
        version("other", "5");
        fs::remove_file(folder.join("c")).unwrap();
        symlink(folder.join("other").join("c"), folder.join("c")).unwrap();
        changes_to(&mut notifier, "5");
        // The folder of a file is replaced as a whole, and comes later.
        let mut notifier = Notifier::new(&folder.join("other").join("c"), None).unwrap();
        fs::rename(folder.join("other"), folder.join("gone")).unwrap();
        assert!(notifier.has_changed(notifier.next_ns) && notifier.value.as_deref().is_none());
        version("other", "6");
        changes_to(&mut notifier, "6");
    }
}
