//! Files that changed, in folders with all that is in them (inotify(7)). Only folders are watched, so 50,000 files in ten
//! folders need ten watches; a new folder is watched when it comes.
//!
//! What is seen: a file is written and closed, created, deleted, or replaced by a rename; a folder comes with files in
//! it, or goes; a link on the way to what is watched leads elsewhere (`current` → `releases/8`). Links inside the folders
//! are not followed.
//!
//! What is ignored: names that begin with a dot, `node_modules`, and what matches a glob. A name without a slash means
//! this name at any depth, a path means the one from the working folder; an ignored folder is not entered.
//!
//! A burst of changes is one: it is reported when nothing has changed for the delay, at the latest after ten times that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::config::AppConfig;
use crate::failure::Failure;
use crate::sys::inotify;

/// An editor saves a file in several steps, and a compiler writes many.
const SHORTEST_DELAY: Duration = Duration::from_millis(50);

/// A burst that goes on is reported after so many delays.
const MOST_DELAYS: u64 = 10;

/// So many paths of a burst are named.
const MOST_PATHS: usize = 100;

pub struct Watcher {
    inotify: Inotify,
    config: AppConfig,
    globs: GlobSet,
    folders: BTreeMap<WatchDescriptor, PathBuf>,
    changed: BTreeSet<PathBuf>,
    /// The first and the last change of this burst, of CLOCK_MONOTONIC.
    burst_ns: Option<(u64, u64)>,
    problems: Vec<String>,
    /// Some folder could not be watched, and that was said.
    is_incomplete: bool,
}

impl Watcher {
    /// Watches what the configuration names, even where that name is ignored, or comes later. What cannot be watched is
    /// said by [`Watcher::take_problems`].
    ///
    /// # Errors
    /// EMFILE when this user has no inotify instance left.
    pub fn new(config: AppConfig) -> nix::Result<Watcher> {
        let (globs, problems) = globs(&config.ignore_watch);
        let mut watcher = Watcher {
            inotify: inotify::open()?,
            config,
            globs,
            folders: BTreeMap::new(),
            changed: BTreeSet::new(),
            burst_ns: None,
            problems,
            is_incomplete: false,
        };
        watcher.watch_roots();
        Ok(watcher)
    }

    /// When to ask whatever the descriptor says, of CLOCK_MONOTONIC. `None`: not before it is readable.
    pub fn due_ns(&self) -> Option<u64> {
        let delay = self.config.watch_delay.max(SHORTEST_DELAY).as_nanos() as u64;
        self.burst_ns.map(|(first, last)| (last + delay).min(first + MOST_DELAYS * delay))
    }

    /// Reads what the kernel has reported. When a burst of changes is over, the paths that changed, at most 100.
    pub fn changed(&mut self, now_ns: u64) -> Option<Vec<PathBuf>> {
        for event in inotify::events(&self.inotify) {
            self.handle(&event, now_ns);
        }
        if self.due_ns()? > now_ns {
            return None;
        }
        self.burst_ns = None;
        Some(std::mem::take(&mut self.changed).into_iter().collect())
    }

    /// What has to be said about watching itself: each once.
    pub fn take_problems(&mut self) -> Vec<String> {
        std::mem::take(&mut self.problems)
    }

    fn handle(&mut self, event: &InotifyEvent, now_ns: u64) {
        let has = |flags: AddWatchFlags| event.mask.intersects(flags);
        if has(AddWatchFlags::IN_Q_OVERFLOW) {
            // What it was about is not known: anything may have changed, and folders may have come.
            self.config.watch.clone().into_iter().for_each(|root| self.add_change(root, now_ns));
            return self.watch_roots();
        }
        let (Some(folder), Some(name)) = (self.folders.get(&event.wd), &event.name) else { return };
        let path = folder.join(name);
        // What is watched itself, or is on the way to it.
        if self.config.watch.iter().any(|root| root.starts_with(&path)) {
            if has(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE) {
                self.unwatch(&path);
                self.watch_roots();
            }
            return self.add_change(path, now_ns);
        }
        if !self.is_watched(&path) {
            return;
        }
        if !has(AddWatchFlags::IN_ISDIR) {
            // A new file is complete when it is closed; a link, or one more name of a file, is complete at once.
            let is_link = |metadata: fs::Metadata| metadata.is_symlink() || metadata.nlink() > 1;
            if !has(AddWatchFlags::IN_CREATE) || fs::symlink_metadata(&path).is_ok_and(is_link) {
                self.add_change(path, now_ns);
            }
        } else if has(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO) {
            self.watch_tree(path, Some(now_ns));
        } else {
            self.unwatch(&path);
            self.add_change(path, now_ns);
        }
    }

