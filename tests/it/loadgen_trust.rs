//! What `loadgen` says beyond one result: gates and their exit status, the search for a rate, sweeps, its own
//! calibration, and what its numbers mean.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use acceptlab::lab::check::server::Program;
use acceptlab::lab::observe::processes::poll_until;
use acceptlab::load::commands::calibrate::Calibration;
use acceptlab::load::commands::search::{Curve, SearchResult};
use acceptlab::report::{LoadReport, Verdict};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use socket2::Socket;

use crate::support::{FOREVER, Needs, TempFolder, copy_program, held, inconclusive, kind, reserve_port, start};
use crate::timing::Machine;

fn loadgen(flags: &str, address: Option<SocketAddr>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.args(flags.split_whitespace()).stdin(Stdio::null());
    command.args(address.map(|address| format!("http://{address}/")));
    command
}

fn run(flags: &str, address: SocketAddr) -> Output {
    loadgen(flags, Some(address)).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn json<T: DeserializeOwned>(output: &Output) -> T {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}; it said: {}", said(output)))
}

// ---- gates ------------------------------------------------------------------------------------------------

#[test]
fn a_gate_that_holds_leaves_with_status_3_after_the_report() {
    let server = start("event-driven", &[]);
    let flags = "--requests 50 --connections 2 --format json";
    let output = run(&format!("{flags} --fail-if errors>0 --fail-if max<=0us"), server.addr);
    assert_eq!((output.status.code(), said(&output)), (Some(0), String::new()));

    let output = run(&format!("{flags} --fail-if p50>0us --fail-if errors>0 --fail-if qps>0"), server.addr);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(json::<LoadReport>(&output).requests, 50);
    let lines: Vec<String> = said(&output).lines().map(String::from).collect();
    assert!(lines.len() == 2 && lines[0].starts_with("loadgen: fail-if p50>0us holds: p50 is "), "{lines:?}");
}

#[test]
fn a_gate_that_cannot_be_decided_fails_and_says_so() {
    let server = start("event-driven", &[]);
    let output = run("--requests 5 --connections 1 --fail-if shed>0", server.addr);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(said(&output), "loadgen: fail-if shed>0 cannot be decided: shed was not measured\n");
}

#[test]
fn a_run_that_failed_is_not_excused_by_a_gate() {
    let server = start("event-driven", &[]);
    let output = run("--requests 5 --connections 1 --fail-if errors==0 --hlog /dev/full", server.addr);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let (_port, nobody) = reserve_port();
    let output = run("--requests 5 --connections 1 --fail-if errors>=0", nobody);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
}

#[test]
fn what_is_no_gate_is_refused_with_the_names_there_are() {
    for (flag, text) in [("--fail-if", "p98>5ms"), ("--find-max", "p99"), ("--fail-if", "errors>5ms")] {
        let output = loadgen("", Some(([127, 0, 0, 1], 1).into())).args([flag, text]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text == "errors>5ms" || said(&output).contains("first_byte."), "{}", said(&output));
    }
}

#[test]
fn the_verdict_can_be_a_gate() {
    let server = start("event-driven", &[]);
    // Twenty answers have no p99.
    let output = run("--requests 20 --connections 1 --fail-if verdict!=valid", server.addr);
    assert_eq!(output.status.code(), Some(3));
    assert!(said(&output).contains("verdict is suspect"), "{}", said(&output));
    let output = run("--requests 20 --connections 1 --fail-if verdict==invalid", server.addr);
    assert_eq!((output.status.code(), said(&output)), (Some(0), String::new()));
}

// ---- servers that fail ------------------------------------------------------------------------------------

/// Answers so many requests on its first connection, and is gone.
fn mortal(answers: usize) -> (Socket, SocketAddr) {
    let (port, address) = reserve_port();
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for _ in 0..answers {
            if !matches!(stream.read(&mut [0; 1024]), Ok(1..)) {
                return;
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
    });
    (port, address)
}

/// Answers nothing, and breaks every connection.
fn rude() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
        }
    });
    address
}

#[track_caller]
fn check(report: &LoadReport, name: &str) -> (Verdict, String) {
    let trust = report.trust.as_ref().unwrap();
    let check = trust.checks.iter().find(|check| check.name == name).unwrap();
    (check.verdict, check.reason.clone())
}

