//! The text of the lessons: a reader types what it shows.

use std::fs;
use std::path::Path;
use std::process::Command;

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// The commands in a text: its indented lines, and what stands in backticks. A line may break a command.
fn commands(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("    "));
    let quoted = text.split('`').skip(1).step_by(2);
    // What ends with dots is an outline of a command.
    let whole = lines.chain(quoted).filter(|command| !command.ends_with('…'));
    whole.map(|command| command.split_whitespace().collect()).collect()
}

/// Whether a program accepts these arguments. It reads all of them before it prints its help, and does nothing else.
fn parse(program: &str, arguments: &[&str]) -> Result<(), String> {
    let folder = Path::new(env!("CARGO_BIN_EXE_lab")).parent().expect("a program is in a folder");
    let output = Command::new(folder.join(program)).args(arguments).arg("--help").output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Whether these programs, one behind the `--` of another, accept their arguments.
fn is_accepted(programs: &[String], command: &[&str]) -> Result<(), String> {
    for part in command.split(|word| *word == "--") {
        let Some((first, arguments)) = part.split_first() else { continue };
        let program = first.strip_prefix("target/release/").unwrap_or(first);
        if !programs.iter().any(|name| name == program) {
            continue;
        }
        match parse(program, arguments) {
            // The text names a flag without its value.
            Err(message) if message.contains("a value is required") => {}
            answer => answer?,
        }
    }
    Ok(())
}

#[test]
fn every_command_in_the_text_of_a_lesson_is_accepted_by_its_program() {
    let files = |folder: &str, end: &str| -> Vec<_> {
        let paths = fs::read_dir(Path::new(REPOSITORY).join(folder)).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == end)).collect()
    };
    let stem = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
    let programs: Vec<String> = files("bins", "rs").iter().map(|path| stem(path)).collect();
    let (mut wrong, mut accepted) = (Vec::new(), 0);
    for lesson in files("experiments", "md") {
        let text = fs::read_to_string(&lesson).unwrap();
        let (text, _matrix) = text.split_once("## The matrix").unwrap();
        for command in commands(text) {
            match is_accepted(&programs, &command) {
                Ok(()) => accepted += usize::from(command.len() > 1),
                Err(message) => wrong.push(format!("{}: {}\n{message}", stem(&lesson), command.join(" "))),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(accepted > 30, "only {accepted} commands were found");
}

#[test]
fn a_command_with_an_unknown_flag_or_a_wrong_value_is_found() {
    let programs = ["lab".to_string(), "sync".to_string()];
    for command in ["sync --works none", "sync --work slep:1ms", "lab order -- sync --works", "sync --works"] {
        let words: Vec<&str> = command.split(' ').collect();
        assert!(is_accepted(&programs, &words).is_err(), "{command}");
    }
    assert_eq!(is_accepted(&programs, &["target/release/lab", "order", "--", "sync", "--work", "none"]), Ok(()));
    assert_eq!(commands("see `a\nb` and\n\n    c d\n"), [vec!["c", "d"], vec!["a", "b"]]);
}
