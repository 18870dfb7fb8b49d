//! `lab check` finds out a server that breaks a point, and says which.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use acceptlab::lab::check::{self, CommonCause, NotHeld, ProbeResult};
use acceptlab::lab::observe::processes::Process;
use acceptlab::lab::program::Program;
use nix::sys::signal::Signal;

use crate::support::{FOREVER, Needs, TempFolder, inconclusive, kind};

/// The verdicts of `command` on the points named.
fn judge<const N: usize>(command: &[&str], ids: [&str; N]) -> [ProbeResult; N] {
    let all = check::points();
    let points = ids.map(|id| *all.iter().find(|point| point.id == id).expect("a point with this id"));
    let command: Vec<String> = command.iter().map(|word| word.to_string()).collect();
    let verdicts = check::judge(&Program::new(&command), &points).expect("the command can be started");
    verdicts.try_into().expect("one verdict per point")
}

#[track_caller]
fn assert_found(verdict: &ProbeResult, word: &str) {
    match verdict {
        Err(NotHeld::Broken { found, .. }) => assert!(found.contains(word), "{word:?} is not in {found:?}"),
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
        assert!(matches!(verdict, Err(NotHeld::Broken { .. })), "{verdicts:?}");
    }
}

#[test]
fn a_server_that_never_says_ready_fails_for_one_reason_and_is_asked_nothing_else() {
    let verdicts = judge(&["sh", "-c", "echo hello; echo oops >&2"], ["ready-line", "get"]);
    for verdict in &verdicts {
        assert_found(verdict, "\"hello\"");
        assert_found(verdict, "oops");
        assert!(matches!(verdict, Err(NotHeld::Broken { cause: Some(CommonCause::NotReady), .. })), "{verdict:?}");
    }
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
    let (status, stdout) = check(&[], &["false"]);
    assert_eq!(status, Some(1));
    assert!(stdout.contains("\nFAIL  it does not get ready: 6 points depend on it\n"), "{stdout}");
    let last = stdout.lines().last().expect("a last line");
    assert!(last.starts_with("score 0 of 100: 0 passed, 6 failed, 0 skipped, "), "{last}");
}

/// The server to start from in Python, with some of its text replaced by other text.
fn python<'a>(changes: &[(&str, &str)]) -> Option<[&'a str; 3]> {
    if Command::new("python3").arg("--version").output().is_err() {
        inconclusive(Needs::Tool("python3"), "not installed");
        return None;
    }
    let mut source = include_str!("../../experiments/own-server/server.py").to_string();
    for (old, new) in changes {
        assert!(source.contains(old), "{old} is not in the server");
        source = source.replace(old, new);
    }
    Some(["python3", "-c", source.leak()])
}

/// The exit status and what is printed.
fn check(flags: &[&str], command: &[&str]) -> (Option<i32>, String) {
    let output = lab(&[&["check"], flags, &["--"], command].concat());
    (output.status.code(), String::from_utf8(output.stdout).expect("text"))
}

#[track_caller]
fn assert_level_is_broken(checked: (Option<i32>, String), level: &str, says: &str) {
    let (status, stdout) = checked;
    assert_eq!(status, Some(1), "{stdout}");
    assert!(stdout.contains(says), "{says:?} is not in {stdout}");
    let last = stdout.lines().last().expect("a last line");
    assert!(last.ends_with(&format!("; level {level} is broken")), "{last}");
}

#[test]
fn the_servers_to_start_from_hold_two_levels_and_are_told_what_the_third_needs() {
    let folder = TempFolder::new("own-server");
    let binary = folder.file("server");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/own-server/server.c");
    let compiled = Command::new("cc").arg("-o").arg(&binary).arg(source).status();
    let Some(python) = python(&[]) else { return };
    for command in [&[&*binary][..], &python] {
        if command.len() == 1 && !compiled.as_ref().is_ok_and(|status| status.success()) {
            inconclusive(Needs::Tool("cc"), format!("{compiled:?}"));
            continue;
        }
        let checked = check(&[], command);
        assert!(
            checked.1.contains("keep-alive is missing: 3 points depend on it\n        keep-alive-1.1 "),
            "{}",
            checked.1
        );
        assert!(checked.1.contains("sent      request 2 of a connection: GET / HTTP/1.1\\r\\n"), "{}", checked.1);
        assert!(checked.1.contains("repeat    lab check --only keep-alive-1.1 -- "), "{}", checked.1);
        assert_eq!(checked.1.matches("FAIL  the flag").count(), 1, "{}", checked.1);
        assert!(!checked.1.contains("level 4 of 6"), "{}", checked.1);
        assert_level_is_broken(checked, "3 (can be measured)", "answers              20 of 20 points");
    }
}

