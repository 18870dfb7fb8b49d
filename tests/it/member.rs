//! Our servers as workers of a cluster: of ours, of Node's own primary, and of a master made of a socket and a test.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use acceptlab::lab::check;
use acceptlab::lab::check::client::{Client, GET, GET_AND_CLOSE, Response, served_within};
use acceptlab::lab::check::server::{Program, STOP_WITHIN, Server};
use acceptlab::lab::observe::processes::{Process, poll_until};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::cluster::{CLUSTER, await_events, count, events_in, has_node, run, start_with};
use crate::support::{FOREVER, Kind, Processes, SERVERS, answer, connect, held, kind, load};

const EVENT_DRIVEN: &str = env!("CARGO_BIN_EXE_event-driven");
const EVENT_LOOP: &str = env!("CARGO_BIN_EXE_event-loop");

/// Each has code of its own for what a master asks for.
const EVENT_LOOPS: [&str; 2] = [EVENT_DRIVEN, EVENT_LOOP];

/// Node's own primary with two of our processes: `exec` is a flag of theirs, since Node calls its own path with it.
const NODE_PRIMARY: &str = r#"
const cluster = require('node:cluster');
const [, program, policy, flag, listen] = process.argv;
process.execPath = program;
cluster.schedulingPolicy = policy === 'rr' ? cluster.SCHED_RR : cluster.SCHED_NONE;
cluster.setupPrimary({ exec: flag, args: [listen], execArgv: [] });
let listening = 0;
cluster.on('listening', (_, at) => { if (++listening === 2) console.log(`ready ${at.address}:${at.port}`); });
cluster.on('exit', (worker, status) => console.error(`exit ${status} ${worker.exitedAfterDisconnect}`));
process.on('SIGTERM', () => cluster.disconnect());
cluster.fork();
cluster.fork();
"#;

/// Connections reach a worker of a cluster over a channel, which one thread of one process reads.
fn has_one_acceptor(kind: &Kind) -> bool {
    kind.processes == Processes::One && kind.name != "prethreaded"
}

fn servers_with_one_acceptor() -> impl Iterator<Item = &'static str> {
    SERVERS.iter().filter(|kind| has_one_acceptor(kind)).map(|kind| kind.path)
}

#[track_caller]
fn all_workers_answer(server: &Server, workers: usize) {
    let mut seen = BTreeSet::new();
    let all = poll_until(FOREVER, || {
        seen.insert(held(held(served_within(server.addr, FOREVER)).worker()));
        (seen.len() == workers).then_some(())
    });
    assert!(all.is_some() && seen.iter().all(|&worker| worker < workers), "{seen:?}");
}

#[test]
fn every_server_of_one_process_works_in_a_cluster_in_both_schedules_and_counts_in_the_masters_scoreboard() {
    for program in servers_with_one_acceptor() {
        for schedule in ["rr", "none"] {
            let mut server = start_with(&["--workers", "3", "--schedule", schedule], &[program]);
            all_workers_answer(&server, 3);
            let report =
                load(server.addr, &["--connections", "6", "--requests-per-connection", "1", "--requests", "60"]);
            assert_eq!((report.requests, report.errors.total()), (60, 0), "{program} {schedule}");
            let processes = server.processes();
            let report = held(server.stop());
            assert!(Server::left_behind(&processes, Duration::ZERO).is_empty());
            let workers = &report.workers;
            assert!(workers.iter().all(|worker| worker.requests > 0 && worker.active == 0), "{workers:?}");
            let sum = |of: fn(&acceptlab::report::WorkerReport) -> u64| workers.iter().map(of).sum::<u64>();
            assert_eq!(sum(|worker| worker.accepted), sum(|worker| worker.requests), "{program} {schedule}");
            let passed = report.cluster.unwrap().passed;
            assert_eq!(passed, if schedule == "rr" { sum(|worker| worker.accepted) } else { 0 });
        }
    }
}

