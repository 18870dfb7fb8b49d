//! The process manager: what its commands do, how processes may behave, and what the death of the daemon changes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use acceptlab::lab::check::client::served_within;
use acceptlab::lab::observe::processes::{members, poll_until};
use acceptlab::sys::procfs::{Stat, voluntary_switches};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{FOREVER, Ordinary, TempFolder, held};

const PM: &str = env!("CARGO_BIN_EXE_pm");

/// A process manager with a folder of its own. It ends with the test, however that ends.
pub struct Manager {
    folder: TempFolder,
}

impl Manager {
    pub fn new(name: &str) -> Manager {
        Manager { folder: TempFolder::new(&format!("pm-{name}")) }
    }

    pub fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PM);
        command.args(args).env("PM_HOME", self.home()).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("cargo has built it")
    }

    /// What it prints, when it succeeds.
    #[track_caller]
    pub fn done(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "pm {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The one line that it says when it fails.
    #[track_caller]
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "pm {args:?}: {said}");
        said
    }

    /// A script in the manager's folder.
    pub fn script(&self, name: &str, text: &str) -> String {
        let path = self.folder.file(name);
        fs::write(&path, text).unwrap();
        path
    }

    #[track_caller]
    pub fn list(&self) -> Vec<Value> {
        serde_json::from_str(&self.done(&["jlist"])).unwrap()
    }

    /// The only process of this name.
    #[track_caller]
    pub fn process(&self, name: &str) -> Value {
        let mut named: Vec<Value> = self.list().into_iter().filter(|process| process["name"] == name).collect();
        assert_eq!(named.len(), 1, "{named:?}");
        named.remove(0)
    }

    #[track_caller]
    pub fn pid(&self, name: &str) -> i32 {
        self.process(name)["pid"].as_i64().unwrap() as i32
    }

    #[track_caller]
    pub fn await_status(&self, name: &str, status: &str) -> Value {
        let found = poll_until(FOREVER, || Some(self.process(name)).filter(|process| status_of(process) == status));
        found.unwrap_or_else(|| panic!("{name} is not {status}: {}", self.process(name)))
    }

    /// The process that has taken the place of this one.
    #[track_caller]
    pub fn await_successor(&self, name: &str, pid: i32) -> i32 {
        let successor = poll_until(FOREVER, || Some(self.pid(name)).filter(|&other| other != pid && other > 0));
        successor.unwrap_or_else(|| panic!("{name} has no successor: {}", self.process(name)))
    }

    #[track_caller]
    pub fn await_log(&self, file: &str, text: &str) -> String {
        let path = self.home().join("logs").join(file);
        let read = || fs::read_to_string(&path).ok().filter(|log| log.contains(text));
        poll_until(FOREVER, read).unwrap_or_else(|| panic!("no {text:?} in {}", path.display()))
    }

    pub fn daemon(&self) -> i32 {
        fs::read_to_string(self.home().join("daemon.lock")).unwrap().trim().parse().unwrap()
    }

    /// Kills the daemon, and waits until it is gone.
    pub fn kill_daemon(&self) {
        let daemon = self.daemon();
        kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
        assert!(poll_until(FOREVER, || (!is_alive(daemon)).then_some(())).is_some());
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.home().join("control.sock")).unwrap();
        stream.set_read_timeout(Some(FOREVER)).unwrap();
        stream
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.run(&["kill"]);
    }
}

fn status_of(process: &Value) -> &str {
    process["pm2_env"]["status"].as_str().unwrap()
}

pub fn is_alive(pid: i32) -> bool {
    Stat::of(pid).is_some_and(|stat| stat.is_alive())
}

#[track_caller]
pub fn await_end(pid: i32) {
    assert!(poll_until(FOREVER, || (!is_alive(pid)).then_some(())).is_some(), "{pid} lives");
}

