//! What people do with a process manager in passing, and must not lose anything by.

use std::fs;

use crate::pm::Manager;

#[test]
fn a_sign_in_scale_is_refused_and_no_process_ends() {
    let manager = Manager::new("scale-sign");
    let script = manager.script("sleep.sh", "exec sleep 600\n");
    manager.done(&["start", &script, "--name", "sleep", "-i", "3"]);
    for difference in ["+1", "-1"] {
        let output = manager.run(&["scale", "sleep", difference]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains("without a sign"), "{said}");
    }
    assert_eq!(manager.list().len(), 3);
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
    let status = fs::read_to_string(format!("/proc/{}/status", manager.pid("sleep"))).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    // The signals 1 to 31 have a name each; the two above them are the C library's own.
    assert_eq!(ignored & 0x7fff_ffff, 0, "{ignored:x}");
}