#[test]
fn our_event_loops_work_under_nodes_own_primary_in_both_schedules() {
    if !has_node() {
        return;
    }
    for (program, policy) in EVENT_LOOPS.into_iter().flat_map(|program| [(program, "rr"), (program, "none")]) {
        let command = ["node", "-e", NODE_PRIMARY, "--", program, policy].map(String::from);
        let mut server = held(Program::new(&command).start(&[]));
        all_workers_answer(&server, 2);
        let report = load(server.addr, &["--connections", "6", "--requests-per-connection", "1", "--requests", "200"]);
        assert_eq!((report.requests, report.errors.total()), (200, 0), "{program} {policy}");
        server.signal(Signal::SIGTERM);
        let ended = held(server.ended(STOP_WITHIN));
        assert_eq!(ended.stderr.matches("exit 0 true").count(), 2, "{program} {policy}: {}", ended.stderr);
    }
}

#[test]
fn a_server_that_cannot_be_a_worker_says_so_and_names_one_that_can() {
    for program in SERVERS.iter().filter(|kind| !has_one_acceptor(kind)) {
        let output = run(&["--workers", "1", "--max-restarts", "0", "--", program.path, "--listen", "127.0.0.1:0"]);
        assert_eq!(output.status.code(), Some(1), "{}", program.name);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("a worker of a cluster, which has one"), "{said}");
        assert_eq!(count(&events_in(&said), "giveup"), 1);
    }
}

#[test]
fn a_taken_port_is_one_line_of_the_worker_and_a_failure() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for schedule in ["rr", "none"] {
        let flags = ["--workers", "1", "--max-restarts", "0", "--schedule", schedule];
        let output = run(&[&flags[..], &["--", EVENT_DRIVEN, "--listen", &address]].concat());
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&format!("worker 0: bind {address}: address already in use")), "{said}");
    }
}

/// Asks until an answer says that it closes: a worker that is to leave may not know yet, and answers as before.
#[track_caller]
fn last_answer(client: &mut Client) -> Response {
    let last = poll_until(FOREVER, || {
        let answer = answer(client);
        let is_last = answer.expect_connection("close").is_ok();
        if !is_last {
            held(client.send(GET));
        }
        is_last.then_some(answer)
    });
    last.expect("a worker that leaves says so")
}

#[test]
fn a_connection_that_is_open_when_a_worker_leaves_is_answered_once_more_with_connection_close() {
    let ways = [("rr", Signal::SIGUSR2), ("none", Signal::SIGUSR2), ("rr", Signal::SIGHUP)];
    for (program, (schedule, leave)) in EVENT_LOOPS.into_iter().flat_map(|program| ways.map(|way| (program, way))) {
        let server = start_with(&["--workers", "1", "--schedule", schedule], &[program]);
        let mut client = connect(&server);
        let (_, pid) = held(held(client.ask(GET)).signature());
        match leave {
            Signal::SIGHUP => server.signal(leave),
            _ => kill(Pid::from_raw(pid), leave).unwrap(),
        }
        // At once: a worker that leaves closes what is silent for a second.
        held(client.send(GET));
        assert_eq!(held(last_answer(&mut client).signature()).1, pid);
        await_events(&server, "listening", 2);
        assert_ne!(held(held(served_within(server.addr, FOREVER)).signature()).1, pid);
    }
}

#[test]
fn a_client_that_says_nothing_does_not_keep_a_worker_that_leaves() {
    for program in EVENT_LOOPS {
        let server = start_with(&["--workers", "1"], &[program]);
        let mut client = connect(&server);
        held(client.ask(GET));
        server.signal(Signal::SIGHUP);
        held(client.closes(FOREVER));
        let events = await_events(&server, "reloaded", 1);
        let exit = events.iter().find(|event| event["event"] == "exit").unwrap();
        assert_eq!(exit["status"], 0, "{program}");
    }
}