#[test]
fn a_server_that_dies_in_mid_window_makes_the_run_invalid() {
    for flags in ["", "--rate 200"] {
        let flags = format!("{flags} --connections 1 --duration 1s --timeout 1s --format json");
        let (_port, address) = mortal(10);
        let report: LoadReport = json(&run(&flags, address));
        assert_eq!(report.requests, 10, "{flags}");
        let (verdict, reason) = check(&report, "served");
        assert_eq!(verdict, Verdict::Invalid, "{reason}");
        assert!(reason.starts_with("nothing was answered in the last"), "{reason}");
    }
}

#[test]
fn a_server_that_breaks_every_connection_is_not_the_client_s_fault() {
    let flags = "--rate 50 --connections 2 --duration 300ms --timeout 1s --format json";
    let report: LoadReport = json(&run(flags, rude()));
    let (verdict, reason) = check(&report, "achieved");
    assert_eq!(verdict, Verdict::Suspect, "{reason}");
    assert!(reason.contains("failed") && !reason.contains("client"), "{reason}");
}

#[test]
fn connections_that_wait_behind_a_kept_one_are_starved_and_the_text_says_what_to_do() {
    let server = start("sync", &[]);
    let flags = "--connections 8 --duration 1s --timeout 2s --format json";
    let report: LoadReport = json(&run(flags, server.addr));
    let (verdict, reason) = check(&report, "starved");
    assert_eq!(verdict, Verdict::Suspect, "{reason}");
    assert!(reason.starts_with("7 of 8 connections got no answer"), "{reason}");
    // Whatever ends the run or the wait.
    for flags in
        ["--duration 1s --timeout 300ms", "--requests 1000 --timeout 300ms", "--rate 500 --duration 1s --timeout 2s"]
    {
        let text = run(&format!("--connections 8 {flags}"), server.addr).stdout;
        let words = String::from_utf8(text).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        for part in ["suspect:", "connections got no answer", "--requests-per-connection 1", "(starved)"] {
            assert!(words.contains(part), "{flags}: {part} is not in {words}");
        }
    }
    let report: LoadReport = json(&run("--connections 8 --requests-per-connection 1 -n 50 --format json", server.addr));
    assert!(report.trust.unwrap().checks.iter().all(|check| check.name != "starved"));
}

#[test]
fn no_connection_is_starved_by_a_server_that_serves_all_of_them_at_once() {
    let event_driven: (&str, &[&str], &str) = ("event-driven", &[], "--connections 64 --duration 1s");
    let prefork: (&str, &[&str], &str) = ("prefork", &["--workers", "8"], "--connections 8 --duration 1s");
    // Some never had a request; others wait for it, as all do.
    let few: (&str, &[&str], &str) = ("event-driven", &[], "--rate 20 --connections 64 --duration 1s");
    let slow: (&str, &[&str], &str) =
        ("event-driven", &["--work", "block:30ms"], "--connections 64 --duration 1s --timeout 500ms");
    for (program, flags, load) in [event_driven, prefork, few, slow] {
        let server = start(program, flags);
        let report: LoadReport = json(&run(&format!("{load} --format json"), server.addr));
        let (verdict, reason) = check(&report, "starved");
        assert_eq!(verdict, Verdict::Valid, "{program} {load}: {reason}");
    }
}

#[test]
fn a_poisson_ramp_has_as_many_arrivals_as_chance_gives_it() {
    let server = start("event-driven", &[]);
    for seed in 1..=3 {
        let flags = format!("--rate 500..1500 --arrivals poisson --seed {seed} --duration 1s --format json");
        let report: LoadReport = json(&run(&flags, server.addr));
        let (verdict, reason) = check(&report, "rate");
        assert_eq!(verdict, Verdict::Valid, "{reason}");
    }
}

