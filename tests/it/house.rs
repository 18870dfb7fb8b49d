//! The rules of ARCHITECTURE.md that a program can check on the text of the code.

mod imports;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use acceptlab::metrics;
use acceptlab::scoreboard::{Count, ROW_WORDS};
use acceptlab::sys::process::fork;

use crate::support::{SERVERS, kind};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut folders = vec![root().join(folder)];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                sources.push((path, text));
            }
        }
    }
    assert!(!sources.is_empty());
    sources
}

fn is_code(line: &&str) -> bool {
    !line.trim_start().starts_with("//")
}

#[test]
fn unsafe_code_is_in_sys_alone_and_each_has_its_argument() {
    for (path, text) in sources("src").into_iter().chain(sources("tests")) {
        if path.ends_with("tests/it/house.rs") {
            continue;
        }
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate().filter(|(_, line)| is_code(line)) {
            if !line.contains("unsafe {") && !line.contains("unsafe fn") && !line.contains("unsafe impl") {
                continue;
            }
            assert!(path.to_str().unwrap().contains("/src/sys/"), "unsafe in {}:{}", path.display(), i + 1);
            let argued = lines[i.saturating_sub(4)..i].iter().any(|before| before.contains("// SAFETY: "));
            assert!(argued, "no SAFETY argument above {}:{}", path.display(), i + 1);
        }
    }
}

/// So a change in such a folder can change no other program's rows (`src/lab/evidence/origin.rs`).
#[test]
fn a_folder_with_a_programs_name_is_a_part_of_that_program_alone() {
    let names = programs().into_iter().map(|program| program.name);
    let folders: Vec<String> = names.filter(|name| root().join("src").join(name).is_dir()).collect();
    assert!(folders.contains(&"cluster".to_owned()) && folders.contains(&"pm".to_owned()), "{folders:?}");
    for folder in folders.iter().filter(|folder| *folder != "lab") {
        let names = [format!("crate::{folder}"), format!("acceptlab::{folder}")];
        for (path, text) in sources("src").into_iter().chain(sources("bins")) {
            let relative = path.strip_prefix(root()).unwrap().to_str().unwrap();
            let is_own = relative.starts_with(&format!("src/{folder}/")) || relative == format!("bins/{folder}.rs");
            let is_used = text.lines().filter(is_code).any(|line| names.iter().any(|name| line.contains(name)));
            assert!(is_own || !is_used, "{relative} uses src/{folder}/");
        }
    }
}

#[test]
fn no_program_is_built_as_an_empty_test_or_bench() {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    for bin in manifest["bin"].as_array().unwrap() {
        for harness in ["test", "bench"] {
            let is_off = bin.get(harness).and_then(toml::Value::as_bool) == Some(false);
            assert!(is_off, "{} lacks `{harness} = false` in Cargo.toml", bin["name"]);
        }
    }
}

#[test]
fn every_program_forbids_unsafe_code_and_says_what_it_is() {
    for (path, text) in sources("bins") {
        assert!(text.contains("#![forbid(unsafe_code)]"), "{}", path.display());
        assert!(text.starts_with("//! "), "{} does not open with what it is", path.display());
    }
}

#[test]
fn every_architecture_says_who_accepts_serves_and_balances_and_what_is_inherited() {
    for program in syllabus() {
        let text = program.text();
        let header: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim).collect();
        let header = header.join(" ");
        for question in ["Who accepts", "Who serves", "Who balances", "What is inherited", "Compare with", "See it"] {
            assert!(header.contains(question), "{} does not say: {question}", program.name);
        }
    }
}

