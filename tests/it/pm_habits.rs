//! What people do with a process manager in passing, and must not lose anything by.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use acceptlab::lab::observe::processes::poll_until;
use serde_json::json;

use crate::pm::Manager;
use crate::support::FOREVER;

#[test]
fn a_sign_in_scale_means_more_or_fewer_and_the_last_process_stays() {
    let manager = Manager::new("scale-sign");
    let script = manager.script("sleep.sh", "exec sleep 600\n");
    manager.done(&["start", &script, "--name", "sleep", "-i", "3"]);
    manager.done(&["scale", "sleep", "+1"]);
    assert_eq!(manager.list().len(), 4);
    manager.done(&["scale", "sleep", "-2"]);
    assert_eq!(manager.list().len(), 2);
    let said = manager.refused(&["scale", "sleep", "-2"]);
    assert!(said.contains("sleep would have 0 processes"), "{said}");
    assert_eq!(manager.list().len(), 2);
}

#[test]
fn a_save_without_applications_leaves_the_dump_alone() {
    let manager = Manager::new("save-empty");
    let script = manager.script("sleep.sh", "exec sleep 600\n");
    manager.done(&["start", &script, "--name", "sleep"]);
    manager.done(&["save"]);
    manager.done(&["delete", "all"]);
    let said = manager.refused(&["save"]);
    assert!(said.contains("dump.json stays as it is"), "{said}");
    manager.done(&["resurrect"]);
    manager.await_status("sleep", "online");
}

/// A shell starts what it puts into the background with SIGINT ignored, and execve(2) keeps that.
#[test]
fn an_application_ignores_no_signal_whoever_started_the_daemon() {
    let manager = Manager::new("ignored");
    let script = manager.script("sleep.sh", "exec sleep 600\n");
    let pm = env!("CARGO_BIN_EXE_pm");
    let line = format!("trap '' INT QUIT; {pm} start {script} --name sleep");
    let mut shell = std::process::Command::new("sh");
    let started = shell.args(["-c", &line]).env("PM_HOME", manager.home()).output().unwrap();
    assert!(started.status.success(), "{started:?}");
    let pid = manager.pid("sleep");
    let ignored = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
        // The signals 1 to 31 have a name each; the two above them are the C library's own.
        u64::from_str_radix(ignored, 16).unwrap() & 0x7fff_ffff
    };
    // The shell that runs the script ignores SIGQUIT for itself, until it has become the sleep.
    let none = poll_until(FOREVER, || (ignored() == 0).then_some(()));
    assert!(none.is_some(), "{:x}", ignored());
}

/// A second application watches the same folder: when it is restarted, the first has been told, too.
#[test]
fn a_stopped_application_does_not_start_because_a_file_changes() {
    let manager = Manager::new("stopped-watch");
    let script = manager.script("sleep.sh", "exec sleep 600\n");
    for name in ["stopped", "witness"] {
        manager.done(&["start", &script, "--name", name, "--watch"]);
    }
    manager.done(&["stop", "stopped"]);
    let witness = manager.pid("witness");
    manager.script("new.sh", "true\n");
    manager.await_successor("witness", witness);
    manager.await_status("stopped", "stopped");
}

#[test]
fn a_program_that_always_needs_too_much_memory_is_given_up() {
    let manager = Manager::new("memory-loop");
    let script = manager.script("sleep.sh", "exec sleep 600\n");
    manager.done(&["start", &script, "--name", "large", "--max-memory-restart", "1K", "--max-restarts", "2"]);
    let large = manager.await_status("large", "errored");
    assert_eq!(large["pm2_env"]["restart_time"], 2, "{large}");
    assert!(manager.done(&["describe", "large"]).contains("bytes of memory"));
    manager.done(&["start", &script, "--name", "once", "--max-memory-restart", "1K", "--no-autorestart"]);
    assert_eq!(manager.await_status("once", "errored")["pm2_env"]["restart_time"], 0);
}