#[test]
fn a_program_is_started_listed_described_restarted_stopped_and_deleted() {
    let pm = Manager::new("life");
    let table = pm.done(&["start", "sleep", "--name", "nap", "--", "1000"]);
    assert!(table.contains("nap") && table.contains("online"), "{table}");
    let first = pm.pid("nap");
    assert!(is_alive(first));
    let described = pm.done(&["describe", "nap"]);
    for fact in ["online", "sleep", "1000", "nap-out-0.log", "nap-error-0.log"] {
        assert!(described.contains(fact), "no {fact} in {described}");
    }
    pm.done(&["restart", "nap"]);
    let second = pm.process("nap");
    assert_eq!((status_of(&second), &second["pm2_env"]["restart_time"]), ("online", &json!(1)));
    assert!(!is_alive(first) && is_alive(second["pid"].as_i64().unwrap() as i32));

    pm.done(&["stop", "0"]);
    let stopped = pm.process("nap");
    assert_eq!((status_of(&stopped), &stopped["pid"]), ("stopped", &json!(0)));
    pm.done(&["start", "nap"]);
    assert_eq!(status_of(&pm.process("nap")), "online");
    let last = pm.pid("nap");
    pm.done(&["delete", "all"]);
    assert_eq!(pm.list(), [] as [Value; 0]);
    assert!(!is_alive(last));
}

#[test]
fn the_list_has_the_keys_that_programs_written_for_pm2_read() {
    let pm = Manager::new("keys");
    pm.done(&["start", "sleep", "--namespace", "night", "--", "1000"]);
    let process = pm.process("sleep");
    for key in ["pid", "pm_id", "name"] {
        assert!(!process[key].is_null(), "no {key} in {process}");
    }
    assert!(process["monit"]["memory"].as_u64() > Some(0) && process["monit"]["cpu"].is_number(), "{process}");
    let texts = ["status", "exec_mode", "pm_exec_path", "pm_out_log_path", "pm_err_log_path", "namespace"];
    assert!(texts.iter().all(|key| process["pm2_env"][key].is_string()), "{process}");
    let numbers = ["pm_uptime", "restart_time", "unstable_restarts", "instances", "NODE_APP_INSTANCE"];
    assert!(numbers.iter().all(|key| process["pm2_env"][key].is_u64()), "{process}");
    assert_eq!(
        (&process["pm2_env"]["exec_mode"], &process["pm2_env"]["namespace"]),
        (&json!("fork_mode"), &json!("night"))
    );
}

#[test]
fn a_killed_process_has_a_successor_and_the_others_are_untouched() {
    let pm = Manager::new("killed");
    pm.done(&["start", "sleep", "--name", "one", "--", "1000"]);
    pm.done(&["start", "sleep", "--name", "other", "--", "1000"]);
    let (one, other) = (pm.pid("one"), pm.pid("other"));
    kill(Pid::from_raw(one), Signal::SIGKILL).unwrap();
    pm.await_successor("one", one);
    let process = pm.process("one");
    assert_eq!((&process["pm2_env"]["restart_time"], &process["pm2_env"]["exit_code"]), (&json!(1), &json!(137)));
    assert_eq!(pm.pid("other"), other);
}

#[test]
fn scripts_run_by_their_extension_and_what_they_write_is_in_their_logs() {
    let pm = Manager::new("scripts");
    let script =
        pm.script("hello.sh", "echo \"hello $1, instance $NODE_APP_INSTANCE\"\necho trouble >&2\nexec sleep 1000\n");
    pm.done(&["start", &script, "-i", "2", "--", "world"]);
    assert_eq!(pm.list().len(), 2);
    pm.await_log("hello-out-0.log", "hello world, instance 0\n");
    pm.await_log("hello-out-1.log", "hello world, instance 1\n");
    pm.await_log("hello-error-0.log", "trouble\n");
}