#[test]
fn a_programs_line_in_cargo_toml_is_the_first_of_its_file_and_of_its_help() {
    for program in programs() {
        let (name, line, text) = (&program.name, &program.line, program.text());
        assert!(text.starts_with(&format!("//! {line}.\n//!\n")), "bins/{name}.rs does not open with `{line}.`");
        // Help does not name the age.
        let says = line.split_once(": ").filter(|_| !line.is_ascii()).map_or(&line[..], |(_, says)| says);
        let (first, rest) = says.split_at(1);
        let about = format!("{}{rest}", first.to_uppercase());
        let path = Path::new(SERVERS[0].path).with_file_name(name);
        let help = String::from_utf8(Command::new(path).arg("--help").output().unwrap().stdout).unwrap();
        let (paragraph, _) = help.split_once("\n\n").expect("a paragraph, and then the usage");
        assert_eq!(paragraph.replace('\n', " "), about, "the help of {name}");
    }
}

#[test]
fn readmes_table_is_the_syllabus_of_cargo_toml() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let rows: Vec<&str> = readme.lines().filter(|line| line.starts_with("| [`")).collect();
    let syllabus = syllabus();
    for (program, row) in syllabus.iter().zip(&rows) {
        let expected = format!("| [`{0}`](bins/{0}.rs) | {1} | ", program.name, program.line);
        assert!(row.starts_with(&expected), "{row}\nbut Cargo.toml has\n{expected}");
    }
    assert_eq!(rows.len(), syllabus.len());
}

/// Without comments and what `#[cfg(test)]` covers at the end of a file.
fn code(text: &str) -> String {
    let code = text.lines().filter(is_code).collect::<Vec<_>>().join("\n");
    code.split("#[cfg(test)]\nmod ").next().unwrap().to_string()
}

/// A program of Cargo.toml, and the line that says what it is.
struct Listed {
    name: String,
    line: String,
}

impl Listed {
    fn text(&self) -> String {
        fs::read_to_string(root().join("bins").join(&self.name).with_extension("rs")).unwrap()
    }
}

fn programs_in(manifest: &str) -> Vec<Listed> {
    let entries = manifest.split("\n[[bin]] # ").skip(1).map(|entry| {
        let (line, rest) = entry.split_once("\nname = \"").expect("the line, and then the name");
        Listed { name: rest.split('"').next().unwrap().into(), line: line.into() }
    });
    entries.collect()
}

fn programs() -> Vec<Listed> {
    programs_in(&fs::read_to_string(root().join("Cargo.toml")).unwrap())
}

/// Those above the line about the instruments.
fn syllabus() -> Vec<Listed> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (syllabus, _) = manifest.split_once("# The instruments").expect("they are below the syllabus");
    let programs = programs_in(syllabus);
    assert!(programs.len() >= 12, "{syllabus}");
    programs
}

/// Words that are also an architecture's name: an event of a cluster, in Node's word for it, HTTP's pipelining, and the
/// contract's word for sockets that share an address.
const OTHER_MEANINGS: [(&str, &str); 4] = [
    ("fork", "src/cluster/workers.rs"),
    ("pipeline", "src/metrics.rs"),
    ("pipeline", "src/load/commands/merge.rs"),
    ("reuseport", "src/lab/trials/modes.rs"),
];

#[test]
fn the_library_does_not_know_which_architectures_exist() {
    let syllabus = syllabus();
    for (path, text) in sources("src").into_iter().filter(|(path, _)| !path.ends_with("tests.rs")) {
        let code = code(&text);
        for Listed { name, .. } in &syllabus {
            // As a whole string, the last part of a path, or the first word of a command line.
            let knows = |end: &str| ["\"", "/"].iter().any(|start| code.contains(&format!("{start}{name}{end}")));
            let means_another = OTHER_MEANINGS.iter().any(|(word, file)| word == name && path.ends_with(file));
            assert!(means_another || !(knows("\"") || knows(" --")), "{} knows {name}", path.display());
        }
    }
}