#[test]
fn reloads_under_load_lose_no_request_of_an_event_loop() {
    for (program, schedule) in EVENT_LOOPS.into_iter().flat_map(|program| [(program, "rr"), (program, "none")]) {
        let server = start_with(&["--workers", "2", "--schedule", schedule], &[program]);
        let address = server.addr;
        let client = std::thread::spawn(move || {
            load(address, &["--connections", "16", "--requests-per-connection", "20", "--duration", "3s"])
        });
        let mut reloads = 0;
        while !client.is_finished() {
            server.signal(Signal::SIGHUP);
            await_events(&server, "reloaded", 1);
            reloads += 1;
        }
        let report = client.join().unwrap();
        assert_eq!(report.errors.total(), 0, "{program} {schedule}, {reloads} reloads: {:?}", report.errors);
        assert!(report.requests > 0 && reloads > 0, "{program} {schedule}");
    }
}

#[test]
fn a_request_that_waits_for_its_work_is_answered_before_its_worker_leaves() {
    for program in servers_with_one_acceptor() {
        for schedule in ["rr", "none"] {
            let flags = ["--workers", "1", "--schedule", schedule];
            let server = start_with(&flags, &[program, "--work", "wait:500ms"]);
            let mut client = connect(&server);
            held(client.send(GET));
            held(client.was_read());
            server.signal(Signal::SIGHUP);
            if program == kind("sync").path {
                // A server that serves one connection at a time reads the message when that is over.
                answer(&mut client);
            } else {
                last_answer(&mut client);
            }
            drop(client);
            let events = await_events(&server, "reloaded", 1);
            let exit = events.iter().find(|event| event["event"] == "exit").unwrap();
            assert_eq!(exit["status"], 0, "{program} {schedule}");
        }
    }
}

#[test]
fn a_fatal_error_ends_with_status_1_and_sigterm_with_0() {
    let ends = [(Signal::SIGUSR2, 1), (Signal::SIGTERM, 0)];
    for (program, (signal, status)) in EVENT_LOOPS.into_iter().flat_map(|program| ends.map(|end| (program, end))) {
        let server = start_with(&["--workers", "1"], &[program]);
        let (_, pid) = held(held(served_within(server.addr, FOREVER)).signature());
        kill(Pid::from_raw(pid), signal).unwrap();
        let events = await_events(&server, "exit", 1);
        let exit = events.iter().find(|event| event["event"] == "exit").unwrap();
        assert_eq!((exit["status"].as_i64(), exit["pid"].as_i64()), (Some(status), Some(pid.into())));
        held(served_within(server.addr, FOREVER));
    }
}

#[test]
fn a_worker_without_a_descriptor_left_gives_the_connection_to_another() {
    for (program, schedule) in EVENT_LOOPS.into_iter().flat_map(|program| [(program, "rr"), (program, "none")]) {
        // Worker 0 has room for few.
        let limited = format!("[ $WORKER_ID = 0 ] && ulimit -n 24; exec {program} \"$@\"");
        let flags = ["--workers", "2", "--schedule", schedule];
        let mut server = start_with(&flags, &["sh", "-c", &limited, "sh"]);
        // One after another, so that both are free each time, and half of the turns are worker 0's.
        let served = |_| {
            let mut client = connect(&server);
            held(client.send(GET));
            answer(&mut client);
            client
        };
        drop((0..60).map(served).collect::<Vec<Client>>());
        all_workers_answer(&server, 2);
        let report = held(server.stop()).cluster.unwrap();
        assert_eq!(report.deaths, 0, "{program} {schedule}");
        assert_eq!(report.returned > 0, schedule == "rr", "{program}");
    }
}

/// A worker whose master is this test.
struct Worker {
    child: Child,
    channel: UnixStream,
}

impl Worker {
    fn start(program: &str) -> Worker {
        Worker::start_after("true", program)
    }

    /// From a shell that runs `preparation` first.
    fn start_after(preparation: &str, program: &str) -> Worker {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = with_channel(theirs.into(), preparation, program);
        let child = command.args(["--listen", "127.0.0.1:0"]).spawn().unwrap();
        ours.set_read_timeout(Some(FOREVER)).unwrap();
        Worker { child, channel: ours }
    }