#[test]
fn a_target_that_is_unknown_is_refused_with_the_names_there_are() {
    let pm = Manager::new("targets");
    for (name, namespace) in [("web-1", "front"), ("web-2", "front"), ("job", "back")] {
        pm.done(&["start", "sleep", "--name", name, "--namespace", namespace, "--", "1000"]);
    }
    let said = pm.refused(&["restart", "wbe"]);
    assert_eq!(said, "no application \"wbe\"; there are: job, web-1, web-2\n");
    assert!(pm.refused(&["stop", "/(/"]).contains("/(/"));
    pm.done(&["stop", "front"]);
    let stopped = |pm: &Manager| -> Vec<String> {
        let stopped = pm.list().into_iter().filter(|process| status_of(process) == "stopped");
        stopped.map(|process| process["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(stopped(&pm), ["web-1", "web-2"]);
    pm.done(&["restart", "/^web-/"]);
    assert_eq!(stopped(&pm), [] as [&str; 0]);
    pm.done(&["stop", "2", "web-1"]);
    assert_eq!(stopped(&pm), ["web-1", "job"]);
}

#[test]
fn a_name_that_is_there_is_not_started_twice() {
    let pm = Manager::new("twice");
    pm.done(&["start", "sleep", "--", "1000"]);
    let pid = pm.pid("sleep");
    let said = pm.refused(&["start", "sleep", "--name", "sleep", "--cwd", "/nowhere/at/all", "--", "7"]);
    assert!(said.contains("already"), "{said}");
    assert_eq!(pm.pid("sleep"), pid);
}

#[test]
fn a_program_that_does_not_exist_is_one_line_and_status_1() {
    let pm = Manager::new("missing");
    let said = pm.refused(&["start", "./not-there"]);
    assert!(said.contains("not-there") && said.contains("no such file"), "{said}");
    let said = pm.refused(&["start", "no-program-has-this-name"]);
    assert!(said.contains("no-program-has-this-name"), "{said}");
    let plain = pm.script("plain", "#!/bin/sh\nsleep 1000\n");
    let said = pm.refused(&["start", &plain]);
    assert!(said.contains("permission denied") && said.contains("chmod"), "{said}");
}

#[test]
fn a_program_that_exits_at_once_is_given_up_within_its_budget() {
    let pm = Manager::new("loop");
    let script = pm.script("loop.sh", "exit 3\n");
    pm.done(&["start", &script, "--max-restarts", "5"]);
    let process = pm.await_status("loop", "errored");
    let state = &process["pm2_env"];
    assert_eq!((&state["restart_time"], &state["exit_code"]), (&json!(5), &json!(3)));
    assert!(state["reason"].as_str().unwrap().contains("status 3"), "{process}");
    // A restart by hand begins anew.
    pm.run(&["restart", "loop"]);
    assert_eq!(pm.await_status("loop", "errored")["pm2_env"]["restart_time"], 11);
}

#[test]
fn a_program_that_ends_with_a_status_to_stop_at_or_without_autorestart_stays_stopped() {
    let pm = Manager::new("stays");
    let script = pm.script("once.sh", "exit 7\n");
    pm.done(&["start", &script, "--stop-exit-codes", "0,7"]);
    assert_eq!(pm.await_status("once", "stopped")["pm2_env"]["restart_time"], 0);
    pm.done(&["start", &script, "--name", "job", "--no-autorestart"]);
    assert_eq!(pm.await_status("job", "stopped")["pm2_env"]["exit_code"], 7);
}

#[test]
fn a_program_that_ignores_sigint_is_killed_with_what_it_has_started() {
    let pm = Manager::new("stubborn");
    let script = pm.script("stubborn.sh", "trap '' INT TERM\nsleep 1000 &\necho ready\nwhile :; do sleep 1000; done\n");
    pm.done(&["start", &script, "--kill-timeout", "200"]);
    pm.await_log("stubborn-out-0.log", "ready");
    let pid = pm.pid("stubborn");
    let begun = Instant::now();
    pm.done(&["stop", "stubborn"]);
    assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
    assert!(!is_alive(pid));
    assert!(poll_until(FOREVER, || members(pid).is_empty().then_some(())).is_some(), "{:?}", members(pid));
}

#[test]
fn a_program_that_forks_and_ends_is_given_up_and_its_children_do_not_pile_up() {
    let pm = Manager::new("double");
    let script = pm.script("double.sh", "(sleep 1000 &)\necho $$\nexit 0\n");
    pm.done(&["start", &script, "--max-restarts", "3"]);
    pm.await_status("double", "errored");
    let log = pm.await_log("double-out-0.log", "\n");
    let leaders: Vec<i32> = log.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(leaders.len(), 4);
    let are_gone = || leaders.iter().all(|&leader| members(leader).is_empty()).then_some(());
    assert!(poll_until(FOREVER, are_gone).is_some());
}

#[test]
fn a_program_that_closes_its_descriptors_stays_online() {
    let pm = Manager::new("closed");
    let script = pm.script("closed.sh", "exec <&- >&- 2>&-\nexec sleep 1000\n");
    pm.done(&["start", &script]);
    let pid = pm.pid("closed");
    let is_sleep = || fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n").then_some(());
    assert!(poll_until(FOREVER, is_sleep).is_some());
    assert_eq!((status_of(&pm.process("closed")), pm.pid("closed")), ("online", pid));
}

#[test]
fn a_killed_daemon_takes_nobody_along_and_the_next_adopts_all_and_loses_no_line() {
    let pm = Manager::new("adopt");
    let script = pm.script("count.sh", "i=0\nwhile :; do i=$((i+1)); echo $i; sleep 0.01; done\n");
    pm.done(&["start", &script, "--name", "count"]);
    pm.await_log("count-out-0.log", "\n5\n");
    let pid = pm.pid("count");
    pm.kill_daemon();
    assert!(is_alive(pid));
    // The next command finds a socket on which nobody listens.
    let adopted = pm.process("count");
    assert_eq!((status_of(&adopted), &adopted["pid"]), ("online", &json!(pid)));
    let last = fs::read_to_string(pm.home().join("logs/count-out-0.log")).unwrap().lines().count();
    let log = pm.await_log("count-out-0.log", &format!("\n{}\n", last + 20));
    let expected: Vec<String> = (1..=log.lines().count()).map(|number| number.to_string()).collect();
    assert_eq!(log.lines().collect::<Vec<_>>(), expected);

    // It is watched as before, though it is nobody's child here.
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let successor = pm.await_successor("count", pid);
    pm.kill_daemon();
    kill(Pid::from_raw(successor), Signal::SIGKILL).unwrap();
    await_end(successor);
    pm.await_successor("count", successor);
    assert_eq!(pm.process("count")["pm2_env"]["restart_time"], 2);
    pm.done(&["stop", "count"]);
}

#[test]
fn a_process_number_that_is_anothers_now_is_not_adopted() {
    let pm = Manager::new("stale");
    pm.done(&["start", "sleep", "--", "1000"]);
    let pid = pm.pid("sleep");
    pm.kill_daemon();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    await_end(pid);
    // As if the number had been given to us.
    let path = pm.home().join("state.json");
    let state = fs::read_to_string(&path).unwrap();
    let ours = std::process::id();
    fs::write(&path, state.replace(&format!("\"pid\":{pid}"), &format!("\"pid\":{ours}"))).unwrap();
    let successor = pm.await_successor("sleep", pid);
    assert_ne!(successor, ours as i32);
}

#[test]
fn commands_that_come_together_start_one_daemon_and_a_second_daemon_is_refused() {
    let pm = Manager::new("together");
    let pings: Vec<_> = (0..8).map(|_| pm.command(&["ping"]).stdout(Stdio::null()).spawn().unwrap()).collect();
    for mut ping in pings {
        assert!(ping.wait().unwrap().success());
    }
    let daemon = pm.daemon();
    let said = pm.refused(&["daemon"]);
    assert!(said.contains("another one runs"), "{said}");
    assert_eq!(pm.daemon(), daemon);
    let started = fs::read_to_string(pm.home().join("pm.log")).unwrap();
    assert!(!started.contains("another one"), "{started}");
    pm.done(&["kill"]);
    await_end(daemon);
    assert!(!pm.home().join("control.sock").exists());
    assert_eq!(pm.done(&["kill"]), "there is no daemon\n");
}

#[test]
fn only_its_own_user_is_served() {
    let pm = Manager::new("users");
    let Some(other) = Ordinary::new(PM) else { return };
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    pm.done(&["start", "sleep", "--", "1000"]);
    let socket = pm.home().join("control.sock");
    let metadata = fs::metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(pm.home()).unwrap().permissions().mode() & 0o777, 0o700);
    // Even if somebody has opened the doors.
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(&pm.home(), 0o755);
    open(&socket, 0o666);
    let output = other.command().args(["stop", "all"]).env("PM_HOME", pm.home()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("belongs to another user"), "{said}");
    assert_eq!((output.status.code(), status_of(&pm.process("sleep"))), (Some(1), "online"));
}

#[test]
fn clients_that_hang_or_send_garbage_disturb_nobody() {
    let pm = Manager::new("hostile");
    pm.done(&["start", "sleep", "--", "1000"]);
    let silent: Vec<UnixStream> = (0..100).map(|_| pm.connect()).collect();
    for garbage in [&b"\xff\xfe\0\n"[..], b"{\"do\":\"fly\"}\n", b"[]\n", b"{\"do\":\"stop\"}\n"] {
        let mut stream = pm.connect();
        stream.write_all(garbage).unwrap();
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["ok"] == false && answer["error"].as_str().unwrap().contains("not a request"), "{answer}");
    }
    // What no configuration may say is refused by the daemon, too.
    for (app, why) in [
        (json!({"name": "../x", "script": "sleep"}), "cannot be a name"),
        (json!({"name": "x", "script": "sleep", "instances": 1_000_000}), "more than the 2000"),
    ] {
        let mut stream = pm.connect();
        writeln!(stream, "{}", json!({"do": "start", "apps": [app]})).unwrap();
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer).unwrap();
        assert!(answer.contains(why), "{answer}");
    }
    let mut half = pm.connect();
    half.write_all(b"{\"do\":").unwrap();
    assert_eq!(status_of(&pm.process("sleep")), "online");
    // Several requests on one connection are answered in their order.
    let mut stream = pm.connect();
    stream.write_all(b"{\"do\":\"ping\"}\n{\"do\":\"restart\",\"targets\":[\"0\"]}\n{\"do\":\"list\"}\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    let answers: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.iter().map(|answer| &answer["ok"]).collect::<Vec<_>>(), [true, true, true]);
    assert_eq!(answers[2]["processes"][0]["pm2_env"]["restart_time"], 1);
    drop((silent, half));
}

#[test]
fn as_many_requests_as_a_client_sends_at_once_are_answered_one_by_one() {
    const REQUESTS: usize = 30_000;
    let pm = Manager::new("many-requests");
    pm.done(&["start", "sleep", "--", "1000"]);
    let stream = pm.connect();
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all("{\"do\":\"ping\"}\n".repeat(REQUESTS).as_bytes()));
    let answers = BufReader::new(&stream).lines().take(REQUESTS).map(Result::unwrap);
    assert_eq!(answers.filter(|answer| answer.contains("\"ok\":true")).count(), REQUESTS);
    writing.join().unwrap().unwrap();
    assert_eq!(status_of(&pm.process("sleep")), "online");
}