#[test]
fn a_run_that_was_ended_early_has_no_drift() {
    let server = start("event-driven", &[]);
    let mut command = loadgen("--connections 1 --duration 1m --format json", Some(server.addr));
    let child = command.stdout(Stdio::piped()).spawn().unwrap();
    // It has begun when the server has answered it.
    let status = format!("/proc/{}/net/tcp", child.id());
    let port = format!(":{:04X} 01", server.addr.port());
    let connected = poll_until(FOREVER, || std::fs::read_to_string(&status).unwrap().contains(&port).then_some(()));
    assert!(connected.is_some(), "it never connected");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let report: LoadReport = json(&child.wait_with_output().unwrap());
    assert!(check(&report, "drift").1.starts_with("not judged"), "{:?}", report.trust);
    assert_eq!(check(&report, "complete").0, Verdict::Suspect);
}

// ---- many runs --------------------------------------------------------------------------------------------

#[test]
fn the_highest_rate_of_four_workers_that_sleep_five_milliseconds_is_below_800_per_second() {
    let server = start("thread-pool", &["--workers", "4", "--work", "block:5ms"]);
    let flags = "--find-max errors==0 --connections 4 --duration 400ms --timeout 2s --format json";
    let machine = Machine::watch();
    let output = run(flags, server.addr);
    // A machine that takes the CPU away for a second in all leaves no rate that holds, or only a low one; on any other
    // that is a defect.
    let is_judged = machine.withheld() < Duration::from_secs(1);
    if said(&output).contains("never holds") && !is_judged {
        return inconclusive(Needs::QuietMachine, said(&output));
    }
    let found: SearchResult = json(&output);
    assert!(output.status.success(), "{}", said(&output));
    let (held, failed) = (found.highest_held_per_s.unwrap(), found.lowest_failed_per_s.unwrap());
    if held < 80.0 && !is_judged {
        return inconclusive(Needs::QuietMachine, found.render());
    }
    // The law bounds what can hold: 4 / 5 ms, and a queue that does not show in three times the length. How far below
    // a busy machine stays is its own affair.
    assert!(held < 800.0 * 1.05 && held > 80.0, "{}", found.render());
    assert!(failed > held && found.answer().contains("fails at"), "{}", found.render());
    assert!(found.runs.last().is_some_and(|run| run.confirms && run.holds == Some(true)));
    assert!(found.runs.iter().all(|run| run.report.requests > 0));
    assert_eq!(said(&output).lines().count(), found.runs.len() + 1);
}

#[test]
fn a_condition_that_never_holds_is_an_error_with_its_runs_printed() {
    let server = start("event-driven", &[]);
    let output = run("--find-max p50<1ns --connections 2 --duration 100ms", server.addr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("never holds"), "{}", said(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("fails"));
}

#[test]
fn a_sweep_measures_every_rate_from_the_first_to_the_last() {
    let server = start("event-driven", &[]);
    let flags = "--sweep 100..300:3 --arrivals poisson --connections 2 --duration 200ms";
    let output = run(&format!("{flags} --format json"), server.addr);
    let curve: Curve = json(&output);
    assert!(output.status.success());
    let rates: Vec<f64> = curve.sweep.iter().map(|point| point.rate_per_s).collect();
    assert_eq!(rates, [100.0, 200.0, 300.0]);
    assert!(curve.sweep.iter().all(|point| point.report.requests > 0 && point.holds.is_none()));
    let output = run(flags, server.addr);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().take_while(|line| !line.is_empty()).count(), 4, "{text}");
}

/// Starts it, and waits until it has said a line with this in it.
fn until_it_says(what: &str, flags: &str, address: Option<SocketAddr>) -> (Child, BufReader<ChildStderr>) {
    let mut command = loadgen(flags, address);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(what) {
        line.clear();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "it never said {what:?}");
    }
    (child, stderr)
}

#[test]
fn ctrl_c_ends_a_sweep_and_prints_what_is_known() {
    let server = start("event-driven", &[]);
    let flags = "--sweep 100..300:3 --connections 2 --duration 1s --format json";
    let (child, _stderr) = until_it_says("100/s", flags, Some(server.addr));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let curve: Curve = json(&output);
    assert_eq!(curve.sweep.len(), 1);
    assert_eq!(curve.ended_by.as_deref(), Some("ended early"));
}

