//! README's examples: what a stranger types first prints what README shows.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::Socket;

use super::{bar, judged};
use crate::support::{Needs, SERVERS, TempFolder, inconclusive, reserve_port};

const README: &str = include_str!("../../../README.md");

/// Where the built programs are.
fn programs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_lab")).parent().expect("a program is in a folder")
}

/// The blocks of this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    README.split(&fence[..]).skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect()
}

/// A shell session in a folder of its own, on ports of its own.
struct Session {
    folder: TempFolder,
    port: u16,
    _reserved: Socket,
    variables: Vec<(String, String)>,
    background: Option<Child>,
}

impl Session {
    fn new(name: &str) -> Session {
        let folder = TempFolder::new(name);
        let (reserved, address) = reserve_port();
        Session { folder, port: address.port(), _reserved: reserved, variables: Vec::new(), background: None }
    }

    /// With our programs, port and folder.
    fn adapted(&self, command: &str) -> String {
        let mut words: Vec<String> = Vec::new();
        for word in command.split(' ') {
            words.push(word.into());
            if SERVERS.iter().any(|server| word == format!("target/release/{}", server.name)) {
                words.push(format!("--listen 127.0.0.1:{}", self.port));
            }
        }
        words
            .join(" ")
            .replace(":8080", &format!(":{}", self.port))
            .replace("/tmp", self.folder.path().to_str().unwrap())
            // Last: the repository may be under /tmp.
            .replace("target/release", programs().to_str().unwrap())
    }

    /// What the command prints; what goes to the background prints its ready line.
    fn run(&mut self, command: &str) -> String {
        let command = self.adapted(command);
        if let Some(variable) = command.strip_prefix("export ") {
            let (name, value) = variable.split_once('=').expect("NAME=VALUE");
            self.variables.push((name.into(), value.into()));
            return String::new();
        }
        let in_foreground = command.trim_end_matches(" &");
        let mut shell = Command::new("sh");
        shell.current_dir(self.folder.path()).envs(self.variables.iter().cloned()).env("COLUMNS", "100");
        if in_foreground == command {
            let output = shell.args(["-c", &format!("{command} 2>&1")]).output().unwrap();
            return String::from_utf8_lossy(&output.stdout).into_owned();
        }
        let child = shell.args(["-c", &format!("exec {in_foreground}")]).stdout(Stdio::piped()).spawn().unwrap();
        let child = self.background.insert(child);
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(mut child) = self.background.take() {
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
            let _ = child.stdout.take().unwrap().read_to_end(&mut Vec::new());
            let _ = child.wait();
        }
    }
}

/// Without what differs from run to run: numbers are `#`, and columns are as wide as they need.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    for character in line.split_whitespace().collect::<Vec<_>>().join(" ").chars() {
        let is_number = character.is_ascii_digit() || (character == '.' && shape.ends_with('#'));
        if !(is_number && shape.ends_with('#')) {
            shape.push(if is_number { '#' } else { character });
        }
    }
    shape
}

/// Whether this is printed, where a line `…` stands for any lines.
fn shows(printed: &[&str], expected: &[&str]) -> bool {
    match expected {
        [] => printed.is_empty(),
        ["…", rest @ ..] => (0..=printed.len()).any(|from| shows(&printed[from..], rest)),
        [first, rest @ ..] => {
            printed.first().is_some_and(|line| shape(line) == shape(first)) && shows(&printed[1..], rest)
        }
    }
}

#[test]
fn another_number_is_the_same_example_and_another_word_or_line_is_not() {
    assert!(shows(&["98.3 requests/s", "some", "more", "valid"], &["100 requests/s", "…", "valid"]));
    assert!(!shows(&["98.3 answers/s"], &["98.3 requests/s"]));
    assert!(!shows(&["a", "one too many"], &["a"]));
    assert!(!shows(&["a"], &["a", "one that is missing"]));
}

/// Runs a block's commands one after another: what they print, or where that differs from what README shows. A busy
/// machine excuses another order, an unequal share, a verdict that doubts; nothing else.
fn play(name: &str, block: &str) -> Result<String, String> {
    let mut session = Session::new(name);
    let mut all = String::new();
    let begins = ["pattern", "valid", "connections per worker", "requests per worker"];
    let blurred = |line: &&str| line.contains('█') || begins.iter().any(|begin| line.starts_with(begin));
    for step in format!("\n{block}").split("\n$ ").skip(1) {
        let (command, expected) = step.split_once('\n').unwrap_or((step, ""));
        let text = session.run(command);
        let printed: Vec<&str> = text.lines().collect();
        let differs = || format!("README shows for `{command}`:\n{expected}\nbut it prints:\n{text}");
        let excused: Vec<&str> = expected.lines().map(|line| if blurred(&line) { "…" } else { line }).collect();
        assert!(shows(&printed, &excused), "{}", differs());
        bar(shows(&printed, &expected.lines().collect::<Vec<_>>()), differs)?;
        all += &text;
    }
    Ok(all)
}

/// Machine noise blurs an order and makes a verdict `suspect`.
const TOLERATED: Duration = Duration::from_millis(25);

#[test]
fn readmes_examples_print_what_it_shows_and_the_first_obeys_the_law_that_it_teaches() {
    let blocks = blocks("console");
    assert!(blocks.len() >= 3, "{blocks:?}");
    for (i, block) in blocks.iter().enumerate() {
        if let Err(error) = Command::new("curl").arg("--version").output()
            && block.contains("$ curl ")
        {
            inconclusive(Needs::Tool("curl"), error);
            continue;
        }
        judged(TOLERATED, || {
            let printed = play(&i.to_string(), block)?;
            if i == 0 { obeys_the_law(&printed) } else { Ok(()) }
        });
    }
}

fn obeys_the_law(printed: &str) -> Result<(), String> {
    let line = printed.lines().find(|line| line.contains(" requests/s "));
    let qps: f64 = line.and_then(|line| line.split(' ').next()?.parse().ok()).expect("a rate");
    // A sleep never ends early, so more is impossible on any machine.
    assert!(qps <= 100.0, "{qps}");
    bar(qps > 90.0, || format!("three workers give {qps}/s, and M/N is 100"))
}

/// The commands that it shows without their output: each is one that its program understands.
#[test]
fn no_command_of_the_readme_has_an_option_that_does_not_exist() {
    let commands = blocks("sh").into_iter().flat_map(str::lines).filter(|line| line.starts_with("target/release/"));
    let mut session = Session::new("options");
    let mut count = 0;
    for command in commands {
        let (command, _) = command.split_once("  ").unwrap_or((command, ""));
        let command = command.trim_end_matches(" &").replace(" -- ", " --help -- ");
        let printed = session.run(&format!("{command} --help"));
        assert!(printed.contains("\nUsage: "), "{command}\n{printed}");
        count += 1;
    }
    assert!(count >= 5, "README shows {count} commands");
}
