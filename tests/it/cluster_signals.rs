//! What a master does with the signals of supervisors and people, and what two masters with one path do to each other.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use acceptlab::lab::check::client::{GET, served_within};
use acceptlab::lab::check::server::{STOP_WITHIN, Server};
use acceptlab::lab::observe::processes::poll_until;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::{CLUSTER, count, events_in, run, start_with};
use crate::support::{FOREVER, Needs, TempFolder, answer, connect, held, inconclusive};

const PROGRAM: &str = env!("CARGO_BIN_EXE_event-driven");

fn ctl(socket: &str, order: &str) -> bool {
    Command::new(CLUSTER).args(["ctl", "--control", socket, order]).output().unwrap().status.success()
}

#[test]
fn signals_that_mean_nothing_to_a_master_end_nothing() {
    let scratch = TempFolder::new("signals");
    let socket = scratch.file("c");
    let mut server = start_with(&["--workers", "2", "--control", &socket], &[PROGRAM]);
    let processes = server.processes();
    for signal in [
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGPIPE,
        Signal::SIGALRM,
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGIO,
        Signal::SIGCHLD,
        Signal::SIGWINCH,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        Signal::SIGURG,
        Signal::SIGCONT,
        Signal::SIGXFSZ,
    ] {
        server.signal(signal);
        held(served_within(server.addr, FOREVER));
        assert_eq!(server.processes(), processes, "{signal}");
    }
    assert!(ctl(&socket, "status"));
    let report = held(server.stop()).cluster.unwrap();
    assert_eq!((report.forks, report.deaths), (2, 0));
    assert!(!fs::exists(&socket).unwrap());
}

#[test]
fn sigquit_is_a_stop_that_answers_what_is_open_and_leaves_no_socket() {
    let scratch = TempFolder::new("quit");
    let socket = scratch.file("c");
    let flags = ["--workers", "1", "--control", &socket];
    let mut server = start_with(&flags, &[PROGRAM, "--work", "wait:300ms"]);
    let mut client = connect(&server);
    held(client.send(GET));
    let is_open = poll_until(FOREVER, || {
        let output = Command::new(CLUSTER).args(["ctl", "--control", &socket, "--format", "json", "status"]).output();
        let status: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
        (status["workers"][0]["active"].as_u64() > Some(0)).then_some(())
    });
    assert!(is_open.is_some());
    server.signal(Signal::SIGQUIT);
    answer(&mut client);
    held(held(server.ended(STOP_WITHIN)).report());
    assert!(!fs::exists(&socket).unwrap());
}

#[test]
fn a_reload_that_is_asked_for_while_the_cluster_stops_starts_no_worker() {
    let scratch = TempFolder::new("reload-at-stop");
    let socket = scratch.file("c");
    let flags = ["--workers", "1", "--control", &socket];
    let mut server = start_with(&flags, &[PROGRAM, "--work", "wait:2s"]);
    let mut client = connect(&server);
    held(client.send(GET));
    let mut stop = Command::new(CLUSTER).args(["ctl", "--control", &socket, "stop"]).spawn().unwrap();
    assert!(poll_until(FOREVER, || (!ctl(&socket, "status")).then_some(())).is_some());
    server.signal(Signal::SIGHUP);
    let report = held(held(server.ended(STOP_WITHIN)).report()).cluster.unwrap();
    assert_eq!((report.forks, report.reloads, report.reloads_failed), (1, 0, 0));
    assert!(stop.wait().unwrap().success());
}

#[test]
fn a_master_that_was_stopped_goes_on_and_takes_no_worker_for_hung() {
    let mut server = start_with(&["--workers", "2", "--heartbeat", "50ms"], &[PROGRAM]);
    server.signal(Signal::SIGTSTP);
    let is_stopped = poll_until(FOREVER, || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid())).ok()?;
        stat.rsplit(')').next()?.trim_start().starts_with('T').then_some(())
    });
    if is_stopped.is_none() {
        server.signal(Signal::SIGCONT);
        // The kernel does not stop a process whose group has no parent in its session (credentials(7)).
        return inconclusive(Needs::Kernel("with a session around the tests"), "SIGTSTP did nothing");
    }
    let mut client = connect(&server);
    held(client.send(GET));
    server.signal(Signal::SIGCONT);
    answer(&mut client);
    let report = held(server.stop()).cluster.unwrap();
    assert_eq!((report.deaths, report.hangs), (0, 0));
}

