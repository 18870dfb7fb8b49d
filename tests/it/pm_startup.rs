//! The process manager and systemd: the unit, and the two protocols between them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Child, Command, Stdio};

use acceptlab::pm::startup::VARIABLES;

use crate::pm::Manager;
use crate::support::{FOREVER, Ordinary};

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
fn the_unit_is_printed_for_this_program_and_this_folder() {
    let manager = Manager::new("unit");
    let unit = manager.done(&["startup", "--print", "--user", "root"]);
    let program = env!("CARGO_BIN_EXE_pm");
    for line in [
        format!("ExecStart=\"{program}\" daemon"),
        format!("Environment=\"PM_HOME={}\"", manager.home().display()),
        "User=root".to_owned(),
        "Type=notify".to_owned(),
    ] {
        assert!(unit.lines().any(|other| other == line), "{line} is not in\n{unit}");
    }
    assert!(manager.refused(&["startup", "--user", "nobody-has-this-name"]).contains("there is no user"));
}

#[test]
fn an_ordinary_user_is_told_the_command_that_installs_the_unit_and_may_not_install_it() {
    let Some(ordinary) = Ordinary::new(env!("CARGO_BIN_EXE_pm")) else { return };
    let run = |args: &[&str]| {
        let output = ordinary.command().args(args).env("PM_HOME", "/srv/a b/.pm").output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, unit, _) = run(&["startup", "systemd", "--user", "root"]);
    let last = unit.lines().last().unwrap();
    assert_eq!(status, Some(0));
    assert!(last.starts_with("# sudo env ") && last.contains("'PM_HOME=/srv/a b/.pm'"), "{unit}");
    assert!(last.ends_with(" startup --user root") && unit.starts_with("[Unit]\n"), "{unit}");
    let (status, _, said) = run(&["startup", "--user", "root", "--root", "/"]);
    assert!(status == Some(1) && said.contains("permission denied; only root may"), "{said}");
}

/// Into a folder of our own: no systemd runs here, and none would read it.
#[test]
fn a_unit_is_installed_so_that_it_starts_with_the_machine_and_is_taken_back() {
    let manager = Manager::new("install");
    let root = manager.home().with_file_name("root");
    let args = ["--user", "root", "--root", root.to_str().unwrap()];
    for _twice in 0..2 {
        let said = manager.done(&[&["startup"], &args[..]].concat());
        assert!(said.contains("installed") && said.contains("no systemd was told"), "{said}");
    }
    let folder = root.join("etc/systemd/system");
    let link = folder.join("multi-user.target.wants/pm-root.service");
    assert_eq!(fs::read(&link).unwrap(), fs::read(folder.join("pm-root.service")).unwrap());
    let printed = manager.done(&["startup", "--print", "--user", "root"]);
    assert!(printed.starts_with(&fs::read_to_string(&link).unwrap()), "{printed}");
    manager.done(&[&["unstartup"], &args[..]].concat());
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "only the folder of links is left");
    assert!(manager.refused(&[&["unstartup"], &args[..]].concat()).contains("no such file"));
}

#[test]
fn the_daemon_tells_its_starter_when_clients_can_come_and_no_application_hears_of_it() {
    let manager = Manager::new("notify");
    let path = manager.home().with_file_name("notify.sock");
    let starter = UnixDatagram::bind(&path).unwrap();
    starter.set_read_timeout(Some(FOREVER)).unwrap();
    let _daemon = start(&manager, manager.command(&["daemon"]).env("NOTIFY_SOCKET", &path));
    let mut state = [0; 64];
    let n = starter.recv(&mut state).unwrap();
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
}
