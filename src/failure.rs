//! The one line of a program that cannot start or cannot go on: what was tried, on what, why it failed, and what to do.

use std::fmt;

use nix::errno::Errno;

/// One line for the person who started the program. A client's failure is never one of these: it is a counter.
#[derive(Debug)]
pub struct Failure {
    line: String,
}

impl Failure {
    /// `tried` is the operation with its argument, as in `bind 127.0.0.1:8080`.
    pub fn new(tried: impl fmt::Display, reason: impl Into<std::io::Error>) -> Failure {
        let reason = reason.into();
        let reason = match reason.raw_os_error() {
            Some(number) => lower_first(Errno::from_raw(number).desc()),
            None => reason.to_string(),
        };
        Failure { line: format!("{tried}: {reason}") }
    }

    /// Adds what the user can do about it.
    pub fn advise(mut self, advice: impl fmt::Display) -> Failure {
        self.line = format!("{}; {advice}", self.line);
        self
    }

    /// A line that is complete as it is: another process or another part has composed it, or no error of the system is
    /// its reason.
    pub fn relay(line: String) -> Failure {
        Failure { line }
    }
}

/// Where one line is all that is kept of it.
impl From<Failure> for String {
    fn from(failure: Failure) -> String {
        failure.line
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&self.line)
    }
}

fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_lowercase().chain(characters).collect(),
        None => String::new(),
    }
}
