//! `pm logs`: the last lines of several files, and then each new line. It survives what happens to a log: the file is
//! rotated, by us or by logrotate, even several times between two looks; it is emptied; it is deleted and comes again. It
//! sleeps until the kernel reports something (inotify(7)), and ends quietly when its reader is gone.

use std::fs::{File, Metadata, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use memchr::memrchr_iter;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, Inotify};
use nix::time::ClockId;

use super::app_log::AppLog;
use crate::console::write_within;
use crate::failure::Failure;
use crate::logs::append_file::rotated;
use crate::logs::clock::Clock;
use crate::logs::lines::{LineFormat, LineSplitter};
use crate::pm::args::LogsArgs;
use crate::pm::client::PmEvents;
use crate::sys::fd::until_uninterrupted;
use crate::sys::{errno_of, inotify};
use crate::terminal::Paint;
use crate::units::clock_ns;

const BLOCK: usize = 64 << 10;

/// How often to look where the kernel cannot report: the folder does not exist yet, or this user may watch no more.
const LOOK_EVERY_MS: u16 = 500;

/// More logs, which come while some are followed.
pub struct LaterLogs<'a> {
    /// After one there may be some.
    pub events: PmEvents,
    /// All that there are now.
    pub logs: &'a mut dyn FnMut() -> Vec<AppLog>,
}

/// Shows the lines of these logs. A file that several of them name is read once; in JSON, its lines have the number of
/// the first.
///
/// # Errors
/// When `out` cannot be written, as on a full disk. A reader that is gone is none.
pub fn follow(logs: &[AppLog], args: &LogsArgs, out: &impl AsFd, later: Option<LaterLogs>) -> Result<(), Failure> {
    // Where this user has no inotify instance left, we look every so often.
    let inotify = inotify::open().ok();
    let follower = Follower { args, out: out.as_fd(), inotify, readers: Vec::new(), is_watched: true, width: 0 };
    match follower.show(logs, later) {
        Ok(()) | Err(Errno::EPIPE) => Ok(()),
        Err(errno) => Err(Failure::new("write the lines", errno)),
    }
}

struct Follower<'a> {
    args: &'a LogsArgs,
    out: BorrowedFd<'a>,
    inotify: Option<Inotify>,
    /// In the order in which they were named.
    readers: Vec<Reader>,
    /// The kernel reports all of them.
    is_watched: bool,
    /// The width of the longest label.
    width: usize,
}

impl Follower<'_> {
    fn show(mut self, logs: &[AppLog], mut later: Option<LaterLogs>) -> nix::Result<()> {
        // By the clock of file systems, which lags behind the other: it stands still between two ticks.
        let start = SystemTime::UNIX_EPOCH + Duration::from_nanos(clock_ns(ClockId::CLOCK_REALTIME_COARSE));
        self.add(logs, None)?;
        while !self.args.nostream {
            let is_any_name = self.wait(later.as_ref().map(|later| later.events.as_fd()))?;
            self.is_watched |= is_any_name;
            for reader in &mut self.readers {
                if is_any_name {
                    reader.follow_rotation(self.out)?;
                    self.is_watched &= reader.watch(self.inotify.as_ref());
                    // Again, because something may have come before the watch.
                    reader.follow_rotation(self.out)?;
                }
                reader.read(self.out)?;
            }
            let Some(LaterLogs { events, logs }) = &mut later else { continue };
            match events.discard() {
                Some(true) => self.add(&logs(), Some(start))?,
                Some(false) => {}
                None => later = None,
            }
        }
        Ok(())
    }

    /// Shows the last lines of those that are not known yet; all lines, if the file has come since then.
    fn add(&mut self, logs: &[AppLog], since: Option<SystemTime>) -> nix::Result<()> {
        // Where several processes write, a line does not say which of them did.
        let label = |log: &AppLog| match logs.iter().filter(|other| other.path == log.path).count() {
            1 => log.label(),
            _ => log.app_name.clone(),
        };
        self.width = logs.iter().map(|log| label(log).chars().count()).max().unwrap_or(0).max(self.width);
        for log in logs {
            if self.readers.iter().any(|reader| reader.path == log.path) {
                continue;
            }
            let format = match self.args {
                LogsArgs { json: true, .. } if !log.is_json => log.json(),
                LogsArgs { json: false, raw: false, .. } => {
                    log.named(&format!("{:1$}", label(log), self.width), Paint::on(&self.out))
                }
                _ => LineFormat::Plain,
            };
            let has_time = !matches!(format, LineFormat::Plain);
            let mut reader = Reader::open(&log.path, format, self.args.lines, since);
            self.is_watched &= reader.watch(self.inotify.as_ref());
            reader.read(self.out)?;
            if self.args.nostream {
                reader.end(self.out)?;
            }
            // When the lines that were there before us were written is not known.
            if has_time {
                reader.clock = Clock::new(self.args.timestamp.as_deref(), self.args.json);
            }
            self.readers.push(reader);
        }
        Ok(())
    }

    /// Waits until something has changed. True: some name came or went, or it is not known what happened. EPIPE: the
    /// reader of `out` is gone.
    fn wait(&self, events: Option<BorrowedFd>) -> nix::Result<bool> {
        let timeout = if self.is_watched { PollTimeout::NONE } else { LOOK_EVERY_MS.into() };
        // Nothing is asked of `out`: that its reader is gone is always reported (poll(2), POLLERR and POLLHUP).
        let mut fds = vec![PollFd::new(self.out, PollFlags::empty())];
        fds.extend(events.map(|events| PollFd::new(events, PollFlags::POLLIN)));
        fds.extend(self.inotify.as_ref().map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN)));
        let ready = until_uninterrupted(|| poll(&mut fds, timeout))?;
        if fds[0].any() == Some(true) {
            return Err(Errno::EPIPE);
        }
        let changes = self.inotify.as_ref().map(inotify::events).unwrap_or_default();
        Ok(ready == 0 || changes.iter().any(|change| !change.mask.contains(AddWatchFlags::IN_MODIFY)))
    }
}