/// When the one has run twice more, the time of the other, which was stopped, has come, too.
#[test]
fn the_clock_of_a_job_that_has_ended_goes_on_after_an_adoption_and_a_resurrect_unless_the_job_was_stopped() {
    let manager = Manager::new("job-clock");
    let script = manager.script("job.sh", "echo run\n");
    for name in ["job", "stopped"] {
        manager.done(&["start", &script, "--name", name, "--no-autorestart", "--cron-restart", "*/2 * * * * *"]);
    }
    let runs = |name: &str| {
        let log = manager.home().join(format!("logs/{name}-out-{}.log", u8::from(name == "stopped")));
        fs::read_to_string(log).unwrap().lines().count()
    };
    let runs_twice_more = || {
        let before = runs("job");
        poll_until(FOREVER, || (runs("job") >= before + 2).then_some(())).is_some()
    };
    manager.done(&["stop", "stopped"]);
    let runs_of_stopped = runs("stopped");
    manager.await_status("job", "stopped");
    manager.kill_daemon();
    manager.done(&["ping"]);
    assert!(runs_twice_more(), "it is adopted");
    manager.await_status("job", "stopped");
    manager.done(&["save"]);
    manager.done(&["kill"]);
    manager.done(&["resurrect"]);
    assert!(runs_twice_more(), "it is resurrected");
    assert_eq!(runs("stopped"), runs_of_stopped);
}

#[test]
fn a_job_that_could_not_be_started_when_its_time_came_has_failed() {
    let manager = Manager::new("job-fails");
    let script = manager.script("job.sh", "echo run\n");
    manager.done(&["start", &script, "--no-autorestart", "--cron-restart", "* * * * * *"]);
    manager.await_log("job-out-0.log", "run");
    fs::remove_file(&script).unwrap();
    let failed = manager.await_status("job", "errored");
    // Its clock stands still: nothing is tried again.
    manager.script("job.sh", "echo run again\n");
    manager.done(&["start", "sleep", "--cron-restart", "* * * * * *", "--", "1000"]);
    for _ in 0..2 {
        manager.await_successor("sleep", manager.pid("sleep"));
    }
    assert_eq!(manager.process("job")["pm2_env"]["restart_time"], failed["pm2_env"]["restart_time"]);
}

/// As `nc -N` does: whoever has sent all requests and shuts that side is answered, and then the end comes.
#[test]
fn a_client_that_sends_no_more_is_answered_and_closed() {
    let manager = Manager::new("half-closed");
    let script = manager.script("sleep.sh", "exec sleep 600\n");
    manager.done(&["start", &script, "--name", "sleep"]);
    let mut client = UnixStream::connect(manager.home().join("control.sock")).unwrap();
    client.set_read_timeout(Some(FOREVER)).unwrap();
    client.write_all(b"{\"do\":\"list\"}\n{\"do\":\"restart\",\"targets\":[\"sleep\"]}\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    client.read_to_string(&mut said).unwrap();
    assert_eq!(said.lines().count(), 2, "{said}");
}

/// A socket's address has 108 bytes; a path may be longer.
#[test]
fn a_folder_with_a_long_name_is_as_good_as_another() {
    let manager = Manager::new(&"long-".repeat(24));
    let script = manager.script("sleep.sh", "exec sleep 600\n");
    manager.done(&["start", &script, "--name", "sleep"]);
    manager.kill_daemon();
    manager.await_status("sleep", "online");
    assert!(manager.home().as_os_str().len() > 108 && manager.home().join("control.sock").exists());
}

/// Whoever waits for an answer keeps the place; those that came later and ask for nothing do not.
#[test]
fn a_client_that_waits_for_an_answer_is_not_disconnected_for_others() {
    let manager = Manager::new("crowd");
    let script = stubborn(&manager);
    manager.done(&["start", &script, "--name", "stubborn", "--kill-timeout", "3s"]);
    manager.await_log("stubborn-out-0.log", "ready");
    let connect = || {
        let client = UnixStream::connect(manager.home().join("control.sock")).unwrap();
        client.set_read_timeout(Some(FOREVER)).unwrap();
        client
    };
    let mut waiting = connect();
    waiting.write_all(b"{\"do\":\"stop\",\"targets\":[\"stubborn\"]}\n").unwrap();
    let stopping = || (manager.process("stubborn")["pm2_env"]["status"] == "stopping").then_some(());
    assert!(poll_until(FOREVER, stopping).is_some());
    let idle: Vec<UnixStream> = (0..100).map(|_| connect()).collect();
    let mut answer = String::new();
    BufReader::new(&waiting).read_line(&mut answer).unwrap();
    assert!(answer.contains("\"ok\":true") && answer.contains("\"stopped\""), "{answer}");
    drop(idle);
}

/// A lock or a pipe of the shell that happened to start the daemon must not be held for ever.
#[test]
fn neither_the_daemon_nor_an_application_keeps_a_descriptor_of_the_first_client() {
    let manager = Manager::new("kept");
    let script = manager.script("sleep.sh", "exec sleep 600\n");
    let held = manager.script("held", "");
    let pm = env!("CARGO_BIN_EXE_pm");
    let line = format!("exec 9<{held}; {pm} start {script} --name sleep");
    let mut shell = std::process::Command::new("sh");
    let started = shell.args(["-c", &line]).env("PM_HOME", manager.home()).output().unwrap();
    assert!(started.status.success(), "{started:?}");
    let daemon = fs::read_to_string(manager.home().join("daemon.lock")).unwrap();
    for pid in [daemon.trim().parse().unwrap(), manager.pid("sleep")] {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let files: Vec<_> = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()).collect();
        assert!(!files.iter().any(|file| file == std::path::Path::new(&held)), "{pid}: {files:?}");
    }
}

