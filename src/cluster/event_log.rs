//! What happens to the workers, as lines of JSON: on standard error and, where one is given, in a file.

use std::path::Path;

use serde_json::{Value, json};

use super::log_file::LogFile;
use super::worker::Worker;
use crate::console::Console;
use crate::failure::Failure;
use crate::units::{monotonic_ns, utc_now_ms};

pub struct EventLog {
    start_ns: u64,
    pub console: Console,
    file: Option<LogFile>,
}

impl EventLog {
    pub fn open(file: Option<&Path>) -> Result<EventLog, Failure> {
        let file = file.map(LogFile::open).transpose()?;
        Ok(EventLog { start_ns: monotonic_ns(), console: Console::default(), file })
    }

    /// `fields` is an object. The event's name and time come first in the line.
    pub fn log(&mut self, event: &str, fields: Value) {
        let line = self.line(event, fields);
        self.console.write(line.as_bytes());
        if let Some(problem) = self.file.as_mut().and_then(|file| file.write(line.as_bytes())) {
            let line = self.line("failure", json!({"what": problem}));
            self.console.write(line.as_bytes());
        }
    }

    /// An event of this worker.
    pub fn log_of(&mut self, worker: &Worker, event: &str, mut fields: Value) {
        fields["worker"] = json!(worker.number);
        fields["unique_id"] = json!(worker.id.0);
        fields["pid"] = json!(worker.pid.as_raw());
        self.log(event, fields);
    }

    pub fn log_failure(&mut self, what: &str) {
        self.log("failure", json!({"what": what}));
    }

    /// After a rotation.
    pub fn reopen(&mut self) {
        if let Some(Err(failure)) = self.file.as_mut().map(LogFile::reopen) {
            self.log_failure(&failure.to_string());
        }
    }

    /// Lines that neither standard error nor the file took.
    pub fn lines_dropped(&self) -> u64 {
        self.console.all_dropped() + self.file.as_ref().map_or(0, |file| file.all_dropped)
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
