//! Programs that do what Node's own primary allows: listen late, never, on some ports only, again; have an inspector,
//! or no file. And a worker that refuses whatever the policy says.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use acceptlab::lab::check::client::{GET, served_within};
use acceptlab::lab::check::server::Server;
use acceptlab::lab::observe::processes::{Process, poll_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::{CLUSTER, await_events, count, events_in, has_node, start_with};
use crate::support::{FOREVER, TempFolder, answer, connect, held};

/// Waits until the program has sent so many messages.
#[track_caller]
fn await_messages(server: &Server, number: usize) -> Vec<Value> {
    let events = await_events(server, "message", number);
    events.into_iter().filter(|event| event["event"] == "message").map(|event| event["message"].clone()).collect()
}

/// A cluster of a program that has no ready line yet; killed when dropped.
struct Unready(std::process::Child);

impl Unready {
    fn start(args: &[&str], events: &str) -> Unready {
        let mut command = Command::new(CLUSTER);
        command.args(["--events", events]).args(args).stdin(Stdio::null());
        Unready(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("cargo has built it"))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }
}

impl Drop for Unready {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
        let ended = poll_until(FOREVER, || self.0.try_wait().unwrap());
        let _ = self.0.kill();
        let _ = self.0.wait();
        assert!(std::thread::panicking() || ended.is_some_and(|status| status.success()), "{ended:?}");
    }
}

#[track_caller]
fn await_in_file(path: &str, event: &str, times: usize) -> Vec<Value> {
    let found = poll_until(FOREVER, || {
        let events = events_in(&std::fs::read_to_string(path).ok()?);
        (count(&events, event) >= times).then_some(events)
    });
    found.unwrap_or_else(|| panic!("{times} {event:?} expected: {:?}", std::fs::read_to_string(path)))
}

#[test]
fn a_worker_that_never_listens_lives_and_is_replaced_by_a_reload() {
    let scratch = TempFolder::new("consumer");
    let events = scratch.file("events");
    let flags = ["--workers", "2", "--listen-timeout", "100ms", "--max-restarts", "0", "--", "sleep", "600"];
    let cluster = Unready::start(&flags, &events);
    let told = await_in_file(&events, "not-listening", 2);
    assert_eq!((count(&told, "fork"), count(&told, "exit")), (2, 0), "{told:?}");
    let what = told.iter().find(|event| event["event"] == "not-listening").unwrap()["what"].as_str().unwrap();
    assert_eq!(what, "it does not listen after 100ms (--listen-timeout); it lives on");
    cluster.signal(Signal::SIGHUP);
    let told = await_in_file(&events, "reloaded", 1);
    assert_eq!((count(&told, "fork"), count(&told, "exit"), count(&told, "reload-failed")), (4, 2, 0), "{told:?}");
}

#[test]
fn a_worker_that_listens_late_is_waited_for() {
    if !has_node() {
        return;
    }
    let late = "setTimeout(() => require('node:http').createServer((_, response) => response.end('',
        () => process.send({ port: process.debugPort }))).listen(0, '127.0.0.1'), 600)";
    let server = start_with(&["--workers", "2", "--listen-timeout", "100ms"], &["node", "-e", late, "--"]);
    held(served_within(server.addr, FOREVER));
    let events = await_events(&server, "listening", 2);
    assert_eq!((count(&events, "not-listening"), count(&events, "exit")), (2, 0), "{events:?}");
    assert_eq!(server.processes().len(), 3);
}