#[test]
fn while_nothing_happens_the_daemon_does_not_wake_up() {
    let pm = Manager::new("idle");
    for i in 0..3 {
        pm.done(&["start", "sleep", "--name", &format!("sleep-{i}"), "--", "1000"]);
    }
    let daemon = pm.daemon();
    let is_quiet = || {
        let before = voluntary_switches(daemon);
        std::thread::sleep(Duration::from_millis(500));
        (voluntary_switches(daemon) == before).then_some(())
    };
    // The last client may still be leaving when the first look is taken.
    assert!(poll_until(FOREVER, is_quiet).is_some());
    assert!(is_quiet().is_some());
}

#[test]
fn what_a_program_has_started_has_its_time_to_end_even_if_the_program_is_gone() {
    let pm = Manager::new("leftover");
    // The child, in a group of its own (set -m), is asked together with its parent, and needs longer.
    let child =
        pm.script("child.sh", "trap 'sleep 0.3; echo cleaned up; exit' INT\necho ready\nwhile :; do sleep 0.1; done\n");
    let script = pm.script("parent.sh", &format!("set -m\nbash {child} &\nexec sleep 1000\n"));
    pm.done(&["start", &script, "--kill-timeout", "20000"]);
    pm.await_log("parent-out-0.log", "ready");
    let pid = pm.pid("parent");
    pm.done(&["stop", "parent"]);
    pm.await_log("parent-out-0.log", "cleaned up");
    assert!(!is_alive(pid));
}

