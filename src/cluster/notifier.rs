//! One file that changes and whose contents all workers need: the master reads it for all of them, and pushes its contents.
//! The kernel reports a change (inotify(7)), or the master reads it every so often.
//!
//! Not only the file may change: it may be replaced by a rename, be a symbolic link that is retargeted, or lie in a folder
//! that is replaced as a whole (Kubernetes does all of that with a ConfigMap). So every folder is watched in which one of the
//! names on the way to the file is looked up.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use crate::failure::Failure;
use crate::units::monotonic_ns;

/// Longer contents are not pushed.
const LONGEST_VALUE: u64 = 1 << 20;

/// As many links may follow one another in a path (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// How often to read the file where the kernel cannot report changes.
const EVERY: Duration = Duration::from_millis(500);

pub struct Notifier {
    path: PathBuf,
    how: How,
    /// What was pushed last; `None` while there is no file.
    value: Option<String>,
    pub looks: u64,
}

enum How {
    /// With the names that matter, each in its watched folder.
    Reported {
        inotify: Inotify,
        names: BTreeMap<(WatchDescriptor, OsString), PathBuf>,
    },
    Reads {
        every: Duration,
        next_ns: u64,
    },
}

impl Notifier {
    pub fn new(path: &Path, every: Option<Duration>) -> Result<Notifier, Failure> {
        let cannot = |errno| {
            Failure::new(format_args!("watch {}", path.display()), errno)
                .advise("its folder must exist; with --notify-every it is read every so often instead")
        };
        path.file_name().ok_or_else(|| cannot(Errno::EISDIR))?;
        let reads = |every: Duration| How::Reads { every, next_ns: monotonic_ns() + every.as_nanos() as u64 };
        let how = match every {
            Some(every) => reads(every),
            None => match Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK) {
                // A sandbox forbids it, or this user has no instance left.
                Err(_) => reads(EVERY),
                Ok(inotify) => match watch(&inotify, folder_of(path)) {
                    Ok(_) => How::Reported { inotify, names: BTreeMap::new() },
                    Err(errno @ (Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES)) => {
                        return Err(cannot(errno));
                    }
                    Err(_) => reads(EVERY),
                },
            },
        };
        let mut notifier = Notifier { path: path.to_owned(), how, value: None, looks: 0 };
        notifier.watch_all();
        notifier.look();
        Ok(notifier)
    }

    /// Readable when the kernel has something to report.
    pub fn inotify(&self) -> Option<&Inotify> {
        match &self.how {
            How::Reported { inotify, .. } => Some(inotify),
            How::Reads { .. } => None,
        }
    }

    /// When to read it again, in nanoseconds of CLOCK_MONOTONIC.
    pub fn next_read_ns(&self) -> Option<u64> {
        match self.how {
            How::Reported { .. } => None,
            How::Reads { next_ns, .. } => Some(next_ns),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }

    /// True: the contents are not what they were.
    pub fn has_changed(&mut self, now_ns: u64) -> bool {
        let is_about_it = match &mut self.how {
            How::Reads { every, next_ns } => {
                // From the time that was due, so that the reads do not drift; from now where several are overdue.
                *next_ns = (*next_ns + every.as_nanos() as u64).max(now_ns);
                true
            }
            How::Reported { inotify, names } => {
                let mut any = false;
                while let Ok(events) = inotify.read_events() {
                    // An event without a name is about a folder itself, or an overflow, which may have been about anything.
                    any |= events.into_iter().any(|event| match event.name {
                        None => true,
                        Some(name) => names
                            .get(&(event.wd, name.clone()))
                            .is_some_and(|folder| !is_unwritten(event.mask, &folder.join(name))),
                    });
                }
                any
            }
        };
        if !is_about_it {
            return false;
        }
        // Before the file is read: a change between the two is reported.
        self.watch_all();
        self.look()
    }

    /// Watches all folders on the way to the file as it is now, and no others.
    fn watch_all(&mut self) {
        let How::Reported { inotify, names } = &mut self.how else { return };
        let mut now = BTreeMap::new();
        for (folder, name) in lookups(&self.path) {
            // A folder that this user may not read cannot be watched; the others are.
            if let Ok(watch) = watch(inotify, &folder) {
                now.insert((watch, name), folder);
            }
        }
        for (unused, _) in names.keys().filter(|(watch, _)| now.keys().all(|(used, _)| used != watch)) {
            // Of a folder that is gone the kernel has removed it already.
            let _ = inotify.rm_watch(*unused);
        }
        *names = now;
    }

    fn look(&mut self) -> bool {
        self.looks += 1;
        let is_file = |metadata: fs::Metadata| metadata.is_file() && metadata.len() <= LONGEST_VALUE;
        let is_short = |path: &Path| fs::metadata(path).is_ok_and(is_file);
        let value = Some(&self.path).filter(|path| is_short(path)).and_then(|path| fs::read(path).ok());
        let value = value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let is_new = value != self.value;
        self.value = value;
        is_new
    }
}

