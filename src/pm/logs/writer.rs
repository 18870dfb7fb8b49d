//! One output of one process: read from its pipe as it comes, and written in whole lines to its log. The pipe is a FIFO
//! that outlives both ends: the process may be restarted, and the next daemon reads on. So a writer stays when its process
//! ends.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};

use nix::errno::Errno;
use nix::unistd::read;

use super::app_log::AppLog;
use crate::console::Console;
use crate::logs::append_file::{AppendFile, Rotation};
use crate::logs::clock::Clock;
use crate::logs::lines::{LineFormat, LineSplitter, USUAL_CAPACITY};
use crate::sys::fd::until_uninterrupted;
use crate::terminal::Paint;

/// What is read before another output has its turn.
const MOST_AT_ONCE: usize = 1 << 20;

/// What is read with one read(2): what a pipe holds, if nobody has changed it (pipe(7)).
const BLOCK: usize = 64 << 10;

/// The logs that are being written, each open once, and the buffers of all writers, since only one works at a time.
#[derive(Default)]
pub struct LogFiles {
    files: BTreeMap<PathBuf, Weak<RefCell<AppendFile>>>,
    problems: Vec<String>,
    /// Shows each line, too.
    terminal: Option<(Console, Paint)>,
    block: Vec<u8>,
    lines: Vec<u8>,
}

impl LogFiles {
    /// From now on writes to standard output, too, as `pm logs` does it.
    pub fn show(&mut self, paint: Paint) {
        self.terminal = Some((Console::on_standard_output(), paint));
    }

    /// The file at this path, open if it can be. The first call for a path decides about its rotation.
    fn at(&mut self, path: &Path, rotation: Option<Rotation>) -> Rc<RefCell<AppendFile>> {
        self.files.retain(|_, file| file.strong_count() > 0);
        let file = self.files.get(path).and_then(Weak::upgrade).unwrap_or_else(|| {
            let mut file = AppendFile::new(path, rotation);
            self.problems.extend(file.append(b""));
            Rc::new(RefCell::new(file))
        });
        self.files.insert(path.to_owned(), Rc::downgrade(&file));
        file
    }

    /// It is a log, or was one before it was rotated.
    pub fn has(&self, path: &Path) -> bool {
        let has_number = path.extension().is_some_and(|end| end.as_encoded_bytes().iter().all(u8::is_ascii_digit));
        self.files.contains_key(path) || has_number && self.files.contains_key(&path.with_extension(""))
    }

    /// For SIGUSR2 and `pm reload-logs`: opens every path anew, because another file has its name now.
    pub fn reopen(&mut self) {
        let files = self.files.values().filter_map(Weak::upgrade);
        self.problems.extend(files.filter_map(|file| file.borrow_mut().reopen()));
    }

    /// What has to be said since this was last asked: which file cannot be written and why, and how many lines were lost
    /// when it goes on.
    pub fn take_problems(&mut self) -> Vec<String> {
        std::mem::take(&mut self.problems)
    }
}

pub struct LogWriter {
    fifo: OwnedFd,
    splitter: LineSplitter,
    clock: Clock,
    file: Rc<RefCell<AppendFile>>,
    /// The lines of what is shown.
    shown: LineSplitter,
}

impl LogWriter {
    /// The FIFO's reading end does not block. Without a date format (`log_date_format`) text has no time, and JSON
    /// has that of UTC (RFC 3339).
    pub fn new(
        fifo: OwnedFd,
        log: &AppLog,
        date_format: Option<&str>,
        rotation: Option<Rotation>,
        files: &mut LogFiles,
    ) -> LogWriter {
        let paint = files.terminal.as_ref().map_or(Paint { has_colour: false }, |(_, paint)| *paint);
        LogWriter {
            fifo,
            splitter: LineSplitter::new(if log.is_json { log.json() } else { LineFormat::Plain }),
            clock: Clock::new(date_format, log.is_json),
            file: files.at(&log.path, rotation),
            shown: LineSplitter::new(log.named(&log.label(), paint)),
        }
    }

    /// Why lines of its log are lost; `None` while they are not.
    pub fn problem(&self) -> Option<String> {
        self.file.borrow().problem().map(str::to_owned)
    }

    /// Reads what is there, at most 1 MiB, and writes the lines that it completes. If there is more, epoll says so.
    ///
    /// # Errors
    /// Those of read(2) but for EAGAIN. A file that cannot be written is none: see [`LogFiles::take_problems`].
    pub fn read_available(&mut self, files: &mut LogFiles) -> nix::Result<()> {
        files.block.resize(BLOCK, 0);
        let mut left = MOST_AT_ONCE;
        while left > 0 {
            let length = match until_uninterrupted(|| read(&self.fifo, &mut files.block)) {
                Err(Errno::EAGAIN) => break,
                read => read?,
            };
            self.splitter.take(&files.block[..length], self.clock.now(), &mut files.lines);
            self.write(files);
            // A read that could take more has emptied the pipe (pipe(7)).
            left = if length < BLOCK { 0 } else { left.saturating_sub(length) };
        }
        Ok(())
    }

