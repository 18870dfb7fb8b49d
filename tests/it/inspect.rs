//! `lab inspect` looks at real servers: it names their mechanism, finds who hangs, touches nothing, and says in a line
//! what it cannot see.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use acceptlab::lab::check::client::{Client, GET};
use acceptlab::lab::check::server::{Program, Server};
use acceptlab::lab::inspect::findings::diagnose;
use acceptlab::lab::inspect::{Observer, Target};
use acceptlab::lab::observe::processes::{Process, family, poll_until};
use acceptlab::lab::trials::modes::{Mode, Modes};
use acceptlab::sys::namespace::NetworkNamespace;
use acceptlab::sys::procfs::{Stat, command_line};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::loadgen_output::Schema;
use crate::support::{
    FOREVER, Needs, Ordinary, TempFolder, can_trace, connect, held, inconclusive, kind, load, reserve_port, start,
};
use crate::terminal::Terminal;

pub const LAB: &str = env!("CARGO_BIN_EXE_lab");
const CLUSTER: &str = env!("CARGO_BIN_EXE_cluster");

/// Long enough to see in which calls sleeping workers wait.
pub const SHORT: &[&str] = &["--duration", "200ms"];

/// Long enough to see all.
pub const LONG: &[&str] = &["--duration", "1s"];

fn inspect(target: &str, flags: &[&str]) -> Output {
    Command::new(LAB).arg("inspect").arg(target).args(flags).output().unwrap()
}

/// What it prints as JSON; it holds to the schema.
#[track_caller]
pub fn diagnosis(target: &str, flags: &[&str]) -> Value {
    let output = inspect(target, &[&["--format", "json"], flags].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    let document = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    Schema::published("inspect").check("diagnosis", &document);
    document
}

/// The line on standard error of a look that fails.
#[track_caller]
pub fn refused(target: &str, flags: &[&str]) -> String {
    let output = inspect(target, flags);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len(), said.lines().count()), (Some(1), 0, 1), "{said}");
    said.trim_end().to_string()
}

pub fn states(document: &Value) -> Vec<&str> {
    document["workers"].as_array().unwrap().iter().map(|worker| worker["state"].as_str().unwrap()).collect()
}

fn findings(document: &Value) -> Vec<&str> {
    document["findings"].as_array().unwrap().iter().map(|finding| finding["id"].as_str().unwrap()).collect()
}

/// How whoever accepts waits: the master where there is one, or else all workers.
fn waits(document: &Value) -> Vec<&Value> {
    let workers = || document["workers"].as_array().unwrap().iter();
    document.get("master").map_or_else(|| workers().collect(), |master| vec![master])
}

fn ours() -> Vec<Mode> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/blind-test.toml"));
    Modes::read(path).unwrap_or_else(|why| panic!("{why}")).ours
}

/// One of our servers in one of its modes. Where it starts another program, that one is told the address.
fn start_mode(mode: &Mode) -> Server {
    let mut is_program = true;
    let path_of = |word: &str| match (std::mem::replace(&mut is_program, word == "--"), word) {
        (true, "cluster") => CLUSTER.to_string(),
        (true, name) => kind(name).path.to_string(),
        (false, other) => other.to_string(),
    };
    held(Program::new(&mode.command.split(' ').map(path_of).collect::<Vec<_>>()).start(&[]))
}

#[test]
fn the_mechanism_of_every_server_is_named_from_outside() {
    let (ours, next) = (ours(), AtomicUsize::new(0));
    let look_at_the_next = || {
        while let Some(mode) = ours.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (server, name) = (start_mode(mode), &mode.command);
            let mut clients: Vec<Client> = (0..mode.open).map(|_| connect(&server)).collect();
            // Until the answer: then whoever serves a client has it.
            clients.iter_mut().for_each(|client| held(held(client.ask(GET)).expect(200)));
            let document = diagnosis(&server.addr.to_string(), SHORT);
            let found = (document["dispatch"].as_str(), document["listeners"][0]["sharing"].as_str());
            assert_eq!(found, (Some(&*mode.dispatch), Some(&*mode.sharing)), "{name}: {document:#}");
            let is_known = |seen: &&Value| mode.waits_in.iter().any(|known| seen["waits_in"] == *known);
            assert!(waits(&document).iter().all(is_known), "{name}: {document:#}");
            assert_eq!(states(&document).len(), mode.workers, "{name}: {document:#}");
            assert!(!states(&document).contains(&"hung"), "{name}: {document:#}");
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(look_at_the_next))));
}

