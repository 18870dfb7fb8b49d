//! What `cluster` does when its readers stall or are gone: standard error, standard output, log files, `cluster ctl`.

use std::fs;
use std::process::{Child, Command, Stdio};

use acceptlab::lab::check::client::served_within;
use acceptlab::lab::observe::processes::{family, poll_until};
use acceptlab::report::ServerReport;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::cluster::{CLUSTER, await_events, count, events_in, start_with};
use crate::support::{FOREVER, TempFolder, held};

const PROGRAM: &str = env!("CARGO_BIN_EXE_event-driven");

/// A cluster of two from a shell that arranges its streams; killed when dropped.
struct Cluster {
    child: Child,
    scratch: TempFolder,
}

impl Cluster {
    /// `script` runs `"$@"`, which is the cluster with these flags, from the folder in which its output is the file
    /// `out`.
    fn start(name: &str, script: &str, flags: &[&str]) -> Cluster {
        let scratch = TempFolder::new(name);
        let mut command = Command::new("bash");
        command.current_dir(scratch.path()).args(["-c", script, "bash", CLUSTER, "--workers", "2"]).args(flags);
        command.args(["--", PROGRAM, "--listen", "127.0.0.1:0"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Cluster { child, scratch }
    }

    #[track_caller]
    fn address(&self) -> std::net::SocketAddr {
        let ready = poll_until(FOREVER, || {
            let said = fs::read_to_string(self.scratch.file("out")).ok()?;
            said.lines().next()?.strip_prefix("ready ")?.parse().ok()
        });
        ready.expect("it becomes ready")
    }

    /// The master, then its workers.
    fn processes(&self) -> Vec<i32> {
        let all = family(self.child.id() as i32).into_iter();
        all.map(|process| process.pid).filter(|&pid| !command_of(pid).contains("bash\0-c")).collect()
    }

    /// A killed worker has a successor, and SIGTERM still brings the report.
    #[track_caller]
    fn goes_on_and_reports(mut self) -> ServerReport {
        let address = self.address();
        let processes = self.processes();
        kill(Pid::from_raw(processes[1]), Signal::SIGKILL).unwrap();
        let replaced = poll_until(FOREVER, || {
            held(served_within(address, FOREVER));
            let now = self.processes();
            (now.len() == 3 && now != processes).then_some(())
        });
        assert!(replaced.is_some(), "{processes:?}, then {:?}", self.processes());
        for _ in 0..4 {
            held(served_within(address, FOREVER));
        }
        kill(Pid::from_raw(processes[0]), Signal::SIGTERM).unwrap();
        let report = poll_until(FOREVER, || {
            let said = fs::read_to_string(self.scratch.file("out")).ok()?;
            serde_json::from_str::<ServerReport>(said.lines().nth(1)?).ok()
        });
        let ended = poll_until(FOREVER, || self.child.try_wait().unwrap());
        assert!(ended.is_some(), "it does not end");
        report.expect("its report")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        family(self.child.id() as i32).iter().for_each(|process| process.kill());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

#[test]
fn a_master_whose_standard_error_is_closed_by_its_reader_goes_on_and_counts_the_loss() {
    let cluster = Cluster::start("reader-gone", r#"{ "$@" 2>&1 >out; } | true"#, &[]);
    let counts = cluster.goes_on_and_reports().cluster.unwrap();
    assert_eq!(counts.deaths, 1);
    assert!(counts.lines_dropped > 0);
}

#[test]
fn a_fifo_that_nobody_reads_stalls_nothing_whether_it_gets_errors_events_or_logs() {
    for (name, script, flags) in [
        // 64 KiB fill it before the cluster starts.
        ("fifo-error", r#"mkfifo f; exec 9<>f; head -c 65536 /dev/zero >f; "$@" >out 2>f"#, &[][..]),
        ("fifo-events", r#"mkfifo f; "$@" >out 2>err"#, &["--events", "f"]),
        ("fifo-log", r#"mkfifo f; "$@" >out 2>err"#, &["--log", "f"]),
    ] {
        assert_eq!(Cluster::start(name, script, flags).goes_on_and_reports().cluster.unwrap().deaths, 1);
    }
}

#[test]
fn a_reader_of_the_ready_line_that_is_gone_ends_nothing() {
    let cluster = Cluster::start("ready-gone", r#"{ "$@" 2>err; } | true"#, &["--control", "c"]);
    let events = poll_until(FOREVER, || {
        let events = events_in(&fs::read_to_string(cluster.scratch.file("err")).ok()?);
        (count(&events, "listening") == 2).then_some(events)
    });
    let events = events.expect("both listen");
    let listening = events.iter().find(|event| event["event"] == "listening").unwrap();
    held(served_within(listening["address"].as_str().unwrap().parse().unwrap(), FOREVER));
    let stop = ["ctl", "--control", &cluster.scratch.file("c"), "stop"];
    assert!(Command::new(CLUSTER).args(stop).status().unwrap().success());
}

#[test]
fn an_events_file_that_stalls_says_so_once_and_gets_whole_lines_again() {
    let scratch = TempFolder::new("events-stall");
    let fifo = scratch.file("events");
    mkfifo(fifo.as_str(), Mode::S_IRWXU).unwrap();
    let program = format!("exec {PROGRAM} \"$@\"");
    let server =
        start_with(&["--workers", "1", "--events", &fifo, "--max-restarts", "10000"], &["sh", "-c", &program, "sh"]);
    // Each reload is several lines.
    let stalled = poll_until(FOREVER, || {
        server.signal(Signal::SIGHUP);
        let events = await_events(&server, "reloaded", 1);
        events.iter().find(|event| event["event"] == "failure").cloned()
    });
    let what = stalled.expect("64 KiB are full at some time")["what"].as_str().unwrap().to_owned();
    assert!(what.contains("it is full and nobody reads it; lines are lost"), "{what}");
}

#[test]
fn ctl_whose_reader_is_gone_does_what_it_was_asked_and_panics_nowhere() {
    let scratch = TempFolder::new("ctl-reader");
    let socket = scratch.file("c");
    let server = start_with(&["--workers", "2", "--control", &socket], &[PROGRAM]);
    for order in [&["status"][..], &["status", "--format", "json"], &["reload"], &["scale", "1"]] {
        let script = r#"{ "$@" 2>err; echo $? >status; } | true"#;
        let mut command = Command::new("bash");
        command.current_dir(scratch.path()).args(["-c", script, "bash", CLUSTER, "ctl", "--control", &socket]);
        assert!(command.args(order).status().unwrap().success());
        let err = fs::read_to_string(scratch.file("err")).unwrap();
        assert!(!err.contains("panicked"), "{order:?}: {err}");
        assert_eq!(fs::read_to_string(scratch.file("status")).unwrap(), "0\n", "{order:?}: {err}");
    }
    // Both streams.
    let script = r#"{ "$@" reload 2>&1; echo $? >status; } | true"#;
    let mut command = Command::new("bash");
    command.current_dir(scratch.path()).args(["-c", script, "bash", CLUSTER, "ctl", "--control", &socket]);
    assert!(command.status().unwrap().success());
    assert_eq!(fs::read_to_string(scratch.file("status")).unwrap(), "0\n");
    held(served_within(server.addr, FOREVER));
}

#[test]
fn rotated_log_and_events_files_are_opened_anew_by_a_reload_and_by_sigusr1() {
    let scratch = TempFolder::new("rotated");
    let (log, events, socket) = (scratch.file("log"), scratch.file("events"), scratch.file("c"));
    let flags = ["--workers", "1", "--log", &log, "--events", &events, "--control", &socket];
    let program = format!("echo started; exec {PROGRAM} \"$@\"");
    let server = start_with(&flags, &["sh", "-c", &program, "sh"]);
    let lines = |path: &str| fs::read_to_string(path).map_or(0, |text| text.lines().count());
    for (i, how) in ["hup", "ctl", "usr1"].into_iter().enumerate() {
        let old = [&log, &events].map(|path| {
            let old = format!("{path}.{i}");
            fs::rename(path, &old).unwrap();
            old
        });
        match how {
            "hup" => server.signal(Signal::SIGHUP),
            "ctl" => {
                let reload = ["ctl", "--control", &socket, "reload"];
                assert!(Command::new(CLUSTER).args(reload).status().unwrap().success());
            }
            _ => {
                server.signal(Signal::SIGUSR1);
                let reopened = poll_until(FOREVER, || fs::exists(&log).unwrap().then_some(()));
                assert!(reopened.is_some());
                server.signal(Signal::SIGHUP);
            }
        }
        let written = poll_until(FOREVER, || (lines(&log) > 0 && lines(&events) > 3).then_some(()));
        assert!(written.is_some(), "{how}: {} {}", lines(&log), lines(&events));
        await_events(&server, "reloaded", 1);
        let before = old.each_ref().map(|path| lines(path));
        assert!(before[0] > 0 && before[1] > 0);
        assert_eq!(old.each_ref().map(|path| lines(path)), before);
    }
}

#[test]
fn a_log_that_reaches_the_limit_of_a_files_size_ends_nothing() {
    let script = r#"ulimit -f 16; "$@" >out 2>err"#;
    let mut cluster = Cluster::start("file-limit", script, &["--events", "events"]);
    cluster.address();
    let master = cluster.processes()[0];
    let full = poll_until(FOREVER, || {
        kill(Pid::from_raw(master), Signal::SIGHUP).ok()?;
        (fs::metadata(cluster.scratch.file("events")).ok()?.len() >= 16 * 1024).then_some(())
    });
    assert!(full.is_some(), "the master is gone, or writes nothing");
    held(served_within(cluster.address(), FOREVER));
    kill(Pid::from_raw(master), Signal::SIGTERM).unwrap();
    let ended = poll_until(FOREVER, || cluster.child.try_wait().unwrap());
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
}
