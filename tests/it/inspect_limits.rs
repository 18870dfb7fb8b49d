//! `lab inspect` on hard ground: where /proc, the kernel or a sandbox hides something, where there is very much to see,
//! and where numbers mean somebody else. It says in a line what it cannot see, and the server serves on.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use acceptlab::lab::check::client::served;
use acceptlab::lab::check::server::Program;
use acceptlab::lab::inspect::{Observer, Target};
use acceptlab::lab::observe::processes::poll_until;
use acceptlab::sys::procfs::Stat;
use nix::unistd::{SysconfVar, geteuid, sysconf};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::inspect::{LAB, LONG, SHORT, diagnosis, refused, states};
use crate::support::{
    FOREVER, Needs, Ordinary, TempFolder, can_trace, copy_program, held, inconclusive, kind, raise_descriptor_limit,
    start,
};

const TRIAL: &str = env!("CARGO_BIN_EXE_trial");
const LOADGEN: &str = env!("CARGO_BIN_EXE_loadgen");

/// Namespaces of users and processes: whoever starts it is root inside.
const CONTAINER: [&str; 6] = ["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"];

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_string()
}

/// What a script prints that runs as root of namespaces of its own, in which `$0` and so on are these words. `None`,
/// and the test is inconclusive, where there are no such namespaces.
#[track_caller]
fn in_namespaces(flags: &[&str], script: &str, words: &[&str]) -> Option<Output> {
    let run = |script: &str| {
        let mut command = Command::new("timeout");
        command.args(["-s", "KILL", "60", "unshare"]).args(flags).args(["sh", "-c", script]).args(words).output()
    };
    match run("true") {
        Ok(tried) if tried.status.success() => Some(run(script).expect("it ran a moment ago")),
        Ok(tried) => {
            inconclusive(Needs::Privilege("namespaces"), said(&tried.stderr));
            None
        }
        Err(error) => {
            inconclusive(Needs::Tool("unshare"), error);
            None
        }
    }
}

