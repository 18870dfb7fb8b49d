//! The cluster with unmodified Node programs: which requests are answered, what follows a death, and what a hostile
//! worker can do. Without Node these tests are inconclusive.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};
use std::time::Duration;

use acceptlab::lab::check::client::{Client, GET_AND_CLOSE, served_within};
use acceptlab::lab::check::server::{Program, STOP_WITHIN, Server};
use acceptlab::lab::observe::processes::{Process, poll_until};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::dispatch::Stopped;
use crate::support::{FOREVER, Needs, Ordinary, TempFolder, answer, connect, held, inconclusive, load};

pub const CLUSTER: &str = env!("CARGO_BIN_EXE_cluster");
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/node-cluster.js");

/// Answers like the others; but once it listens, worker 0 does its worst to the channel.
const HOSTILE: &str = r#"
const fs = require('node:fs'), http = require('node:http'), net = require('node:net');
const id = Number(process.env.WORKER_ID);
const answer = (request, response) => {
  const body = `handled by worker ${id}, pid ${process.pid}\n`;
  response.writeHead(200, { 'X-Worker': id, 'Content-Length': body.length });
  response.end(body);
};
const write = (bytes) => {
  for (let at = 0; at < bytes.length;) {
    try { at += fs.writeSync(process.channel.fd, bytes, at); } catch (error) { if (error.code !== 'EAGAIN') throw error; }
  }
};
const server = http.createServer(answer).listen(0, '127.0.0.1', () => {
  if (id !== 0) return;
  write(Buffer.from('garbage\n{"cmd":"NODE_CLUSTER"}\n\n{"cmd":"NODE_HANDLE_ACK"}\n'));
  write(Buffer.from('{"cmd":"NODE_CLUSTER","act":"queryServer","port":1}\n{"cmd":"NODE_CLUSTER","ack":99}\n'));
  write(Buffer.concat([Buffer.alloc(17 << 20, 'x'), Buffer.from('\n')]));
  process.send('m'.repeat(1 << 20));
  const unwanted = net.connect(server.address().port, '127.0.0.1', () => process.send('a descriptor', unwanted));
});
"#;

pub fn has_node() -> bool {
    let found = Command::new("node").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        inconclusive(Needs::Tool("node"), "not installed");
    }
    found
}

/// The cluster of these flags with this Node program, ready.
#[track_caller]
fn start(flags: &[&str], node: &[&str]) -> Server {
    start_with(flags, &[&["node"], node].concat())
}

/// The same with any program, which is given `--listen` at the end.
#[track_caller]
pub fn start_with(flags: &[&str], program: &[&str]) -> Server {
    let command = [&[CLUSTER], flags, &["--"], program].concat();
    held(Program::new(&command.into_iter().map(String::from).collect::<Vec<_>>()).start(&[]))
}

/// A cluster that ends by itself.
pub fn run(args: &[&str]) -> Output {
    Command::new(CLUSTER).args(args).output().expect("cargo has built it")
}

pub fn events_in(said: &str) -> Vec<Value> {
    said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

pub fn count(events: &[Value], event: &str) -> usize {
    events.iter().filter(|found| found["event"] == event).count()
}

thread_local! {
    /// What servers have logged behind the event that was awaited last, by the server's pid: it may be read together
    /// with that event, and the next to wait must find it.
    static NOT_AWAITED: RefCell<HashMap<i32, Vec<Value>>> = RefCell::default();
}

/// The events since the last one that was awaited.
pub fn events_until_now(server: &Server) -> Vec<Value> {
    let mut events = NOT_AWAITED.with_borrow_mut(|of| of.remove(&server.pid())).unwrap_or_default();
    events.extend(events_in(&server.said()));
    events
}

/// Waits until such an event was logged so often; all events since the last call, up to this one.
#[track_caller]
pub fn await_events(server: &Server, event: &str, times: usize) -> Vec<Value> {
    let mut events = Vec::new();
    let arrived = poll_until(FOREVER, || {
        events.extend(events_until_now(server));
        let is_one = |(at, found): (usize, &Value)| (found["event"] == event).then_some(at);
        events.iter().enumerate().filter_map(is_one).nth(times.saturating_sub(1))
    });
    let Some(last) = arrived else { panic!("{times} {event:?} expected, told: {events:?}") };
    let behind = events.split_off(last + 1);
    NOT_AWAITED.with_borrow_mut(|of| of.insert(server.pid(), behind));
    events
}

/// Waits until each of so many workers has answered.
#[track_caller]
pub fn all_answer(server: &Server, workers: usize) {
    let all = poll_until(FOREVER, || {
        let load = load(server.addr, &["--requests-per-connection", "1", "--connections", "16", "--requests", "200"]);
        assert_eq!((load.errors.total(), load.requests), (0, 200), "{:?}", load.errors);
        (load.workers.len() == workers).then_some(())
    });
    assert!(all.is_some(), "not all of {workers} workers answer");
}

#[test]
fn requests_are_answered_by_all_workers_in_both_schedules_and_sigterm_leaves_no_process() {
    if !has_node() {
        return;
    }
    for schedule in ["rr", "none"] {
        let mut server = start(&["--workers", "3", "--schedule", schedule], &[PROGRAM]);
        let processes = server.processes();
        assert_eq!(processes.len(), 4);
        all_answer(&server, 3);
        let report = held(server.stop());
        assert_eq!((report.model.as_str(), report.workers.len()), ("cluster", 3));
        assert_eq!(report.listen, server.addr.to_string());
        assert!(report.workers.iter().all(|worker| (worker.accepted > 0) == (schedule == "rr")));
        assert!(Server::left_behind(&processes, Duration::ZERO).is_empty());
    }
}

#[test]
fn the_life_of_a_worker_is_a_row_of_events() {
    if !has_node() {
        return;
    }
    let mut server = start(&["--workers", "1"], &[PROGRAM]);
    server.signal(Signal::SIGTERM);
    let ended = held(server.ended(STOP_WITHIN));
    let names: Vec<String> =
        events_in(&ended.stderr).iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["setup", "fork", "online", "listening", "disconnect", "exit", "stopped"]);
}

