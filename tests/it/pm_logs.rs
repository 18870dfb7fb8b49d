//! What the process manager does with what applications write, and how it is read.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use acceptlab::lab::observe::processes::poll_until;
use acceptlab::logs::append_file::rotated;
use acceptlab::sys::procfs::resident_kib;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe};
use serde_json::{Value, json};

use crate::pm::Manager;
use crate::support::FOREVER;

/// A `pm logs` whose lines are read one after another; it is killed with this.
struct Follower {
    child: Child,
    lines: Box<dyn Iterator<Item = String>>,
}

impl Follower {
    fn start(mut command: Command) -> Follower {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        Follower { child, lines: Box::new(lines) }
    }

    fn next(&mut self) -> String {
        self.lines.next().expect("it follows")
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The daemon may be killed while the client connects, or later.
#[test]
fn events_and_logs_go_on_with_the_next_daemon() {
    let pm = Manager::new("logs-next-daemon");
    pm.done(&["start", &pm.script("restless.sh", "sleep 0.1\n"), "--max-restarts", "100000"]);
    for _ in 0..8 {
        let mut events = Follower::start(pm.command(&["events"]));
        kill(Pid::from_raw(pm.daemon()), Signal::SIGKILL).unwrap();
        events.next();
    }
    pm.done(&["start", &pm.script("first.sh", "echo first\nexec sleep 1000\n")]);
    let mut logs = Follower::start(pm.command(&["logs", "--raw"]));
    let mut events = Follower::start(pm.command(&["events"]));
    assert_eq!(logs.next(), "first");
    events.next();
    pm.kill_daemon();
    pm.done(&["start", &pm.script("later.sh", "echo later\nsleep 0.1\n"), "--max-restarts", "100000"]);
    assert_eq!(logs.next(), "later");
    while !events.next().contains("\"later\"") {}
}

/// The lines that two applications have written, and where they say more when they are sent a signal.
fn two_applications(pm: &Manager) {
    for name in ["api", "web"] {
        let text = "trap 'echo again; echo trouble >&2' USR2\necho begun\nwhile :; do sleep 0.05; done\n";
        let script = pm.script(&format!("{name}.sh"), text);
        pm.done(&["start", &script]);
        pm.await_log(&format!("{name}-out-{}.log", u8::from(name == "web")), "begun\n");
    }
}

#[test]
fn the_logs_of_several_applications_are_followed_with_their_names_across_a_rotation() {
    let pm = Manager::new("logs-follow");
    two_applications(&pm);
    let mut follower = Follower::start(pm.command(&["logs", "--out"]));
    assert_eq!([follower.next(), follower.next()], ["0|api | begun", "1|web | begun"]);
    pm.done(&["signal", "SIGUSR2", "web"]);
    assert_eq!(follower.next(), "1|web | again");
    // As logrotate(8) does it.
    let log = pm.home().join("logs/api-out-0.log");
    fs::rename(&log, rotated(&log, 1)).unwrap();
    pm.done(&["reload-logs"]);
    pm.done(&["signal", "SIGUSR2", "api"]);
    assert_eq!(follower.next(), "0|api | again");
    pm.await_log("api-out-0.log", "again\n");
    pm.done(&["flush", "api"]);
    assert_eq!(fs::read(&log).unwrap(), b"");
    pm.done(&["signal", "SIGUSR2", "api"]);
    assert_eq!(follower.next(), "0|api | again");
}

#[test]
fn an_application_that_starts_later_is_followed_from_its_first_line() {
    let pm = Manager::new("logs-later");
    pm.done(&["start", &pm.script("api.sh", "echo begun\nexec sleep 1000\n")]);
    pm.await_log("api-out-0.log", "begun\n");
    let mut follower = Follower::start(pm.command(&["logs", "--lines", "1"]));
    assert_eq!(follower.next(), "0|api | begun");
    // First the trap: the signal comes as soon as the last line was read.
    let text = "trap 'echo again' USR2\nseq 1 20\nwhile :; do sleep 0.05; done\n";
    pm.done(&["start", &pm.script("later.sh", text)]);
    for number in 1..21 {
        assert_eq!(follower.next(), format!("1|later | {number}"));
    }
    pm.done(&["signal", "SIGUSR2", "later"]);
    assert_eq!(follower.next(), "1|later | again");
}

#[test]
fn without_a_daemon_the_lines_are_shown_as_they_come_and_are_in_the_logs_too() {
    let pm = Manager::new("logs-shown-here");
    let script = pm.script("app.sh", "echo one\necho two >&2\nprintf three\n");
    let shown = pm.done(&["start", "--no-daemon", &script, "--no-autorestart"]);
    let mut lines: Vec<&str> = shown.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["0|app | one", "0|app | three", "0|app | two"]);
    assert_eq!(pm.await_log("app-out-0.log", "three\n"), "one\nthree\n");
}

#[test]
fn what_the_daemon_says_is_rotated_and_it_goes_on_where_its_log_was_moved() {
    let pm = Manager::new("logs-own");
    pm.done(&["start", &pm.script("app.sh", "exec sleep 1000\n")]);
    let log = pm.home().join("pm.log");
    let said = |event: &str| fs::read_to_string(&log).is_ok_and(|said| said.contains(event));
    fs::File::options().append(true).open(&log).unwrap().set_len(11 << 20).unwrap();
    pm.done(&["restart", "app"]);
    pm.done(&["stop", "app"]);
    assert!(said("\"event\":\"stop\"") && fs::metadata(&log).unwrap().len() < 10_000);
    assert!(fs::metadata(rotated(&log, 1)).unwrap().len() > 10 << 20);
    // As logrotate(8) does it.
    fs::rename(&log, pm.home().join("moved")).unwrap();
    pm.done(&["reload-logs"]);
    pm.done(&["start", "app"]);
    assert!(said("\"event\":\"online\""));
}

#[test]
fn the_last_lines_are_shown_raw_as_json_and_of_one_stream() {
    let pm = Manager::new("logs-shown");
    two_applications(&pm);
    pm.done(&["signal", "SIGUSR2", "api"]);
    pm.await_log("api-out-0.log", "again\n");
    pm.await_log("api-error-0.log", "trouble\n");
    let show = |flags: &[&str]| pm.done(&[&["logs", "--nostream"], flags].concat());
    assert_eq!(show(&["api", "--raw"]), "begun\nagain\ntrouble\n");
    assert_eq!(show(&["api", "--raw", "--lines", "1", "--out"]), "again\n");
    assert_eq!(show(&["/a/", "--err"]), "0|api | trouble\n");
    let object: Value = serde_json::from_str(&show(&["web", "--json"])).unwrap();
    assert_eq!(
        (&object["app_name"], &object["message"], &object["type"]),
        (&"web".into(), &"begun".into(), &"out".into())
    );
    assert!(pm.refused(&["logs", "nobody"]).contains("nobody"));
}

#[test]
fn every_line_of_a_busy_application_is_there_whole_and_in_order_across_rotations() {
    let pm = Manager::new("logs-busy");
    let script = pm.script("count.sh", "seq 1 200000\nprintf end\n");
    pm.done(&["start", &script, "--no-autorestart", "--log-max-size", "200K", "--log-retain", "50"]);
    pm.await_log("count-out-0.log", "end\n");
    let log = pm.home().join("logs/count-out-0.log");
    let numbers: Vec<usize> = (1..50).take_while(|&number| rotated(&log, number).exists()).collect();
    assert!(numbers.len() > 3, "{numbers:?}");
    let mut text = String::new();
    for path in numbers.into_iter().rev().map(|number| rotated(&log, number)).chain([log.clone()]) {
        let part = fs::read_to_string(path).unwrap();
        assert!(part.len() <= 200 << 10 && part.ends_with('\n'), "{} bytes", part.len());
        text += &part;
    }
    assert!(text == (1..200_001).map(|number| format!("{number}\n")).collect::<String>() + "end\n");
}

#[test]
fn lines_of_several_processes_in_one_file_stay_whole() {
    let pm = Manager::new("logs-merged");
    let text = "i=0\nwhile [ $i -lt 500 ]; do printf 'from %s ' $NODE_APP_INSTANCE; echo \"line $i\"; i=$((i + 1)); done\n\
                exec sleep 1000\n";
    let script = pm.script("many.sh", text);
    pm.done(&["start", &script, "-i", "4", "--merge-logs", "--output", "all.log"]);
    let path = pm.home().with_file_name("all.log");
    let read = || fs::read_to_string(&path).ok().filter(|text| text.lines().count() == 2000);
    let text = poll_until(FOREVER, read).unwrap_or_else(|| panic!("{}", fs::read_to_string(&path).unwrap_or_default()));
    let mut next = [0; 4];
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let ["from", process, "line", number] = words[..] else { panic!("{line:?}") };
        let next = &mut next[process.parse::<usize>().unwrap()];
        assert_eq!(number.parse(), Ok(*next));
        *next += 1;
    }
}