/// The document on standard output, or a panic with what was said instead.
#[track_caller]
fn document(output: &Output) -> Value {
    let why = || format!("{}\n{}", said(&output.stdout), said(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", why()))
}

#[test]
fn hidepid_hides_other_users_servers_and_not_ones_own() {
    if !geteuid().is_root() {
        return inconclusive(Needs::Privilege("CAP_SYS_ADMIN"), "only root mounts another /proc");
    }
    let (Some(lab), Some(prefork)) = (Ordinary::new(LAB), Ordinary::new(kind("prefork").path)) else { return };
    let (own, other) = (held(prefork.program().start(&["--workers", "2"])), start("event-driven", &[]));
    let look = |target: &str| {
        let command = lab.command();
        let words = [command.get_program()].into_iter().chain(command.get_args()).map(|word| word.to_str().unwrap());
        let words: Vec<&str> =
            words.chain(["inspect", target, "--format", "json"]).chain(LONG.iter().copied()).collect();
        let script = "mount -t proc -o hidepid=2 proc /proc && exec \"$0\" \"$@\"";
        in_namespaces(&["--mount"], script, &words)
    };
    let Some(of_own) = look(&own.addr.to_string()) else { return };
    let of_own = document(&of_own);
    assert_eq!((states(&of_own).len(), &of_own["unseen"]), (2, &Value::Array(Vec::new())), "{of_own:#}");
    let of_pid = look(&other.pid().to_string()).expect("as before");
    let expected = format!("lab: there is no process {}, or /proc hides it (hidepid)", other.pid());
    assert_eq!((said(&of_pid.stderr), of_pid.status.code()), (expected, Some(1)));
    let of_port = document(&look(&other.addr.to_string()).expect("as before"));
    let unseen = of_port["unseen"][0].as_str().expect("a line");
    assert!(unseen.contains("because of hidepid or another PID namespace; run it as root"), "{unseen}");
    held(served(other.addr));
}

#[test]
fn what_threads_wait_in_is_guessed_where_a_security_module_hides_it() {
    if !can_trace() {
        return;
    }
    let server = start("prefork", &["--workers", "2"]);
    // Yama's ptrace_scope hides this file of processes that we have not started.
    let hidden = server.processes().into_iter().flat_map(|process| {
        let pid = process.pid;
        ["-P".to_string(), format!("/proc/{pid}/task/{pid}/syscall")]
    });
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=openat", "-e", "inject=openat:error=EACCES"])
        .args(hidden)
        .args([LAB, "inspect", &server.addr.to_string(), "--format", "json"])
        .args(SHORT)
        .output()
        .unwrap();
    let document = document(&output);
    assert!(
        document["unseen"][0].as_str().is_some_and(|line| line.contains("Yama or a security module")),
        "{document:#}"
    );
    let waits = document["workers"].as_array().unwrap().iter().map(|worker| worker["waits_in"].as_str());
    assert_eq!(waits.collect::<Vec<_>>(), [Some("accept"), Some("accept")], "{document:#}");
}

#[test]
fn yamas_scope_is_a_line_and_not_a_failure() {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    if !matches!(scope.trim(), "1" | "2" | "3") {
        return inconclusive(Needs::Kernel("Yama"), format!("ptrace_scope is {scope:?}"));
    }
    let (Some(lab), Some(prefork)) = (Ordinary::new(LAB), Ordinary::new(kind("prefork").path)) else { return };
    let server = held(prefork.program().start(&["--workers", "2"]));
    let target = server.addr.to_string();
    let document = document(&lab.command().args(["inspect", &target, "--format", "json"]).args(LONG).output().unwrap());
    assert_eq!((states(&document).len(), document["unseen"].as_array().map(Vec::len)), (2, Some(1)), "{document:#}");
}

#[test]
fn a_sandbox_without_netlink_is_one_line() {
    if !can_trace() {
        return;
    }
    let server = start("event-driven", &[]);
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=socket", "-e", "inject=socket:error=EPERM"])
        .args([LAB, "inspect", &server.addr.to_string()])
        .args(SHORT)
        .output()
        .unwrap();
    let expected = "lab: ask the kernel for its sockets (sock_diag): operation not permitted; a sandbox forbids it: \
                    run it outside";
    assert_eq!((said(&output.stderr).as_str(), output.status.code()), (expected, Some(1)));
    held(served(server.addr));
}

#[test]
fn without_proc_there_is_one_line() {
    let script = "mount -t tmpfs none /proc && exec \"$0\" inspect :80";
    let Some(output) = in_namespaces(&["--user", "--map-root-user", "--mount"], script, &[LAB]) else { return };
    let line = said(&output.stderr);
    assert!(output.status.code() == Some(1) && line.contains("mount -t proc proc /proc"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
}

#[test]
fn a_containers_first_process_and_its_second_are_looked_at_like_others() {
    // In a PID namespace the shell is process 1, and the server and its workers have the numbers behind it.
    let script = r#"
        "$1" --workers 2 --listen 127.0.0.1:0 > "$2" &
        until grep -q ready "$2"; do kill -0 $! || exit 8; done
        for target in 1 $!; do "$0" inspect $target --format json --duration 200ms; done
    "#;
    let folder = TempFolder::new("container");
    let file = folder.file("said");
    let words = [LAB, kind("prefork").path, &file];
    let Some(output) = in_namespaces(&CONTAINER, script, &words) else { return };
    let lines: Vec<Value> =
        said(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("a document")).collect();
    let pids = |document: &Value| -> Vec<i64> {
        document["workers"].as_array().unwrap().iter().map(|worker| worker["pid"].as_i64().unwrap()).collect()
    };
    assert_eq!(lines.len(), 2, "{}", said(&output.stderr));
    assert_eq!((pids(&lines[0]).len(), pids(&lines[1])), (2, pids(&lines[0])), "{lines:#?}");
}

#[test]
fn a_number_that_another_process_has_got_is_not_the_target_any_more() {
    // The next process gets the number behind the one that is written there (ns_last_pid in pid_namespaces(7)).
    let script = r#"
        "$1" --listen 127.0.0.1:0 > "$2" &
        old=$!
        until grep -q ready "$2"; do kill -0 $! || exit 8; done
        "$0" inspect $old --duration 1m &
        lab=$!
        until grep -q ' (lab) S' /proc/$lab/stat; do kill -0 $lab || exit 8; done
        kill -STOP $lab
        kill -KILL $old
        wait $old
        until [ "$new" = $old ]; do
            echo $((old - 1)) > /proc/sys/kernel/ns_last_pid || exit 9
            "$1" --listen 127.0.0.1:0 > "$2.new" &
            new=$!
            [ $new = $old ] || kill -KILL $new || exit 8
        done
        until grep -q ready "$2.new"; do kill -0 $new || exit 8; done
        kill -CONT $lab
        wait $lab
        kill -TERM $new && wait $new && echo served on
    "#;
    let folder = TempFolder::new("reused");
    let file = folder.file("said");
    let words = [LAB, kind("event-driven").path, &file];
    let Some(output) = in_namespaces(&CONTAINER, script, &words) else {
        return;
    };
    if output.status.code() == Some(9) {
        return inconclusive(Needs::Kernel("ns_last_pid"), said(&output.stderr));
    }
    // The shell may say that the old server was killed.
    let said_last = said(&output.stderr).lines().last().unwrap_or_default().to_string();
    assert!(said_last.starts_with("lab: pid ") && said_last.ends_with(" has ended"), "{said_last}");
    assert_eq!(said(&output.stdout), "served on");
}

#[test]
fn an_address_of_one_link_is_found_by_the_name_of_its_interface() {
    let script = r#"
        ip link set lo up && ip address add fe80::1/64 dev lo nodad || exit 9
        "$1" --listen '[fe80::1%1]:0' > "$2" &
        until grep -q ready "$2"; do kill -0 $! || exit 8; done
        port=$(sed 's/.*://' "$2")
        "$0" inspect "[fe80::1%lo]:$port" --format json --duration 200ms
    "#;
    let folder = TempFolder::new("scope");
    let file = folder.file("said");
    let words = [LAB, kind("event-driven").path, &file];
    let Some(output) = in_namespaces(&[&["--net"], &CONTAINER[..]].concat(), script, &words) else { return };
    if output.status.code() == Some(9) {
        return inconclusive(Needs::Kernel("IPv6"), said(&output.stderr));
    }
    let document = document(&output);
    let address = document["listeners"][0]["address"].as_str().unwrap_or_default();
    assert!(address.starts_with("[fe80::1%1]:"), "{document:#}");
    assert_eq!(states(&document).len(), 1, "{document:#}");
}

#[test]
fn two_groups_on_one_port_are_told_apart_by_their_addresses() {
    let one = start("reuseport", &["--workers", "2"]);
    let port = one.addr.port();
    let program = Program::new(&[kind("reuseport").path.to_string()]);
    let Ok(other) = program.start_on(&format!("127.0.0.2:{port}"), &["--workers", "3"]) else {
        return inconclusive(Needs::Kernel("127.0.0.2"), "the second address cannot be bound");
    };
    assert!(refused(&format!(":{port}"), &[]).contains("belongs to several servers"));
    for (server, workers) in [(&one, 2), (&other, 3)] {
        let document = diagnosis(&server.addr.to_string(), SHORT);
        let sockets = document["listeners"][0]["sockets"].as_u64();
        assert_eq!((sockets, states(&document).len()), (Some(workers), workers as usize), "{document:#}");
    }
}

#[test]
fn who_is_started_later_with_a_listener_is_found_whoever_its_parent_is() {
    let server = start("reuseport", &["--workers", "1"]);
    let mut observer = Observer::begin(Target::Address(server.addr)).unwrap();
    observer.look().unwrap();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&server.addr.into()).unwrap();
    socket.listen(1).unwrap();
    let mut other = Command::new("sleep").arg("60").stdin(Stdio::from(OwnedFd::from(socket))).spawn().unwrap();
    observer.look().unwrap();
    other.kill().unwrap();
    other.wait().unwrap();
    let found: Vec<i32> = observer.recording.looks[1].processes.iter().map(|process| process.pid).collect();
    assert!(found.contains(&server.processes()[1].pid) && found.contains(&(other.id() as i32)), "{found:?}");
}

#[test]
fn a_shell_stands_for_the_server_that_it_has_started_and_the_lab_is_no_server() {
    let script = format!("{} --workers 2 --listen 127.0.0.1:0; true", kind("prefork").path);
    let shell = held(Program::new(&["sh", "-c", &script].map(String::from)).start(&[]));
    let document = diagnosis(&shell.pid().to_string(), SHORT);
    assert_eq!(states(&document).len(), 2, "{document:#}");
    let mut lab = Command::new(LAB)
        .args(["inspect", &shell.addr.to_string(), "--duration", "1m"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let line = refused(&lab.id().to_string(), &[]);
    assert!(line.contains(" (lab) does not listen, nor does a process that it has started"), "{line}");
    lab.kill().unwrap();
    lab.wait().unwrap();
}

#[test]
fn a_thousand_workers_are_all_seen_and_shown_in_few_lines() {
    raise_descriptor_limit();
    let server = start("prefork", &["--workers", "1000"]);
    let mut observer = Observer::begin(Target::Address(server.addr)).unwrap();
    let cost = observer.look().unwrap();
    assert!(cost < Duration::from_secs(1), "{cost:?}");
    assert_eq!(observer.recording.looks[0].processes.iter().filter(|process| !process.holds.is_empty()).count(), 1001);
    let output = Command::new(LAB).args(["inspect", &server.addr.to_string()]).args(SHORT).output().unwrap();
    let text = said(&output.stdout);
    assert!(text.contains("\n1,000 processes accept") && text.contains("and 968 more"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn the_kernel_counts_exactly_who_accepts_where_we_may_ask_it() {
    let mut server = start("prefork", &["--workers", "3"]);
    let target = server.addr.to_string();
    let looking = Command::new(LAB)
        .args(["inspect", &target, "--exact", "--duration", "5s", "--format", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It has looked for the first time when all counters are open and it waits: three for each process and CPU.
    let cpus = sysconf(SysconfVar::_NPROCESSORS_ONLN).unwrap().unwrap() as usize;
    let pid = looking.id() as i32;
    let has_looked = || {
        let stat = Stat::of(pid).filter(Stat::is_alive);
        let links = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let links = links.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let counters = links.filter(|link| link.to_str() == Some("anon_inode:[perf_event]")).count();
        // Where it may not count, it ends.
        stat.is_none_or(|stat| stat.state == 'S' && counters == 3 * 4 * cpus).then_some(())
    };
    poll_until(FOREVER, has_looked).expect("it looks");
    for _ in 0..60 {
        drop(TcpStream::connect(server.addr).unwrap());
    }
    let document = document(&looking.wait_with_output().unwrap());
    let of = |key: &str| -> Vec<Option<u64>> {
        document["workers"].as_array().unwrap().iter().map(|worker| worker[key].as_u64()).collect()
    };
    if let Some(line) =
        document["unseen"].as_array().unwrap().iter().filter_map(Value::as_str).find(|line| line.starts_with("exact"))
    {
        return inconclusive(Needs::Privilege("CAP_PERFMON"), line);
    }
    let counted: u64 = of("accepted").into_iter().map(|count| count.expect("it is counted")).sum();
    let woken: u64 = of("woken").into_iter().map(|count| count.expect("it is counted")).sum();
    let report = held(server.stop());
    let accepted: u64 = report.workers.iter().map(|worker| worker.accepted).sum();
    assert_eq!((counted, accepted), (60, 60), "{document:#}");
    assert!(woken > 0, "{document:#}");
}

#[test]
fn an_ordinary_user_is_told_that_the_kernel_does_not_count_for_him() {
    let (Some(lab), Some(prefork)) = (Ordinary::new(LAB), Ordinary::new(kind("prefork").path)) else { return };
    let server = held(prefork.program().start(&["--workers", "2"]));
    let target = server.addr.to_string();
    let output = lab.command().args(["inspect", &target, "--exact"]).args(SHORT).output().unwrap();
    let text = said(&output.stdout);
    assert!(text.contains("not seen: exact accepts and wake-ups: tracepoints: "), "{text}");
    assert!(text.contains("switches/s"), "{text}");
}

/// What the trial says when its client was later than `lab inspect` expects.
const EARLY: &str = "lab inspect ended before its window";

/// A folder with copies of programs, in which a trial finds what it starts.
fn copies_of(programs: &[&str]) -> TempFolder {
    let folder = TempFolder::new("copies");
    for program in programs {
        copy_program(program, &folder.path().join(Path::new(program).file_name().unwrap()));
    }
    folder
}

#[test]
fn a_trial_fails_when_the_look_has_ended_before_the_window() {
    let copies = copies_of(&[TRIAL, LOADGEN, kind("event-driven").path]);
    // It has looked as soon as it was started.
    symlink("/bin/true", copies.file("lab")).unwrap();
    let mut trial = Command::new(copies.file("trial"));
    let output = trial.args(["watched", "--of", "event-driven", "--pairs", "1", "--window", "200ms"]).output().unwrap();
    assert_eq!(said(&output.stderr), format!("trial: {EARLY}: the machine is too busy"));
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
}

#[test]
fn a_trial_of_exact_counts_is_skipped_where_the_kernel_does_not_count() {
    let Some(trial) = Ordinary::new(TRIAL) else { return };
    let copies = copies_of(&[LAB, LOADGEN, kind("event-driven").path]);
    let mut trial = trial.command();
    trial.args(["watched", "--of", "event-driven", "--exact", "--pairs", "1", "--window", "200ms", "--format", "json"]);
    let output = trial.env("PATH", format!("{}:/usr/bin:/bin", copies.path().display())).output().unwrap();
    if said(&output.stderr).contains(EARLY) {
        return inconclusive(Needs::QuietMachine, said(&output.stderr));
    }
    let found = document(&output);
    let why = found["skipped"].as_str().unwrap_or_default();
    assert!(why.starts_with("exact accepts and wake-ups: tracepoints: "), "{found:#}");
    assert!(found.get("looker_cpu").is_none(), "{found:#}");
}

#[test]
fn a_trial_says_what_a_look_costs() {
    let trial = Command::new(TRIAL)
        .args(["watched", "--of", "reuseport", "--workers", "2", "--pairs", "1", "--window", "1s"])
        .args(["--idle", "50", "--format", "json"])
        .output()
        .unwrap();
    if said(&trial.stderr).contains(EARLY) {
        return inconclusive(Needs::QuietMachine, said(&trial.stderr));
    }
    let found = document(&trial);
    assert_eq!((&found["connections_seen"], &found["processes_seen"]), (&51.0.into(), &2.0.into()), "{found:#}");
    for positive in ["unwatched_qps", "looker_cpu", "first_look_ms", "look_ms"] {
        assert!(found[positive].as_f64() > Some(0.0), "{positive}: {found:#}");
    }
}