#[test]
fn every_server_of_the_syllabus_is_examined() {
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    let (syllabus, _) = manifest.split_once("# The instruments.").expect("they stand behind the servers");
    let names = syllabus.split("[[bin]]").skip(1).filter_map(|bin| bin.split_once("name = \"")?.1.split('"').next());
    let ours = ours();
    let missing: Vec<&str> = names.filter(|name| !ours.iter().any(|mode| mode.program() == *name)).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn connections_switches_and_shares_are_counted_under_load() {
    let server = start("reuseport", &["--workers", "2"]);
    let addr = server.addr;
    let loading = std::thread::spawn(move || {
        let flags = ["--connections", "4", "--requests-per-connection", "1", "--rate", "400", "--duration", "4s"];
        load(addr, &flags)
    });
    // The first look may be over before the client has begun.
    let document = loop {
        let document = diagnosis(&addr.to_string(), &["--duration", "1s"]);
        if document["totals"]["new_connections"].as_u64() >= Some(100) || loading.is_finished() {
            break document;
        }
    };
    loading.join().unwrap();
    let totals = &document["totals"];
    assert!(totals["new_connections"].as_u64() >= Some(100), "{document:#}");
    assert!(totals["switches_per_connection"].as_f64() > Some(0.0), "{document:#}");
    let shares: Vec<f64> =
        document["workers"].as_array().unwrap().iter().filter_map(|worker| worker["accepted_share"].as_f64()).collect();
    assert!(shares.len() == 2 && (shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{document:#}");
}

#[test]
fn a_stopped_worker_is_found_and_fails_the_look_when_it_is_asked_to() {
    for (name, flags) in [("reuseport", &["--workers", "3"][..]), ("prefork", &["--workers", "3"])] {
        let server = start(name, flags);
        let (port, fail) =
            (format!(":{}", server.addr.port()), ["--duration", "200ms", "--fail-if", "hung,queue-full"]);
        assert_eq!(inspect(&port, &fail).status.code(), Some(0), "{name}");
        let worker = server.processes()[2];
        assert!(worker.stop(FOREVER), "{name}");
        let output = inspect(&port, &fail);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(3), "{name}: {said}");
        assert!(said.contains(&format!("hung-worker: pid {} hangs: stopped by a signal", worker.pid)), "{said}");
        worker.signal(Signal::SIGCONT);
    }
}

#[test]
fn a_process_stands_for_its_listeners_and_a_master_for_those_of_its_workers() {
    // The master of a group has closed all its sockets.
    let server = start("reuseport", &["--workers", "2"]);
    let workers: Vec<Process> = server.processes().split_off(1);
    for pid in [server.pid(), workers[0].pid] {
        let document = diagnosis(&pid.to_string(), SHORT);
        let pids: Vec<i64> =
            document["workers"].as_array().unwrap().iter().map(|worker| worker["pid"].as_i64().unwrap()).collect();
        assert_eq!(pids, [workers[0].pid, workers[1].pid].map(i64::from), "{document:#}");
        assert_eq!(document["listeners"][0]["address"], server.addr.to_string());
    }
}

#[test]
fn a_unix_socket_and_an_ipv6_socket_for_both_families_are_looked_at() {
    let folder = TempFolder::new("inspect");
    let path = folder.file("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let target = format!("unix:{path}");
    let document = diagnosis(&target, SHORT);
    let ours = (&document["listeners"][0]["address"], &document["listeners"][0]["sharing"]);
    assert_eq!(ours, (&Value::from(target), &Value::from("one")), "{document:#}");
    drop(listener);
    let Ok(listener) = TcpListener::bind("[::]:0") else {
        return inconclusive(Needs::Kernel("IPv6"), "no IPv6 socket can be bound");
    };
    let document = diagnosis(&format!("127.0.0.1:{}", listener.local_addr().unwrap().port()), SHORT);
    assert_eq!(document["listeners"][0]["is_dual"], true, "{document:#}");
}

#[test]
fn what_nobody_has_accepted_is_counted_and_whose_queue_it_stands_in() {
    let server = start("reuseport", &["--workers", "2"]);
    let workers: Vec<Process> = server.processes().split_off(1);
    assert!(workers.iter().all(|worker| worker.stop(FOREVER)));
    let _clients: Vec<Client> = (0..6).map(|_| connect(&server)).collect();
    let document = diagnosis(&server.addr.to_string(), &["--duration", "1200ms"]);
    let queued: u64 =
        document["workers"].as_array().unwrap().iter().map(|worker| worker["queued"].as_u64().unwrap()).sum();
    assert_eq!((queued, &document["totals"]["unaccepted_long"]), (6, &Value::from(6)), "{document:#}");
    assert_eq!(states(&document), ["hung", "hung"]);
    workers.iter().for_each(|worker| worker.signal(Signal::SIGCONT));
}

#[test]
fn a_full_queue_is_found() {
    let server = start("sync", &["--backlog", "1"]);
    // One is served and silent, two wait, and the next finds no room.
    let mut first = connect(&server);
    held(held(first.ask(GET)).expect(200));
    let _waiting = [connect(&server), connect(&server)];
    let _refused = TcpStream::connect_timeout(&server.addr, Duration::from_millis(50));
    let document = diagnosis(&server.addr.to_string(), SHORT);
    // Beside it, where the look was late, that nobody has accepted these two for a second.
    assert_eq!(findings(&document)[0], "queue-full", "{document:#}");
    assert_eq!(document["listeners"][0]["most_queued"], 2, "{document:#}");
}

#[test]
fn a_target_that_is_none_is_one_line() {
    let (_port, nobody) = reserve_port();
    let said = refused(&format!(":{}", nobody.port()), &[]);
    assert_eq!(said, format!("lab: nobody listens on port {} in this network namespace", nobody.port()));
    let said = refused("unix:/nowhere", &[]);
    assert_eq!(said, "lab: nobody listens on unix:/nowhere in this network namespace");
    let said = refused("999999999", &[]);
    assert_eq!(said, "lab: there is no process 999999999, or /proc hides it (hidepid)");

    let mut shell = Command::new("sh").args(["-c", "read line"]).stdin(Stdio::piped()).spawn().unwrap();
    let said = refused(&shell.id().to_string(), &[]);
    assert!(said.contains("(sh) does not listen, nor does a process that it has started"), "{said}");
    drop(shell.stdin.take());
    let is_zombie = || Process::find(shell.id() as i32).is_none().then_some(());
    poll_until(FOREVER, is_zombie).expect("it ends");
    let said = refused(&shell.id().to_string(), &[]);
    assert!(said.contains("has ended; its parent, pid ") && said.ends_with("(a zombie)"), "{said}");
    shell.wait().unwrap();

    for odd in ["localhost:80", ":0", "0", "[fe80::1%nowhere]:80"] {
        let output = inspect(odd, &[]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{odd}");
    }
    assert_eq!(inspect(":80", &["--fail-if", "hunger"]).status.code(), Some(2));
}

#[test]
fn a_thread_of_the_kernel_is_no_server() {
    if std::fs::read_to_string("/proc/2/comm").ok().as_deref() != Some("kthreadd\n") {
        return inconclusive(Needs::Kernel("threads"), "a PID namespace hides those of the kernel");
    }
    assert_eq!(refused("2", &[]), "lab: pid 2 is a thread of the kernel (kthreadd), which has no descriptors");
}

#[test]
fn a_worker_that_does_not_listen_names_its_master() {
    let server = start("master-dispatch", &["--workers", "1"]);
    let said = refused(&server.processes()[1].pid.to_string(), &[]);
    assert!(said.ends_with(&format!("its parent, pid {}, listens on {}", server.pid(), server.addr)), "{said}");
}

#[test]
fn two_servers_on_one_port_must_be_named_by_their_addresses() {
    let server = start("event-driven", &[]);
    let port = server.addr.port();
    let program = Program::new(&[kind("event-driven").path.to_string()]);
    let Ok(other) = program.start_on(&format!("127.0.0.2:{port}"), &[]) else {
        return inconclusive(Needs::Kernel("127.0.0.2"), "the second address cannot be bound");
    };
    let said = refused(&format!(":{port}"), &[]);
    for server in [&server, &other] {
        assert!(said.contains(&format!("{} (pid {})", server.addr, server.pid())), "{said}");
        assert_eq!(diagnosis(&server.addr.to_string(), SHORT)["workers"][0]["pid"], server.pid());
    }
}

#[test]
fn a_target_that_ends_meanwhile_is_one_line() {
    let mut server = start("event-driven", &[]);
    let targets = [server.pid().to_string(), format!(":{}", server.addr.port())];
    let looking = targets.clone().map(|target| std::thread::spawn(move || refused(&target, &["--duration", "1m"])));
    // Each has looked when it sleeps; a look of a minute is still under way then. Another test may have one, too.
    let looks = |process: &&Process| {
        let words = command_line(process.pid);
        let is_ours = words.contains(&"1m".to_string()) && targets.iter().any(|target| words.contains(target));
        is_ours && process.age_s() > 0.5 && Stat::of(process.pid).is_some_and(|stat| stat.state == 'S')
    };
    let both_look = || (family(std::process::id() as i32).iter().filter(looks).count() == 2).then_some(());
    poll_until(FOREVER, both_look).expect("both look");
    held(server.stop());
    let [of_pid, of_port] = looking.map(|looking| looking.join().unwrap());
    assert!(of_pid.ends_with("has ended") || of_pid.ends_with("any more"), "{of_pid}");
    assert_eq!(of_port, format!("lab: nobody listens on {} any more", server.addr));
}

#[test]
fn a_server_in_another_network_namespace_is_looked_at_from_inside() {
    let namespace = match NetworkNamespace::new(&[]) {
        Ok(namespace) => Arc::new(namespace),
        Err(error) => return inconclusive(Needs::Privilege("a user namespace"), error),
    };
    let program = Program::new(&[kind("event-driven").path.to_string()]).inside(Some(&namespace));
    let server = held(program.start(&[]));
    let (pid, address) = (server.pid().to_string(), server.addr.to_string());
    let said = refused(&pid, &[]);
    assert_eq!(said, format!("lab: pid {pid} is in another network namespace; add --netns {pid}"));
    let said = refused(&address, &[]);
    assert!(said.contains("in this network namespace; in that of pid "), "{said}");
    let document = diagnosis(&address, &["--duration", "200ms", "--netns", &pid]);
    assert_eq!(document["workers"][0]["pid"], server.pid(), "{document:#}");
}

#[test]
fn an_ordinary_user_sees_everything_of_his_own_servers_and_of_others_a_line() {
    let server = start("prefork", &["--workers", "2"]);
    let (Some(lab), Some(prefork)) = (Ordinary::new(LAB), Ordinary::new(kind("prefork").path)) else { return };
    let look = |target: &str| lab.command().args(["inspect", target, "--format", "json"]).args(LONG).output().unwrap();
    let own = held(prefork.program().start(&["--workers", "2"]));
    let output = look(&own.addr.to_string());
    let document: Value = serde_json::from_slice(&output.stdout).expect("a document");
    assert_eq!(
        (states(&document).len(), waits(&document)[0]["waits_in"].as_str()),
        (2, Some("accept")),
        "{document:#}"
    );
    assert_eq!(document["unseen"], Value::Array(Vec::new()), "{document:#}");
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let refused = look(&server.pid().to_string());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("is another user's; run it as root"), "{said}");
    // The socket itself is everybody's to see.
    let document: Value = serde_json::from_slice(&look(&server.addr.to_string()).stdout).expect("a document");
    assert_eq!((&document["dispatch"], states(&document).len()), (&Value::from("unknown"), 0), "{document:#}");
    let unseen = document["unseen"][0].as_str().expect("a line");
    assert!(unseen.contains(", which user 0 has opened: we may not look into"), "{unseen}");
    let monitor = lab.command().args(["inspect", &server.addr.to_string(), "--fail-if", "hung"]).args(SHORT).output();
    let monitor = monitor.unwrap();
    let [out, err] = [&monitor.stdout, &monitor.stderr].map(|said| String::from_utf8_lossy(said));
    assert_eq!(monitor.status.code(), Some(1), "{out}{err}");
    assert!(out.contains("\nno findings in what could be seen\n"), "{out}");
    assert!(err.starts_with("lab: --fail-if: no process was seen that accepts: who has the socket of "), "{err}");
}

#[test]
fn it_only_reads() {
    if !can_trace() {
        return;
    }
    let mut server = start("prefork", &["--workers", "2"]);
    let traced = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=ptrace,kill,tkill,tgkill,pidfd_send_signal,process_vm_writev,pidfd_getfd"])
        .args(["-e", "signal=none", LAB, "inspect", &server.addr.to_string()])
        .args(SHORT)
        .output()
        .unwrap();
    assert!(traced.status.success() && traced.stderr.is_empty(), "{}", String::from_utf8_lossy(&traced.stderr));
    let report = held(server.stop());
    assert_eq!(report.workers.iter().map(|worker| worker.accepted).sum::<u64>(), 0, "it asked nothing of the server");
}

#[test]
fn watching_shows_the_workers_until_a_key_ends_it() {
    let server = start("prefork", &["--workers", "2"]);
    assert!(refused(&server.addr.to_string(), &["--watch"]).contains("standard output is no terminal"));
    let Some(terminal) = Terminal::open("inspect") else { return };
    terminal.keys(&[&format!("{LAB} inspect {} --watch; echo status $?", server.addr), "Enter"]);
    let shown = terminal.shows(|screen| screen.starts_with("prefork ") && screen.contains("q quits"));
    assert!(shown.contains("2 processes accept, each for itself; they wait in accept"), "{shown}");
    terminal.keys(&["q"]);
    terminal.shows(|screen| screen.contains("status 0"));
    terminal.is_given_back();
}

#[test]
fn a_recording_that_was_saved_says_the_same_as_the_look() {
    let server = start("shared-accept", &["--workers", "2"]);
    let folder = TempFolder::new("recording");
    let path = folder.file("recording");
    let shown = diagnosis(&server.addr.to_string(), &["--duration", "200ms", "--save", &path]);
    let recording = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(serde_json::to_value(diagnose(&recording)).unwrap(), shown);
}

#[test]
fn ten_thousand_connections_take_less_than_a_second_for_a_look() {
    crate::support::raise_descriptor_limit();
    let server = start("event-driven", &[]);
    let clients: Vec<TcpStream> = (0..9_000).map_while(|_| TcpStream::connect(server.addr).ok()).collect();
    if clients.len() < 9_000 {
        return inconclusive(Needs::Kernel("9,000 descriptors"), format!("{} connections", clients.len()));
    }
    let mut observer = Observer::begin(Target::Address(server.addr)).unwrap();
    let cost = observer.look().unwrap();
    assert!(cost < Duration::from_secs(1), "{cost:?}");
    assert_eq!(observer.recording.looks[0].open, 9_000);
}