struct Reader {
    path: PathBuf,
    splitter: LineSplitter,
    clock: Clock,
    current: Option<OpenLog>,
    /// What had the path before: whoever writes may not have noticed yet.
    previous: Option<OpenLog>,
}

struct OpenLog {
    file: File,
    /// Device and inode.
    id: (u64, u64),
    position: u64,
}

impl Reader {
    /// A reader that begins at the last so many lines; at the beginning, if the file has come since then, or cannot be
    /// read backwards.
    fn open(path: &Path, format: LineFormat, lines: usize, since: Option<SystemTime>) -> Reader {
        let mut current = OpenLog::open(path);
        if let Some(log) = &mut current {
            let created = log.file.metadata().and_then(|metadata| metadata.created()).ok();
            let is_new = since.is_some() && created >= since;
            log.position = if is_new { 0 } else { start_of_last_lines(&log.file, lines).unwrap_or(0) };
        }
        let (splitter, clock) = (LineSplitter::new(format), Clock::new(None, false));
        Reader { path: path.to_owned(), splitter, clock, current, previous: None }
    }

    /// Again each time that some name has changed: the folder may be another one, too. False: the kernel reports nothing.
    fn watch(&self, inotify: Option<&Inotify>) -> bool {
        let Some(inotify) = inotify else { return false };
        let names = inotify::REPLACED.difference(AddWatchFlags::IN_CLOSE_WRITE) | AddWatchFlags::IN_CREATE;
        let folder = inotify.add_watch(inotify::folder_of(&self.path), names);
        // By its descriptor: the path may lead to another file already.
        let link = self.current.as_ref().map(|log| format!("/proc/self/fd/{}", log.file.as_raw_fd()));
        let file = link.map_or(Ok(()), |link| inotify.add_watch(link.as_str(), AddWatchFlags::IN_MODIFY).map(drop));
        folder.is_ok() && file.is_ok()
    }

    fn read(&mut self, out: BorrowedFd) -> nix::Result<()> {
        for log in [&mut self.previous, &mut self.current].into_iter().flatten() {
            log.read(&mut self.splitter, &mut self.clock, out)?;
        }
        Ok(())
    }

    /// The last line may have no end.
    fn end(&mut self, out: BorrowedFd) -> nix::Result<()> {
        let mut lines = Vec::new();
        self.splitter.end(self.clock.now(), &mut lines);
        write_within(out, &mut lines, Duration::MAX)
    }