    fn add_change(&mut self, path: PathBuf, now_ns: u64) {
        self.burst_ns = Some((self.burst_ns.map_or(now_ns, |(first, _)| first), now_ns));
        if self.changed.len() < MOST_PATHS {
            self.changed.insert(path);
        }
    }

    /// Watches the roots: the folder of each, of each link on the way to it, and of the first name that is missing.
    fn watch_roots(&mut self) {
        for root in self.config.watch.clone() {
            for path in root.ancestors() {
                let is_plain = fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_symlink());
                if path == root || !is_plain {
                    self.watch(inotify::folder_of(path));
                }
            }
            self.watch_tree(root, None);
        }
    }

    /// Watches a folder and those in it; what else is there counts as changed, if it has come just now.
    fn watch_tree(&mut self, root: PathBuf, now_ns: Option<u64>) {
        let mut waiting = vec![root];
        while let Some(folder) = waiting.pop() {
            // First the watch, then the look: what comes between is seen twice, not never.
            if !self.watch(&folder) {
                continue;
            }
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if !self.is_watched(&path) {
                    continue;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    waiting.push(path);
                } else if let Some(now_ns) = now_ns {
                    self.add_change(path, now_ns);
                }
            }
        }
    }

    /// What is in this folder. False: there is no such folder, or it cannot be watched.
    fn watch(&mut self, path: &Path) -> bool {
        let events = inotify::REPLACED | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR;
        match self.inotify.add_watch(path, events) {
            Ok(descriptor) => {
                self.folders.entry(descriptor).or_insert_with(|| path.to_owned());
                return true;
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            // One line is enough: the first of very many.
            Err(_) if self.is_incomplete => {}
            Err(errno) => {
                self.is_incomplete = true;
                let too_many = || io::Error::other("this user may watch no more folders");
                let why = if errno == Errno::ENOSPC { too_many() } else { errno.into() };
                let advice = "some changes are not seen; raise fs.inotify.max_user_watches, or ignore more folders";
                let failure = Failure::new(format_args!("watch {}", path.display()), why).advise(advice);
                self.problems.push(failure.to_string());
            }
        }
        false
    }

    /// A folder, and those in it, that are there no more, or under another name.
    fn unwatch(&mut self, path: &Path) {
        self.folders.retain(|&descriptor, folder| {
            let stays = !folder.starts_with(path);
            // Where the folder was deleted, the kernel has removed its watch already.
            let _ = stays || self.inotify.rm_watch(descriptor).is_ok();
            stays
        });
    }

    /// It is below a root, and nothing on the way down to it is ignored.
    fn is_watched(&self, path: &Path) -> bool {
        let mut roots = self.config.watch.iter().filter(|root| path.starts_with(root));
        roots.any(|root| !path.ancestors().take_while(|above| above != root).any(|above| self.is_ignored(above)))
    }

    fn is_ignored(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default();
        let is_hidden = name.as_encoded_bytes().starts_with(b".");
        let relative = path.strip_prefix(&self.config.cwd).unwrap_or(path);
        is_hidden || name == "node_modules" || self.globs.is_match(relative) || self.globs.is_match(path)
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// In which `*` stops at a slash, and `**` does not. One that cannot be read is said, and the others count.
fn globs(patterns: &[String]) -> (GlobSet, Vec<String>) {
    let (mut set, mut problems) = (GlobSetBuilder::new(), Vec::new());
    for pattern in patterns {
        let trimmed = pattern.trim_start_matches("./").trim_end_matches('/');
        let anywhere = if trimmed.contains('/') { trimmed.to_owned() } else { format!("**/{trimmed}") };
        match GlobBuilder::new(&anywhere).literal_separator(true).build() {
            Ok(glob) => drop(set.add(glob)),
            Err(error) => problems.push(format!("ignore {pattern:?}: {}; the others count", error.kind())),
        }
    }
    let set = set.build().unwrap_or_else(|error| {
        problems.push(format!("ignore {patterns:?}: {error}; none counts"));
        GlobSet::empty()
    });
    (set, problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use tempfile::TempDir;

    const S: u64 = 1_000_000_000;

    struct Folder(TempDir);

    impl Folder {
        fn new() -> Folder {
            Folder(tempfile::tempdir().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str) {
            fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
            fs::write(self.path(name), name).unwrap();
        }

        fn watcher(&self, roots: &[&str], ignore: &[&str]) -> Watcher {
            Watcher::new(AppConfig {
                watch: roots.iter().map(|root| self.path(root)).collect(),
                ignore_watch: ignore.iter().map(|&glob| glob.to_owned()).collect(),
                cwd: self.0.path().to_owned(),
                ..AppConfig::default()
            })
            .unwrap()
        }

        /// What a burst that is over consists of.
        #[track_caller]
        fn expect(&self, watcher: &mut Watcher, expected: &[&str]) {
            assert_eq!(watcher.changed(S), None, "a burst is not over at once");
            let paths = watcher.changed(2 * S).unwrap_or_default();
            let names = paths.iter().map(|path| path.strip_prefix(self.0.path()).unwrap().to_str().unwrap());
            assert_eq!(names.collect::<Vec<_>>(), expected);
            assert_eq!(watcher.changed(3 * S), None, "it is reported once");
        }
    }

    #[test]
    fn writing_creating_renaming_and_deleting_is_seen_and_reading_is_not() {
        let folder = Folder::new();
        ["app/a.js", "app/lib/b.js", "app/lib/c.js", "elsewhere"].iter().for_each(|name| folder.write(name));
        let mut watcher = folder.watcher(&["app"], &[]);
        fs::read(folder.path("app/a.js")).unwrap();
        folder.expect(&mut watcher, &[]);
        folder.write("app/a.js");
        folder.expect(&mut watcher, &["app/a.js"]);
        fs::rename(folder.path("elsewhere"), folder.path("app/lib/b.js")).unwrap();
        fs::remove_file(folder.path("app/lib/c.js")).unwrap();
        folder.expect(&mut watcher, &["app/lib/b.js", "app/lib/c.js"]);
        symlink("a.js", folder.path("app/link")).unwrap();
        folder.expect(&mut watcher, &["app/link"]);
    }

    #[test]
    fn a_new_folder_is_watched_with_all_that_is_in_it_until_it_goes() {
        let folder = Folder::new();
        folder.write("app/a.js");
        let mut watcher = folder.watcher(&["app"], &[]);
        folder.write("app/new/deep/x.js");
        folder.expect(&mut watcher, &["app/new/deep/x.js"]);
        folder.write("app/new/deep/y.js");
        folder.expect(&mut watcher, &["app/new/deep/y.js"]);
        fs::rename(folder.path("app/new"), folder.path("app/moved")).unwrap();
        folder.expect(&mut watcher, &["app/moved/deep/x.js", "app/moved/deep/y.js", "app/new"]);
        folder.write("app/moved/deep/x.js");
        folder.expect(&mut watcher, &["app/moved/deep/x.js"]);
        fs::rename(folder.path("app/moved"), folder.path("gone")).unwrap();
        folder.expect(&mut watcher, &["app/moved"]);
        folder.write("gone/deep/x.js");
        folder.expect(&mut watcher, &[]);
    }

    #[test]
    fn what_is_ignored_is_not_seen_and_ignored_folders_are_not_entered() {
        let folder = Folder::new();
        for name in ["app/.git/x", "app/node_modules/x", "app/tmp/x", "app/lib/x", "app/public/a/x"] {
            folder.write(name);
        }
        let ignore = ["./app/tmp/", "*.log", "app/public/**", "[oops", "\\.swp"];
        let mut watcher = folder.watcher(&["app"], &ignore);
        let problems = watcher.take_problems();
        assert!(problems.len() == 1 && problems[0].contains("[oops"), "{problems:?}");
        for name in ["app/.git/x", "app/.env", "app/node_modules/x", "app/lib/node_modules/y"] {
            folder.write(name);
        }
        for name in ["app/tmp/x", "app/lib/a.log", "app/public/a/x"] {
            folder.write(name);
        }
        folder.expect(&mut watcher, &[]);
        folder.write("app/lib/tmp");
        folder.expect(&mut watcher, &["app/lib/tmp"]);
        assert!(!watcher.folders.values().any(|folder| folder.ends_with("tmp") || folder.ends_with(".git")));
    }

    #[test]
    fn a_burst_is_over_after_the_delay_and_one_without_end_is_reported_all_the_same() {
        let folder = Folder::new();
        folder.write("app/a.js");
        let mut watcher = folder.watcher(&["app"], &[]);
        watcher.config.watch_delay = Duration::from_secs(1);
        assert_eq!((watcher.changed(5 * S), watcher.due_ns()), (None, None));
        let mut report = |now| {
            folder.write("app/a.js");
            (watcher.changed(now).is_some(), watcher.due_ns())
        };
        assert_eq!(report(10 * S), (false, Some(11 * S)));
        assert_eq!(report(10 * S + S / 2), (false, Some(11 * S + S / 2)));
        for tenth in 1..95 {
            let now = 10 * S + S / 2 + tenth * S / 10;
            assert_eq!(report(now), (false, Some((now + S).min(20 * S))));
        }
        assert_eq!(report(20 * S), (true, None));
    }

    #[test]
    fn the_links_on_the_way_to_what_is_watched_may_lead_elsewhere() {
        let folder = Folder::new();
        folder.write("releases/1/src/a.js");
        folder.write("releases/2/src/a.js");
        symlink("releases/1", folder.path("current")).unwrap();
        let mut watcher = folder.watcher(&["current/src", "config"], &[]);
        folder.write("releases/1/src/a.js");
        folder.expect(&mut watcher, &["current/src/a.js"]);
        symlink("releases/2", folder.path("next")).unwrap();
        fs::rename(folder.path("next"), folder.path("current")).unwrap();
        folder.expect(&mut watcher, &["current"]);
        folder.write("releases/1/src/a.js");
        folder.expect(&mut watcher, &[]);
        folder.write("releases/2/src/a.js");
        folder.expect(&mut watcher, &["current/src/a.js"]);
        // What is watched may come later.
        folder.write("config/a.json");
        folder.expect(&mut watcher, &["config"]);
        folder.write("config/a.json");
        folder.expect(&mut watcher, &["config/a.json"]);
    }

    #[test]
    fn one_file_is_watched_whoever_replaces_it() {
        let folder = Folder::new();
        ["app/.env", "app/other"].iter().for_each(|name| folder.write(name));
        let mut watcher = folder.watcher(&["app/.env"], &[]);
        folder.write("app/other");
        folder.expect(&mut watcher, &[]);
        folder.write("app/.env");
        folder.expect(&mut watcher, &["app/.env"]);
        for _ in 0..2 {
            folder.write("app/.env.new");
            fs::rename(folder.path("app/.env.new"), folder.path("app/.env")).unwrap();
            folder.expect(&mut watcher, &["app/.env"]);
        }
    }

    #[test]
    fn where_the_limit_of_watches_is_reached_one_line_says_so_and_the_rest_is_watched() {
        const INSIDE: &str = "ACCEPTLAB_FEW_WATCHES";
        if std::env::var_os(INSIDE).is_none() {
            // The limit of a user namespace of our own (namespaces(7)); nobody else's changes.
            let name =
                "pm::watch::tests::where_the_limit_of_watches_is_reached_one_line_says_so_and_the_rest_is_watched";
            let script = "echo 10 > /proc/sys/user/max_inotify_watches && exec \"$@\" || exit 77";
            let mut test = Command::new("unshare");
            test.args(["--user", "--map-root-user", "sh", "-c", script, "sh"]);
            let output = test.arg(std::env::current_exe().unwrap()).args([name, "--exact"]).env(INSIDE, "1").output();
            match output {
                Ok(output) if output.status.success() => {}
                Ok(output) if output.status.code() != Some(77) && output.status.code() != Some(1) => {
                    panic!("{}", String::from_utf8_lossy(&output.stdout))
                }
                other => eprintln!("skipped: no user namespace with a limit of its own: {other:?}"),
            }
            return;
        }
        let folder = Folder::new();
        (0..40).for_each(|number| folder.write(&format!("app/{number}/x")));
        let mut watcher = folder.watcher(&["app"], &[]);
        let problems = watcher.take_problems();
        assert!(problems.len() == 1, "{problems:?}");
        assert!(
            problems[0].contains("may watch no more folders") && problems[0].contains("fs.inotify.max_user_watches")
        );
        (0..40).for_each(|number| folder.write(&format!("app/{number}/x")));
        assert_eq!(watcher.changed(S), None);
        assert!(watcher.changed(2 * S).unwrap().len() >= 8);
        folder.write("app/new/x");
        watcher.changed(S);
        assert!(watcher.take_problems().is_empty(), "it is said once");
    }
}
