//! One output of one process: read from its pipe as it comes, and written in whole lines to its files.
//!
//! The pipe is a FIFO that outlives both ends: the process may be restarted, and the next daemon reads on. So a writer
//! stays when its process ends; [`LogWriter::finish`] then completes a line that has no end.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::read;

use super::file::{AppendFile, Buffers, LogFiles, Rotation};
use super::lines::{LineFormat, LineSplitter, USUAL_CAPACITY};
use super::time_stamp::Clock;
use crate::sys::fd::until_uninterrupted;

/// What is read before another output has its turn.
const MOST_AT_ONCE: usize = 1 << 20;

/// So many bytes of lines are one write(2), or a little more.
const BATCH: usize = 64 << 10;

/// Where the lines of one output go, and how they look.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// Each gets every line: the log of this output, and perhaps one for all outputs of the application.
    pub paths: Vec<PathBuf>,
    pub format: LineFormat,
    /// `log_date_format`. Without it text has no time, and JSON has that of UTC (RFC 3339).
    pub date_format: Option<String>,
    pub rotation: Option<Rotation>,
}

pub struct LogWriter {
    fifo: OwnedFd,
    splitter: LineSplitter,
    clock: Clock,
    destinations: Destinations,
}

struct Destinations {
    files: Vec<Rc<RefCell<AppendFile>>>,
    shared: LogFiles,
}

impl LogWriter {
    /// Makes the FIFO's reading end non-blocking. The files are opened with the first line, and their folders made.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn open(fifo: OwnedFd, settings: &LogSettings, files: &LogFiles) -> nix::Result<LogWriter> {
        let flags = OFlag::from_bits_retain(fcntl(&fifo, FcntlArg::F_GETFL)?);
        fcntl(&fifo, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let is_json = matches!(settings.format, LineFormat::Json { .. });
        let clock = Clock::new(settings.date_format.as_deref(), is_json);
        let splitter = LineSplitter::new(settings.format.clone());
        let shared = files.clone();
        let files = settings.paths.iter().map(|path| files.at(path, settings.rotation)).collect();
        Ok(LogWriter { fifo, splitter, clock, destinations: Destinations { files, shared } })
    }

    /// Reads what is there, at most 1 MiB, and writes the lines that it completes. If there is more, epoll says so.
    ///
    /// # Errors
    /// Those of read(2) but for EAGAIN. A file that cannot be written is none: see [`LogFiles::take_problems`].
    pub fn read_available(&mut self) -> nix::Result<()> {
        let buffers = self.destinations.shared.buffers();
        let Buffers { input, output } = &mut *buffers.borrow_mut();
        let time = self.clock.now();
        let mut left = MOST_AT_ONCE;
        let outcome = loop {
            match until_uninterrupted(|| read(&self.fifo, input)) {
                Ok(0) => break Ok(()),
                Ok(length) => {
                    self.splitter.take(&input[..length], time, output);
                    if output.len() >= BATCH {
                        self.destinations.write(output);
                    }
                    // A read that could take more has emptied the pipe (pipe(7)).
                    if length < input.len() {
                        break Ok(());
                    }
                    left = left.saturating_sub(length);
                    if left == 0 {
                        break Ok(());
                    }
                }
                Err(Errno::EAGAIN) => break Ok(()),
                Err(errno) => break Err(errno),
            }
        };
        self.destinations.write(output);
        outcome
    }

    /// The process has ended: reads what it has left, and completes its last line. A process that it has started may
    /// still write; that is read later.
    ///
    /// # Errors
    /// As of [`LogWriter::read_available`].
    pub fn finish(&mut self) -> nix::Result<()> {
        // One call reads as much as any pipe holds that an ordinary user may have (pipe(7), /proc/sys/fs/pipe-max-size).
        let outcome = self.read_available();
        let mut lines = Vec::new();
        self.splitter.end(self.clock.now(), &mut lines);
        self.destinations.write(&mut lines);
        outcome
    }

