//! `lab check` finds out a server that breaks a point, and says which.

use std::process::{Command, Output};

use acceptlab::lab::check::{self, Unheld, Verdict};
use acceptlab::lab::program::Program;

use crate::support::kind;

/// The verdicts of `command` on the points named.
fn judge<const N: usize>(command: &[&str], ids: [&str; N]) -> [Verdict; N] {
    let all = check::points();
    let points = ids.map(|id| *all.iter().find(|point| point.id == id).expect("a point with this id"));
    let command: Vec<String> = command.iter().map(|word| word.to_string()).collect();
    let verdicts = check::judge(&Program::new(&command), &points, |_, _| {}).expect("the command can be started");
    verdicts.try_into().expect("one verdict per point")
}

#[track_caller]
fn assert_found(verdict: &Verdict, word: &str) {
    match verdict {
        Err(Unheld::Broken { found, .. }) => assert!(found.contains(word), "{word:?} is not in {found:?}"),
        other => panic!("not broken but {other:?}"),
    }
}

fn lab(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lab")).args(args).output().expect("cargo has built it")
}

#[test]
fn a_server_that_parses_nothing_fails_what_needs_a_parser() {
    let null_server = [env!("CARGO_BIN_EXE_null-server")];
    let verdicts = judge(&null_server, ["bad-request-line", "method", "version", "close-1.0", "post"]);
    for verdict in &verdicts {
        assert!(matches!(verdict, Err(Unheld::Broken { .. })), "{verdicts:?}");
    }
}

#[test]
fn a_server_that_never_says_ready_fails_that_and_is_asked_nothing_else() {
    let [ready, get] = judge(&["sh", "-c", "echo hello; echo oops >&2"], ["ready-line", "get"]);
    assert_found(&ready, "\"hello\"");
    assert_found(&ready, "oops");
    assert!(matches!(get, Err(Unheld::NotApplicable { .. })), "{get:?}");
}

#[test]
fn a_server_that_says_ready_and_does_not_listen_is_found_out() {
    let [ready] = judge(&["sh", "-c", "echo ready 127.0.0.1:1; exec sleep 60"], ["ready-line"]);
    assert_found(&ready, "refused");
}

#[test]
fn a_parent_that_leaves_its_child_behind_is_found_out() {
    let orphaning = ["sh", "-c", "\"$0\" \"$@\" & wait", kind("sync").path];
    let [sigterm, sigkill] = judge(&orphaning, ["sigterm", "sigkill-parent"]);
    assert_found(&sigterm, "signal: 15");
    assert_found(&sigkill, "pid");
}

#[test]
fn a_wrong_exit_status_is_found_out() {
    let script = "trap 'kill $!' TERM; \"$0\" \"$@\" & wait; wait; exit 3";
    let [sigterm, taken] = judge(&["sh", "-c", script, kind("sync").path], ["sigterm", "taken-port"]);
    assert_found(&sigterm, "status: 3");
    assert_found(&taken, "status: 3");
}

#[test]
fn the_exit_status_and_the_last_line_sum_up() {
    let checked = lab(&["check", "--", "false"]);
    assert_eq!(checked.status.code(), Some(1));
    let stdout = String::from_utf8(checked.stdout).expect("text");
    assert!(stdout.starts_with("FAIL  ready-line"), "{stdout}");
    let last = stdout.lines().last().expect("a last line");
    assert!(last.starts_with("0 passed, 1 failed, "), "{last}");
}

#[test]
fn a_command_that_does_not_exist_is_one_clear_line() {
    let checked = lab(&["check", "--", "/no/such/server"]);
    let stderr = String::from_utf8(checked.stderr).expect("text");
    assert!(!checked.status.success());
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("/no/such/server"), "{stderr}");
}