    /// Where the path leads to another file than the one that is read, goes on with that, after those that had the path
    /// in between.
    fn follow_rotation(&mut self, out: BorrowedFd) -> nix::Result<()> {
        let old = self.current.as_ref().map(|log| log.id);
        let Some(newest) = OpenLog::open(&self.path).filter(|log| Some(log.id) != old) else { return Ok(()) };
        let mut newer = vec![newest];
        newer.extend((1..).map_while(|number| OpenLog::open(&rotated(&self.path, number))));
        // The same one twice: it was rotated meanwhile.
        newer.dedup_by_key(|log| log.id);
        // Where the one that was read is not among them, those with numbers may be of earlier times.
        newer.truncate(newer.iter().position(|log| Some(log.id) == old).unwrap_or(1));
        while let Some(log) = newer.pop() {
            self.read(out)?;
            self.end(out)?;
            self.previous = self.current.replace(log);
        }
        self.read(out)
    }
}

impl OpenLog {
    /// `None` for what is not a file: reading a FIFO would take the lines from its reader.
    fn open(path: &Path) -> Option<OpenLog> {
        let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).ok()?;
        let metadata = file.metadata().ok().filter(Metadata::is_file)?;
        Some(OpenLog { file, id: (metadata.dev(), metadata.ino()), position: 0 })
    }

    /// Reads to the end that the file has now. What comes meanwhile is reported, and is for the next time: others have
    /// their turn.
    fn read(&mut self, splitter: &mut LineSplitter, clock: &mut Clock, out: BorrowedFd) -> nix::Result<()> {
        let size = self.file.metadata().map_err(errno_of)?.len();
        let mut lines = Vec::new();
        if size < self.position {
            splitter.end(clock.now(), &mut lines);
            self.position = 0;
        }
        let mut block = vec![0; BLOCK.min((size - self.position) as usize)];
        loop {
            let length = self.file.read_at(&mut block, self.position).map_err(errno_of)?;
            self.position += length as u64;
            splitter.take(&block[..length], clock.now(), &mut lines);
            write_within(out, &mut lines, Duration::MAX)?;
            if length == 0 || self.position >= size {
                return Ok(());
            }
        }
    }
}

