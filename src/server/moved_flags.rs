//! A program that was split, started with an old flag, replaces itself by the program that has it now (execve(2)):
//! command lines in scripts and lessons that are older than the split go on working.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, exit};

use crate::console;
use crate::failure::Failure;

/// The arguments of this process, as `program` takes them today. Each line of `moved` is a program, its old flags with
/// their values, and the command that has taken their place, empty where that is the program itself. The first of the
/// flags must be given; the others said nothing but the default. A flag that is written without a value may have any,
/// which is an argument of the other program. Does not return when another program goes on.
pub fn arguments(program: &str, moved: &[(&str, &str, &str)]) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    for (_, flags, command) in moved.iter().filter(|(from, ..)| *from == program) {
        let mut flags = flags.split(" --");
        if flags.next().is_some_and(|first| take(&mut arguments, first)) {
            for flag in flags {
                take(&mut arguments, &format!("--{flag}"));
            }
            let mut words = command.split_whitespace();
            if let Some(other) = words.next() {
                replace_by(other, words, &arguments);
            }
        }
    }
    arguments
}

/// Removes `--flag value`, or `--flag=value`, from arguments of which the first is the program's name; where the value
/// may be any, the flag alone. True when it was there.
fn take(arguments: &mut Vec<OsString>, flag: &str) -> bool {
    let Some((name, value)) = flag.split_once(' ') else { return take_name(arguments, flag) };
    let one_word = format!("{name}={value}");
    let found = (1..arguments.len()).find_map(|at| match &arguments[at..] {
        [word, ..] if *word == *one_word => Some(at..at + 1),
        [word, next, ..] if *word == *name && *next == *value => Some(at..at + 2),
        _ => None,
    });
    found.map(|words| arguments.drain(words)).is_some()
}

fn take_name(arguments: &mut Vec<OsString>, name: &str) -> bool {
    let found = (1..arguments.len()).find_map(|at| match arguments[at].as_bytes().strip_prefix(name.as_bytes())? {
        [] => Some((at, None)),
        [b'=', value @ ..] => Some((at, Some(OsStr::from_bytes(value).to_owned()))),
        _ => None,
    });
    found.map(|(at, value)| arguments.splice(at..=at, value)).is_some()
}

/// Goes on as a program that is installed beside this one.
fn replace_by<'a>(other: &str, flags: impl Iterator<Item = &'a str>, arguments: &[OsString]) -> ! {
    let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from(&arguments[0]));
    let path = own.with_file_name(other);
    let error = Command::new(&path).args(flags).args(&arguments[1..]).exec();
    let advice = format!("these flags are {other}'s now; install it beside {}", own.display());
    console::log_last(Failure::new(format_args!("run {}", path.display()), error).advise(advice));
    exit(1)
}
