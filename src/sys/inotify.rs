//! What changes in files and folders, as the kernel reports it: inotify(7), for whoever watches some of them.

use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};

/// A file in a folder has new contents, or another file has its name, or none has it any more. Not that it was created:
/// it is empty then, and its writer has not closed it.
pub const REPLACED: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_DELETE);

/// Watches nothing yet. Its descriptor is readable while there are events.
///
/// # Errors
/// EMFILE when this user has no instance left (`fs.inotify.max_user_instances`), or this process no descriptor.
pub fn open() -> nix::Result<Inotify> {
    Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
}

/// All events that have come, without waiting for one.
pub fn events(inotify: &Inotify) -> Vec<InotifyEvent> {
    std::iter::from_fn(|| inotify.read_events().ok()).flatten().collect()
}

/// The folder with the entry of this name: a careful writer writes another file and renames it, so it is watched
/// instead of the file.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