/// A script that ignores SIGINT, as an application that takes its time to end.
fn stubborn(manager: &Manager) -> String {
    manager.script("stubborn.sh", "trap '' INT\necho ready\nwhile :; do sleep 0.1; done\n")
}

/// Runs a command that waits until this application has ended, and returns while it still ends.
fn begin_to_end(manager: &Manager, args: &[&str]) -> Child {
    let command = manager.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let is_stopping = || manager.list().iter().any(|entry| entry["pm2_env"]["status"] == "stopping").then_some(());
    assert!(poll_until(FOREVER, is_stopping).is_some(), "{:?}", manager.list());
    command
}

#[test]
fn an_application_that_is_started_while_it_is_deleted_and_scaled_up_while_it_is_scaled_down_runs() {
    let manager = Manager::new("start-delete");
    let script = stubborn(&manager);
    let app = json!([{"name": "web", "script": script, "kill_timeout": 2000}]);
    let file = manager.script("web.json", &app.to_string());
    manager.done(&["start", &file]);
    manager.await_log("web-out-0.log", "ready");
    let mut delete = begin_to_end(&manager, &["delete", "web"]);
    manager.done(&["start", &file]);
    assert!(delete.wait().unwrap().success());
    assert_eq!(manager.process("web")["pm2_env"]["status"], "online");
    manager.done(&["scale", "web", "2"]);
    manager.await_log("web-out-2.log", "ready");
    let mut scale = begin_to_end(&manager, &["scale", "web", "1"]);
    manager.done(&["scale", "web", "2"]);
    assert!(scale.wait().unwrap().success());
    let list = manager.list();
    assert!(list.len() == 2 && list.iter().all(|entry| entry["pm2_env"]["status"] == "online"), "{list:?}");
}

#[test]
fn a_restart_of_what_is_deleted_meanwhile_fails() {
    let manager = Manager::new("restart-delete");
    let script = stubborn(&manager);
    manager.done(&["start", &script, "--name", "web", "--kill-timeout", "2s"]);
    manager.await_log("web-out-0.log", "ready");
    let restart = begin_to_end(&manager, &["restart", "web"]);
    let delete = manager.command(&["delete", "web"]).stdout(Stdio::null()).spawn().unwrap();
    let later = manager.refused(&["restart", "web"]);
    let first = restart.wait_with_output().unwrap();
    assert_eq!(first.status.code(), Some(1));
    for said in [later, String::from_utf8(first.stderr).unwrap()] {
        assert_eq!(said, "web: it was deleted meanwhile\n");
    }
    assert!(delete.wait_with_output().unwrap().status.success());
}

#[test]
fn an_application_that_is_being_deleted_is_not_restarted_by_the_clock() {
    let manager = Manager::new("delete-cron");
    let script = stubborn(&manager);
    manager.done(&["start", &script, "--name", "stubborn", "--cron-restart", "* * * * * *", "--kill-timeout", "3s"]);
    manager.done(&["delete", "stubborn"]);
    let gone = poll_until(FOREVER, || manager.list().is_empty().then_some(()));
    assert!(gone.is_some(), "{:?}", manager.list());
}
