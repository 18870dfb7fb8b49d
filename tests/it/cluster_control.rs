//! `cluster ctl` and the control socket: what it does, and which clients cannot disturb it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output};
use std::time::Duration;

use acceptlab::lab::check::client::{GET, served_within};
use acceptlab::lab::check::server::{STOP_WITHIN, Server};
use acceptlab::lab::observe::processes::poll_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;

use crate::cluster::{CLUSTER, await_events, has_node, run, start_with};
use crate::support::{FOREVER, Needs, Ordinary, TempFolder, answer, connect, held, inconclusive, load};

const PROGRAM: &str = env!("CARGO_BIN_EXE_event-driven");

/// Reports the messages it receives, and sends as many bytes as it is asked to.
const TALKER: &str = r#"
require('node:http').createServer((request, response) => response.end('')).listen(0, '127.0.0.1');
process.on('message', (message) => {
  if (message.say) process.send('s'.repeat(message.say));
  else process.send({ id: Number(process.env.WORKER_ID), heard: message.text.length });
});
"#;

/// Where a cluster is controlled. In a folder of its own, since a master locks the folder while it starts: of two that
/// start together in one folder the second is refused.
struct Socket {
    path: String,
    _folder: TempFolder,
}

impl Socket {
    fn new(name: &str) -> Socket {
        let folder = TempFolder::new(name);
        Socket { path: folder.file("control.sock"), _folder: folder }
    }

    fn ctl(&self, order: &[&str]) -> Output {
        let args = [&["ctl", "--control", &self.path], order].concat();
        Command::new(CLUSTER).args(args).output().expect("cargo has built it")
    }

    #[track_caller]
    fn done(&self, order: &[&str]) -> String {
        let output = self.ctl(order);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn status(&self) -> Value {
        serde_json::from_str(&self.done(&["status", "--format", "json"])).unwrap()
    }

    /// The process that is this worker.
    #[track_caller]
    fn pid(&self, worker: usize) -> i32 {
        self.status()["workers"][worker]["pid"].as_i64().expect("it is there") as i32
    }

    /// A client that sends these bytes: what it receives until the end.
    fn say(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(FOREVER)).unwrap();
        // It may have been left before it has sent all.
        let _ = stream.write_all(bytes);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        String::from_utf8(said).unwrap()
    }
}

#[track_caller]
fn start(socket: &Socket, flags: &[&str]) -> Server {
    start_with(&[&["--workers", "2", "--control", &socket.path], flags].concat(), &[PROGRAM])
}

#[test]
fn a_cluster_is_asked_for_its_status_reloaded_scaled_and_stopped() {
    let socket = Socket::new("orders");
    let mut server = start(&socket, &[]);
    let mode = fs::metadata(&socket.path).unwrap();
    assert!(mode.file_type().is_socket() && mode.permissions().mode() & 0o777 == 0o600);
    let table = socket.done(&["status"]);
    assert_eq!(table.matches("serving").count(), 2, "{table}");
    assert!(table.contains(&server.addr.to_string()), "{table}");

    socket.done(&["reload"]);
    let status = socket.status();
    let ids: Vec<u64> =
        status["workers"].as_array().unwrap().iter().map(|worker| worker["unique_id"].as_u64().unwrap()).collect();
    assert_eq!((ids, status["restart_counts"]["reloads"].as_u64()), (vec![3, 4], Some(1)));

    socket.done(&["scale", "4"]);
    let serving = |wanted: usize| {
        poll_until(FOREVER, || {
            let status = socket.status();
            let workers = status["workers"].as_array().unwrap().clone();
            let serving = workers.iter().filter(|worker| worker["state"] == "serving").count();
            (serving == wanted && workers.len() == wanted).then_some(())
        })
    };
    assert!(serving(4).is_some(), "{}", socket.status());
    let report = load(server.addr, &["--connections", "8", "--requests-per-connection", "1", "--requests", "200"]);
    assert_eq!((report.workers.len(), report.errors.total()), (4, 0));
    socket.done(&["scale", "1"]);
    assert!(serving(1).is_some(), "{}", socket.status());

    socket.done(&["stop"]);
    let report = held(held(server.ended(STOP_WITHIN)).report());
    assert_eq!(report.workers.len(), 4);
    assert!(!fs::exists(&socket.path).unwrap());
}