#[test]
fn what_was_saved_is_resurrected_as_it_was() {
    let pm = Manager::new("saved");
    assert!(pm.refused(&["resurrect"]).contains("pm save"));
    pm.done(&["start", "sleep", "--name", "on", "-i", "2", "--", "1000"]);
    pm.done(&["start", "sleep", "--name", "off", "--", "1000"]);
    pm.done(&["stop", "off"]);
    pm.done(&["save"]);
    pm.done(&["kill"]);
    assert_eq!(pm.list(), [] as [Value; 0]);
    pm.done(&["resurrect"]);
    let states: Vec<(String, String)> = pm
        .list()
        .iter()
        .map(|process| (process["name"].as_str().unwrap().to_owned(), status_of(process).to_owned()))
        .collect();
    let expected = [("on", "online"), ("on", "online"), ("off", "stopped")];
    assert_eq!(states, expected.map(|(name, status)| (name.to_owned(), status.to_owned())));
    // What was deleted since then does not come back when the daemon has died: the unit of systemd asks so.
    pm.done(&["delete", "off"]);
    pm.kill_daemon();
    pm.done(&["resurrect", "--if-empty"]);
    assert_eq!(pm.list().len(), 2);
    // What is there stays as it is.
    pm.done(&["resurrect"]);
    assert_eq!(pm.list().len(), 3);
    let pids = |pm: &Manager| pm.list().iter().map(|process| process["pid"].clone()).collect::<Vec<_>>();
    let before = pids(&pm);
    pm.done(&["resurrect"]);
    assert_eq!(pids(&pm), before);
}

