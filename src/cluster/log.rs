//! What a master writes: what happens, as lines of JSON, and what the workers write. It goes to standard error and to
//! files, and nothing waits for a reader: where a disk is full, or nobody reads a FIFO, lines are dropped and counted.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use serde_json::{Value, json};

use super::args::MasterArgs;
use super::worker::WorkerProcess;
use crate::console::{Console, count_lines, write_within};
use crate::failure::Failure;
use crate::units::{monotonic_ns, utc_now_ms};

pub struct Log {
    start_ns: u64,
    pub console: Console,
    /// `--events`, beside standard error.
    events: Option<LogFile>,
    /// `--log`: for what the workers write, instead of standard error.
    output: Option<LogFile>,
    is_silent: bool,
}

impl Log {
    pub fn open(args: &MasterArgs) -> Result<Log, Failure> {
        let open = |path: &Option<PathBuf>| path.as_deref().map(LogFile::open).transpose();
        let (events, output) = (open(&args.events)?, open(&args.log)?);
        Ok(Log { start_ns: monotonic_ns(), console: Console::default(), events, output, is_silent: args.silent })
    }

    /// `fields` is an object. The event's name and time come first in the line.
    pub fn log(&mut self, event: &str, fields: Value) {
        let line = self.line(event, fields);
        self.console.write(line.as_bytes());
        if let Some(problem) = self.events.as_mut().and_then(|file| file.write(line.as_bytes())) {
            let line = self.line("failure", json!({"what": problem}));
            self.console.write(line.as_bytes());
        }
    }

    pub fn log_of(&mut self, worker: &WorkerProcess, event: &str, mut fields: Value) {
        fields["worker"] = json!(worker.number);
        fields["unique_id"] = json!(worker.id.0);
        fields["pid"] = json!(worker.pid.as_raw());
        self.log(event, fields);
    }

    pub fn log_failure(&mut self, what: impl Display) {
        self.log("failure", json!({"what": what.to_string()}));
    }

    pub fn write_output(&mut self, lines: &[u8]) {
        match &mut self.output {
            _ if lines.is_empty() => {}
            Some(file) => {
                let problem = file.write(lines);
                problem.into_iter().for_each(|problem| self.log_failure(problem));
            }
            None if self.is_silent => {}
            None => self.console.write(lines),
        }
    }

    /// After a rotation.
    pub fn reopen(&mut self) {
        let reopened = [&mut self.events, &mut self.output].map(|file| file.as_mut().map(LogFile::reopen));
        reopened.into_iter().flatten().filter_map(Result::err).for_each(|failure| self.log_failure(failure));
    }

    pub fn lines_dropped(&self) -> u64 {
        let files = [&self.events, &self.output].into_iter().flatten();
        self.console.all_dropped() + files.map(|file| file.all_dropped).sum::<u64>()
    }

    fn line(&self, event: &str, fields: Value) -> String {
        let at_s = (monotonic_ns() - self.start_ns) as f64 / 1e9;
        let head = format!("{{\"event\":\"{event}\",\"at_s\":{at_s:.6},\"time\":\"{}\"", utc_now_ms());
        match fields.to_string().strip_prefix('{') {
            Some("}") | None => format!("{head}}}\n"),
            Some(rest) => format!("{head},{rest}\n"),
        }
    }
}

struct LogFile {
    file: File,
    path: PathBuf,
    /// Lines dropped since the last that could be written.
    dropped: u64,
    all_dropped: u64,
    /// Only the beginning of the last line was written.
    is_cut: bool,
}

impl LogFile {
    fn open(path: &Path) -> Result<LogFile, Failure> {
        Ok(LogFile { file: open_to_append(path)?, path: path.to_owned(), dropped: 0, all_dropped: 0, is_cut: false })
    }

    /// Opens the path anew: after a rotation another file has the name. When that fails, the old file stays in use.
    fn reopen(&mut self) -> Result<(), Failure> {
        self.file = open_to_append(&self.path)?;
        self.is_cut = false;
        Ok(())
    }

    /// Adds whole lines. It returns what has to be logged elsewhere: that lines are dropped from now on, and later how
    /// many were.
    #[must_use]
    fn write(&mut self, lines: &[u8]) -> Option<String> {
        // The rest of the last line was dropped; the next must not continue it.
        let text = if self.is_cut { [b"\n", lines].concat() } else { lines.to_vec() };
        let mut rest = text.clone();
        let outcome = write_within(&self.file, &mut rest, Duration::ZERO);
        let written = text.len() - rest.len();
        self.is_cut = if written == 0 { self.is_cut } else { text[written - 1] != b'\n' };
        let path = self.path.display();
        if rest.is_empty() {
            let dropped = std::mem::take(&mut self.dropped);
            return (dropped > 0).then(|| format!("write {path}: it goes on; {dropped} lines were dropped"));
        }
        let is_first = self.dropped == 0;
        let dropped = count_lines(&rest[rest.len().saturating_sub(lines.len())..]);
        self.dropped += dropped;
        self.all_dropped += dropped;
        let why = match outcome {
            Ok(()) => io::Error::other("it is full and nobody reads it"),
            Err(errno) => errno.into(),
        };
        let failure = Failure::new(format_args!("write {path}"), why).advise("lines are dropped until there is room");
        is_first.then(|| failure.to_string())
    }
}

/// Opened for reading too, a FIFO needs no reader (fifo(7)): it is there before its reader, and after.
fn open_to_append(path: &Path) -> Result<File, Failure> {
    let is_fifo = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    let mut options = OpenOptions::new();
    options.append(true).create(true).read(is_fifo).custom_flags(OFlag::O_NONBLOCK.bits());
    options.open(path).map_err(|error| {
        Failure::new(format_args!("open {}", path.display()), error)
            .advise("choose a file you may write, in a folder that exists")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_fifo_without_a_reader_blocks_nothing_and_its_reader_gets_whole_lines_and_the_loss_is_counted() {
        let path = std::env::temp_dir().join(format!("acceptlab-log-fifo-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut log = LogFile::open(&path).unwrap();
        let line = [&[b'x'; 999][..], b"\n"].concat();
        let problems: Vec<String> = (0..200).filter_map(|_| log.write(&line)).collect();
        assert!(problems.len() == 1 && problems[0].contains("nobody reads it"), "{problems:?}");
        assert!(log.all_dropped > 100);
        let mut reader = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path).unwrap();
        let mut taken = vec![0; 1 << 20];
        let length = reader.read(&mut taken).unwrap();
        assert_eq!(length % 1000, 0);
        let problem = log.write(&line).unwrap();
        assert!(problem.ends_with(&format!("{} lines were dropped", log.all_dropped)), "{problem}");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn after_a_rotation_lines_go_to_the_new_file() {
        let path = std::env::temp_dir().join(format!("acceptlab-log-rotated-{}", std::process::id()));
        let old = path.with_extension("1");
        let mut log = LogFile::open(&path).unwrap();
        assert_eq!(log.write(b"one\n"), None);
        fs::rename(&path, &old).unwrap();
        log.reopen().unwrap();
        assert_eq!(log.write(b"two\n"), None);
        assert_eq!([&old, &path].map(|path| fs::read_to_string(path).unwrap()), ["one\n", "two\n"]);
        [old, path].iter().for_each(|path| fs::remove_file(path).unwrap());
    }
}
