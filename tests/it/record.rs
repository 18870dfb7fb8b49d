//! A record leads to a commit: where it may be made, and what `lab report --check` says when code or history change.
//! What becomes of it when it is edited, when the disk is full and when the clock is set back. And what a row holds:
//! the CPU time of the measured window, and arrivals of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::cluster::has_node;
use crate::lab::{LESSON, Scratch, one_table, recorded};
use crate::support::{Needs, Ordinary, inconclusive};

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

/// Of code; a comment would not do.
const CHANGE: &str = "static TWO: u8 = 2;\n";

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

    append(&scratch, "src/one.rs", CHANGE);
    let (status, told) = check(&scratch);
    assert_eq!((status, told.trim()), (Some(0), "stale, changed since: files that are not committed: 01-lesson"));
    assert_eq!(check_fresh(&scratch).0, Some(1));
    commit(&scratch);
    let (status, told) = check(&scratch);
    assert_eq!((status, told.trim()), (Some(0), "stale, changed since: src/one.rs: 01-lesson"));

    let lesson = scratch.root.join("experiments/01-lesson.md");
    fs::write(&lesson, fs::read_to_string(&lesson).unwrap().replace("\"300ms\"", "\"301ms\"")).unwrap();
    commit(&scratch);
    let (status, told) = check(&scratch);
    assert_eq!((status, told.trim()), (Some(0), "stale, changed since: src/one.rs, the matrix: 01-lesson"));
}

#[test]
fn a_lesson_is_not_stale_by_a_change_of_what_it_does_not_run() {
    let scratch = committed("does-not-run");
    let (status, error) = ended(scratch.lab(&["run"]));
    assert_eq!(status, Some(0), "{error}");
    for folder in ["src/pm", "src/lab/evidence", "src/server"] {
        fs::create_dir_all(scratch.root.join(folder)).unwrap();
    }
    for file in ["src/pm/god.rs", "src/lab/evidence/table.rs", "bins/pm.rs"] {
        append(&scratch, file, CHANGE);
    }
    commit(&scratch);
    assert_eq!(check_fresh(&scratch), (Some(0), String::new()));

    for file in ["bins/sync.rs", "bins/loadgen.rs", "src/server/connection.rs", "src/server/accept.rs"] {
        append(&scratch, file, "// a comment\n");
    }
    commit(&scratch);
    assert_eq!(check_fresh(&scratch), (Some(0), String::new()));
    for file in ["bins/sync.rs", "bins/loadgen.rs", "src/server/connection.rs", "src/server/accept.rs"] {
        append(&scratch, file, CHANGE);
    }
    commit(&scratch);
    let told = check(&scratch).1;
    assert_eq!(told.trim(), "stale, changed since: bins/loadgen.rs, bins/sync.rs, src/server/: 01-lesson");
}

#[test]
fn a_lesson_is_stale_when_a_file_of_experiments_that_it_runs_has_changed() {
    let scratch = committed("its-files");
    let table = r#"kind = "orders"
server = [{ run = "cat experiments/order.js" }]
load = "runs 1"
columns = ["distinct_orders", "run_ms"]"#;
    fs::write(scratch.root.join("experiments/01-lesson.md"), one_table(table)).unwrap();
    append(&scratch, "experiments/order.js", "{\"id\": \"a\"}\n");
    append(&scratch, "experiments/other.js", "");
    append(&scratch, "bins/cat.rs", "const FOLDER: &str = \"experiments/folder\";\n");
    fs::create_dir(scratch.root.join("experiments/folder")).unwrap();
    append(&scratch, "experiments/folder/app.js", "");
    commit(&scratch);
    let (status, error) = ended(scratch.lab(&["run"]));
    assert_eq!(status, Some(0), "{error}");
    append(&scratch, "experiments/other.js", "// two\n");
    commit(&scratch);
    assert_eq!(check_fresh(&scratch), (Some(0), String::new()));

    append(&scratch, "experiments/order.js", "\n");
    append(&scratch, "experiments/folder/app.js", "// two\n");
    commit(&scratch);
    let (status, told) = check(&scratch);
    let changed = "experiments/folder/app.js, experiments/order.js";
    assert_eq!((status, told.trim()), (Some(0), &*format!("stale, changed since: {changed}: 01-lesson")));
    assert_eq!(check_fresh(&scratch).0, Some(1));
}