#[test]
fn a_cluster_of_which_one_worker_listens_is_ready_and_keeps_the_others() {
    if !has_node() {
        return;
    }
    let some = "if (process.env.WORKER_ID === '1') require('node:http').createServer((_, response) => response.end(''))
        .listen(0, '127.0.0.1'); else setInterval(() => {}, 1000);";
    // Long enough for Node to start: the successor of the one that listens has to listen within it.
    let server = start_with(
        &["--workers", "2", "--listen-timeout", "3s", "--kill-timeout", "200ms"],
        &["node", "-e", some, "--"],
    );
    held(served_within(server.addr, FOREVER));
    server.signal(Signal::SIGHUP);
    let events = await_events(&server, "reloaded", 1);
    assert_eq!(count(&events, "reload-failed"), 0, "{events:?}");
    held(served_within(server.addr, FOREVER));
    assert_eq!(server.processes().len(), 3);
}

#[test]
fn each_worker_has_an_inspector_on_the_next_port() {
    if !has_node() {
        return;
    }
    let program = "process.send({ port: process.debugPort });
        require('node:http').createServer((_, response) => response.end('')).listen(0, '127.0.0.1')";
    let env = ["--env", "NODE_OPTIONS=--inspect=127.0.0.1:49229"];
    for (flags, node, first) in [(&env[..], &["node"][..], 49230), (&[], &["node", "--inspect=127.0.0.1:49329"], 49330)]
    {
        let program = [node, &["-e", program, "--"]].concat();
        let server = start_with(&[&["--workers", "2"], flags].concat(), &program);
        let ports: BTreeSet<u64> =
            await_messages(&server, 2).iter().map(|message| message["port"].as_u64().unwrap()).collect();
        assert_eq!(ports, BTreeSet::from([first, first + 1]));
    }
}

#[test]
fn an_abstract_unix_socket_is_served_to_nodes_clients() {
    if !has_node() {
        return;
    }
    let scratch = TempFolder::new("abstract");
    let events = scratch.file("events");
    let name = format!("\\0acceptlab-{}", std::process::id());
    let program = format!("require('node:net').createServer((client) => client.end('hello')).listen('{name}')");
    let _cluster = Unready::start(&["--workers", "2", "--", "node", "-e", &program, "--", "x"], &events);
    let told = await_in_file(&events, "listening", 2);
    let listening = told.iter().find(|event| event["event"] == "listening").unwrap();
    assert_eq!(listening["address"], format!("unix:@acceptlab-{}", std::process::id()));
    let client = format!("require('node:net').connect('{name}').on('data', (data) => console.log(`${{data}}`))");
    let output = Command::new("node").args(["-e", &client]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n", "{output:?}");
}

#[test]
fn an_address_that_is_closed_and_wanted_again_in_one_tick_is_listened_on() {
    if !has_node() {
        return;
    }
    let again = "const http = require('node:http'), answer = (_, response) => response.end('again');
        const [a, b, c] = [1, 2, 3].map(() => http.createServer(answer));
        a.listen(0, '127.0.0.1', () => {
          const { port } = a.address();
          b.on('error', (error) => {
            process.send({ refused: error.code });
            a.close();
            c.listen(port, '127.0.0.1', () => process.send({ listens: true }));
          }).listen(port, '127.0.0.1');
        });";
    for schedule in ["rr", "none"] {
        let server = start_with(&["--workers", "1", "--schedule", schedule], &["node", "-e", again, "--"]);
        let messages = await_messages(&server, 2);
        assert_eq!(messages[0]["refused"], "EADDRINUSE", "{schedule}");
        assert_eq!(messages[1]["listens"], true, "{schedule}");
        assert_eq!(held(served_within(server.addr, FOREVER)).body, b"again");
    }
}

#[test]
fn node_without_a_file_gets_a_line_of_advice() {
    if !has_node() {
        return;
    }
    let program = "require('node:http').createServer().listen(0, '127.0.0.1')";
    let scratch = TempFolder::new("advice");
    let events = scratch.file("events");
    let _cluster = Unready::start(&["--workers", "1", "--max-restarts", "99999", "--", "node", "-e", program], &events);
    let told = await_in_file(&events, "advice", 1);
    let what = told.iter().find(|event| event["event"] == "advice").unwrap()["what"].as_str().unwrap();
    assert!(what.contains("put the program into a file: cluster -- node FILE"), "{what}");
}

/// Each of two workers takes one connection at a time; the third client waits, and costs no CPU.
#[test]
fn clients_that_every_worker_refuses_wait_whatever_the_policy() {
    if !has_node() {
        return;
    }
    let program = "const server = require('node:http').createServer((_, response) => response.end('ok'));
        server.maxConnections = 1; server.listen(0, '127.0.0.1');";
    for policy in ["sticky", "acknowledged", "least-connections"] {
        let mut server = start_with(&["--workers", "2", "--policy", policy], &["node", "-e", program, "--"]);
        let master = server.processes()[0];
        let mut holders: Vec<_> = (0..2).map(|_| connect(&server)).collect();
        for holder in &mut holders {
            held(holder.send(GET));
            answer(holder);
        }
        let mut waiting = connect(&server);
        held(waiting.send(GET));
        let before = master.cpu_time();
        let turned_away = poll_until(FOREVER, || {
            let passed = Process::find(master.pid)?.cpu_time() - before;
            // 40 refusals at 20 a second; 44,503 in 4 s were seen where the choice did not wait.
            std::thread::sleep(Duration::from_secs(2));
            Some(passed)
        });
        let spent = master.cpu_time() - before;
        assert!(turned_away.is_some() && spent < Duration::from_millis(200), "{policy}: {spent:?}");
        drop(holders);
        answer(&mut waiting);
        let report = held(server.stop()).cluster.unwrap();
        assert!(report.returned < 300, "{policy}: {}", report.returned);
    }
}

#[test]
fn a_variable_may_have_any_bytes_and_a_wrong_one_is_refused_with_its_option() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let bytes = OsStr::from_bytes(b"WHO=\xff");
    let run = |value: &OsStr| {
        let mut command = Command::new(CLUSTER);
        command.args(["--workers", "1", "--max-restarts", "0", "--env"]).arg(value);
        command.args(["--", "sh", "-c", "printf %s $WHO | od -An -tx1; exit 1"]).output().unwrap()
    };
    let said = run(bytes).stderr;
    assert!(String::from_utf8_lossy(&said).contains("worker 0:  ff"), "{}", String::from_utf8_lossy(&said));
    let refused = run(OsStr::from_bytes(b"\xff"));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2));
    assert!(said.contains("--env <NAME=VALUE>") && said.contains("write it like PORT=8080"), "{said}");
}

