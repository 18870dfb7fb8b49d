//! A program that was split goes on under its old flags: it replaces itself by the program that has them now (execve(2)).

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::console;
use crate::failure::Failure;

/// Removes `flag value`, or `flag=value`, from arguments of which the first is the program's name. True when it was there.
pub fn take(arguments: &mut Vec<OsString>, flag: &str, value: &str) -> bool {
    let one_word = format!("{flag}={value}");
    let found = (1..arguments.len()).find_map(|at| match &arguments[at..] {
        [word, ..] if *word == *one_word => Some(at..at + 1),
        [word, next, ..] if *word == *flag && *next == *value => Some(at..at + 2),
        _ => None,
    });
    found.map(|words| arguments.drain(words)).is_some()
}

/// Goes on as `program`, which is installed beside this one, with these flags. Returns only when that fails.
pub fn run(program: &str, flags: &[&str], arguments: &[OsString]) -> ExitCode {
    let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from(&arguments[0]));
    let path = own.with_file_name(program);
    let error = Command::new(&path).args(flags).args(&arguments[1..]).exec();
    let advice = format!("these flags are {program}'s now; install it beside {}", own.display());
    console::log_last(Failure::new(format_args!("run {}", path.display()), error).advise(advice));
    ExitCode::FAILURE
}
