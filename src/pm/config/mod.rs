//! What an application is: plain values, out of a file or the command line. In reading order:
//!
//! - [`app`]: the values, one field per key.

mod app;

use std::fs;
use std::path::Path;

pub use app::{AppConfig, ExecMode, LogType};

use crate::failure::Failure;

/// The applications of a configuration file. With a name, the variables of its `env_NAME` come over those of `env`.
///
/// # Errors
/// One line with the file, and the line in it where there is one.
pub fn load(path: &Path, _env_name: Option<&str>) -> Result<Vec<AppConfig>, Failure> {
    let text = fs::read_to_string(path).map_err(|error| Failure::new(path.display(), error))?;
    serde_json::from_str(&text).map_err(|error| Failure::relay(format!("{}: {error}", path.display())))
}