#[test]
fn two_workers_of_a_program_that_listens_by_itself_live() {
    if !has_node() {
        return;
    }
    let scratch = TempFolder::new("by-itself");
    let events = scratch.file("events");
    let program = "require('node:http').createServer().listen({ port: 0, host: '127.0.0.1', exclusive: true })";
    let flags = ["--workers", "2", "--listen-timeout", "100ms", "--max-restarts", "0", "--"];
    let _cluster = Unready::start(&[&flags[..], &["node", "-e", program, "--", "x"]].concat(), &events);
    let told = await_in_file(&events, "not-listening", 2);
    assert_eq!(count(&told, "exit"), 0, "{told:?}");
}

#[test]
fn a_second_port_later_is_served_too() {
    if !has_node() {
        return;
    }
    let program = "const http = require('node:http'), answer = (_, response) => response.end('');
        http.createServer(answer).listen(0, '127.0.0.1', () => setTimeout(() => {
          const second = http.createServer(answer).listen(0, '127.0.0.1', () => process.send(second.address()));
        }, 300));";
    let server = start_with(&["--workers", "2", "--listen-timeout", "100ms"], &["node", "-e", program, "--"]);
    let port = await_messages(&server, 2)[0]["port"].as_u64().unwrap() as u16;
    held(served_within(([127, 0, 0, 1], port).into(), FOREVER));
    held(served_within(server.addr, FOREVER));
}