#[test]
fn a_change_of_another_lesson_is_none_of_what_is_measured() {
    let scratch = committed("another-lesson");
    append(&scratch, "experiments/02-other.md", &LESSON.replace("# 1", "# 2"));
    commit(&scratch);
    append(&scratch, "experiments/02-other.md", "\nA word more.\n");
    let (status, error) = ended(scratch.lab(&["run", "1"]));
    assert_eq!(status, Some(0), "{error}");
    let record = fs::read_dir(scratch.root.join("experiments/record")).unwrap().next().unwrap().unwrap().path();
    assert!(!fs::read_to_string(record).unwrap().contains("-dirty"));
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

/// Measures so many runs, and returns the file with their rows.
fn measured(scratch: &Scratch, runs: usize) -> PathBuf {
    let lesson = scratch.root.join("experiments/01-lesson.md");
    fs::write(&lesson, LESSON.replace("repeats = 60", &format!("repeats = {runs}"))).unwrap();
    let (status, error) = ended(scratch.lab(&["run"]));
    assert_eq!(status, Some(0), "{error}");
    fs::read_dir(scratch.root.join("experiments/record")).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn an_edited_record_is_one_line_that_names_the_line() {
    let scratch = Scratch::new("edited", LESSON);
    let record = measured(&scratch, 3);
    let honest = fs::read_to_string(&record).unwrap();
    let lines: Vec<&str> = honest.lines().collect();
    let commit = format!("{}\n", lines.join("\n").replacen("\"commit\":\"", "\"commit\":\"e", 1));
    let number = format!("{}\n", lines.join("\n").replacen("\"qps\":", "\"qps\":9", 1));
    let cut = honest.replacen(lines[2], &lines[2][..lines[2].len() / 2], 1);
    let left_out = honest.replacen(&format!("{}\n", lines[2]), "", 1);
    let checksum = honest.replacen(&lines[2][lines[2].len() - 30..], "}", 1);
    for (edited, line) in [(commit, 1), (number, 2), (cut, 3), (left_out, 3), (checksum, 3)] {
        fs::write(&record, edited).unwrap();
        for command in [&["report"][..], &["report", "--check"], &["claims"]] {
            let (status, error) = ended(scratch.lab(command));
            assert_eq!((status, error.lines().count()), (Some(1), 1), "{error}");
            let named = format!("{}:{line}: this is not what was recorded", record.display());
            assert!(error.contains(&named) && error.contains("restore it"), "{error}");
        }
    }
    fs::write(&record, &honest).unwrap();
    assert_eq!(ended(scratch.lab(&["report"])), (Some(0), String::new()));
    let without = lines.iter().map(|line| format!("{}}}\n", line.rsplit_once(",\"checksum\"").unwrap().0));
    fs::write(&record, without.collect::<String>()).unwrap();
    let (status, error) = ended(scratch.lab(&["report"]));
    assert_eq!((status, error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("a record of an older form; remove it and measure again"), "{error}");
}

#[test]
fn a_last_line_that_is_cut_off_costs_no_other_row() {
    let scratch = Scratch::new("cut-off", LESSON);
    let record = measured(&scratch, 3);
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, &text[..text.len() - 300]).unwrap();
    let (status, told) = ended(scratch.lab(&["report"]));
    assert_eq!((status, told.lines().count()), (Some(0), 1), "{told}");
    assert!(told.contains("the last line is cut off"), "{told}");
    let (status, told) = check(&scratch);
    assert_eq!(status, Some(1), "{told}");
    assert!(told.contains("01-lesson: 2 of 3 rows"), "{told}");
    fs::write(&record, "").unwrap();
    let (status, told) = check(&scratch);
    assert_eq!(status, Some(1), "{told}");
    assert!(told.contains("not one whole line; remove it"), "{told}");
}

/// A file that may not grow stands for a disk that is full: write(2) takes a part, and then nothing (setrlimit(2)).
#[test]
fn a_full_disk_ends_the_run_in_one_line_and_keeps_the_rows_that_are_there() {
    let scratch = Scratch::new("full-disk", &LESSON.replace("repeats = 60", "repeats = 40"));
    let lab = |limit: &str| {
        let limited = format!("trap '' XFSZ; {limit}exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &limited, env!("CARGO_BIN_EXE_lab"), "--root"]).arg(&scratch.root);
        ended(command.args(["run", "--seed", "1"]).output().unwrap())
    };
    let (status, told) = lab("ulimit -f 32; ");
    let last = told.lines().last().unwrap();
    assert_eq!(status, Some(1), "{told}");
    assert!(last.contains("of 40 rows are recorded: `lab report`"), "{last}");
    let rows = recorded(&scratch).len();
    assert!(rows > 0 && last.contains(&format!("; {rows} of 40 rows")), "{rows}: {last}");
    let (status, told) = ended(scratch.lab(&["report"]));
    assert_eq!((status, told.as_str()), (Some(0), ""));
    fs::remove_dir_all(scratch.root.join("experiments/record")).unwrap();
    let (status, told) = lab("ulimit -f 0; ");
    assert_eq!(status, Some(1), "{told}");
    assert_eq!(fs::read_dir(scratch.root.join("experiments/record")).unwrap().count(), 0, "an empty record is left");
}

#[test]
fn a_clock_that_was_set_back_hides_no_new_record() {
    let scratch = Scratch::new("clock", LESSON);
    let record = measured(&scratch, 1);
    fs::rename(&record, record.with_file_name("29991231T235959Z-full.jsonl")).unwrap();
    for (run, newest) in [(1, "29991231T235959Z1-quick.jsonl"), (2, "29991231T235959Z11-quick.jsonl")] {
        let (status, told) = ended(scratch.lab(&["run", "--quick"]));
        assert_eq!(status, Some(0), "{told}");
        let lines = told.lines().filter(|line| line.contains("the clock says")).count();
        assert_eq!(lines, 1, "run {run}: {told}");
        let page = fs::read_to_string(scratch.root.join("experiments/results/01-lesson.md")).unwrap();
        assert!(page.contains(newest), "{page}");
    }
}

#[test]
fn a_tree_that_may_only_be_read_is_reported_and_a_run_says_where_it_may_record() {
    let Some(lab) = Ordinary::new(env!("CARGO_BIN_EXE_lab")) else { return };
    let scratch = Scratch::new("read-only", LESSON);
    measured(&scratch, 1);
    let folders = ["experiments/results", "experiments/record", "experiments", "."].map(|name| scratch.root.join(name));
    let set = |mode| {
        let of_all = |folder| fs::set_permissions(folder, PermissionsExt::from_mode(mode)).unwrap();
        folders.iter().for_each(of_all);
    };
    set(0o555);
    let ended_as_nobody =
        |arguments: &[&str]| ended(lab.command().arg("--root").arg(&scratch.root).args(arguments).output().unwrap());
    let reported = ended_as_nobody(&["report"]);
    let (status, told) = ended_as_nobody(&["run", "--quick"]);
    fs::write(scratch.root.join("experiments/results/01-lesson.md"), "edited").unwrap();
    let rewritten = ended_as_nobody(&["report"]);
    set(0o755);
    assert_eq!(reported, (Some(0), String::new()));
    assert_eq!(status, Some(1), "{told}");
    let last = told.lines().last().unwrap();
    assert!(last.contains("-quick.jsonl: permission denied; lab run --out DIR records elsewhere"), "{told}");
    assert_eq!((rewritten.0, rewritten.1.lines().count()), (Some(1), 1), "{}", rewritten.1);
    assert!(rewritten.1.contains("01-lesson.md: permission denied"), "{}", rewritten.1);
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
        .replace("duration = \"300ms\"\nwarmup = \"0s\"", "duration = \"500ms\"\nwarmup = \"300ms\"")
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

/// Wakes up once per connection in its first run and three times in every other, so that the interval of the median
/// leaves the first run out from the ninth on.
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
        .replace("duration = \"300ms\"", "duration = \"400ms\"")
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
    let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
    for told in ["of 2 runs of fresh processes", "of 9 runs of fresh processes", "ran in further blocks"] {
        assert!(page.contains(told), "{told}: {page}");
    }
}