/// The only worker hangs with a connection that it was given; others wait behind it. Its successor answers them all.
#[test]
fn a_killed_worker_is_replaced_and_no_accepted_connection_is_lost() {
    if !has_node() {
        return;
    }
    let server = start(&["--workers", "1"], &[PROGRAM]);
    let [master, worker] = server.processes()[..] else { panic!("{:?}", server.processes()) };
    let hung = Stopped::new(worker.pid);
    let before = master.open_descriptors();
    let mut clients: Vec<Client> = (0..5).map(|_| connect(&server)).collect();
    clients.iter_mut().for_each(|client| held(client.send(GET_AND_CLOSE)));
    let accepted = poll_until(FOREVER, || (master.open_descriptors() > before).then_some(()));
    assert!(accepted.is_some(), "the master accepts nothing");
    worker.kill();
    for client in &mut clients {
        assert_ne!(held(answer(client).signature()).1, worker.pid);
    }
    drop(hung);
}

#[test]
fn in_both_schedules_the_cluster_comes_back_to_full_strength_after_each_kill() {
    if !has_node() {
        return;
    }
    for schedule in ["rr", "none"] {
        let server = start(&["--workers", "2", "--schedule", schedule], &[PROGRAM]);
        await_events(&server, "listening", 2);
        for _ in 0..3 {
            server.processes()[1].kill();
            await_events(&server, "listening", 1);
            all_answer(&server, 2);
        }
    }
}

#[test]
fn a_node_program_without_a_descriptor_left_gives_the_connection_back_and_gets_it_later() {
    if !has_node() {
        return;
    }
    let limited = format!("ulimit -n 40; exec node {PROGRAM} \"$@\"");
    let server = start_with(&["--workers", "1"], &["sh", "-c", &limited, "sh"]);
    let mut clients: Vec<Client> = (0..40).map(|_| connect(&server)).collect();
    // Those that have asked are answered, and make room.
    clients.iter_mut().for_each(|client| held(client.send(GET_AND_CLOSE)));
    clients.iter_mut().for_each(|client| drop(answer(client)));
}

/// A server that does this after each answer.
fn serving_and(act: &str) -> String {
    format!(
        "const server = require('node:http').createServer((_, response) => response.end('', () => {act}));
         server.listen(0, '127.0.0.1'); setInterval(() => {{}}, 1000);"
    )
}

#[test]
fn a_node_worker_that_disconnects_by_itself_has_a_successor_and_the_port_stays_open() {
    if !has_node() {
        return;
    }
    let program = serving_and("require('node:cluster').worker.disconnect()");
    let server = start_with(&["--workers", "1"], &["node", "-e", &program, "--"]);
    await_events(&server, "listening", 1);
    for _ in 0..3 {
        let mut client = connect(&server);
        held(client.send(GET_AND_CLOSE));
        answer(&mut client);
        await_events(&server, "listening", 1);
    }
}

#[test]
fn a_node_program_that_closes_its_server_and_goes_on_has_closed_the_port() {
    if !has_node() {
        return;
    }
    let program = serving_and("server.close()");
    let server = start_with(&["--workers", "1"], &["node", "-e", &program, "--"]);
    let mut client = connect(&server);
    held(client.send(GET_AND_CLOSE));
    answer(&mut client);
    let refused = poll_until(FOREVER, || std::net::TcpStream::connect(server.addr).is_err().then_some(()));
    assert!(refused.is_some());
    assert_eq!(server.processes().len(), 2);
}

