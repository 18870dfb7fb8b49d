//! The trials of process managers: what `trial` prints, that it leaves nothing behind, and that the lab makes rows of
//! it.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use acceptlab::lab::observe::processes::{poll_until, with_variable};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;

use crate::cluster::has_node;
use crate::lab::{Scratch, one_table};
use crate::support::{FOREVER, Needs, Ordinary, can_trace, inconclusive};

const TRIAL: &str = env!("CARGO_BIN_EXE_trial");
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/watchmen");

fn trial(words: &[&str]) -> Output {
    Command::new(TRIAL).args(words).args(["--programs", PROGRAMS]).output().unwrap()
}

/// The numbers of a trial of `pm`.
#[track_caller]
fn numbers(words: &[&str]) -> Value {
    let output = trial(&[words, &["--format", "json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_trial_prints_one_object_of_numbers() {
    if !has_node() {
        return;
    }
    let found = numbers(&["environment"]);
    assert_eq!(found["version"], "0.1.0");
    assert_eq!((&found["variables_wrong"], &found["variables_left"]), (&0.0.into(), &0.0.into()));
    let text = String::from_utf8(trial(&["sockets"]).stdout).unwrap();
    assert!(text.contains("sockets open: Those whose mode gives a right"), "{text}");
}

#[test]
fn a_killed_daemon_of_pm_costs_no_request_and_the_next_adopts_all_processes() {
    if !has_node() {
        return;
    }
    // On a busy machine an application answers late; one that has ended, or hangs, never does.
    let found = numbers(&["killed-daemon", "--duration", "3s", "--timeout", "60s"]);
    assert_eq!((&found["lost_new_connections"], &found["adopted"]), (&0.0.into(), &100.0.into()));
}

#[test]
fn every_crash_loop_is_given_up_by_pm() {
    if !has_node() {
        return;
    }
    let found = numbers(&["crash-loops", "--periods", "50ms,1200ms", "--max-restarts", "1", "--delay", "100ms"]);
    assert_eq!(
        (&found["crash_loops"], &found["given_up"], &found["most_starts"]),
        (&4.0.into(), &4.0.into(), &2.0.into())
    );
}

#[test]
fn pm_starts_a_killed_process_again_within_a_second() {
    if !has_node() {
        return;
    }
    let found = numbers(&["idle", "--applications", "5", "--duration", "1s"]);
    let back_ms = found["restart_ms"].as_f64().unwrap();
    assert!((0.1..1000.0).contains(&back_ms), "{found}");
}

#[test]
fn lines_are_whole_in_order_and_complete_across_rotations() {
    if !has_node() {
        return;
    }
    let found = numbers(&["logs", "--lines-per-minute", "60000", "--duration", "2s", "--rotations", "1"]);
    for key in ["lines_lost", "lines_broken", "lines_out_of_order"] {
        assert_eq!(found[key], 0.0, "{key}: {found}");
    }
    assert_eq!((&found["lines_written"], &found["log_rotations"]), (&2000.0.into(), &1.0.into()));
}

#[test]
fn a_trial_without_its_programs_says_what_is_missing() {
    let run = |manager: &str| {
        let output = Command::new(TRIAL).args(["jlist", "--of", manager]).env("PATH", "/nowhere").output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run("pm"), "skipped: node is not installed (Debian: apt-get install nodejs)\n");
    let output = Command::new(TRIAL).args(["jlist", "--programs", "/nowhere"]).output().unwrap();
    if has_node() {
        let expected = "trial: find /nowhere: no such file or directory; start it in the repository, or say where with --programs\n";
        assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
    }
}

#[test]
fn an_interrupted_trial_ends_the_manager_and_all_that_it_has_started() {
    if !has_node() {
        return;
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut running = Command::new(TRIAL)
            .args(["slow-worker", "--duration", "600s", "--programs", PROGRAMS])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let folder = std::env::temp_dir().join(format!("acceptlab-trial-{}", running.id()));
        let processes = || with_variable("ACCEPTLAB_TRIAL", folder.to_str().unwrap());
        // The daemon, the master, four workers, and the client.
        let all = poll_until(FOREVER, || (processes().len() >= 7).then_some(()));
        assert!(all.is_some(), "{:?}", processes());
        kill(Pid::from_raw(running.id() as i32), signal).unwrap();
        assert_eq!(running.wait().unwrap().code(), Some(130));
        assert_eq!(processes(), []);
        assert!(!folder.exists());
    }
}

#[test]
fn an_interrupted_lab_lets_its_trial_clean_up() {
    if !has_node() {
        return;
    }
    let scratch = Scratch::new("trials", &lesson("slow-worker --duration 600s", "answer_p99_ms"));
    let mut lab = Command::new(env!("CARGO_BIN_EXE_lab"))
        .arg("--root")
        .arg(&scratch.root)
        .args(["run", "--quick"])
        .env("ACCEPTLAB_TEST", &scratch.root)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let processes = || with_variable("ACCEPTLAB_TEST", scratch.root.to_str().unwrap()).len();
    // The lab, the trial, the daemon, the master, four workers, and the client.
    assert!(poll_until(FOREVER, || (processes() >= 9).then_some(())).is_some(), "{}", processes());
    kill(Pid::from_raw(lab.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(lab.wait().unwrap().code(), Some(130));
    assert!(poll_until(Duration::from_secs(10), || (!scratch.lives()).then_some(())).is_some());
}

#[test]
fn the_lab_makes_a_row_of_each_trial() {
    if !has_node() {
        return;
    }
    let scratch = Scratch::new("trial-rows", &lesson("jlist", "keys_read"));
    let run = scratch.lab(&["run", "--quick", "--tables"]);
    let text = String::from_utf8(run.stdout).unwrap();
    assert!(run.status.success(), "{text}");
    let row = text.lines().find(|line| line.contains("pm") && line.contains("32"));
    assert!(row.is_some() && text.contains("trial of"), "{text}");
    let records = fs::read_dir(scratch.root.join("experiments/record")).unwrap().count();
    assert_eq!(records, 1);
}

/// With one table of `pm`.
fn lesson(trial: &str, column: &str) -> String {
    let load = format!("trial {trial} --programs {PROGRAMS}");
    one_table(&format!(
        r#"kind = "trials"
server = [{{ run = "pm" }}]
load = "{load}"
columns = ["{column}"]"#
    ))
}

#[test]
fn an_examination_of_lab_inspect_counts_its_right_answers_and_leaves_nothing_behind() {
    if Ordinary::new(TRIAL).is_none() {
        return;
    }
    let few = ["blind-test", "--of", "ours", "--as", "ordinary", "--load", "light", "--sample", "3", "--seed", "7"];
    let mut trial = Command::new(TRIAL);
    let trial = trial.args(few).args(["--format", "json"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let trial = trial.spawn().unwrap();
    let folder = std::env::temp_dir().join(format!("acceptlab-blind-{}", trial.id()));
    let output = trial.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    // Each healthy and with a stopped worker.
    assert_eq!((&found["cases"], &found["healthy_called_hung"]), (&6.0.into(), &0.0.into()), "{found}");
    // Whatever was wrong is noted, and nothing else.
    let all_right = ["mechanism_right", "hung_found", "findings_right"].iter().all(|key| found[*key] == 100.0);
    assert_eq!(found.get("notes").is_none(), all_right, "{found}");
    assert!(!folder.exists());
    if found["hung_found"] != 100.0 {
        return inconclusive(Needs::QuietMachine, format!("a stopped worker was not found within 3 s: {found}"));
    }
    assert!(found["hung_found_s"].as_f64() > Some(1.0) && found["hung_found_s"].as_f64() < Some(3.0), "{found}");
}

#[test]
fn an_examination_without_io_uring_leaves_out_the_servers_that_need_it_and_says_so() {
    if !can_trace() {
        return;
    }
    let scratch = Scratch::new("no-rings", "");
    let modes = scratch.root.join("modes.toml");
    let mode = |command: &str, wait: &str| {
        format!(
            "[[ours]]\ncommand = \"{command}\"\ndispatch = \"workers-accept\"\nsharing = \"one\"\nwaits_in = [\"{wait}\"]\n\
             workers = 1\nopen = 0\n"
        )
    };
    let all = ["contenders = []\n", &mode("sync", "accept"), &mode("uring --workers 1", "io_uring")].concat();
    fs::write(&modes, all).unwrap();
    let user = if geteuid().is_root() { "root" } else { "ordinary" };
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=io_uring_setup"])
        .args(["-e", "inject=io_uring_setup:error=ENOSYS", TRIAL])
        .args(["blind-test", "--of", "ours", "--as", user, "--load", "light", "--format", "json", "--modes"])
        .arg(&modes)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["notes"][0], "left out: uring --workers 1: this kernel has no io_uring");
    assert_eq!(found["cases"], 2.0, "{found}");
}

#[test]
fn what_cannot_be_examined_is_one_line() {
    let output = Command::new(TRIAL).args(["blind-test", "--of", "theirs"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "trial: theirs cannot be examined; there are ours and contenders\n");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
}
