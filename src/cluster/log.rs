//! What a master writes: what happens, as lines of JSON, and what the workers write. It goes to standard error and to
//! files, and nothing waits for a reader: where a disk is full, or nobody reads a FIFO, lines are lost and counted.

use std::fmt::Display;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::args::MasterArgs;
use super::worker::WorkerProcess;
use crate::console::Console;
use crate::failure::Failure;
use crate::logs::append_file::AppendFile;
use crate::units::{monotonic_ns, utc_now_ms};

pub struct Log {
    start_ns: u64,
    pub console: Console,
    /// `--events`, beside standard error.
    events: Option<AppendFile>,
    /// `--log`: for what the workers write, instead of standard error.
    output: Option<AppendFile>,
    is_silent: bool,
}

impl Log {
    pub fn open(args: &MasterArgs) -> Result<Log, Failure> {
        let open = |path: &Option<PathBuf>| {
            let mut file = path.as_deref().map(|path| AppendFile::new(path, None));
            let opened = file.as_mut().map_or(Ok(()), AppendFile::open);
            opened.map(|()| file).map_err(|failure| failure.advise("choose a file you may write"))
        };
        let (events, output) = (open(&args.events)?, open(&args.log)?);
        Ok(Log { start_ns: monotonic_ns(), console: Console::default(), events, output, is_silent: args.silent })
    }

    /// `fields` is an object. The event's name and time come first in the line.
    pub fn log(&mut self, event: &str, fields: Value) {
        let line = self.line(event, fields);
        self.console.write(line.as_bytes());
        if let Some(problem) = self.events.as_mut().and_then(|file| file.append(line.as_bytes())) {
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
                let problem = file.append(lines);
                problem.into_iter().for_each(|problem| self.log_failure(problem));
            }
            None if self.is_silent => {}
            None => self.console.write(lines),
        }
    }

    /// After a rotation.
    pub fn reopen(&mut self) {
        let problems = [&mut self.events, &mut self.output].map(|file| file.as_mut().and_then(AppendFile::reopen));
        problems.into_iter().flatten().for_each(|problem| self.log_failure(problem));
    }

    pub fn lines_dropped(&self) -> u64 {
        let files = [&self.events, &self.output].into_iter().flatten();
        self.console.all_dropped() + files.map(AppendFile::all_lost).sum::<u64>()
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