    fn say(&mut self, line: &str) {
        self.channel.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// What it says, until this act.
    #[track_caller]
    fn hear(&mut self, act: &str) -> Value {
        for line in BufReader::new(self.channel.try_clone().unwrap()).lines() {
            let message: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if message["act"] == act {
                return message;
            }
        }
        panic!("it never says {act}");
    }

    /// Answers that it will be passed connections: what it had asked.
    #[track_caller]
    fn serve(&mut self) -> Value {
        let query = self.hear("queryServer");
        let sockname = r#"{"family":"IPv4","address":"127.0.0.1","port":4711}"#;
        let seq = &query["seq"];
        self.say(&format!(r#"{{"cmd":"NODE_CLUSTER","key":"k","sockname":{sockname},"ack":{seq},"seq":1}}"#));
        assert_eq!(self.hear("listening")["port"], 4711);
        query
    }

    /// Passes it a connection: whether it takes it.
    #[track_caller]
    fn takes(&mut self, connection: &TcpStream, seq: u64) -> bool {
        let message = json!({"cmd": "NODE_CLUSTER", "act": "newconn", "key": "k", "seq": seq});
        let line = format!("{}\n", json!({"cmd": "NODE_HANDLE", "type": "net.Native", "msg": message}));
        let (parts, fds) = ([IoSlice::new(line.as_bytes())], [connection.as_raw_fd()]);
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(self.channel.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None).unwrap();
        for line in BufReader::new(self.channel.try_clone().unwrap()).lines() {
            let said: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if said["ack"] == seq {
                return said["accepted"].as_bool().unwrap();
            }
        }
        panic!("it never answers for connection {seq}");
    }

    fn ended(&mut self) -> Option<i32> {
        poll_until(FOREVER, || self.child.try_wait().unwrap()).expect("it ends").code()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server with this end of a channel, as descriptor 3: a shell puts it there, so that it is inheritable in that
/// process alone, and not in whatever other tests start meanwhile.
fn with_channel(channel: OwnedFd, preparation: &str, program: &str) -> Command {
    let script = format!("{preparation}; exec 3<&0 </dev/null; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command
        .args(["-c", &script, program])
        .env("NODE_CHANNEL_FD", "3")
        .env("NODE_UNIQUE_ID", "1")
        .stdin(Stdio::from(channel))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[test]
fn a_worker_asks_as_node_does_and_answers_a_sign_of_life_it_is_asked_for() {
    for program in EVENT_LOOPS {
        let mut worker = Worker::start(program);
        let query = worker.serve();
        assert_eq!(
            (&query["cmd"], &query["address"], &query["port"], &query["addressType"], &query["index"]),
            (&json!("NODE_CLUSTER"), &json!("127.0.0.1"), &json!(0), &json!(4), &json!(0))
        );
        // Garbage, strangers' messages and descriptors that never came do it no harm.
        worker.say("garbage\n7\n{\"cmd\":\"NODE_CLUSTER\",\"act\":\"newconn\",\"key\":\"k\",\"seq\":3}");
        worker.say(r#"{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_CLUSTER","act":"heartbeat"}}"#);
        let mut line = String::new();
        BufReader::new(&worker.channel).read_line(&mut line).unwrap();
        assert_eq!(line, "{\"cmd\":\"NODE_HANDLE_NACK\"}\n");
        worker.say(r#"{"cmd":"NODE_CLUSTER","act":"disconnect","seq":4}"#);
        assert_eq!(worker.hear("close")["key"], "k");
        assert_eq!(worker.ended(), Some(0));
    }
}

#[test]
fn a_worker_that_has_no_room_refuses_each_connection_and_takes_one_when_another_has_ended() {
    for program in EVENT_LOOPS {
        let mut worker = Worker::start_after("ulimit -n 24", program);
        worker.serve();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut clients = Vec::new();
        let pass = |worker: &mut Worker, clients: &mut Vec<TcpStream>, seq| {
            clients.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            let connection = listener.accept().unwrap().0;
            // As libuv's are, and our masters'.
            connection.set_nonblocking(true).unwrap();
            worker.takes(&connection, seq)
        };
        let taken = (1..24).take_while(|&seq| pass(&mut worker, &mut clients, seq)).count();
        assert!((1..23).contains(&taken), "{taken}");
        assert!((24..27).all(|seq| !pass(&mut worker, &mut clients, seq)));
        let mut first = clients.swap_remove(0);
        first.write_all(GET_AND_CLOSE).unwrap();
        first.read_to_end(&mut Vec::new()).unwrap();
        drop(first);
        // It may hear of the end a little later.
        let mut seqs = 27..;
        let takes = || pass(&mut worker, &mut clients, seqs.next().unwrap()).then_some(());
        assert!(poll_until(FOREVER, takes).is_some());
    }
}

#[test]
fn a_master_that_is_gone_ends_its_worker() {
    for program in EVENT_LOOPS {
        let mut asks = Worker::start(program);
        asks.hear("queryServer");
        asks.channel.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(asks.ended(), Some(1));
        let mut serves = Worker::start(program);
        serves.serve();
        serves.channel.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(serves.ended(), Some(0));
    }
}

#[test]
fn a_channel_that_is_none_is_one_line_and_a_failure() {
    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let output = |mut command: Command| -> Output { command.args(["--listen", "127.0.0.1:0"]).output().unwrap() };
    let mut absent = with_channel(file, "true", EVENT_DRIVEN);
    absent.env("NODE_CHANNEL_FD", "250");
    let mut odd = Command::new(EVENT_DRIVEN);
    odd.env("NODE_CHANNEL_FD", "three").env("NODE_UNIQUE_ID", "1");
    let mut standard = Command::new(EVENT_DRIVEN);
    standard.env("NODE_CHANNEL_FD", "0").env("NODE_UNIQUE_ID", "1");
    let no_socket = with_channel(std::fs::File::open("/dev/null").unwrap().into(), "true", EVENT_DRIVEN);
    for command in [absent, odd, standard, no_socket] {
        let output = output(command);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    }
}

#[test]
fn a_killed_master_takes_our_servers_along() {
    let mut server = start_with(&["--workers", "3"], &[kind("threaded").path]);
    let mut client = connect(&server);
    held(client.ask(GET));
    let processes = server.processes();
    server.signal(Signal::SIGKILL);
    held(server.ended(FOREVER));
    assert_eq!(Server::left_behind(&processes, FOREVER), Vec::<Process>::new());
}

#[test]
fn outside_a_cluster_a_server_binds_by_itself() {
    let mut server = crate::support::start("event-driven", &[]);
    let mut client = connect(&server);
    held(client.send(GET_AND_CLOSE));
    assert_eq!(held(answer(&mut client).worker()), 0);
    assert_eq!(held(server.stop()).workers[0].requests, 1);
}

/// But for those points that are about flags, which are the program's behind `--` and the master's before it.
#[test]
fn a_cluster_of_our_servers_keeps_the_contract_of_a_server() {
    let of_flags = ["workers", "scoreboard", "taken-port", "wrong-flag", "wrong-duration", "wrong-work"];
    let points: Vec<_> = check::points().into_iter().filter(|point| !of_flags.contains(&point.id)).collect();
    for (program, schedule) in EVENT_LOOPS.into_iter().flat_map(|program| [(program, "rr"), (program, "none")]) {
        let command = [CLUSTER, "--workers", "2", "--schedule", schedule, "--", program].map(String::from);
        let verdicts = check::judge(&Program::new(&command), &points).expect("it can be started");
        for (point, verdict) in points.iter().zip(verdicts) {
            assert!(verdict.is_ok(), "{program} {schedule}: {}: {verdict:?}", point.id);
        }
    }
}
