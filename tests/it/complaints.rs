//! Public complaints about servers of other projects: reproduced, diagnosed by `lab inspect`, and cured. What is not
//! installed here is not looked at.

use std::fs;
use std::process::{Command, Output, Stdio};

use acceptlab::lab::observe::processes::{Process, poll_until, with_variable};
use acceptlab::lab::program::on_path;
use acceptlab::sys::procfs::command_line;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{FOREVER, Needs, TempFolder, inconclusive};

const TRIAL: &str = env!("CARGO_BIN_EXE_trial");
const INSTALL: &str = "scripts/install_contenders.sh installs it";
const SERVERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/contenders");

fn complaint(name: &str) -> Command {
    let mut trial = Command::new(TRIAL);
    trial.args(["complaint", "--servers", SERVERS, "--of", name, "--format", "json"]);
    trial
}

/// The numbers of a complaint that is diagnosed, and whose advice names the cure.
#[track_caller]
fn diagnosed(name: &str) -> Value {
    let output = complaint(name).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&found["diagnosed"], &found["advised"]), (&1.0.into(), &1.0.into()), "{found}");
    found
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_worker_of_nginx_that_hangs_holds_its_share_with_reuseport_and_nothing_without() {
    if on_path("nginx").is_none() {
        return inconclusive(Needs::Contender("nginx"), INSTALL);
    }
    let found = diagnosed("kong-12359");
    let stuck = |when: &str| found[format!("stuck_{when}")].as_f64().unwrap();
    // On a busy machine an answer may be late, too.
    assert!(stuck("before") > 10.0 && stuck("after") < stuck("before") / 2.0, "{found}");
}

#[test]
fn silent_clients_stop_all_sync_workers_of_gunicorn_and_no_threads() {
    if on_path("gunicorn").is_none() {
        return inconclusive(Needs::Contender("gunicorn"), INSTALL);
    }
    let found = diagnosed("gunicorn-2797");
    assert!(found["stuck_before"].as_f64() >= Some(99.0) && found["stuck_after"].as_f64().unwrap() < 50.0, "{found}");
}

#[test]
fn a_complaint_that_nobody_knows_is_answered_with_those_there_are() {
    let output = complaint("apache-1").output().unwrap();
    let said = stderr(&output);
    assert!(
        !output.status.success() && said.contains("apache-1.toml: no such file or directory; there are "),
        "{said}"
    );
    assert!(said.contains("kong-12359, puma-2780") && said.lines().count() == 1, "{said}");
}

#[test]
fn a_complaint_without_its_server_is_skipped_with_a_line() {
    let output = complaint("gunicorn-792").env("PATH", "/nowhere").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["skipped"], "gunicorn is not installed (scripts/install_contenders.sh)");
}

#[test]
fn an_interrupted_complaint_leaves_no_process_and_no_file() {
    if on_path("nginx").is_none() {
        return inconclusive(Needs::Contender("nginx"), INSTALL);
    }
    let folder = TempFolder::new("complaint");
    let mark = folder.path().to_str().unwrap();
    let mut trial = complaint("kong-12359");
    trial.env("TMPDIR", mark).env("ACCEPTLAB_TEST", mark).stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = trial.spawn().unwrap();
    let is_client = |process: &Process| command_line(process.pid).iter().any(|word| word.ends_with("/loadgen"));
    let client = poll_until(FOREVER, || with_variable("ACCEPTLAB_TEST", mark).into_iter().find(is_client));
    assert!(client.is_some(), "{:?}", with_variable("ACCEPTLAB_TEST", mark));
    kill(Pid::from_raw(running.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(130));
    assert_eq!(with_variable("ACCEPTLAB_TEST", mark), []);
    assert_eq!(fs::read_dir(mark).unwrap().count(), 0);
}
