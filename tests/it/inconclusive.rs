//! A test that could not look must not count as passed. libtest knows no third result, so such a test ends here: it is
//! recorded, and when the test binary exits, every recorded test is printed by name with what it needs and why. The
//! list goes to the real standard error, which libtest does not capture, and is appended to the file named by
//! `ACCEPTLAB_INCONCLUSIVE`, which `.ci/run` reads and judges.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::panic::Location;
use std::sync::{Mutex, Once, PoisonError};

use acceptlab::sys::process::at_exit;

/// The file that also gets the list, a test a line: name, need and reason between tabs.
pub const FILE: &str = "ACCEPTLAB_INCONCLUSIVE";

/// What a test would need to be able to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// A program that `scripts/install_clients.sh` installs: `.ci/run` accepts no test that lacked one.
    Tool(&'static str),
    /// A server of another project, which `scripts/install_contenders.sh` installs. Of several tests that lack the same
    /// one, `.ci/run` counts one.
    Contender(&'static str),
    /// Root, a capability, or permission to trace.
    Privilege(&'static str),
    /// A feature of the kernel or of the network.
    Kernel(&'static str),
    /// A machine that does not delay the programs under test by more than the test tolerates.
    QuietMachine,
}

impl fmt::Display for Needs {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Needs::Tool(name) => write!(out, "tool {name}"),
            Needs::Contender(name) => write!(out, "contender {name}"),
            Needs::Privilege(name) => write!(out, "privilege {name}"),
            Needs::Kernel(feature) => write!(out, "kernel {feature}"),
            Needs::QuietMachine => write!(out, "quiet machine"),
        }
    }
}

struct Entry {
    test: String,
    needs: Needs,
    why: String,
}

static ENTRIES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// Records that the calling test could not look. The caller returns afterwards, or goes on with what it can look at.
#[track_caller]
pub fn inconclusive(needs: Needs, why: impl fmt::Display) {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| at_exit(print_all));
    let why = why.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    println!("inconclusive: needs {needs}: {why}");
    let test = test_name(Location::caller());
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner).push(Entry { test, needs, why });
}

/// libtest names each test's thread after the test, except with `--test-threads 1`, where all run in the main thread.
fn test_name(caller: &Location) -> String {
    match std::thread::current().name() {
        Some(name) if name != "main" => name.to_string(),
        _ => format!("{}:{}", caller.file(), caller.line()),
    }
}

extern "C" fn print_all() {
    let mut entries = std::mem::take(&mut *ENTRIES.lock().unwrap_or_else(PoisonError::into_inner));
    entries.sort_by(|a, b| (&a.test, &a.why).cmp(&(&b.test, &b.why)));
    entries.dedup_by(|a, b| (&a.test, &a.why) == (&b.test, &b.why));
    let lines = entries.iter().map(|Entry { test, needs, why }| format!("    {test}: needs {needs}: {why}\n"));
    let said = format!("inconclusive, which is not passed:\n{}\n", lines.collect::<String>());
    let _ = std::io::stderr().write_all(said.as_bytes());
    if let Some(file) = std::env::var_os(FILE) {
        let lines = entries.iter().map(|Entry { test, needs, why }| format!("{test}\t{needs}\t{why}\n"));
        let appended = OpenOptions::new().create(true).append(true).open(&file);
        let written = appended.and_then(|mut file| file.write_all(lines.collect::<String>().as_bytes()));
        if let Err(error) = written {
            eprintln!("write {}: {error}", file.display());
        }
    }
}

/// This binary again, with a test that is inconclusive, as the one test it runs.
#[test]
fn a_test_that_could_not_look_is_named_with_its_reason_when_the_run_ends() {
    const PLAY: &str = "ACCEPTLAB_PLAY_INCONCLUSIVE";
    if std::env::var_os(PLAY).is_some() {
        return inconclusive(Needs::Tool("no-such-tool"), "an example,\nin two lines");
    }
    let folder = crate::support::TempFolder::new("inconclusive");
    let file = folder.file("list");
    let name = "inconclusive::a_test_that_could_not_look_is_named_with_its_reason_when_the_run_ends";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads", "2"])
        .env(PLAY, "1")
        .env(FILE, &file)
        .output()
        .unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("{name}: needs tool no-such-tool: an example, in two lines\n")), "{said}");
    let line = std::fs::read_to_string(&file).unwrap();
    assert_eq!(line, format!("{name}\ttool no-such-tool\tan example, in two lines\n"));
}