pub fn environment_of(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap();
    bytes.split(|&byte| byte == 0).map(|variable| String::from_utf8_lossy(variable).into_owned()).collect()
}

#[test]
fn a_configuration_that_is_started_again_has_its_new_environment_and_no_other() {
    let pm = Manager::new("environment");
    let config = |env: Value| json!({"apps": [{"name": "app", "script": "sleep", "args": "1000", "env": env}]});
    let file = pm.script("apps.json", &config(json!({"KEPT": "1", "REMOVED": "1"})).to_string());
    pm.done(&["start", &file]);
    let first = environment_of(pm.pid("app"));
    assert!(first.contains(&"KEPT=1".to_owned()) && first.contains(&"REMOVED=1".to_owned()), "{first:?}");
    pm.script("apps.json", &config(json!({"KEPT": "2"})).to_string());
    pm.done(&["start", &file]);
    let second = environment_of(pm.pid("app"));
    assert!(second.contains(&"KEPT=2".to_owned()), "{second:?}");
    assert!(!second.iter().any(|variable| variable.starts_with("REMOVED=")), "{second:?}");
    let shown = pm.done(&["env", "app"]);
    assert!(shown.lines().any(|line| line == "KEPT=2") && !shown.contains("REMOVED="), "{shown}");
    assert!(pm.refused(&["start", &file, "other"]).contains("there are: app"));
}