#[test]
fn a_reload_that_is_abandoned_is_a_failure_with_its_reason() {
    let socket = Socket::new("abandoned");
    let folder = TempFolder::new("abandoned");
    let program = folder.file("program.sh");
    fs::write(&program, format!("exec {PROGRAM} \"$@\"\n")).unwrap();
    let server = start_with(&["--workers", "1", "--control", &socket.path], &["sh", &program]);
    fs::write(&program, "exit 1\n").unwrap();
    let output = socket.ctl(&["reload"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("abandoned: the new worker does not serve"), "{said}");
    held(served_within(server.addr, FOREVER));
}

#[test]
fn garbage_and_silence_on_the_control_socket_do_no_harm() {
    let socket = Socket::new("hostile");
    let server = start(&socket, &[]);
    let silent: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(&socket.path).unwrap()).collect();
    for garbage in [
        &b"no json\n"[..],
        b"{\"do\":\"nothing\"}\n",
        b"{\"do\":\"scale\",\"workers\":-1}\n",
        b"{\"do\":\"scale\",\"workers\":0}\n",
        b"{\"do\":\"scale\",\"workers\":1000000}\n",
        b"\xff\xfe\n",
        b"\n",
    ] {
        let said = socket.say(garbage);
        assert!(said.starts_with("{\"error\":") && said.ends_with("\"ok\":false}\n"), "{said}");
    }
    let endless = vec![b'x'; 4 << 20];
    assert!(socket.say(&endless).len() < 1000);
    let status = socket.status();
    let workers = status["workers"].as_array().unwrap();
    assert!(workers.len() == 2 && workers.iter().all(|worker| worker["state"] == "serving"), "{status}");
    held(served_within(server.addr, FOREVER));
    drop(silent);
}

#[test]
fn a_cluster_obeys_its_own_user_and_root_alone() {
    if !geteuid().is_root() {
        return inconclusive(Needs::Privilege("root"), "only root can become another user");
    }
    let Some(other) = Ordinary::new(CLUSTER) else { return };
    let socket = Socket::new("owner");
    let server = start(&socket, &[]);
    // Even where the file lets him in.
    fs::set_permissions(&socket.path, fs::Permissions::from_mode(0o666)).unwrap();
    let output = other.command().args(["ctl", "--control", &socket.path, "stop"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("belongs to another user"), "{said}");
    held(served_within(server.addr, FOREVER));
}

#[test]
fn a_client_that_asks_for_a_reload_and_leaves_does_not_stop_it() {
    let socket = Socket::new("leaves");
    let server = start(&socket, &[]);
    let mut client = UnixStream::connect(&socket.path).unwrap();
    client.write_all(b"{\"do\":\"reload\"}\n").unwrap();
    await_events(&server, "reload", 1);
    drop(client);
    await_events(&server, "reloaded", 1);
}

#[test]
fn a_stale_socket_is_replaced_and_a_living_one_or_another_file_is_not() {
    let socket = Socket::new("stale");
    drop(UnixListener::bind(&socket.path).unwrap());
    let mut server = start(&socket, &[]);
    let refused = |why: &str| {
        let output = run(&["--control", &socket.path, "--", "true"]);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(why), "{said}");
    };
    refused("another cluster listens there");
    held(server.stop());
    fs::write(&socket.path, "precious").unwrap();
    refused("a file of another kind");
    assert_eq!(fs::read(&socket.path).unwrap(), b"precious");
    let nowhere = run(&["--control", "/no/such/folder/socket", "--", "true"]);
    assert_eq!(nowhere.status.code(), Some(1));
}

#[test]
fn ctl_without_a_cluster_says_what_to_do_to_machines_too() {
    let socket = Socket::new("nobody");
    for (format, told) in [("text", false), ("json", true)] {
        let output = socket.ctl(&["status", "--format", format]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("is a cluster running with this --control"));
        let line = serde_json::from_slice::<Value>(&output.stdout).ok();
        assert_eq!(line.map(|line| line["ok"].clone()), told.then_some(Value::Bool(false)), "{format}");
    }
}

#[test]
fn a_place_that_waits_for_its_next_worker_is_vacant_in_the_status() {
    let socket = Socket::new("vacant");
    let server = start(&socket, &["--backoff", "30s"]);
    let pid = socket.pid(1);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    await_events(&server, "exit", 1);
    let status = socket.status();
    let states: Vec<&Value> = (0..2).map(|worker| &status["workers"][worker]["state"]).collect();
    assert_eq!(states, ["serving", "vacant"], "{status}");
    assert!(socket.done(&["status"]).contains("vacant"));
}

#[test]
fn the_status_of_a_program_that_was_given_up_counts_the_workers_left() {
    let socket = Socket::new("left");
    let server = start(&socket, &["--max-restarts", "0"]);
    let pid = socket.pid(1);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    await_events(&server, "giveup", 1);
    let exited = poll_until(FOREVER, || (!socket.status().to_string().contains(&pid.to_string())).then_some(()));
    assert!(exited.is_some());
    let said = socket.done(&["status"]);
    assert!(said.starts_with("GIVEN UP: 1 of 2 workers are left"), "{said}");
}

