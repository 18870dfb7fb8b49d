//! What happens to the workers, as lines of JSON: on standard error and, where one is given, in a file.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use serde_json::{Value, json};

use super::journal::Journal;
use crate::console::Console;
use crate::failure::Failure;
use crate::units::{monotonic_ns, utc_now_ms};

/// Tells events with their time since the start.
pub struct Events {
    start_ns: u64,
    console: Rc<RefCell<Console>>,
    file: Option<Journal>,
}

impl Events {
    pub fn new(console: Rc<RefCell<Console>>, file: Option<&Path>) -> Result<Events, Failure> {
        Ok(Events { start_ns: monotonic_ns(), console, file: file.map(Journal::open).transpose()? })
    }

    /// `fields` is an object. The event's name and time come first in the line.
    pub fn tell(&mut self, event: &str, fields: Value) {
        let line = self.line(event, fields);
        self.console.borrow_mut().write(line.as_bytes());
        if let Some(trouble) = self.file.as_mut().and_then(|file| file.write(line.as_bytes())) {
            let line = self.line("failure", json!({"what": trouble}));
            self.console.borrow_mut().write(line.as_bytes());
        }
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