#[test]
fn an_application_is_scaled_up_and_down() {
    let pm = Manager::new("scale");
    pm.done(&["start", "sleep", "--", "1000"]);
    let first = pm.pid("sleep");
    pm.done(&["scale", "sleep", "3"]);
    let processes = pm.list();
    let numbers: Vec<u64> =
        processes.iter().map(|process| process["pm2_env"]["NODE_APP_INSTANCE"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [0, 1, 2]);
    pm.done(&["scale", "sleep", "1"]);
    assert_eq!(pm.pid("sleep"), first);
    assert!(pm.refused(&["scale", "other", "2"]).contains("there are: sleep"));
}

#[test]
fn what_happens_is_an_event_a_line() {
    let pm = Manager::new("events");
    pm.done(&["ping"]);
    let mut events = pm.command(&["events"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    // The listener may be late for the first ones.
    pm.done(&["start", "sleep", "--", "1000"]);
    let mut seen = Vec::new();
    while !["online", "stop"].iter().all(|event| seen.contains(&event.to_string())) {
        pm.run(&["restart", "sleep"]);
        pm.done(&["stop", "sleep"]);
        for line in lines.by_ref() {
            let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
            assert_eq!((&event["name"], &event["pm_id"]), (&json!("sleep"), &json!(0)), "{event}");
            seen.push(event["event"].as_str().unwrap().to_owned());
            if event["event"] == "stop" {
                break;
            }
        }
    }
    pm.done(&["kill"]);
    assert!(events.wait().unwrap().success());
}

#[test]
fn a_process_that_uses_more_memory_than_it_may_is_restarted() {
    let pm = Manager::new("memory");
    let script = pm
        .script("greedy.sh", "big=$(head -c 60000000 /dev/zero | tr '\\0' x)\necho grown\nwhile :; do sleep 1; done\n");
    pm.done(&["start", &script, "--max-memory-restart", "30M"]);
    let pid = pm.pid("greedy");
    pm.await_successor("greedy", pid);
    assert!(pm.process("greedy")["pm2_env"]["restart_time"].as_u64() >= Some(1));
}

#[test]
fn a_process_that_says_when_it_is_ready_is_awaited_and_one_that_never_does_fails_the_command() {
    let pm = Manager::new("ready");
    let script = pm.script("late.sh", "sleep 0.3\necho '\"ready\"' >&$NODE_CHANNEL_FD\nexec sleep 1000\n");
    let begun = Instant::now();
    pm.done(&["start", &script, "--wait-ready", "--listen-timeout", "30000"]);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(status_of(&pm.process("late")), "online");
    let never = pm.script("never.sh", "exec sleep 1000\n");
    let said = pm.refused(&["start", &never, "--wait-ready", "--listen-timeout", "200"]);
    assert!(said.contains("never: it has not said within 200ms that it is ready"), "{said}");
    let process = pm.process("never");
    assert_eq!((status_of(&process), &process["pid"]), ("errored", &json!(0)));
}

#[test]
fn a_process_is_restarted_when_a_file_changes_and_when_its_time_comes() {
    let pm = Manager::new("watch");
    let folder = pm.folder.file("app");
    fs::create_dir(&folder).unwrap();
    let script = pm.script("app/watched.sh", "exec sleep 1000\n");
    pm.done(&["start", &script, "--watch", "--cwd", &folder]);
    let pid = pm.pid("watched");
    pm.script("app/changed.txt", "new");
    pm.await_successor("watched", pid);
    pm.done(&["start", "sleep", "--cron-restart", "* * * * * *", "--", "1000"]);
    let pid = pm.pid("sleep");
    pm.await_successor("sleep", pid);
}

/// How many processes are `sleep` for so many seconds.
fn sleepers(seconds: &str) -> usize {
    let wanted = format!("sleep\0{seconds}\0");
    let command = |stat: &Stat| fs::read_to_string(format!("/proc/{}/cmdline", stat.pid)).unwrap_or_default();
    Stat::all_processes().filter(|stat| stat.is_alive() && command(stat) == wanted).count()
}

#[test]
fn a_daemon_that_is_killed_at_any_moment_leaves_no_process_that_nobody_knows_and_starts_none_twice() {
    let pm = Manager::new("moments");
    let seconds = format!("9{}", std::process::id());
    for name in ["one", "two", "three"] {
        pm.done(&["start", "sleep", "--name", name, "--", &seconds]);
    }
    for moment in 0..12 {
        let mut restart = pm.command(&["restart", "all"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(moment * 2));
        pm.kill_daemon();
        // It may have been answered or not.
        restart.wait().unwrap();
        for name in ["one", "two", "three"] {
            pm.await_status(name, "online");
        }
        let are_three = || (sleepers(&seconds) == 3).then_some(());
        assert!(poll_until(FOREVER, are_three).is_some(), "moment {moment}: {} of 3", sleepers(&seconds));
    }
}

#[test]
fn logs_are_shown_flushed_and_opened_anew() {
    let pm = Manager::new("logs");
    let script = pm
        .script("talk.sh", "echo said\necho complained >&2\nread -r line < \"$1\"\necho \"$line\"\nexec sleep 1000\n");
    let fifo = pm.folder.file("go");
    nix::unistd::mkfifo(fifo.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    pm.done(&["start", &script, "--", &fifo]);
    pm.await_log("talk-out-0.log", "said");
    pm.await_log("talk-error-0.log", "complained");
    let shown = pm.done(&["logs", "talk", "--nostream"]);
    assert!(shown.contains("said") && shown.contains("complained") && shown.contains("talk"), "{shown}");
    assert_eq!(pm.done(&["logs", "talk", "--nostream", "--raw", "--out"]), "said\n");
    pm.done(&["flush", "talk"]);
    assert_eq!(pm.done(&["logs", "--nostream", "--raw"]), "");
    let log = pm.home().join("logs/talk-out-0.log");
    fs::rename(&log, log.with_extension("old")).unwrap();
    pm.done(&["reload-logs"]);
    fs::write(&fifo, "after\n").unwrap();
    assert_eq!(pm.await_log("talk-out-0.log", "after"), "after\n");
    assert!(pm.refused(&["logs", "other", "--nostream"]).contains("there are: talk"));
}

#[test]
fn a_manager_in_the_foreground_ends_with_its_last_process_or_with_a_signal() {
    let pm = Manager::new("foreground");
    let script = pm.script("short.sh", "echo done\n");
    pm.done(&["start", "--no-daemon", "--no-autorestart", &script]);
    pm.await_log("short-out-0.log", "done");
    // Whoever has started it in a container wants to know.
    let crash = pm.script("crash.sh", "exit 3\n");
    let output = pm.command(&["start", "--no-daemon", "--max-restarts", "1", &crash]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.lines().last().unwrap().starts_with("crash: it ended with status 3"), "{said}");
    let mut foreground = pm.command(&["start", "--no-daemon", "sleep", "--", "1000"]);
    let mut foreground = foreground.stderr(Stdio::null()).spawn().unwrap();
    let socket = pm.home().join("control.sock");
    assert!(poll_until(FOREVER, || UnixStream::connect(&socket).ok()).is_some());
    let pid = pm.pid("sleep");
    kill(Pid::from_raw(foreground.id() as i32), Signal::SIGTERM).unwrap();
    assert!(foreground.wait().unwrap().success());
    assert!(!is_alive(pid) && !socket.exists());
}

#[test]
fn a_folder_that_cannot_be_written_is_one_line_with_what_to_do() {
    let pm = Manager::new("readonly");
    let output = pm.command(&["ping"]).env("PM_HOME", "/proc/pm").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("create the folder /proc/pm: ") && said.contains("set PM_HOME"), "{said}");
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1));
}

/// A cluster of our server on a free port: its configuration, and where its script is.
pub fn cluster_app(pm: &Manager, env: Value) -> (String, String) {
    let script = pm.script("web.sh", &format!("exec {} --listen 127.0.0.1:0\n", env!("CARGO_BIN_EXE_event-driven")));
    let app = json!({"name": "web", "script": script, "interpreter": "bash", "exec_mode": "cluster", "instances": 2,
                     "listen_timeout": 5000, "env": env});
    (pm.script("web.json", &json!({"apps": [app]}).to_string()), script)
}

pub fn web_pids(pm: &Manager) -> Vec<i32> {
    let web = pm.list().into_iter().filter(|process| process["name"] == "web");
    web.map(|process| process["pid"].as_i64().unwrap() as i32).collect()
}

/// The address on which the workers of application 0 listen.
fn web_address(pm: &Manager) -> std::net::SocketAddr {
    let socket = pm.home().join("masters/0/control.sock");
    let output = Command::new(env!("CARGO_BIN_EXE_cluster"))
        .args(["ctl", "--control", socket.to_str().unwrap(), "--format", "json", "status"])
        .output()
        .unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    status["listen"].as_str().unwrap_or_else(|| panic!("{status}")).parse().unwrap()
}

#[test]
fn a_cluster_is_started_reloaded_scaled_and_adopted_and_serves_meanwhile() {
    let pm = Manager::new("cluster");
    let (file, script) = cluster_app(&pm, json!({"REMOVED": "1"}));
    pm.done(&["start", &file]);
    let first = web_pids(&pm);
    assert_eq!(first.len(), 2);
    let entries = pm.list();
    assert_eq!(entries.iter().map(|entry| entry["pm_id"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1]);
    assert!(entries.iter().all(|entry| entry["pm2_env"]["exec_mode"] == "cluster_mode"), "{entries:?}");
    let address = web_address(&pm);
    held(served_within(address, FOREVER));
    let environment = environment_of(first[1]);
    assert!(environment.contains(&"REMOVED=1".to_owned()) && environment.contains(&"NODE_APP_INSTANCE=1".to_owned()));

    // A reload with the file as it is now.
    cluster_app(&pm, json!({}));
    pm.done(&["reload", &file]);
    let second = web_pids(&pm);
    assert!(second.len() == 2 && second.iter().all(|pid| !first.contains(pid) && *pid > 0), "{first:?} {second:?}");
    assert!(!environment_of(second[0]).contains(&"REMOVED=1".to_owned()));
    held(served_within(address, FOREVER));

    // A version that never listens leaves the old one serving.
    fs::write(&script, "exec sleep 1000\n").unwrap();
    let said = pm.refused(&["reload", "web"]);
    assert!(said.contains("web: ") && said.contains("abandoned"), "{said}");
    assert_eq!(web_pids(&pm), second);
    held(served_within(address, FOREVER));
    cluster_app(&pm, json!({}));

    pm.kill_daemon();
    held(served_within(address, FOREVER));
    assert_eq!(web_pids(&pm), second);
    kill(Pid::from_raw(second[0]), Signal::SIGKILL).unwrap();
    let is_replaced = || (web_pids(&pm)[0] != second[0] && web_pids(&pm)[0] > 0).then_some(());
    assert!(poll_until(FOREVER, is_replaced).is_some());
    pm.done(&["scale", "web", "3"]);
    let has_three = || (web_pids(&pm).iter().filter(|pid| **pid > 0).count() == 3).then_some(());
    assert!(poll_until(FOREVER, has_three).is_some(), "{:?}", pm.list());
    let last = web_pids(&pm);
    pm.done(&["stop", "web"]);
    assert!(last.iter().all(|&pid| !is_alive(pid)));
}