#[test]
fn a_client_that_waits_for_a_reload_learns_which_worker_was_killed() {
    let socket = Socket::new("forced");
    let flags = ["--workers", "1", "--control", &socket.path, "--kill-timeout", "300ms"];
    let _server = start_with(&flags, &[PROGRAM]);
    let pid = socket.pid(0);
    let _hung = crate::dispatch::Stopped::new(pid);
    let output = socket.ctl(&["reload"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("worker 0: the old one has not left in time (--kill-timeout), and is killed"), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "workers replaced: 1, killed: 1\n");
}

#[test]
fn a_program_without_its_dashes_is_reminded_of_them() {
    let output = run(&["--workers", "2", "event-driven"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("come after `--`: cluster -- event-driven"), "{said}");
}

#[test]
fn messages_of_any_size_go_both_ways_and_block_nothing() {
    if !has_node() {
        return;
    }
    let socket = Socket::new("messages");
    let flags = ["--workers", "2", "--control", &socket.path];
    let server = start_with(&flags, &["node", "-e", TALKER, "--"]);
    let text = "t".repeat(900_000);
    socket.done(&["send", &format!("{{\"say\":{}}}", 5 << 20)]);
    let request = format!("{{\"do\":\"send\",\"worker\":1,\"message\":{{\"text\":\"{text}\"}}}}\n");
    assert!(socket.say(request.as_bytes()).contains("\"ok\":true"));
    let events = await_events(&server, "message", 3);
    let messages: Vec<&Value> = events.iter().filter(|event| event["event"] == "message").collect();
    let bytes = |event: &&&Value| event["bytes"].as_u64() == Some((5 << 20) + 2);
    assert_eq!(messages.iter().filter(bytes).count(), 2, "{messages:?}");
    let heard = messages.iter().find(|event| event["message"]["heard"] == 900_000).expect("it was heard");
    assert_eq!(heard["worker"], 1);
}

#[test]
fn a_worker_that_does_not_read_is_sent_no_more_than_a_bound_and_the_others_go_on() {
    let socket = Socket::new("unread");
    let server = start(&socket, &["--heartbeat", "60s", "--policy", "first-free"]);
    let worker = socket.pid(0);
    let hung = crate::dispatch::Stopped::new(worker);
    let text = "t".repeat(900_000);
    let request = format!("{{\"do\":\"send\",\"worker\":0,\"message\":\"{text}\"}}\n");
    let refused = (0..200).find(|_| socket.say(request.as_bytes()).contains("does not read"));
    assert!(refused.is_some_and(|sent| sent > 10), "{refused:?}");
    // The first is the one that hangs; it holds one, and so the next is not for it.
    let mut stuck = connect(&server);
    held(stuck.send(GET));
    assert_eq!(held(held(served_within(server.addr, FOREVER)).worker()), 1);
    drop(hung);
    answer(&mut stuck);
}

/// What waits behind something that the worker has to acknowledge must not keep its acknowledgement from being heard.
#[test]
fn a_worker_that_was_sent_much_while_it_hung_is_well_again_when_it_lives() {
    let socket = Socket::new("much");
    let server = start_with(&["--workers", "1", "--control", &socket.path, "--heartbeat", "50ms"], &[PROGRAM]);
    let worker = socket.pid(0);
    let hung = crate::dispatch::Stopped::new(worker);
    await_events(&server, "hang", 1);
    let request = format!("{{\"do\":\"send\",\"message\":\"{}\"}}\n", "t".repeat(900_000));
    assert!(socket.say(request.as_bytes()).contains("\"ok\":true"));
    drop(hung);
    held(served_within(server.addr, FOREVER));
}

#[test]
fn a_message_in_the_librarys_own_words_is_refused() {
    let socket = Socket::new("words");
    let server = start(&socket, &[]);
    for cmd in ["NODE_HANDLE_ACK", "NODE_CLUSTER"] {
        let output = socket.ctl(&["send", &format!("{{\"cmd\":\"{cmd}\",\"act\":\"disconnect\"}}")]);
        assert_eq!(output.status.code(), Some(1));
    }
    socket.done(&["send", "{\"act\":\"disconnect\"}"]);
    held(served_within(server.addr, FOREVER));
    assert_eq!(socket.status()["restart_counts"]["forks"], 2);
}

#[test]
fn a_master_that_stops_answers_a_client_that_waits_for_a_reload() {
    let socket = Socket::new("stops");
    let mut server = start(&socket, &[]);
    let pid = socket.pid(0);
    let hung = crate::dispatch::Stopped::new(pid);
    let mut client = UnixStream::connect(&socket.path).unwrap();
    client.set_read_timeout(Some(FOREVER)).unwrap();
    client.write_all(b"{\"do\":\"reload\"}\n").unwrap();
    // The successor listens, and the old one does not hear that it is to go.
    await_events(&server, "listening", 3);
    server.signal(Signal::SIGTERM);
    let mut said = String::new();
    client.read_to_string(&mut said).unwrap();
    assert!(said.contains("the cluster stops"), "{said}");
    drop(hung);
    held(server.ended(STOP_WITHIN + Duration::from_secs(1)));
}