fn watch(inotify: &Inotify, folder: &Path) -> nix::Result<WatchDescriptor> {
    let events = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(folder, events)
}

/// A new file, whose writer will close it: that is reported, too, and until then it is not complete.
fn is_unwritten(mask: AddWatchFlags, path: &Path) -> bool {
    let is_new = mask.contains(AddWatchFlags::IN_CREATE) && !mask.contains(AddWatchFlags::IN_ISDIR);
    is_new && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The names that are looked up on the way to a file, each with its folder, as path_resolution(7) does it.
fn lookups(path: &Path) -> Vec<(PathBuf, OsString)> {
    let mut found = Vec::new();
    let mut folder = PathBuf::from(if path.is_absolute() { "/" } else { "." });
    // Names still to be looked up, the next one last.
    let names_of = |path: &Path| -> Vec<OsString> {
        let is_name =
            |component: &Component| matches!(component, Component::Normal(_) | Component::ParentDir);
        path.components().rev().filter(is_name).map(|name| name.as_os_str().to_owned()).collect()
    };
    let mut names = names_of(path);
    let mut links = 0;
    while let Some(name) = names.pop() {
        if name == ".." {
            folder.push(name);
            continue;
        }
        found.push((folder.clone(), name.clone()));
        match fs::read_link(folder.join(&name)) {
            Ok(target) if links < MOST_LINKS => {
                links += 1;
                if target.is_absolute() {
                    folder = PathBuf::from("/");
                }
                names.extend(names_of(&target));
            }
            _ => folder.push(name),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("acceptlab-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        folder
    }

    #[track_caller]
    fn changes_to(notifier: &mut Notifier, value: &str) {
        assert!(notifier.has_changed(monotonic_ns()), "nothing was reported");
        assert_eq!(notifier.value(), Some(value));
    }

    #[test]
    fn a_change_is_seen_once_whether_reported_or_read() {
        let folder = folder("notifier");
        let path = folder.join("value");
        for every in [None, Some(Duration::from_millis(1))] {
            let _ = fs::remove_file(&path);
            let mut notifier = Notifier::new(&path, every).unwrap();
            assert_eq!(notifier.value(), None);
            fs::write(folder.join("new"), "1").unwrap();
            fs::rename(folder.join("new"), &path).unwrap();
            changes_to(&mut notifier, "1");
            assert!(!notifier.has_changed(monotonic_ns()));
            fs::write(&path, "2").unwrap();
            changes_to(&mut notifier, "2");
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_file_that_is_replaced_with_its_folder_or_its_links_is_seen() {
        let folder = folder("notifier-replaced");
        let version = |name: &str, value: &str| {
            fs::create_dir(folder.join(name)).unwrap();
            fs::write(folder.join(name).join("c"), value).unwrap();
        };
        // As Kubernetes does it: c → ..data/c, ..data → ..1, and ..data is replaced by a rename.
        version("..1", "1");
        symlink("..1", folder.join("..data")).unwrap();
        symlink("..data/c", folder.join("c")).unwrap();
        let mut notifier = Notifier::new(&folder.join("c"), None).unwrap();
        assert_eq!(notifier.value(), Some("1"));
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
        assert!(notifier.has_changed(monotonic_ns()) && notifier.value().is_none());
        version("other", "6");
        changes_to(&mut notifier, "6");
        fs::remove_dir_all(folder).unwrap();
    }
}
