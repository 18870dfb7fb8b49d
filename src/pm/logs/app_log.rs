//! The log of one output of one process.

use std::path::PathBuf;

use crate::logs::lines::{LineFormat, LogStream};
use crate::terminal::Paint;

#[derive(Clone, Debug)]
pub struct AppLog {
    pub path: PathBuf,
    pub stream: LogStream,
    pub app_name: String,
    pub process_id: u32,
    /// Its lines are JSON objects.
    pub is_json: bool,
}

impl AppLog {
    /// Number and name of its process.
    pub fn label(&self) -> String {
        format!("{}|{}", self.process_id, self.app_name)
    }

    /// For a person: behind this label, in the colour of its process.
    pub fn named(&self, label: &str, paint: Paint) -> LineFormat {
        let label = match self.process_id % 4 {
            0 => paint.cyan(label),
            1 => paint.green(label),
            2 => paint.yellow(label),
            _ => paint.bold(label),
        };
        let bar = if self.stream == LogStream::Error { paint.red("|") } else { "|".to_owned() };
        LineFormat::Named(format!("{label} {bar} "))
    }

    pub fn json(&self) -> LineFormat {
        LineFormat::Json { stream: self.stream, process_id: self.process_id, app_name: self.app_name.clone() }
    }
}