#[test]
fn an_application_whose_log_cannot_be_written_goes_on_and_the_daemon_says_so_once() {
    let pm = Manager::new("logs-full");
    let script = pm.script("full.sh", "seq 1 100000\necho done >&2\nexec sleep 1000\n");
    pm.done(&["start", &script, "--output", "/dev/full"]);
    // It has written more than any pipe holds.
    pm.await_log("full-error-0.log", "done\n");
    let problem = "write /dev/full: no space left on device; lines are lost";
    let read = || fs::read_to_string(pm.home().join("pm.log")).ok().filter(|said| said.contains(problem));
    let said = poll_until(FOREVER, read).expect("the daemon says it");
    assert_eq!(said.matches(problem).count(), 1, "{said}");
    for command in [&["list"][..], &["describe", "full"]] {
        assert!(pm.done(command).contains(problem), "{command:?}");
    }
}

#[test]
fn a_log_that_cannot_be_opened_is_said_by_the_command_that_starts_the_application_and_is_an_event() {
    let pm = Manager::new("logs-closed");
    pm.done(&["ping"]);
    let mut events = pm.connect();
    events.write_all(b"{\"do\":\"events\"}\n").unwrap();
    let script = pm.script("closed.sh", "echo lost\nexec sleep 1000\n");
    let said = pm.done(&["start", &script, "--output", "/proc/no.log"]);
    let problem = "write /proc/no.log: no such file or directory; lines are lost until it can be written";
    assert!(said.contains("online") && said.contains(&format!("closed: {problem}\n")), "{said}");
    let mut events = BufReader::new(events).lines().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let event = events.find(|event| event["event"] == "log").unwrap();
    assert_eq!((&event["name"], &event["reason"]), (&"closed".into(), &problem.into()));
    let described = pm.done(&["describe", "closed"]);
    assert!(described.contains(problem), "{described}");
    let folder = pm.home().join("logs");
    pm.done(&["start", &script, "--name", "folder", "--output", folder.to_str().unwrap()]);
    let said = pm.refused(&["flush", "folder"]);
    assert!(said.contains(&format!("empty {}: is a directory", folder.display())), "{said}");
}

