//! The process manager and systemd: the unit, and the two protocols between them.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Child, Command, Stdio};

use acceptlab::lab::observe::processes::poll_until;
use acceptlab::pm::startup::VARIABLES;

use crate::pm::Manager;
use crate::support::{FOREVER, Needs, Ordinary, inconclusive};

/// A daemon that the test has started as systemd would. It ends with `pm kill`, and is reaped.
struct StartedDaemon<'a> {
    manager: &'a Manager,
    process: Child,
}

impl Drop for StartedDaemon<'_> {
    fn drop(&mut self) {
        let _ = self.manager.run(&["kill"]);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start<'a>(manager: &'a Manager, command: &mut Command) -> StartedDaemon<'a> {
    let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    StartedDaemon { manager, process }
}

#[test]
fn an_ordinary_user_sees_the_unit_and_the_command_that_installs_it_and_may_not_remove_it() {
    let Some(ordinary) = Ordinary::new(env!("CARGO_BIN_EXE_pm")) else { return };
    let run = |args: &[&str]| {
        let output = ordinary.command().args(args).env("PM_HOME", "/srv/a b/.pm").output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, unit, _) = run(&["startup", "systemd", "--user", "root"]);
    assert_eq!(status, Some(0));
    for line in ["Environment=\"PM_HOME=/srv/a b/.pm\"", "User=root", "Type=notify"] {
        assert!(unit.lines().any(|other| other == line), "{line} is not in\n{unit}");
    }
    let last = unit.lines().last().unwrap();
    assert!(last.starts_with("# sudo env ") && last.contains("'PM_HOME=/srv/a b/.pm'"), "{unit}");
    assert!(last.ends_with(" startup --user root") && unit.starts_with("[Unit]\n"), "{unit}");
    let (status, _, said) = run(&["startup", "--user", "nobody-has-this-name"]);
    assert!(status == Some(1) && said.contains("there is no user"), "{said}");
    assert_eq!(run(&["unstartup", "--user", "root"]).0, Some(1));
}

/// In a mount namespace, where a file system of its own has taken the place of systemd's folder.
#[test]
fn a_unit_is_installed_so_that_it_starts_with_the_machine_and_is_taken_back() {
    let manager = Manager::new("install");
    let in_a_sandbox = |commands: &str| {
        let line = format!("set -e; mkdir -p /etc/systemd; mount -t tmpfs none /etc/systemd; pm=$0; {commands}");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &line, env!("CARGO_BIN_EXE_pm")]).env("PM_HOME", manager.home());
        let output = command.output().expect("unshare exists");
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    if let (false, _, why) = in_a_sandbox("true") {
        return inconclusive(Needs::Privilege("CAP_SYS_ADMIN"), why);
    }
    let install = "$pm startup --user root";
    let show = "cat /etc/systemd/system/multi-user.target.wants/pm-root.service";
    let (is_done, said, why) = in_a_sandbox(&format!("{install}; {install}; {show}"));
    assert!(is_done && said.contains("installed /etc/systemd/system/pm-root.service"), "{said}{why}");
    let program = env!("CARGO_BIN_EXE_pm");
    for line in [format!("ExecStart=\"{program}\" daemon"), "User=root".to_owned()] {
        assert!(said.lines().any(|other| other == line), "{line} is not in\n{said}");
    }
    let remove = "$pm unstartup --user root";
    let (is_done, said, why) =
        in_a_sandbox(&format!("{install}; {remove}; echo left:; find /etc/systemd -name 'pm-*'"));
    assert!(is_done && said.ends_with("left:\n"), "{said}{why}");
    let (is_done, _, why) = in_a_sandbox(remove);
    assert!(!is_done && why.contains("no such file"), "{why}");
}

#[test]
fn the_daemon_tells_its_starter_when_clients_can_come_and_no_application_hears_of_it() {
    let manager = Manager::new("notify");
    let path = manager.home().with_file_name("notify.sock");
    let starter = UnixDatagram::bind(&path).unwrap();
    starter.set_read_timeout(Some(FOREVER)).unwrap();
    let _daemon = start(&manager, manager.command(&["daemon"]).env("NOTIFY_SOCKET", &path));
    let mut state = [0; 64];
    let n = loop {
        match starter.recv(&mut state) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => break received.unwrap(),
        }
    };
    assert_eq!(&state[..n], b"READY=1");
    manager.connect();
    let script = manager.script("variables.sh", "env\necho the end\n");
    let mut command = manager.command(&["start", &script, "--no-autorestart"]);
    assert!(command.envs(VARIABLES.map(|name| (name, "0"))).output().unwrap().status.success());
    let log = manager.await_log("variables-out-0.log", "the end");
    assert!(!VARIABLES.iter().any(|name| log.contains(name)), "{log}");
}

#[test]
fn the_daemon_serves_on_the_socket_that_its_starter_has_opened() {
    let manager = Manager::new("activated");
    std::fs::create_dir_all(manager.home()).unwrap();
    let listener = UnixListener::bind(manager.home().join("control.sock")).unwrap();
    // A client may come before the daemon does: the starter's socket keeps it.
    let before = manager.connect();
    let mut command = Command::new("sh");
    let line = "exec 3<&0; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" daemon </dev/null";
    command.args(["-c", line, env!("CARGO_BIN_EXE_pm")]).env("PM_HOME", manager.home());
    let _daemon = start(&manager, command.stdin(OwnedFd::from(listener)));
    (&before).write_all(b"{\"do\":\"ping\"}\n").unwrap();
    let mut answer = String::new();
    BufReader::new(before).read_line(&mut answer).unwrap();
    assert!(answer.contains("\"ok\":true"), "{answer}");
    assert!(manager.done(&["ping"]).contains("answers"));

    // Whoever follows ends with it: the starter's socket, which stays, would make it start the next one.
    let mut events = manager.command(&["events"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    manager.done(&["start", "sleep", "--name", "restless", "--cron-restart", "* * * * * *", "--", "1000"]);
    assert!(lines.next().is_some());
    drop(command);
    manager.done(&["kill"]);
    let ended = poll_until(FOREVER, || events.try_wait().unwrap());
    let _ = events.kill();
    assert!(ended.is_some_and(|status| status.success()));
}
