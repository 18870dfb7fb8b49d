//! Servers of other projects beside ours, as the lab starts them. `scripts/install_contenders.sh` installs them; one
//! that is missing is a skipped row, as everywhere in the lab, and these tests hold for whatever is there.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Output};

use acceptlab::lab::observe::processes::{Process, with_variable};
use acceptlab::lab::program::on_path;
use serde_json::Value;

use crate::lab::{Scratch, one_table, recorded};
use crate::support::{Needs, inconclusive};

/// Every program and every way to accept for which there is a configuration.
const CONTENDERS: &[&str] = &[
    "nginx shared --workers 2",
    "nginx mutex --workers 2",
    "nginx reuseport --workers 2",
    "haproxy",
    "haproxy busy-polling",
    "apache2 event",
    "apache2 prefork --workers 4",
    "gunicorn --worker-class sync",
    "gunicorn --worker-class gthread --threads 4 --reuse-port --workers 2",
    "gunicorn --worker-class gevent",
    "gunicorn --worker-class uvicorn.workers.UvicornWorker --reuse-port --workers 2",
    "uvicorn --workers 2",
    "uvicorn each --workers 2",
    "puma --workers 2",
    "node",
    "pm2 --workers 2",
];

/// A folder with a lesson of one table of these servers, and with the scripts that start them.
fn scratch(name: &str, servers: &[&str], reload: &str, lines: &str) -> Scratch {
    let scratch = Scratch::new(name, &lesson(servers, reload, lines));
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/contenders");
    symlink(scripts, scratch.root.join("experiments/contenders")).unwrap();
    scratch
}

fn lesson(servers: &[&str], reload: &str, lines: &str) -> String {
    let server = |words: &&str| format!("{{ run = \"experiments/contenders/{words}\", contender = true{reload} }}, ");
    let servers: String = servers.iter().map(server).collect();
    one_table(&format!("server = [{servers}]\n{lines}"))
}

/// With its temporary files in the scratch folder, so that what is left of them is seen.
fn run(scratch: &Scratch, variables: &[(&str, &str)]) -> Output {
    let mut lab = Command::new(env!("CARGO_BIN_EXE_lab"));
    lab.arg("--root").arg(&scratch.root).args(["run", "--seed", "1"]);
    lab.env("TMPDIR", &scratch.root).env("ACCEPTLAB_TEST", &scratch.root).envs(variables.iter().copied());
    lab.output().unwrap()
}

/// The rows of those that are installed; none of them has failed, and of none is anything left.
fn measured(scratch: &Scratch) -> Vec<Value> {
    let output = run(scratch, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!scratch.lives(), "a process is left");
    let is_left = |name: &str| name.starts_with("acceptlab-contender");
    let left =
        fs::read_dir(&scratch.root).unwrap().flatten().any(|entry| is_left(&entry.file_name().to_string_lossy()));
    assert!(!left, "files are left");
    let mut rows = recorded(scratch);
    for row in &rows {
        match row["skipped"].as_str() {
            Some(why) => assert!(why.contains("is not installed (") && !why.contains('\n'), "{why}"),
            None => assert!(row["failure"].is_null(), "{row}"),
        }
    }
    rows.retain(|row| row["skipped"].is_null());
    rows
}

#[test]
fn each_contender_that_is_installed_answers_is_measured_with_its_children_and_leaves_nothing_behind() {
    let load = "load = \"loadgen --connections 2 --duration 500ms --warmup 200ms\"\ncolumns = [\"qps\"]";
    // Where PM2 is missing, its script cannot be started.
    let has_pm2 = on_path("pm2").is_some();
    let servers: Vec<&str> =
        CONTENDERS.iter().copied().filter(|server| has_pm2 || !server.starts_with("pm2")).collect();
    let folder = scratch("contenders", &servers, "", load);
    for row in measured(&folder) {
        let label = row["label"].as_str().unwrap();
        assert!(row["load"]["requests"].as_u64().unwrap() > 0, "{label}");
        assert_eq!((&row["server"], &row["load"]["errors"]["timeout"]), (&Value::Null, &Value::from(0)), "{label}");
        assert!(row["version"].as_str().is_some_and(|version| version.contains(['.'])), "{label}: {}", row["version"]);
        // The answers come from children of the first process, where there are any. Where a process has come or gone
        // meanwhile, nothing was measured.
        if let (Some(first), Some(all)) = (row["cpu"]["first_us"].as_u64(), row["cpu"]["cpu_us"].as_u64()) {
            let has_children = !label.ends_with("contenders/node");
            assert!(all > 0 && (!has_children || first < all), "{label}: {}", row["cpu"]);
        }
        let names_it = !label.contains("apache2");
        assert_eq!(row["load"]["wrong_bodies"].as_u64().unwrap_or(0), 0, "{label}");
        assert_eq!(row["load"]["workers"].as_object().is_some_and(|workers| !workers.is_empty()), names_it, "{label}");
    }
}