#[test]
fn a_line_of_100_mb_costs_the_daemon_little_memory() {
    let pm = Manager::new("logs-giant");
    let script = pm.script("giant.sh", "head -c 100000000 /dev/zero | tr '\\0' x\necho\necho done\nexec sleep 1000\n");
    pm.done(&["start", &script]);
    let daemon = pm.daemon();
    pm.await_log("giant-out-0.log", "\ndone\n");
    let resident = resident_kib(daemon).unwrap();
    assert!(resident < 20 << 10, "{resident} KiB");
    let text = fs::read(pm.home().join("logs/giant-out-0.log")).unwrap();
    assert_eq!(memchr::memchr_iter(b'x', &text).count(), 100_000_000);
}

#[test]
fn a_daemon_that_is_killed_loses_nothing_of_what_is_written_meanwhile() {
    let pm = Manager::new("logs-adopted");
    let text = "trap 'echo meanwhile' USR2\necho begun\nwhile :; do sleep 0.05; done\n";
    pm.done(&["start", &pm.script("app.sh", text)]);
    pm.await_log("app-out-0.log", "begun\n");
    let pid = pm.pid("app");
    pm.kill_daemon();
    kill(Pid::from_raw(pid), Signal::SIGUSR2).unwrap();
    assert_eq!(pm.pid("app"), pid, "it is adopted");
    assert_eq!(pm.await_log("app-out-0.log", "meanwhile\n"), "begun\nmeanwhile\n");
}

#[test]
fn logs_in_a_watched_folder_restart_nothing_when_they_are_rotated_and_opened_anew() {
    let pm = Manager::new("logs-watched");
    // A name that is not watched: a child of another test may have it open still, and close it after the watch has begun.
    let script = pm.script(".app.sh", "trap 'seq 1 1000' USR2\necho begun\nwhile :; do sleep 0.05; done\n");
    let flags = ["-i", "2", "--watch", "--output", "app.log", "--error", "error.log", "--log-max-size", "1K"];
    pm.done(&[&["start", &script, "--name", "app"][..], &flags].concat());
    let folder = pm.home().with_file_name("");
    for number in 0..2 {
        let has_begun =
            || fs::read_to_string(folder.join(format!("app-{number}.log"))).is_ok_and(|log| log == "begun\n");
        assert!(poll_until(FOREVER, || has_begun().then_some(())).is_some());
    }
    pm.done(&["signal", "SIGUSR2", "app"]);
    for number in 0..2 {
        let rotated = || folder.join(format!("app-{number}.log.1")).exists().then_some(());
        assert!(poll_until(FOREVER, rotated).is_some());
    }
    pm.done(&["reload-logs"]);
    // What is changed last is reported last, and is the only thing that restarts them.
    pm.script("changed.txt", "new");
    let restarts = || pm.list().iter().map(|process| process["pm2_env"]["restart_time"].clone()).collect::<Vec<_>>();
    let is_restarted = || restarts().iter().all(|count| *count != 0).then_some(());
    assert!(poll_until(FOREVER, is_restarted).is_some());
    let events = fs::read_to_string(pm.home().join("pm.log")).unwrap();
    assert_eq!(restarts(), [1, 1], "{events}");
    assert!(events.lines().filter(|line| line.contains("\"change\"")).all(|line| line.contains("changed.txt")));
}