#[test]
fn a_server_that_dies_in_mid_search_costs_nothing_of_what_is_known() {
    let (_port, address) = reserve_port();
    let program = Program::new(&[kind("event-driven").path.into()]);
    let server = held(program.start_on(&address.to_string(), &[]).map_err(|why| why.into_broken(&[])));
    let flags = "--find-max p99<10s --connections 2 --duration 300ms --timeout 1s --format json";
    // One rate has been tried. Whether it held is the machine's affair, too.
    let (child, mut stderr) = until_it_says("/s ", flags, Some(server.addr));
    drop(server);
    // Both at once: what was lost is a long list, and a pipe that nobody reads would hold up the other.
    let (rest, output) = std::thread::scope(|scope| {
        let rest = scope.spawn(move || {
            let mut rest = String::new();
            stderr.read_to_string(&mut rest).map(|_| rest).unwrap()
        });
        let output = child.wait_with_output().unwrap();
        (rest.join().unwrap(), output)
    });
    let found: SearchResult = json(&output);
    assert_eq!(output.status.code(), Some(1), "{rest}");
    assert!(!found.runs.is_empty() && found.ended_by.is_some(), "{}", found.render());
}

#[test]
fn flags_of_one_run_do_not_go_with_many() {
    for flags in [
        "--sweep 1..5 --rate 5",
        "--sweep 1..5 --find-max p99<1s",
        "--sweep 1..5 --hlog x",
        "--sweep 5..1",
        "--find-max p99>1s",
    ] {
        assert_eq!(run(flags, ([127, 0, 0, 1], 1).into()).status.code(), Some(2), "{flags}");
    }
}

// ---- the client itself ------------------------------------------------------------------------------------

#[test]
fn calibration_shows_what_this_client_can_do() {
    // Long enough for a server and a client that polls to get their turns on a busy machine.
    let flags = "calibrate --duration 500ms --connections 8 --format json";
    let output = loadgen(flags, None).output().unwrap();
    let found: Calibration = json(&output);
    assert!(output.status.success());
    let numbers = [
        found.requests_per_s,
        found.cpu_us_per_request,
        found.ceiling_per_s,
        found.connections_per_s,
        found.cpu_us_per_connection,
    ];
    assert!(numbers.iter().all(|&number| number > 0.0), "{found:?}");
    assert!(found.ceiling_per_s >= found.requests_per_s);
    assert!(found.render().contains("requests/s per thread here"));
}

#[test]
fn calibration_names_the_program_that_it_needs_and_does_not_find() {
    let folder = TempFolder::new("calibrate");
    let alone = folder.path().join("loadgen");
    copy_program(env!("CARGO_BIN_EXE_loadgen"), &alone);
    let output = std::process::Command::new(&alone).arg("calibrate").output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    let expected = format!("loadgen: start {}/null-server: no such file", folder.path().display());
    assert!(line.starts_with(&expected) && line.ends_with("beside loadgen\n"), "{line}");
    assert_eq!((line.lines().count(), output.status.code()), (1, Some(1)));
}

#[test]
fn the_null_server_dies_with_the_client_that_started_it() {
    let (mut client, mut stdout) = {
        let mut command = loadgen("calibrate --duration 1m", None);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        (child, stdout)
    };
    let children = format!("/proc/{0}/task/{0}/children", client.id());
    let first_child = || Some(std::fs::read_to_string(&children).ok()?.split_whitespace().next()?.to_string());
    let is_shown = Path::new(&children).exists();
    // It is the server once it has told its address: then the client connects to it.
    let is_server = |pid: &String| command_line(pid).contains("null-server");
    let server = is_shown.then(|| poll_until(FOREVER, || first_child().filter(is_server)).expect("a null server"));
    client.kill().unwrap();
    client.wait().unwrap();
    let Some(server) = server else {
        return inconclusive(Needs::Kernel("CONFIG_PROC_CHILDREN"), format!("no {children}"));
    };
    // Whoever held the other end of it is gone.
    stdout.read_to_end(&mut Vec::new()).unwrap();
    let gone = poll_until(FOREVER, || (!command_line(&server).contains("null-server")).then_some(()));
    assert!(gone.is_some(), "process {server} outlives its parent");
}

fn command_line(pid: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

#[test]
fn every_number_is_explained_without_a_server() {
    let output = loadgen("--explain", None).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for name in ["latency_us", "censored", "evenness.*.dispersion", "X^2 / (k - 1)", "check gaps"] {
        assert!(text.contains(name), "{name}");
    }
}