    /// The process has ended: reads what it has left, and completes its last line. A process that it has started may
    /// still write; that is read later.
    pub fn finish(&mut self, files: &mut LogFiles) -> nix::Result<()> {
        // One call reads as much as any pipe holds that an ordinary user may have (pipe(7), /proc/sys/fs/pipe-max-size).
        let outcome = self.read_available(files);
        self.splitter.end(self.clock.now(), &mut files.lines);
        self.write(files);
        outcome
    }

    /// For `pm flush`: its file is empty again.
    pub fn flush(&self, files: &mut LogFiles) {
        files.problems.extend(self.file.borrow_mut().empty());
    }

    fn write(&mut self, files: &mut LogFiles) {
        if !files.lines.is_empty() {
            files.problems.extend(self.file.borrow_mut().append(&files.lines));
            if let Some((console, _)) = &mut files.terminal {
                let mut shown = Vec::new();
                self.shown.take(&files.lines, "", &mut shown);
                console.write(&shown);
            }
        }
        files.lines.clear();
        files.lines.shrink_to(USUAL_CAPACITY);
    }
}

impl AsFd for LogWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fifo.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::count_lines;
    use crate::logs::append_file::rotated;
    use crate::logs::lines::{GOES_ON, LONGEST_LINE, LogStream};
    use std::fs::{self, File, OpenOptions};
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::Path;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::stat::Mode;
    use nix::unistd::{mkfifo, pipe2, write};
    use tempfile::TempDir;

    struct Folder(TempDir);

    impl Folder {
        fn new() -> Folder {
            Folder(tempfile::tempdir().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap()
        }
    }

    fn log(path: &Path, is_json: bool) -> AppLog {
        let path = path.to_owned();
        AppLog { path, stream: LogStream::Out, app_name: "api".into(), process_id: 1, is_json }
    }

    /// A writer and the end that a process would write to.
    fn output(files: &mut LogFiles, path: &Path, rotation: Option<Rotation>) -> (LogWriter, File) {
        output_as(files, path, rotation, false, None)
    }

    fn output_as(
        files: &mut LogFiles,
        path: &Path,
        rotation: Option<Rotation>,
        is_json: bool,
        date_format: Option<&str>,
    ) -> (LogWriter, File) {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).unwrap();
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        (LogWriter::new(ours, &log(path, is_json), date_format, rotation, files), File::from(theirs))
    }

    fn say(files: &mut LogFiles, writer: &mut LogWriter, process: &mut File, text: &[u8]) {
        process.write_all(text).unwrap();
        assert_eq!(writer.read_available(files), Ok(()));
    }

    #[test]
    fn lines_of_many_processes_in_one_file_stay_whole_and_in_order() {
        let folder = Folder::new();
        let (mut files, path) = (LogFiles::default(), folder.path("new/folder/all.log"));
        let mut outputs: Vec<_> = (0..10).map(|_| output(&mut files, &path, None)).collect();
        // Each line in two halves, and between them those of the others.
        for number in 0..200 {
            for (process, (writer, pipe)) in outputs.iter_mut().enumerate() {
                say(&mut files, writer, pipe, format!("end\n{process} {number} the ").as_bytes());
            }
        }
        outputs.iter_mut().for_each(|(writer, _)| writer.finish(&mut files).unwrap());
        let text = folder.read("new/folder/all.log");
        let mut next = [0; 10];
        for line in text.lines().filter(|line| *line != "end") {
            let words: Vec<usize> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
            let [process, number] = words[..] else { panic!("{line}") };
            assert!(line.ends_with(if number == 199 { " the " } else { " the end" }), "{line}");
            assert_eq!(number, next[process]);
            next[process] += 1;
        }
        assert_eq!(next, [200; 10]);
    }

    #[test]
    fn rotated_files_have_whole_lines_within_the_limit_and_together_the_last_of_them_in_order() {
        let folder = Folder::new();
        let (mut files, path) = (LogFiles::default(), folder.path("api.log"));
        let rotation = Some(Rotation { largest: 1000, kept: 3 });
        let mut outputs: Vec<_> = (0..2).map(|_| output(&mut files, &path, rotation)).collect();
        for number in 0..1000 {
            let (writer, pipe) = &mut outputs[number % 2];
            say(&mut files, writer, pipe, format!("line {number}\n").as_bytes());
        }
        let paths = [rotated(&path, 3), rotated(&path, 2), rotated(&path, 1), path.clone()];
        let texts = paths.map(|path| fs::read_to_string(path).unwrap());
        assert!(texts.iter().all(|text| text.len() <= 1000 && text.ends_with('\n')));
        let text = texts.concat();
        let first: usize = text.lines().next().unwrap()[5..].parse().unwrap();
        assert_eq!(text, (first..1000).map(|number| format!("line {number}\n")).collect::<String>());
        assert!(first < 700 && !rotated(&path, 4).exists());
        // Where none is kept, it begins anew.
        let none = folder.path("none.log");
        let (mut writer, mut pipe) = output(&mut files, &none, Some(Rotation { largest: 10, kept: 0 }));
        (0..3).for_each(|number| say(&mut files, &mut writer, &mut pipe, format!("line {number}\n").as_bytes()));
        assert_eq!(folder.read("none.log"), "line 2\n");
        assert!(!rotated(&none, 1).exists() && files.take_problems().is_empty());
    }

    #[test]
    fn a_file_that_was_renamed_is_opened_anew_when_asked_and_one_that_was_deleted_at_once() {
        let folder = Folder::new();
        let (mut files, path) = (LogFiles::default(), folder.path("api.log"));
        let (mut writer, mut pipe) = output(&mut files, &path, None);
        say(&mut files, &mut writer, &mut pipe, b"one\n");
        fs::rename(&path, folder.path("old")).unwrap();
        say(&mut files, &mut writer, &mut pipe, b"two\n");
        files.reopen();
        say(&mut files, &mut writer, &mut pipe, b"three\n");
        assert_eq!((folder.read("old"), folder.read("api.log")), ("one\ntwo\n".into(), "three\n".into()));
        fs::remove_file(&path).unwrap();
        say(&mut files, &mut writer, &mut pipe, b"four\n");
        assert_eq!(folder.read("api.log"), "four\n");
        writer.flush(&mut files);
        assert_eq!(folder.read("api.log"), "");
        say(&mut files, &mut writer, &mut pipe, b"five\n");
        assert_eq!(folder.read("api.log"), "five\n");
        assert!(files.take_problems().is_empty());
    }

    #[test]
    fn a_file_that_cannot_be_written_is_said_once_and_what_is_lost_is_counted_and_it_is_tried_again() {
        let folder = Folder::new();
        for (path, why) in [
            (folder.path("folder.log"), "is a directory"),
            (PathBuf::from("/dev/full"), "no space left on device"),
            (folder.path("file/under/a/file.log"), "not a directory"),
            (PathBuf::from("/proc/nobody/creates.log"), "no such file or directory"),
        ] {
            fs::write(folder.path("file"), "").unwrap();
            let _ = fs::create_dir(folder.path("folder.log"));
            let mut files = LogFiles::default();
            let (mut writer, mut pipe) = output(&mut files, &path, None);
            for _ in 0..3 {
                say(&mut files, &mut writer, &mut pipe, b"a\nb\n");
            }
            let problems = files.take_problems();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(
                problems[0].starts_with(&format!("write {}: {why}; lines are lost", path.display())),
                "{problems:?}"
            );
            assert_eq!(writer.file.borrow().all_lost(), 6);
        }
        // There it is tried again, here because somebody has asked for it.
        let (mut files, path) = (LogFiles::default(), folder.path("folder.log"));
        let (mut writer, mut pipe) = output(&mut files, &path, None);
        say(&mut files, &mut writer, &mut pipe, b"lost\n");
        fs::remove_dir(&path).unwrap();
        say(&mut files, &mut writer, &mut pipe, b"too early\n");
        files.reopen();
        say(&mut files, &mut writer, &mut pipe, b"there\n");
        let problems = files.take_problems();
        assert_eq!(problems[1], format!("write {}: it goes on; 2 lines were lost", path.display()));
        assert_eq!(
            (folder.read("folder.log"), problems.len(), writer.file.borrow().all_lost()),
            ("there\n".into(), 2, 2)
        );
    }

    #[test]
    fn a_log_that_cannot_be_rotated_grows_on_and_that_is_said_once() {
        let folder = Folder::new();
        let (mut files, path) = (LogFiles::default(), folder.path("api.log"));
        // A folder that is not empty has the name that the log would get.
        fs::create_dir_all(rotated(&path, 1).join("x")).unwrap();
        let (mut writer, mut pipe) = output(&mut files, &path, Some(Rotation { largest: 10, kept: 1 }));
        (0..5).for_each(|number| say(&mut files, &mut writer, &mut pipe, format!("line {number}\n").as_bytes()));
        assert_eq!(folder.read("api.log"), "line 0\nline 1\nline 2\nline 3\nline 4\n");
        let problems = files.take_problems();
        assert!(
            problems.len() == 1 && problems[0].starts_with(&format!("rotate {}: ", path.display())),
            "{problems:?}"
        );
        assert_eq!(writer.file.borrow().all_lost(), 0);
        fs::remove_dir_all(rotated(&path, 1)).unwrap();
        files.reopen();
        say(&mut files, &mut writer, &mut pipe, b"line 5\n");
        assert_eq!(folder.read("api.log"), "line 5\n");
    }

    #[test]
    fn a_line_that_was_cut_is_completed_before_the_next() {
        let folder = Folder::new();
        let (mut files, path) = (LogFiles::default(), folder.path("fifo"));
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let mut reader = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path).unwrap();
        let (mut writer, mut pipe) = output(&mut files, &path, None);
        let line = [&[b'x'; 999][..], b"\n"].concat();
        (0..100).for_each(|_| say(&mut files, &mut writer, &mut pipe, &line));
        let lost = writer.file.borrow().all_lost();
        assert!(lost > 20, "a pipe holds 64 KiB");
        let mut text = vec![0; 100_000];
        let length = reader.read(&mut text).unwrap();
        text.truncate(length);
        say(&mut files, &mut writer, &mut pipe, b"next\n");
        let _ = reader.read_to_end(&mut text);
        let text = String::from_utf8(text).unwrap();
        let (next, lines) = text.lines().collect::<Vec<_>>().split_last().map(|(a, b)| (*a, b.to_vec())).unwrap();
        assert!(next == "next" && lines.iter().all(|line| line.len() == 999), "{}", lines.len());
        assert_eq!(lines.len() as u64, 100 - lost);
        assert!(files.take_problems()[1].ends_with(&format!("{lost} lines were lost")));
    }

    #[test]
    fn the_last_line_of_a_process_needs_no_end_and_the_next_process_writes_on() {
        let folder = Folder::new();
        let mut files = LogFiles::default();
        mkfifo(&folder.path("fifo"), Mode::S_IRWXU).unwrap();
        let fifo = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(folder.path("fifo"));
        let log = log(&folder.path("out.log"), false);
        let mut writer = LogWriter::new(fifo.unwrap().into(), &log, None, None, &mut files);
        for text in ["a\nlast", "next\nlast\0"] {
            let process = OpenOptions::new().read(true).write(true).open(folder.path("fifo")).unwrap();
            write(&process, text.as_bytes()).unwrap();
            assert_eq!(writer.read_available(&mut files), Ok(()));
            drop(process);
            writer.finish(&mut files).unwrap();
            assert_eq!(writer.read_available(&mut files), Ok(()));
        }
        assert_eq!(folder.read("out.log"), "a\nlast\nnext\nlast\0\n");
    }

    #[test]
    fn lines_have_their_time_as_text_and_as_json() {
        let folder = Folder::new();
        let mut files = LogFiles::default();
        let (mut writer, mut pipe) =
            output_as(&mut files, &folder.path("text"), None, false, Some("YYYY-MM-DD HH:mm:ss.SSS Z"));
        say(&mut files, &mut writer, &mut pipe, b"one\ntwo\n");
        let text = folder.read("text");
        let (time, line) = text.lines().next().unwrap().split_at("2026-11-29 16:05:14.123 +00:00".len());
        assert!(time.starts_with("20") && line == ": one", "{text}");
        let (mut writer, mut pipe) = output_as(&mut files, &folder.path("json"), None, true, None);
        say(&mut files, &mut writer, &mut pipe, b"a \"b\"\n");
        let value: serde_json::Value = serde_json::from_str(&folder.read("json")).unwrap();
        assert!(value["timestamp"].as_str().unwrap().ends_with('Z') && value["message"] == "a \"b\"", "{value}");
    }

    #[test]
    fn a_line_of_100_mb_passes_in_pieces_while_little_is_kept() {
        let folder = Folder::new();
        let mut files = LogFiles::default();
        let (mut writer, mut pipe) = output(&mut files, &folder.path("log"), None);
        let block = vec![b'x'; 50_000];
        for _ in 0..2_000 {
            say(&mut files, &mut writer, &mut pipe, &block);
        }
        say(&mut files, &mut writer, &mut pipe, b"\nnext\n");
        let text = fs::read(folder.path("log")).unwrap();
        let marks = 100_000_000 / LONGEST_LINE;
        assert_eq!(count_lines(&text), marks as u64 + 2);
        assert_eq!(text.len(), 100_000_000 + marks * (GOES_ON.len() + 1) + "\nnext\n".len());
        assert!(text.ends_with(b"x\nnext\n"));
        assert!(files.lines.capacity() <= USUAL_CAPACITY);
    }
}