/// Where the last so many lines begin, found backwards in blocks, so that a large file costs no more than its end.
fn start_of_last_lines(file: &File, lines: usize) -> std::io::Result<u64> {
    let size = file.metadata()?.len();
    let (mut end, mut missing) = (size, lines);
    let mut block = vec![0; BLOCK];
    while end > 0 && missing > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let block = &mut block[..(end - start) as usize];
        file.read_exact_at(block, start)?;
        // The last byte ends the last line; each other end is the beginning of a line.
        let begin = memrchr_iter(b'\n', block).map(|at| start + at as u64 + 1).filter(|&at| at < size);
        let begin: Vec<u64> = begin.take(missing).collect();
        missing -= begin.len();
        end = begin.last().filter(|_| missing == 0).copied().unwrap_or(start);
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::{BufRead, BufReader, Write};
    use std::os::fd::OwnedFd;
    use std::thread;

    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;
    use tempfile::TempDir;

    use crate::logs::lines::{GOES_ON, LONGEST_LINE, LogStream};

    struct Logs(TempDir);

    impl Logs {
        fn new() -> Logs {
            Logs(tempfile::tempdir().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn add(&self, name: &str, text: &str) {
            let mut file = OpenOptions::new().append(true).create(true).open(self.path(name)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn rotate(&self, name: &str) {
            for number in (1..9).rev() {
                let _ = fs::rename(rotated(&self.path(name), number), rotated(&self.path(name), number + 1));
            }
            fs::rename(self.path(name), rotated(&self.path(name), 1)).unwrap();
        }

        fn file(&self, name: &str, process_id: u32) -> AppLog {
            AppLog {
                path: self.path(name),
                stream: if name.contains("error") { LogStream::Error } else { LogStream::Out },
                app_name: name.split('-').next().unwrap().to_owned(),
                process_id,
                is_json: name.ends_with("json"),
            }
        }

        /// What is shown of what is there.
        fn show(&self, files: &[AppLog], args: LogsArgs) -> String {
            let out = File::create(self.path("shown")).unwrap();
            follow(files, &LogsArgs { nostream: true, ..args }, &out, None).unwrap();
            String::from_utf8(fs::read(self.path("shown")).unwrap()).unwrap()
        }

        /// A reader that has read what is there, and where it writes.
        fn reader(&self, name: &str) -> (Reader, File) {
            let mut reader = Reader::open(&self.path(name), LineFormat::Plain, 15, None);
            let out = File::create(self.path("shown")).unwrap();
            reader.read(out.as_fd()).unwrap();
            (reader, out)
        }

        fn shown(&self) -> String {
            fs::read_to_string(self.path("shown")).unwrap()
        }
    }

    /// Raw, as JSON, or neither.
    fn args(shown_as: &str) -> LogsArgs {
        let (targets, lines, timestamp) = (Vec::new(), 15, None);
        let (json, raw) = (shown_as == "json", shown_as == "raw");
        LogsArgs { targets, lines, json, raw, out: false, err: false, nostream: false, timestamp }
    }

    /// Follows in a thread, until the reader that is returned is dropped.
    fn follow_in_thread(
        files: Vec<AppLog>,
        args: LogsArgs,
    ) -> (impl Iterator<Item = String>, thread::JoinHandle<Result<(), Failure>>) {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let follower = thread::spawn(move || follow(&files, &args, &theirs, None));
        (BufReader::new(File::from(ours)).lines().map(Result::unwrap), follower)
    }

    #[test]
    fn the_last_lines_are_found_backwards_whatever_their_length() {
        let logs = Logs::new();
        let long = "x".repeat(BLOCK);
        for text in ["", "a", "a\n", "\n", "a\nb", "a\nb\n\n", &format!("a\n{long}\nb\n{long}{long}\n"), &long] {
            fs::write(logs.path("log"), text).unwrap();
            let file = File::open(logs.path("log")).unwrap();
            let all: Vec<&str> = text.split_inclusive('\n').collect();
            for lines in 0..all.len() + 2 {
                let start = start_of_last_lines(&file, lines).unwrap() as usize;
                assert_eq!(text[start..], all[all.len().saturating_sub(lines)..].concat(), "{lines} lines");
            }
        }
    }

    #[test]
    fn lines_are_shown_behind_number_and_name_or_raw_or_as_json() {
        let logs = Logs::new();
        logs.add("api-out", "one\ntwo\nhalf");
        logs.add("longer-error.json", "{\"message\":\"three\"}\n");
        let files = [logs.file("api-out", 0), logs.file("longer-error.json", 12), logs.file("missing-out", 3)];
        let named = "0|api     | two\n0|api     | half\n12|longer | {\"message\":\"three\"}\n";
        assert_eq!(logs.show(&files, LogsArgs { lines: 2, ..args("named") }), named);
        assert_eq!(logs.show(&files, args("raw")), "one\ntwo\nhalf\n{\"message\":\"three\"}\n");
        let json = logs.show(&files, args("json"));
        let lines: Vec<&str> = json.lines().collect();
        let first: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
        assert_eq!((&first["message"], &first["process_id"]), (&"one".into(), &0.into()));
        assert!(first["timestamp"].is_null(), "it is not known when it was written");
        assert_eq!(lines.last(), Some(&"{\"message\":\"three\"}"));
        // Two processes in one file: it is nobody's alone, and shown once.
        let merged = [logs.file("api-out", 0), logs.file("api-out", 1)];
        assert_eq!(logs.show(&merged, LogsArgs { lines: 1, ..args("named") }), "api | half\n");
        let coloured = files[0].named("0|api    ", Paint { has_colour: true });
        assert!(matches!(coloured, LineFormat::Named(text) if text == "\x1b[36m0|api    \x1b[0m | "));
    }

    #[test]
    fn a_line_is_shown_when_it_is_whole_and_a_giant_one_in_pieces() {
        let logs = Logs::new();
        logs.add("api", "half");
        let (mut reader, out) = logs.reader("api");
        assert_eq!(logs.shown(), "");
        logs.add("api", " and half\n");
        reader.read(out.as_fd()).unwrap();
        assert_eq!(logs.shown(), "half and half\n");
        let giant = "x".repeat(5 * LONGEST_LINE / 2);
        logs.add("api", &format!("{giant}\nnext\n"));
        reader.read(out.as_fd()).unwrap();
        assert_eq!(logs.shown().matches(GOES_ON).count(), 2);
        assert_eq!(logs.shown().replace(&format!("{GOES_ON}\n"), ""), format!("half and half\n{giant}\nnext\n"));
        assert!(logs.show(&[logs.file("api", 0)], args("raw")).ends_with("x\nnext\n"));
    }

    #[test]
    fn no_line_is_lost_or_shown_twice_however_often_the_log_was_rotated_between_two_looks() {
        let logs = Logs::new();
        logs.add("api", "earlier\n");
        logs.rotate("api");
        logs.add("api", "0\n");
        let (mut reader, out) = logs.reader("api");
        let mut expected = "0\n".to_owned();
        for rotations in [0, 1, 2, 5, 1] {
            for rotation in 0..rotations {
                let line = format!("{rotation} of {rotations}\n");
                logs.add("api", &line);
                logs.rotate("api");
                logs.add("api", "first\n");
                expected += &format!("{line}first\n");
            }
            reader.follow_rotation(out.as_fd()).unwrap();
            reader.read(out.as_fd()).unwrap();
            assert_eq!(logs.shown(), expected);
        }
        // As logrotate does it: whoever writes still has the old file, which may be shortened or gone.
        logs.rotate("api");
        logs.add("api.1", "late\n");
        logs.add("api", "new\n");
        reader.follow_rotation(out.as_fd()).unwrap();
        logs.add("api.1", "later\n");
        reader.read(out.as_fd()).unwrap();
        assert_eq!(logs.shown(), format!("{expected}late\nnew\nlater\n"));
        fs::write(logs.path("api"), "a\n").unwrap();
        reader.read(out.as_fd()).unwrap();
        fs::remove_file(logs.path("api")).unwrap();
        reader.follow_rotation(out.as_fd()).unwrap();
        logs.add("api", "again\n");
        reader.follow_rotation(out.as_fd()).unwrap();
        assert_eq!(logs.shown(), format!("{expected}late\nnew\nlater\na\nagain\n"));
    }

    #[test]
    fn new_lines_of_several_files_come_with_their_time_across_rotation_truncation_and_first_creation() {
        let logs = Logs::new();
        logs.add("api-out", "before\n");
        let files = vec![logs.file("api-out", 0), logs.file("web-out", 1), logs.file("late/x", 2)];
        let with_time = LogsArgs { timestamp: Some("[T]".to_owned()), ..args("named") };
        let (mut lines, follower) = follow_in_thread(files, with_time);
        let mut expect = |expected: &str| assert_eq!(lines.next().as_deref(), Some(expected));
        expect("0|api    | before");
        logs.add("api-out", "new\n");
        expect("0|api    | T: new");
        logs.add("web-out", "first\n");
        expect("1|web    | T: first");
        logs.add("web-out", "second\n");
        expect("1|web    | T: second");
        logs.rotate("api-out");
        logs.add("api-out", "rotated\n");
        expect("0|api    | T: rotated");
        logs.add("api-out", "and on\n");
        expect("0|api    | T: and on");
        File::options().write(true).open(logs.path("api-out")).unwrap().set_len(0).unwrap();
        logs.add("api-out", "emptied\n");
        expect("0|api    | T: emptied");
        // The folder comes later, too.
        fs::create_dir(logs.path("late")).unwrap();
        logs.add("late/x", "here\n");
        expect("2|late/x | T: here");
        drop(lines);
        follower.join().unwrap().unwrap();
    }

    #[test]
    fn it_ends_quietly_when_its_reader_is_gone_though_nothing_is_written() {
        let logs = Logs::new();
        logs.add("api", "line\n");
        let (mut lines, follower) = follow_in_thread(vec![logs.file("api", 0)], args("raw"));
        assert_eq!(lines.next().as_deref(), Some("line"));
        drop(lines);
        follower.join().unwrap().unwrap();
    }

    #[test]
    fn a_full_disk_is_an_error_and_a_fifo_is_not_read() {
        let logs = Logs::new();
        logs.add("api", "line\n");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let outcome = follow(&[logs.file("api", 0)], &args("raw"), &full, None);
        assert_eq!(outcome.unwrap_err().to_string(), "write the lines: no space left on device");
        nix::unistd::mkfifo(&logs.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let fifo: OwnedFd = File::options().read(true).write(true).open(logs.path("fifo")).unwrap().into();
        nix::unistd::write(&fifo, b"theirs\n").unwrap();
        assert_eq!(logs.show(&[logs.file("fifo", 0)], args("raw")), "");
        let mut bytes = [0; 10];
        assert_eq!(nix::unistd::read(&fifo, &mut bytes), Ok(7));
    }
}