/// The second takes the path of one whose file was removed; the first ends later, and leaves it alone.
#[test]
fn a_master_that_ends_leaves_the_control_socket_of_another_alone() {
    let scratch = TempFolder::new("two-masters");
    let socket = scratch.file("c");
    let start = || start_with(&["--workers", "1", "--control", &socket], &[PROGRAM]);
    let mut first: Server = start();
    let refused = run(&["--control", &socket, "--", "true"]);
    assert_eq!(refused.status.code(), Some(1));
    fs::remove_file(&socket).unwrap();
    let mut second = start();
    held(first.stop());
    assert!(fs::exists(&socket).unwrap() && ctl(&socket, "status"));
    // One that is killed leaves its file behind, and the next takes its place.
    second.signal(Signal::SIGKILL);
    held(second.ended(FOREVER));
    assert!(fs::exists(&socket).unwrap());
    let mut third = start();
    assert!(ctl(&socket, "stop"));
    held(third.ended(STOP_WITHIN));
    assert!(!fs::exists(&socket).unwrap());
}

#[test]
fn one_of_several_masters_that_start_at_once_takes_a_stale_path() {
    let scratch = TempFolder::new("race");
    let socket = scratch.file("c");
    for _ in 0..5 {
        drop(UnixListener::bind(&socket).unwrap());
        // What another test forks meanwhile has our listener open until it execs, and a master would find it alive.
        let is_stale = poll_until(FOREVER, || UnixStream::connect(&socket).is_err().then_some(()));
        assert!(is_stale.is_some());
        let mut clusters: Vec<_> = (0..4)
            .map(|_| {
                let mut command = Command::new(CLUSTER);
                command.args(["--control", &socket, "--workers", "1", "--", PROGRAM, "--listen", "127.0.0.1:0"]);
                command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        let three_ended = poll_until(FOREVER, || {
            let ended = clusters.iter_mut().filter_map(|child| child.try_wait().unwrap()).count();
            (ended >= 3).then_some(())
        });
        // The others give up as soon as one looks at the path; it may not listen yet.
        let stopped = poll_until(FOREVER, || ctl(&socket, "stop").then_some(()));
        let outcomes: Vec<_> = clusters
            .into_iter()
            .map(|mut child| {
                if three_ended.is_none() || stopped.is_none() {
                    let _ = child.kill();
                }
                let output = child.wait_with_output().unwrap();
                (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
            })
            .collect();
        assert!(three_ended.is_some() && stopped.is_some(), "{outcomes:#?}");
    }
}

/// As `strace` plays a kernel or a sandbox that refuses a call. `None`, said, where it cannot.
fn under_strace(inject: &str, flags: &[&str]) -> Option<Server> {
    let works = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    match works {
        Err(_) => {
            inconclusive(Needs::Tool("strace"), "not installed");
            return None;
        }
        Ok(output) if !output.status.success() => {
            inconclusive(Needs::Privilege("ptrace"), String::from_utf8_lossy(&output.stderr));
            return None;
        }
        Ok(_) => {}
    }
    let (call, inject) = (inject, format!("inject={inject}"));
    let trace = format!("trace={}", call.split(':').next().unwrap_or_default());
    let strace = ["strace", "-o", "/dev/null", "-e", &trace, "-e", &inject, CLUSTER, "--workers", "2"];
    let command = [&strace[..], flags, &["--", PROGRAM]].concat();
    let command: Vec<String> = command.into_iter().map(String::from).collect();
    Some(held(acceptlab::lab::check::server::Program::new(&command).start(&[])))
}

#[test]
fn a_failed_accept_does_not_end_the_master() {
    for errno in ["EOPNOTSUPP", "ECONNABORTED", "EPROTO", "ENETDOWN", "EHOSTUNREACH", "ENOBUFS", "EPERM"] {
        let Some(server) = under_strace(&format!("accept4:error={errno}:when=1..3"), &[]) else { return };
        for _ in 0..6 {
            held(served_within(server.addr, FOREVER));
        }
    }
}

#[test]
fn a_master_works_without_the_calls_that_a_sandbox_forbids() {
    let scratch = TempFolder::new("sandbox");
    let file = scratch.file("value");
    fs::write(&file, "1").unwrap();
    for call in
        ["memfd_create", "epoll_pwait2", "inotify_init1", "close_range", "fallocate", "flock", "sched_getaffinity"]
    {
        let flags = ["--notify", &file, "--control", &scratch.file("c")];
        let Some(server) = under_strace(&format!("{call}:error=EPERM"), &flags) else { return };
        held(served_within(server.addr, FOREVER));
        assert_eq!(count(&events_in(&server.said()), "exit"), 0, "{call}");
        await_no_socket(server, &scratch.file("c"));
    }
}

/// strace passes a signal on only to its end, so the cluster is asked.
fn await_no_socket(mut server: Server, socket: &str) {
    assert!(ctl(socket, "stop"));
    let _ = server.ended(STOP_WITHIN);
}
