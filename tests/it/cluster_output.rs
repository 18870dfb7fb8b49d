//! What `cluster` gathers of its workers and writes: output, events, a watched file; and a disk that is full.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use acceptlab::lab::check::client::served_within;
use acceptlab::lab::observe::processes::poll_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::{CLUSTER, await_events, count, events_in, has_node, run, start_with};
use crate::support::{FOREVER, TempFolder, held, said_with};

const PROGRAM: &str = env!("CARGO_BIN_EXE_event-driven");

/// Reports the messages about the watched file, and counts them.
const LISTENER: &str = r#"
require('node:http').createServer((request, response) => response.end('')).listen(0, '127.0.0.1');
process.on('message', (message) => {
  process.send({ act: 'count', updates: 1 });
  process.send({ told: message });
});
"#;

/// Says a line on each stream, in pieces, and ends.
const TALKER: &str = "printf 'one '; sleep 0.05; echo two; echo three >&2; printf unended";

#[test]
fn what_workers_write_is_shown_line_by_line_with_their_number_and_the_time() {
    let output = run(&["--workers", "2", "--max-restarts", "0", "--", "sh", "-c", TALKER]);
    let said = String::from_utf8_lossy(&output.stderr);
    for number in 0..2 {
        for line in ["one two", "three", "unended"] {
            let tail = format!("Z worker {number}: {line}");
            let found = said.lines().filter(|told| told.ends_with(&tail)).count();
            assert_eq!(found, 1, "{tail}: {said}");
        }
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn silent_workers_are_not_shown_and_a_log_has_their_lines_instead() {
    let scratch = TempFolder::new("log");
    let log = scratch.file("log");
    let flags = ["--workers", "1", "--max-restarts", "0", "--silent"];
    let silent = run(&[&flags[..], &["--", "sh", "-c", TALKER]].concat());
    assert!(!String::from_utf8_lossy(&silent.stderr).contains("worker 0: three"));
    let logged = run(&[&flags[..], &["--log", &log, "--", "sh", "-c", TALKER]].concat());
    assert!(!String::from_utf8_lossy(&logged.stderr).contains("worker 0: three"));
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 3);
}

#[test]
fn the_events_are_in_their_file_too() {
    let scratch = TempFolder::new("events");
    let file = scratch.file("events");
    let output = run(&["--workers", "1", "--max-restarts", "0", "--events", &file, "--", "false"]);
    let (told, kept) = (String::from_utf8_lossy(&output.stderr), fs::read_to_string(&file).unwrap());
    assert_eq!(events_in(&told), events_in(&kept));
    assert_eq!(count(&events_in(&kept), "giveup"), 1);
}

#[test]
fn a_full_disk_under_the_logs_is_reported_once_and_the_workers_go_on() {
    let flags = ["--workers", "2", "--log", "/dev/full", "--events", "/dev/full"];
    let program = format!("echo hello; echo again; exec {PROGRAM} \"$@\"");
    let server = start_with(&flags, &["sh", "-c", &program, "sh"]);
    let events = await_events(&server, "failure", 2);
    let failures: Vec<&str> = events.iter().filter_map(|event| event["what"].as_str()).collect();
    assert_eq!(failures.len(), 2, "{failures:?}");
    assert!(failures.iter().all(|what| what.contains("/dev/full: no space left on device")), "{failures:?}");
    for _ in 0..4 {
        held(served_within(server.addr, FOREVER));
    }
}

#[test]
fn a_master_whose_standard_error_nobody_reads_goes_on() {
    let chatty = format!("while :; do echo {}; done & exec {PROGRAM} \"$@\"", "x".repeat(1000));
    let mut child = Command::new(CLUSTER)
        .args(["--workers", "2", "--", "sh", "-c", &chatty, "sh", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cargo has built it");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.next().unwrap().unwrap();
    let addr = ready.strip_prefix("ready ").unwrap().parse().unwrap();
    for _ in 0..20 {
        held(served_within(addr, FOREVER));
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let ended = poll_until(FOREVER, || child.try_wait().unwrap());
    let _ = child.kill();
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
}

#[test]
fn a_worker_cannot_break_the_masters_scoreboard() {
    if !has_node() {
        return;
    }
    let vandal = "try { require('node:fs').ftruncateSync(+process.env.ACCEPTLAB_SCOREBOARD_FD, 0); }
        catch (error) { console.log(error.code); }
        require('node:http').createServer((_, response) => response.end('')).listen(0, '127.0.0.1');";
    let mut server = start_with(&["--workers", "1"], &["node", "-e", vandal, "--"]);
    said_with(&server, "worker 0: EPERM");
    held(server.stop());
}

#[test]
fn a_file_that_cannot_be_written_or_watched_is_one_line_and_a_failure() {
    for flags in [["--log", "/proc/no/file"], ["--events", "/proc/no/file"], ["--notify", "/proc/no/file"]] {
        let output = run(&[&flags[..], &["--", "true"]].concat());
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("/proc/no/file"), "{said}");
    }
}

#[test]
fn a_change_of_the_watched_file_is_pushed_to_every_worker_and_to_later_ones() {
    if !has_node() {
        return;
    }
    for looking in [&[][..], &["--notify-every", "10ms"]] {
        let scratch = TempFolder::new("notify");
        let file = scratch.file("value");
        fs::write(&file, "first").unwrap();
        let flags = [&["--workers", "2", "--notify", &file], looking].concat();
        let mut server = start_with(&flags, &["node", "-e", LISTENER, "--"]);
        let told = |events: &[Value], value: &str| -> usize {
            let messages = events.iter().map(|event| &event["message"]["told"]);
            messages.filter(|told| told["act"] == "notify" && told["value"] == value).count()
        };
        let mut events = await_events(&server, "message", 2);
        assert_eq!(told(&events, "first"), 2, "{events:?}");
        fs::write(scratch.file("new"), "second").unwrap();
        fs::rename(scratch.file("new"), &file).unwrap();
        let all = poll_until(FOREVER, || {
            events.extend(events_in(&server.said()));
            (told(&events, "second") == 2).then_some(())
        });
        assert!(all.is_some(), "{events:?}");
        let counts = held(server.stop()).cluster.unwrap().counts;
        assert_eq!((counts["notifier_pushes"], counts["updates"]), (4.0, 4.0));
        assert!(counts["notifier_looks"] >= 1.0);
    }
}