#[test]
fn no_thread_exists_when_a_process_forks_and_fork_asserts_it() {
    for (path, text) in sources("src").into_iter().chain(sources("bins")) {
        let forks = ["unistd::fork", "libc::fork", "libc::vfork", "libc::clone"];
        let is_ours = path.ends_with("src/sys/process.rs");
        assert!(is_ours || !forks.iter().any(|fork| code(&text).contains(fork)), "{} forks by itself", path.display());
    }
    // A test has a thread beside the main one, and this one has a third.
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let second = std::thread::spawn(move || held.recv().is_err());
    let refused = std::panic::catch_unwind(|| fork().map(|_| ())).expect_err("several threads");
    // A panic with arguments carries a String, one without them a &str.
    let why = refused.downcast_ref::<String>().map(String::as_str);
    let why = why.or(refused.downcast_ref::<&str>().copied()).unwrap_or_default();
    assert!(why.contains("a process with several threads must not fork"), "{why}");
    drop(hold);
    assert!(second.join().unwrap());
}

/// Where code sleeps for a time, and why that orders nothing.
const SLEEPS: [(&str, &str); 8] = [
    ("bins/null-uring.rs", "backs off after accept(2) found no descriptor left; it is tried again whatever happens"),
    ("bins/null-server.rs", "backs off after accept(2) found no descriptor left; it is tried again whatever happens"),
    ("src/lab/check/timeouts.rs", "watches for a given time that something does not happen"),
    ("src/lab/check/stop.rs", "gives a server time in which it must not do something"),
    ("src/lab/observe/processes.rs", "the pause between two looks of poll_until, which waits for a state"),
    ("src/load/commands/demo.rs", "the stall that the demonstration is about"),
    (
        "src/server/blocking.rs",
        "backs off after accept(2) found no descriptor left; it is tried again whatever happens",
    ),
    ("src/work.rs", "`--work block` and `wait`: the sleep is the work"),
];

#[test]
fn nothing_is_ordered_by_sleeping() {
    let mut reasons: BTreeMap<&str, &str> = BTreeMap::from(SLEEPS);
    for (path, text) in sources("src").into_iter().chain(sources("bins")) {
        if path.ends_with("tests.rs") {
            continue;
        }
        let sleeps =
            code(&text).lines().any(|line| line.contains("thread::sleep(") || line.contains("clock_nanosleep("));
        if sleeps {
            let reason = SLEEPS.iter().find(|(file, _)| path.ends_with(file));
            let (file, _) = reason.unwrap_or_else(|| panic!("{} sleeps; wait for a state", path.display()));
            reasons.remove(file);
        }
    }
    assert!(reasons.is_empty(), "these no longer sleep: {reasons:?}");
}

#[test]
fn no_file_of_src_imports_in_a_circle() {
    let src = root().join("src");
    let name = |path: PathBuf| path.strip_prefix(&src).unwrap().with_extension("").display().to_string();
    let files = sources("src").into_iter().map(|(path, text)| (name(path), text));
    let imports = imports::imports(&files.filter(|(name, _)| !name.ends_with("/tests")).collect::<Vec<_>>());
    // A graph without arrows has no circle either.
    assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 200, "{imports:?}");
    let circles = imports::circles(&imports);
    let named: Vec<String> = circles
        .iter()
        .map(|circle| {
            let arrows = circle.iter().map(|&from| {
                let to: Vec<&str> = imports[from].iter().map(String::as_str).filter(|to| circle.contains(to)).collect();
                format!("  {from} imports {}\n", to.join(", "))
            });
            arrows.collect()
        })
        .collect();
    assert!(named.is_empty(), "files that import one another in a circle:\n{}", named.join("and\n"));
}