#[test]
fn a_contender_that_is_missing_is_skipped_with_a_line() {
    let load = "load = \"loadgen --connections 2 --duration 50ms\"\ncolumns = [\"qps\"]";
    let folder = scratch("no-contender", &["uvicorn --workers 2", "puma"], "", load);
    let output = run(&folder, &[("PATH", "/nowhere")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let why = |row: Value| row["skipped"].as_str().unwrap().to_string();
    let reasons: Vec<String> = recorded(&folder).into_iter().map(why).collect();
    let remedy = "is not installed (scripts/install_contenders.sh)";
    assert!(
        reasons.contains(&format!("uvicorn {remedy}")) && reasons.contains(&format!("puma {remedy}")),
        "{reasons:?}"
    );
    assert!(folder.lab(&["report", "--check"]).status.success());
}

#[test]
fn a_contender_that_ends_before_it_answers_is_a_failed_row_with_its_reason_and_nothing_is_left() {
    let load = "load = \"loadgen --connections 2 --duration 50ms\"\ncolumns = [\"qps\"]";
    let folder = Scratch::new("ending-contender", &lesson(&["ending"], "", load));
    fs::create_dir(folder.root.join("experiments/contenders")).unwrap();
    let script = folder.root.join("experiments/contenders/ending");
    fs::write(&script, "#!/bin/sh\necho no such module >&2\nexit 3\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let output = run(&folder, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("exit status: 3") && said.contains("no such module"), "{said}");
    let is_left = |name: &str| name.starts_with("acceptlab-contender");
    let mut files = fs::read_dir(&folder.root).unwrap().flatten();
    assert!(!files.any(|entry| is_left(&entry.file_name().to_string_lossy())), "files are left");
}

#[test]
fn a_contenders_worker_is_stopped_and_goes_on_and_its_workers_are_replaced() {
    let load = "load = \"loadgen --connections 100 --requests-per-connection 1 --rate 200 --timeout 600ms \
                --duration 1600ms\"\ncolumns = [\"stuck\"]\ndisturb =";
    let servers = ["nginx reuseport --workers 2", "gunicorn --worker-class gthread --reuse-port --workers 2"];
    let folder = scratch("stopped-contender", &servers, "", &format!("{load} \"stop 1\""));
    for row in measured(&folder) {
        let timeouts = row["load"]["errors"]["timeout"].as_u64().unwrap();
        assert!(timeouts > 10, "{}: {timeouts} of 320 stuck", row["label"]);
    }
    let reload = ", reload = \"SIGUSR2\"";
    let folder = scratch("reloaded-contender", &["haproxy"], reload, &format!("{load} \"after 300ms; hup\""));
    for row in measured(&folder) {
        let workers = row["load"]["workers"].as_object().unwrap();
        assert!(row["cpu"].is_null() && !workers.is_empty(), "the worker is another one now: {row}");
    }
}

#[test]
fn each_worker_accepts_what_its_answers_say_and_without_a_name_in_the_answers_it_is_still_seen() {
    let served = |words: &[&str]| -> Value {
        let mut trial = Command::new(env!("CARGO_BIN_EXE_trial"));
        let output = trial.args(["served", "--duration", "1s", "--format", "json", "--of"]).args(words).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let ours = served(&["reuseport"]);
    assert!((1.0..2.0).contains(&ours["served_by_answers"].as_f64().unwrap()), "{ours}");
    match ours["served_difference"].as_f64() {
        Some(difference) => assert_eq!(difference, 0.0, "{ours}"),
        None => inconclusive(Needs::Kernel("tracepoints"), "the accepts of each worker were not counted"),
    }
    if on_path("apache2").is_none() {
        return inconclusive(Needs::Contender("apache2"), "scripts/install_contenders.sh installs it");
    }
    let apache = served(&["experiments/contenders/apache2", "event", "25"]);
    assert!(apache["served_by_cpu"].is_f64() && apache["served_by_answers"].is_null(), "{apache}");
    assert_eq!(apache["served_d"].is_null(), ours["served_d"].is_null(), "{apache}");
}

#[test]
fn a_trial_of_a_contender_that_is_missing_is_skipped_with_a_line_also_of_pm2() {
    for trial in [&["served"][..], &["steer-stopped", "--select", "none"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trial"));
        command.args(trial).args(["--of", "experiments/contenders/pm2", "--format", "json"]).env("PATH", "/nowhere");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found["skipped"], "pm2 is not installed (scripts/install_contenders.sh)");
    }
}

#[test]
fn an_early_signal_ends_all_workers_that_have_a_listener_each() {
    if on_path("python3").is_none() {
        return inconclusive(Needs::Tool("python3"), "not installed");
    }
    // The first worker sends it while others are still to be started.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/contenders/each_worker.py");
    let (name, value) = ("EACH_WORKER_TEST", std::process::id().to_string());
    let mut command = Command::new("python3");
    command.args([script, "50", "127.0.0.1", "0", "sh", "-c", "kill -TERM $PPID; exec sleep 1000"]).env(name, &value);
    let status = command.status().unwrap();
    let left = with_variable(name, &value);
    left.iter().for_each(Process::kill);
    assert!(left.is_empty() && status.success(), "{} are left, {status}", left.len());
}