/// Says a beginning of a line, and ends; the next of the name says what it is.
const HALVES: &str = "if mkdir begun 2>/dev/null; then printf half; exit 1; fi\necho whole\nexec sleep 1000\n";

#[test]
fn a_line_without_an_end_is_not_continued_by_the_next_process_of_its_name() {
    let pm = Manager::new("logs-halves");
    pm.done(&["start", &pm.script("app.sh", HALVES)]);
    assert_eq!(pm.await_log("app-out-0.log", "whole\n"), "half\nwhole\n");
    // In cluster mode the cluster knows who has ended.
    let app = json!({"name": "web", "script": pm.script("web.sh", &HALVES.replace("begun", "begun-web")),
                     "interpreter": "bash", "exec_mode": "cluster"});
    pm.run(&["start", &pm.script("web.json", &json!({"apps": [app]}).to_string())]);
    assert_eq!(pm.await_log("web-out-1.log", "whole\n"), "half\nwhole\n");
}

#[test]
fn a_worker_that_closes_its_channel_before_it_ends_has_its_last_line_for_itself() {
    let pm = Manager::new("logs-channel");
    // As the kernel does it when a process ends: first its descriptors are closed, and later the end is reported.
    let text = HALVES.replace("exit 1", "eval \"exec $NODE_CHANNEL_FD>&-\"; exec sleep 1000");
    let app = json!({"name": "web", "script": pm.script("web.sh", &text), "interpreter": "bash",
                     "exec_mode": "cluster"});
    pm.run(&["start", &pm.script("web.json", &json!({"apps": [app]}).to_string())]);
    assert_eq!(pm.await_log("web-out-0.log", "whole\n"), "half\nwhole\n");
}

/// A user may have 16384 pages in pipes (pipe(7), pipe-user-pages-soft): those of 128 applications, if each of their
/// pipes had 64.
#[test]
fn the_pipes_of_an_application_are_as_large_as_any() {
    let pm = Manager::new("logs-pipes");
    pm.done(&["start", &pm.script("app.sh", "exec sleep 1000\n")]);
    let usual = fcntl(&pipe().unwrap().0, FcntlArg::F_GETPIPE_SZ).unwrap();
    for stream in ["out", "err"] {
        let fifo =
            fs::File::options().read(true).write(true).open(pm.home().join(format!("fifo/0.0-{stream}"))).unwrap();
        assert_eq!(fcntl(&fifo, FcntlArg::F_GETPIPE_SZ), Ok(usual));
    }
}

#[test]
fn several_processes_may_throw_their_lines_away() {
    let pm = Manager::new("null-logs");
    pm.done(&["start", "sleep", "-i", "2", "--output", "NULL", "--error", "/dev/null", "--", "1000"]);
    let paths = ["pm_out_log_path", "pm_err_log_path"];
    for process in pm.list() {
        assert_eq!(paths.map(|path| process["pm2_env"][path].as_str().unwrap().to_owned()), ["/dev/null", "/dev/null"]);
    }
}

#[test]
fn a_process_with_a_log_of_its_own_that_gets_a_second_one_has_another_log_and_loses_no_line() {
    let pm = Manager::new("scaled-log");
    let text = "trap 'echo end' USR2\nprintf 'beginning '\necho ready >&2\nwhile :; do sleep 0.05; done\n";
    let (script, log) = (pm.script("half.sh", text), pm.script("half.log", ""));
    pm.done(&["start", &script, "--output", &log]);
    pm.await_log("half-error-0.log", "ready");
    pm.done(&["scale", "half", "2"]);
    assert_eq!(fs::read_to_string(&log).unwrap(), "beginning \n");
    pm.await_log("half-error-1.log", "ready");
    pm.done(&["signal", "SIGUSR2", "half"]);
    for (process, expected) in pm.list().iter().zip(["end\n", "beginning end\n"]) {
        let log = process["pm2_env"]["pm_out_log_path"].as_str().unwrap();
        let is_written = || (fs::read_to_string(log).ok()? == expected).then_some(());
        assert!(poll_until(FOREVER, is_written).is_some(), "{log}: {:?}", fs::read_to_string(log));
    }
}