/// The servers' common flags with their help, as `--help` prints it. `prefork` has these and no others.
#[test]
fn defaults_live_in_one_place_so_two_servers_in_one_table_differ_only_by_name() {
    let flags = |path: &str| -> BTreeMap<String, String> {
        let output = Command::new(path).arg("--help").env("COLUMNS", "100").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let (_, options) = help.split_once("Options:\n").expect("it has some");
        let (options, _) = options.split_once("  -h, --help").expect("and an end");
        let options = options.split("      --").skip(1).map(|option| {
            let (flag, says) = option.split_once("  ").unwrap_or((option.trim(), ""));
            (flag.to_string(), says.split_whitespace().collect::<Vec<_>>().join(" "))
        });
        options.collect()
    };
    let common = flags(kind("prefork").path);
    assert!(common["backlog <N>"].contains("[default: 4096]"), "{common:?}");
    for server in SERVERS {
        for (flag, says) in flags(server.path).iter().filter(|(flag, _)| common.contains_key(*flag)) {
            assert_eq!(says, &common[flag], "--{flag} of {} and of prefork", server.name);
        }
    }
}

#[test]
fn a_metric_is_defined_once() {
    let metrics = [metrics::REPORT, metrics::INTERVAL, metrics::TABLES].into_iter().flatten();
    let metrics: Vec<_> = metrics.flat_map(|section| section.metrics).collect();
    for (path, text) in sources("src").into_iter().filter(|(path, _)| !path.ends_with("src/metrics.rs")) {
        for metric in metrics.iter().filter(|metric| metric.definition.len() > 20) {
            let again = text.contains(metric.definition);
            assert!(!again, "{} defines {} again", path.display(), metric.key);
        }
    }
}

/// Programs in other languages read it by CONTRACT.md: a counter has its place for ever, and a new one comes last.
#[test]
fn the_contract_has_the_layout_of_a_row_of_the_scoreboard() {
    let contract = fs::read_to_string(root().join("CONTRACT.md")).unwrap();
    let contract = contract.split_whitespace().collect::<Vec<_>>().join(" ");
    let (_, row) = contract.split_once(&format!("a row of {ROW_WORDS} words per worker: ")).expect("a layout");
    let (row, _) = row.split_once(" words of zero").expect("room for more");
    let mut words: Vec<&str> = row.split(", ").filter(|word| !word.starts_with("0 for never")).collect();
    let left = words.pop();
    let counts = [
        (Count::Pid, "pid"),
        (Count::Accepted, "accepted"),
        (Count::Requests, "requests"),
        (Count::Active, "active"),
        (Count::Wakeups, "wakeups"),
        (Count::EmptyWakeups, "empty_wakeups"),
        (Count::AcceptEagain, "accepts that returned EAGAIN"),
        (Count::ClientErrors, "client_errors"),
        (Count::CpuUserUs, "cpu_user_us"),
        (Count::CpuSystemUs, "cpu_system_us"),
        (Count::VoluntarySwitches, "voluntary_switches"),
        (Count::InvoluntarySwitches, "involuntary_switches"),
        (Count::MaxRssKib, "max_rss_kib"),
        (Count::AliveNs, "the time of the last sign of life (nanoseconds of CLOCK_MONOTONIC"),
    ];
    for (count, name) in counts {
        assert_eq!(words.get(count as usize), Some(&name), "{count:?}");
    }
    assert_eq!((counts.len(), left), (words.len(), Some("two")));
}

#[test]
fn no_stage_behind_options_sees_the_command_lines_type() {
    for (path, text) in sources("src/load") {
        let sees = code(&text).contains("LoadArgs");
        let name = path.strip_prefix(root().join("src")).unwrap().with_extension("").display().to_string();
        assert!(
            name.starts_with("load/options/") || !sees,
            "{name} takes LoadArgs; a stage behind options/ takes plain values"
        );
    }
}

#[test]
fn server_load_and_lab_do_not_import_each_other() {
    for (folder, others) in [("server", ["load", "lab"]), ("load", ["server", "lab"]), ("lab", ["server", "load"])] {
        for (path, text) in sources(&format!("src/{folder}")) {
            for other in others {
                assert!(!text.contains(&format!("crate::{other}::")), "{} imports {other}", path.display());
            }
        }
    }
}