    /// For `pm flush`: its files are empty again.
    pub fn flush(&self) {
        self.destinations.for_each(AppendFile::flush);
    }
}

impl Destinations {
    fn write(&self, lines: &mut Vec<u8>) {
        if !lines.is_empty() {
            self.for_each(|file| file.append(lines));
        }
        lines.clear();
        lines.shrink_to(USUAL_CAPACITY);
    }

    fn for_each(&self, action: impl Fn(&mut AppendFile) -> Option<String>) {
        self.files.iter().for_each(|file| self.shared.report(action(&mut file.borrow_mut())));
    }
}

impl AsFd for LogWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fifo.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::rotated;
    use super::super::lines::{GOES_ON, LONGEST_LINE, LogStream};
    use super::*;
    use crate::console::count_lines;
    use std::fs::{self, File, OpenOptions};
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::Path;

    use nix::sys::stat::Mode;
    use nix::unistd::{mkfifo, pipe2, write};

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let folder = std::env::temp_dir().join(format!("acceptlab-writer-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir(&folder).unwrap();
            Folder(folder)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// A writer and the end that a process would write to.
    fn output(files: &LogFiles, path: &Path, rotation: Option<Rotation>) -> (LogWriter, File) {
        output_as(files, path, rotation, LineFormat::Plain, None)
    }

    fn output_as(
        files: &LogFiles,
        path: &Path,
        rotation: Option<Rotation>,
        format: LineFormat,
        date_format: Option<&str>,
    ) -> (LogWriter, File) {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let date_format = date_format.map(str::to_owned);
        let settings = LogSettings { paths: vec![path.to_owned()], format, date_format, rotation };
        (LogWriter::open(ours, &settings, files).unwrap(), File::from(theirs))
    }

    fn say(writer: &mut LogWriter, process: &mut File, text: &[u8]) {
        process.write_all(text).unwrap();
        assert_eq!(writer.read_available(), Ok(()));
    }

    #[test]
    fn lines_of_many_processes_in_one_file_stay_whole_and_in_order() {
        let folder = Folder::new("merged");
        let (files, path) = (LogFiles::default(), folder.path("new/folder/all.log"));
        let mut outputs: Vec<_> = (0..10).map(|_| output(&files, &path, None)).collect();
        // Each line in two halves, and between them those of the others.
        for number in 0..200 {
            for (process, (writer, pipe)) in outputs.iter_mut().enumerate() {
                say(writer, pipe, format!("end\n{process} {number} the ").as_bytes());
            }
        }
        outputs.iter_mut().for_each(|(writer, _)| writer.finish().unwrap());
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
        let folder = Folder::new("rotated");
        let (files, path) = (LogFiles::default(), folder.path("api.log"));
        let rotation = Some(Rotation { largest: 1000, kept: 3 });
        let mut outputs: Vec<_> = (0..2).map(|_| output(&files, &path, rotation)).collect();
        for number in 0..1000 {
            let (writer, pipe) = &mut outputs[number % 2];
            say(writer, pipe, format!("line {number}\n").as_bytes());
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
        let (mut writer, mut pipe) = output(&files, &none, Some(Rotation { largest: 10, kept: 0 }));
        (0..3).for_each(|number| say(&mut writer, &mut pipe, format!("line {number}\n").as_bytes()));
        assert_eq!(folder.read("none.log"), "line 2\n");
        assert!(!rotated(&none, 1).exists() && files.take_problems().is_empty());
    }

    #[test]
    fn a_file_that_was_renamed_is_opened_anew_when_asked_and_one_that_was_deleted_at_once() {
        let folder = Folder::new("reopened");
        let (files, path) = (LogFiles::default(), folder.path("api.log"));
        let (mut writer, mut pipe) = output(&files, &path, None);
        say(&mut writer, &mut pipe, b"one\n");
        fs::rename(&path, folder.path("old")).unwrap();
        say(&mut writer, &mut pipe, b"two\n");
        files.reopen();
        say(&mut writer, &mut pipe, b"three\n");
        assert_eq!((folder.read("old"), folder.read("api.log")), ("one\ntwo\n".into(), "three\n".into()));
        fs::remove_file(&path).unwrap();
        say(&mut writer, &mut pipe, b"four\n");
        assert_eq!(folder.read("api.log"), "four\n");
        writer.flush();
        assert_eq!(folder.read("api.log"), "");
        say(&mut writer, &mut pipe, b"five\n");
        assert_eq!(folder.read("api.log"), "five\n");
        assert!(files.take_problems().is_empty());
    }

    #[test]
    fn a_file_that_cannot_be_written_is_said_once_and_what_is_lost_is_counted_and_it_is_tried_again() {
        let folder = Folder::new("unwritable");
        for (path, why) in [
            (folder.path("folder.log"), "is a directory"),
            (PathBuf::from("/dev/full"), "no space left on device"),
            (folder.path("file/under/a/file.log"), "not a directory"),
            (PathBuf::from("/proc/nobody/creates.log"), "no such file or directory"),
        ] {
            fs::write(folder.path("file"), "").unwrap();
            let _ = fs::create_dir(folder.path("folder.log"));
            let files = LogFiles::default();
            let (mut writer, mut pipe) = output(&files, &path, None);
            for _ in 0..3 {
                say(&mut writer, &mut pipe, b"a\nb\n");
            }
            let problems = files.take_problems();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(
                problems[0].starts_with(&format!("write {}: {why}; lines are lost", path.display())),
                "{problems:?}"
            );
            assert_eq!(files.lost(), 6);
        }
        // There it is tried again, here because somebody has asked for it.
        let (files, path) = (LogFiles::default(), folder.path("folder.log"));
        let (mut writer, mut pipe) = output(&files, &path, None);
        say(&mut writer, &mut pipe, b"lost\n");
        fs::remove_dir(&path).unwrap();
        say(&mut writer, &mut pipe, b"too early\n");
        files.reopen();
        say(&mut writer, &mut pipe, b"there\n");
        let problems = files.take_problems();
        assert_eq!(problems[1], format!("write {}: it goes on; 2 lines were lost", path.display()));
        assert_eq!((folder.read("folder.log"), problems.len(), files.lost()), ("there\n".into(), 2, 2));
    }

    #[test]
    fn a_log_that_cannot_be_rotated_grows_on_and_that_is_said_once() {
        let folder = Folder::new("stuck");
        let (files, path) = (LogFiles::default(), folder.path("api.log"));
        // A folder that is not empty has the name that the log would get.
        fs::create_dir_all(rotated(&path, 1).join("x")).unwrap();
        let (mut writer, mut pipe) = output(&files, &path, Some(Rotation { largest: 10, kept: 1 }));
        (0..5).for_each(|number| say(&mut writer, &mut pipe, format!("line {number}\n").as_bytes()));
        assert_eq!(folder.read("api.log"), "line 0\nline 1\nline 2\nline 3\nline 4\n");
        let problems = files.take_problems();
        assert!(
            problems.len() == 1 && problems[0].starts_with(&format!("rotate {}: ", path.display())),
            "{problems:?}"
        );
        assert_eq!(files.lost(), 0);
        fs::remove_dir_all(rotated(&path, 1)).unwrap();
        files.reopen();
        say(&mut writer, &mut pipe, b"line 5\n");
        assert_eq!(folder.read("api.log"), "line 5\n");
    }

    #[test]
    fn a_line_that_was_cut_is_completed_before_the_next() {
        let folder = Folder::new("cut");
        let (files, path) = (LogFiles::default(), folder.path("fifo"));
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let mut reader = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path).unwrap();
        let (mut writer, mut pipe) = output(&files, &path, None);
        let line = [&[b'x'; 999][..], b"\n"].concat();
        (0..100).for_each(|_| say(&mut writer, &mut pipe, &line));
        let lost = files.lost();
        assert!(lost > 20, "a pipe holds 64 KiB");
        let mut text = vec![0; 100_000];
        let length = reader.read(&mut text).unwrap();
        text.truncate(length);
        say(&mut writer, &mut pipe, b"next\n");
        let _ = reader.read_to_end(&mut text);
        let text = String::from_utf8(text).unwrap();
        let (next, lines) = text.lines().collect::<Vec<_>>().split_last().map(|(a, b)| (*a, b.to_vec())).unwrap();
        assert!(next == "next" && lines.iter().all(|line| line.len() == 999), "{}", lines.len());
        assert_eq!(lines.len() as u64, 100 - lost);
        assert!(files.take_problems()[1].ends_with(&format!("{lost} lines were lost")));
    }

    #[test]
    fn the_last_line_of_a_process_needs_no_end_and_the_next_process_writes_on() {
        let folder = Folder::new("ends");
        let files = LogFiles::default();
        mkfifo(&folder.path("fifo"), Mode::S_IRWXU).unwrap();
        let fifo = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(folder.path("fifo"));
        let paths = vec![folder.path("out.log"), folder.path("all.log")];
        let settings = LogSettings { paths, format: LineFormat::Plain, date_format: None, rotation: None };
        let mut writer = LogWriter::open(fifo.unwrap().into(), &settings, &files).unwrap();
        for text in ["a\nlast", "next\nlast\0"] {
            let process = OpenOptions::new().read(true).write(true).open(folder.path("fifo")).unwrap();
            write(&process, text.as_bytes()).unwrap();
            assert_eq!(writer.read_available(), Ok(()));
            drop(process);
            writer.finish().unwrap();
            assert_eq!(writer.read_available(), Ok(()));
        }
        assert_eq!(folder.read("out.log"), "a\nlast\nnext\nlast\0\n");
        assert_eq!(folder.read("all.log"), folder.read("out.log"));
    }

    #[test]
    fn lines_have_their_time_as_text_and_as_json() {
        let folder = Folder::new("time");
        let files = LogFiles::default();
        let (mut writer, mut pipe) =
            output_as(&files, &folder.path("text"), None, LineFormat::Plain, Some("YYYY-MM-DD HH:mm:ss.SSS Z"));
        say(&mut writer, &mut pipe, b"one\ntwo\n");
        let text = folder.read("text");
        let (time, line) = text.lines().next().unwrap().split_at("2026-11-29 16:05:14.123 +00:00".len());
        assert!(time.starts_with("20") && line == ": one", "{text}");
        let json = LineFormat::Json { stream: LogStream::Out, process_id: 1, app_name: "api".into() };
        let (mut writer, mut pipe) = output_as(&files, &folder.path("json"), None, json, None);
        say(&mut writer, &mut pipe, b"a \"b\"\n");
        let value: serde_json::Value = serde_json::from_str(&folder.read("json")).unwrap();
        assert!(value["timestamp"].as_str().unwrap().ends_with('Z') && value["message"] == "a \"b\"", "{value}");
    }

    #[test]
    fn a_line_of_100_mb_passes_in_pieces_while_little_is_kept() {
        let folder = Folder::new("giant");
        let files = LogFiles::default();
        let (mut writer, mut pipe) = output(&files, &folder.path("log"), None);
        let block = vec![b'x'; 50_000];
        for _ in 0..2_000 {
            say(&mut writer, &mut pipe, &block);
        }
        say(&mut writer, &mut pipe, b"\nnext\n");
        let text = fs::read(folder.path("log")).unwrap();
        let marks = 100_000_000 / LONGEST_LINE;
        assert_eq!(count_lines(&text), marks as u64 + 2);
        assert_eq!(text.len(), 100_000_000 + marks * (GOES_ON.len() + 1) + "\nnext\n".len());
        assert!(text.ends_with(b"x\nnext\n"));
        assert!(files.buffers().borrow().output.capacity() <= USUAL_CAPACITY);
    }
}
