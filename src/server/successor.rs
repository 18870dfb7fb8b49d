//! A program that was split goes on under its old flags: it replaces itself by the program that has them now (execve(2)).

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::console;
use crate::failure::Failure;

/// The arguments of this process, the program's name first.
pub struct Arguments {
    words: Vec<OsString>,
}

impl Arguments {
    pub fn of_this_process() -> Arguments {
        Arguments { words: std::env::args_os().collect() }
    }

    /// Removes `flag value` or `flag=value`. True when it was there.
    pub fn take(&mut self, flag: &str, value: &str) -> bool {
        let Some((at, words)) = self.find(flag, value) else { return false };
        self.words.drain(at..at + words);
        true
    }

    pub fn contain(&self, flag: &str, value: &str) -> bool {
        self.find(flag, value).is_some()
    }

    fn find(&self, flag: &str, value: &str) -> Option<(usize, usize)> {
        let one_word = format!("{flag}={value}");
        (1..self.words.len()).find_map(|at| match &self.words[at..] {
            [word, ..] if *word == *one_word => Some((at, 1)),
            [word, next, ..] if *word == *flag && *next == *value => Some((at, 2)),
            _ => None,
        })
    }

    /// Goes on as `program`, which is installed beside this one. Returns only when that fails.
    pub fn run(self, program: &str) -> ExitCode {
        let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from(&self.words[0]));
        let path = own.with_file_name(program);
        let error = Command::new(&path).args(&self.words[1..]).exec();
        let tried = format!("run {}", path.display());
        let advice = format!("these flags are {program}'s now; install it beside {}", own.display());
        console::log_last(Failure::new(tried, error).advise(advice));
        ExitCode::FAILURE
    }
}

impl IntoIterator for Arguments {
    type Item = OsString;
    type IntoIter = std::vec::IntoIter<OsString>;

    fn into_iter(self) -> Self::IntoIter {
        self.words.into_iter()
    }
}