#[test]
fn a_program_may_have_two_listeners() {
    if !has_node() {
        return;
    }
    let program = "const http = require('node:http');
        const server = (name) => http.createServer((_, response) => response.end(name)).listen(0, '127.0.0.1');
        server('first');
        const second = server('second').on('listening', () => console.log(`second ${second.address().port}`));";
    let server = start_with(&["--workers", "2"], &["node", "-e", program, "--"]);
    let mut said = String::new();
    let port = poll_until(FOREVER, || {
        said += &server.said();
        said.lines().find_map(|line| line.split_once("second ")?.1.parse::<u16>().ok())
    });
    let second = ([127, 0, 0, 1], port.expect("it says")).into();
    let told = poll_until(FOREVER, || {
        said += &server.said();
        let events = events_in(&said);
        let addresses = events.iter().filter(|event| event["event"] == "listening").map(|event| &event["address"]);
        let addresses: Vec<&str> = addresses.filter_map(Value::as_str).collect();
        let is_told = |addr: SocketAddr| addresses.contains(&addr.to_string().as_str());
        (is_told(server.addr) && is_told(second)).then_some(())
    });
    assert!(told.is_some(), "{said}");
    let bodies = [server.addr, second].map(|addr| held(served_within(addr, FOREVER)).body);
    assert_eq!(bodies.map(|body| String::from_utf8(body).unwrap()).iter().collect::<BTreeSet<_>>().len(), 2);
}

#[test]
fn a_forbidden_port_is_a_failure_with_its_reason() {
    let first_allowed = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let is_forbidden = first_allowed.is_ok_and(|port| port.trim().parse::<u16>().is_ok_and(|port| port > 80));
    if !is_forbidden {
        return inconclusive(Needs::Kernel("with privileged ports"), "everybody may listen on port 80 here");
    }
    let Some(ordinary) = Ordinary::new(CLUSTER).filter(|_| has_node()) else { return };
    // In a file: with `-e` Node asks the master, too, but does not hear the answer.
    let folder = TempFolder::new("forbidden");
    let program = folder.file("server.js");
    std::fs::write(&program, "require('node:http').createServer(() => {}).listen(80, '127.0.0.1');").unwrap();
    let flags = ["--workers", "1", "--max-restarts", "0", "--", "node", &program];
    let output = ordinary.command().current_dir("/").args(flags).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("listen 127.0.0.1:80: permission denied"), "{said}");
}

#[test]
fn a_program_that_exits_at_once_is_given_up_with_a_failure() {
    let output = run(&["--workers", "2", "--max-restarts", "5", "--", "false"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said = String::from_utf8_lossy(&output.stderr);
    let events = events_in(&said);
    assert_eq!((count(&events, "fork"), count(&events, "giveup")), (7, 1), "{said}");
    assert!(said.lines().last().unwrap().starts_with("serve: the last worker has died"), "{said}");
}

#[test]
fn a_program_that_does_not_exist_is_one_line_and_a_failure() {
    let output = run(&["--", "/no/such/program"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "start /no/such/program: no such file or directory; install it, or give its path\n");
}

#[test]
fn a_program_whose_port_is_taken_gets_the_error_from_listen_and_is_given_up() {
    if !has_node() {
        return;
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for schedule in ["rr", "none"] {
        let flags = ["--workers", "1", "--max-restarts", "1", "--schedule", schedule];
        let output = run(&[&flags[..], &["--", "node", PROGRAM, "--listen", &address]].concat());
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&format!("listen {address}: address already in use")), "{said}");
        assert!(said.contains("EADDRINUSE"), "{said}");
        let last = format!("last: worker 0: listen {address}: address already in use");
        assert!(said.lines().last().unwrap().ends_with(&last), "{said}");
    }
}

#[test]
fn a_worker_that_does_not_leave_is_killed_after_the_time_out() {
    if !has_node() {
        return;
    }
    let mut server = start(&["--workers", "2", "--kill-timeout", "200ms"], &[PROGRAM]);
    let processes = server.processes();
    let hung = Stopped::new(processes[1].pid);
    held(server.stop());
    assert!(Server::left_behind(&processes, Duration::ZERO).is_empty());
    drop(hung);
}

#[test]
fn a_master_that_is_killed_takes_its_workers_along() {
    if !has_node() {
        return;
    }
    let mut server = start(&["--workers", "3"], &[PROGRAM]);
    let processes = server.processes();
    assert_eq!(processes.len(), 4);
    server.signal(Signal::SIGKILL);
    held(server.ended(FOREVER));
    assert_eq!(Server::left_behind(&processes, FOREVER), Vec::<Process>::new());
}

#[test]
fn a_worker_that_sends_garbage_huge_lines_and_descriptors_does_no_harm() {
    if !has_node() {
        return;
    }
    for schedule in ["rr", "none"] {
        let mut server = start(&["--workers", "3", "--schedule", schedule], &["-e", HOSTILE, "--"]);
        let events = await_events(&server, "violation", 6);
        assert!(events.iter().filter(|event| event["event"] == "violation").all(|event| event["worker"] == 0));
        all_answer(&server, 3);
        assert_eq!(server.processes().len(), 4);
        held(served_within(server.addr, FOREVER));
        assert_eq!(count(&events_until_now(&server), "exit"), 0);
        held(server.stop());
    }
}