#[test]
fn a_start_that_fails_with_a_traceback_breaks_level_1() {
    let Some(server) = python(&[("except OSError", "except KeyError")]) else { return };
    assert_level_is_broken(check(&[], &server), "1 (starts)", "FAIL  taken-port");
}

#[test]
fn an_answer_that_does_not_name_its_worker_breaks_level_2_and_what_is_behind_is_tried_with_all() {
    let Some(server) = python(&[("X-Worker: 0\\r\\n", "")]) else { return };
    assert_level_is_broken(check(&[], &server), "2 (answers)", "FAIL  signature");
    let both = ["--only", "signature", "--only", "sigint", "--format", "json"];
    let levels = |flags: &[&str]| {
        let (_, stdout) = check(&[flags, &both].concat(), &server);
        let document: serde_json::Value = serde_json::from_str(&stdout).expect("a document");
        let points = document["points"].as_array().expect("points").clone();
        points.iter().map(|point| point["level"].as_u64().expect("a level")).collect::<Vec<_>>()
    };
    assert_eq!((levels(&[]), levels(&["--all"])), (vec![2], vec![2, 6]));
}

#[test]
fn a_server_that_parses_nothing_breaks_levels_4_and_5() {
    let null_server = [env!("CARGO_BIN_EXE_null-server")];
    assert_level_is_broken(check(&["--level", "4"], &null_server), "4 (HTTP)", "FAIL  post");
    assert_level_is_broken(check(&["--level", "5"], &null_server), "5 (robust)", "FAIL  bad-request-line");
}

#[test]
fn a_child_that_outlives_its_parent_breaks_level_6() {
    let orphaning = ["sh", "-c", "\"$0\" \"$@\" & wait", kind("sync").path];
    assert_level_is_broken(check(&["--level", "6"], &orphaning), "6 (ends well)", "FAIL  sigkill-parent");
}

#[test]
fn a_server_that_listens_on_another_address_than_it_was_told_is_found_out() {
    let Some(server) = python(&[("\nfamily =", "\nhost = \"127.0.0.1\"\nfamily =")]) else { return };
    let (status, stdout) = check(&["--only", "ipv6"], &server);
    // A machine without IPv6 has nothing to find out.
    assert!(status == Some(1) && stdout.contains("`ready 127.0.0.1:") || stdout.contains("n/a   ipv6"), "{stdout}");
}

#[test]
fn a_scoreboard_that_only_changes_is_found_out() {
    let Some(server) = python(&[
        ("options = ", "parser.add_argument(\"--scoreboard\", default=\"/dev/null\")\noptions = "),
        ("while True:\n", "while True:\n    open(options.scoreboard, \"w\").write(str(count) * 9)\n"),
        ("print(\"ready\"", "open(options.scoreboard, \"w\").write(str(count) * 9)\nprint(\"ready\""),
    ]) else {
        return;
    };
    let [scoreboard] = judge(&server, ["scoreboard"]);
    assert_found(&scoreboard, "not a scoreboard");
}

/// As with Ctrl-Z and `fg`: a receive that is interrupted so is no close by the server.
#[test]
fn an_examiner_that_is_stopped_and_goes_on_judges_as_if_it_had_not_been() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.args(["check", "--only", "idle-silent", "--", kind("sync").path]).stdout(Stdio::piped());
    let mut examiner = command.spawn().expect("cargo has built it");
    let process = Process::find(examiner.id() as i32).expect("it has not been waited for");
    while examiner.try_wait().expect("our child").is_none() {
        if process.stop(FOREVER) {
            process.signal(Signal::SIGCONT);
        }
        // Time in which it gets on; nothing is ordered by it.
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = examiner.wait_with_output().expect("our child");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_point_is_explained_in_the_words_of_the_contract() {
    let explained = lab(&["check", "--explain", "scoreboard"]);
    let stdout = String::from_utf8(explained.stdout).expect("text");
    assert!(explained.status.success() && stdout.contains("64-bit words in the byte order of the machine"), "{stdout}");
    assert_eq!(lab(&["check", "--explain", "scorebord"]).status.code(), Some(2));
}

#[test]
fn a_command_that_does_not_exist_is_one_clear_line() {
    let checked = lab(&["check", "--", "/no/such/server"]);
    let stderr = String::from_utf8(checked.stderr).expect("text");
    assert!(!checked.status.success());
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("/no/such/server"), "{stderr}");
}
