//! A record leads to a commit: where it may be made, and what `lab report --check` says when code or history change. And
//! what a row holds: the CPU time of the measured window, and arrivals of its own.

use std::fs;
use std::process::{Command, Output};

use crate::cluster::has_node;
use crate::lab::{LESSON, Scratch, recorded};
use crate::support::{Needs, inconclusive};

/// A repository with one lesson of one short run, everything committed.
fn committed(name: &str) -> Scratch {
    let scratch = Scratch::new(name, &LESSON.replace("repeats = 60", "repeats = 1"));
    for folder in ["src", "bins"] {
        fs::create_dir(scratch.root.join(folder)).unwrap();
        fs::write(scratch.root.join(folder).join("one.rs"), "// one\n").unwrap();
    }
    git(&scratch, &["init", "--quiet"]);
    commit(&scratch);
    scratch
}

fn git(scratch: &Scratch, arguments: &[&str]) {
    let who = ["-c", "user.name=a", "-c", "user.email=a@b"];
    let output = Command::new("git").arg("-C").arg(&scratch.root).args(who).args(arguments).output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn commit(scratch: &Scratch) {
    git(scratch, &["add", "."]);
    git(scratch, &["commit", "--quiet", "--message", "one"]);
}

fn append(scratch: &Scratch, file: &str, text: &str) {
    let path = scratch.root.join(file);
    fs::write(&path, fs::read_to_string(&path).unwrap_or_default() + text).unwrap();
}

/// Its exit status and standard error.
fn ended(output: Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn check(scratch: &Scratch) -> (Option<i32>, String) {
    ended(scratch.lab(&["report", "--check"]))
}

fn check_fresh(scratch: &Scratch) -> (Option<i32>, String) {
    ended(scratch.lab(&["report", "--check", "--fresh"]))
}

#[test]
fn a_full_record_is_only_made_of_what_a_commit_has() {
    let scratch = committed("clean-tree");
    append(&scratch, "src/one.rs", "// two\n");
    append(&scratch, "bins/new.rs", "");
    let (status, error) = ended(scratch.lab(&["run"]));
    assert_eq!((status, error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("src/one.rs, bins/new.rs; commit first"), "{error}");
    let elsewhere = scratch.root.join("elsewhere");
    let (status, error) = ended(scratch.lab(&["run", "--out", elsewhere.to_str().unwrap()]));
    assert_eq!(status, Some(0), "{error}");
    let record = fs::read_dir(elsewhere.join("record")).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(record).unwrap();
    assert!(text.contains("-dirty\"") && !text.contains("\"trees\""), "{text}");
}

#[test]
fn a_program_that_is_older_than_its_source_makes_no_record() {
    let scratch = committed("old-program");
    append(&scratch, "bins/sync.rs", "// newer than the program that the tests have built\n");
    commit(&scratch);
    let (status, error) = ended(scratch.lab(&["run"]));
    assert_eq!(status, Some(1), "{error}");
    assert!(error.contains("sync is older than") && error.contains("cargo build"), "{error}");
}

#[test]
fn a_record_is_stale_when_the_code_or_its_matrix_has_changed_and_not_when_a_text_has() {
    let scratch = committed("stale");
    assert!(check(&scratch).1.contains("01-lesson: not measured"));
    let (status, error) = ended(scratch.lab(&["run"]));
    assert_eq!(status, Some(0), "{error}");
    assert_eq!(check_fresh(&scratch), (Some(0), String::new()));

    append(&scratch, "experiments/01-lesson.md", "\nA word more.\n");
    append(&scratch, "README.md", "A word more.\n");
    assert_eq!(check_fresh(&scratch), (Some(0), String::new()));

    append(&scratch, "src/one.rs", "// two\n");
    let (status, told) = check(&scratch);
    assert_eq!((status, told.trim()), (Some(0), "stale, changed since: files that are not committed: 01-lesson"));
    assert_eq!(check_fresh(&scratch).0, Some(1));
    commit(&scratch);
    let (status, told) = check(&scratch);
    assert_eq!((status, told.trim()), (Some(0), "stale, changed since: src/: 01-lesson"));

    let lesson = scratch.root.join("experiments/01-lesson.md");
    fs::write(&lesson, fs::read_to_string(&lesson).unwrap().replace("\"100ms\"", "\"101ms\"")).unwrap();
    commit(&scratch);
    let (status, told) = check(&scratch);
    assert_eq!((status, told.trim()), (Some(0), "stale, changed since: src/, the matrix: 01-lesson"));
}

#[test]
fn a_record_outlives_its_commit_as_long_as_a_commit_has_its_content() {
    let scratch = committed("squashed");
    let (status, error) = ended(scratch.lab(&["run"]));
    assert_eq!(status, Some(0), "{error}");
    git(&scratch, &["checkout", "--quiet", "--orphan", "squashed"]);
    append(&scratch, "README.md", "Another commit.\n");
    commit(&scratch);
    assert_eq!(check_fresh(&scratch), (Some(0), String::new()));

    git(&scratch, &["checkout", "--quiet", "--orphan", "rewritten"]);
    append(&scratch, "src/one.rs", "// never measured\n");
    commit(&scratch);
    let (status, error) = check(&scratch);
    assert_eq!(status, Some(1));
    assert!(error.contains("01-lesson: no commit of the history has what"), "{error}");
}

#[test]
fn without_a_history_one_line_says_so() {
    let scratch = committed("tarball");
    let (status, error) = ended(scratch.lab(&["run"]));
    assert_eq!(status, Some(0), "{error}");
    fs::remove_dir_all(scratch.root.join(".git")).unwrap();
    let (status, told) = check(&scratch);
    assert_eq!((status, told.lines().count()), (Some(0), 1), "{told}");
    assert!(told.contains("no git history"), "{told}");
    assert_eq!(check_fresh(&scratch).0, Some(1));
}

/// Node compiles its program while it warms up, so CPU time of the warm-up over requests of the window was too dear.
#[test]
fn the_cpu_time_per_request_of_a_foreign_server_fits_into_the_cpu_it_had() {
    if !has_node() {
        return;
    }
    let server = format!("node {}/experiments/node-cluster.js --workers 2", env!("CARGO_MANIFEST_DIR"));
    let lesson = LESSON
        .replace("run = \"sync\", law = \"1/N\"", &format!("run = \"{server}\""))
        .replace("server_flags = \"--work block:1ms\"\n", "server_cpus = [0]\n")
        .replace("duration = \"100ms\"\nwarmup = \"0s\"", "duration = \"500ms\"\nwarmup = \"300ms\"")
        .replace("--connections 2 --requests-per-connection 1", "--connections 64")
        .replace("\"law_qps\", \"deviation\", \"timeouts\"", "\"server_cpu_per_request\"");
    let scratch = Scratch::new("foreign-cpu", &lesson);
    let (status, error) = ended(scratch.lab(&["run", "--quick"]));
    assert_eq!(status, Some(0), "{error}");
    let row = &recorded(&scratch)[0];
    let number = |pointer: &str| row.pointer(pointer).and_then(serde_json::Value::as_f64).expect("a number");
    let cpus = number("/cpu/cpu_us") / number("/cpu/length_us");
    assert!(cpus > 0.0 && cpus <= 1.05, "{cpus} CPUs of one");
    let observed = row["observed"]["processes"].as_array().unwrap();
    let in_all: f64 = observed.iter().filter_map(|process| process["cpu_us"].as_f64()).sum();
    assert!(in_all > number("/cpu/cpu_us"), "the warm-up is in the window: {row}");
}

#[test]
fn each_repeat_has_arrivals_of_its_own() {
    let lesson = LESSON.replace("repeats = 60", "repeats = 3").replace(
        "load = \"loadgen --connections 2 --requests-per-connection 1",
        "load = \"loadgen --connections 1 --rate 100 --arrivals poisson",
    );
    let scratch = Scratch::new("seeds", &lesson);
    let (status, error) = ended(scratch.lab(&["run", "--seed", "5"]));
    assert_eq!(status, Some(0), "{error}");
    let seeds: std::collections::BTreeSet<String> = recorded(&scratch)
        .iter()
        .map(|row| row["client_command"].as_str().unwrap().split("--seed ").nth(1).expect("a seed").to_string())
        .collect();
    assert_eq!(seeds.len(), 3, "{seeds:?}");
}

/// Wakes up once per connection in its first run and three times in every other, so that the interval of the median leaves
/// the first run out from the ninth on.
#[test]
fn repeats_are_spent_where_a_claim_is_undecided_and_end_when_it_is_decided() {
    if Command::new("python3").arg("--version").output().is_err() {
        return inconclusive(Needs::Tool("python3"), "not installed");
    }
    let scratch = Scratch::new("undecided", "");
    let original =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/own-server/server.py")).unwrap();
    let program = scratch.root.join("server.py");
    let counter = scratch.root.join("runs");
    let counting = format!(
        "runs = os.path.getsize({counter:?}) if os.path.exists({counter:?}) else 0\nopen({counter:?}, 'a').write('x')\n"
    );
    let zeros = ["empty_wakeups", "client_errors", "cpu_user_us", "cpu_system_us", "voluntary_switches"];
    let zeros: String =
        zeros.iter().chain(&["involuntary_switches", "max_rss_kib"]).map(|key| format!("{key:?}: 0, ")).collect();
    let wakeups = format!("\"active\": 0, {zeros}\"wakeups\": count[\"accepted\"] * (3 if runs else 1),");
    let changed =
        original.replace("\"active\": 0,", &wakeups).replace("\ndef stop", &format!("\n{counting}\n\ndef stop"));
    assert!(changed.contains("runs else 1)") && changed.contains("getsize"), "the server has changed: {changed}");
    fs::write(&program, changed).unwrap();
    let claim = "[[claim]]\nid = \"often\"\nsays = \"It wakes up often\"\nbar = \">= 2 wake-ups/connection\"\n\
                 value = { table = \"t\", column = \"wakeups\", server = \"python3\" }\n";
    let servers = format!("{{ run = \"python3 {}\" }}, {{ run = \"sync\" }}", program.display());
    let lesson = LESSON
        .replace("repeats = 60", "repeats = 2")
        .replace("{ run = \"sync\", law = \"1/N\" }", &servers)
        .replace("server_flags = \"--work block:1ms\"\n", "")
        .replace("\"qps\", \"law_qps\", \"deviation\", \"timeouts\"]\n", &format!("\"wakeups\"]\n{claim}"));
    fs::write(scratch.root.join("experiments/01-lesson.md"), lesson).unwrap();
    let (status, error) = ended(scratch.lab(&["run"]));
    assert_eq!(status, Some(0), "{error}");
    let rows = recorded(&scratch);
    let runs = |server: &str| rows.iter().filter(|row| row["label"].as_str().unwrap().starts_with(server)).count();
    assert_eq!((runs("python3"), runs("sync")), (9, 2));
    assert_eq!(rows.iter().filter(|row| row["is_further"] == true).count(), 7);
    let verdicts = String::from_utf8(scratch.lab(&["claims"]).stdout).unwrap();
    assert!(verdicts.contains("holds     It wakes up often: 3.00"), "{verdicts}");
    assert_eq!(check(&scratch).0, Some(0));
    let page = fs::read_to_string(scratch.root.join("experiments/results/01-lesson.md")).unwrap();
    assert!(page.contains("of 2 to 9 runs") && page.contains("ran in further blocks"), "{page}");
}
