//! What else than a port a Node program may listen on under `cluster`: a Unix socket, and a descriptor that the master
//! was started with. Without Node these tests are inconclusive.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout, Command, Stdio};

use acceptlab::lab::check::client::GET_AND_CLOSE;
use acceptlab::lab::observe::processes::{family, poll_until};
use acceptlab::report::ServerReport;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::{CLUSTER, has_node, run};
use crate::support::{FOREVER, TempFolder};

/// Says which worker it is, on whatever it is to listen on: `{"path": …}` or `{"fd": …}`.
const PROGRAM: &str = r#"
const answer = (request, response) => response.end(`worker ${process.env.WORKER_ID} pid ${process.pid}\n`);
require('node:http').createServer(answer).listen(JSON.parse(process.argv[1]));
"#;

/// A cluster of two, killed when dropped.
struct Cluster {
    child: Child,
    out: BufReader<ChildStdout>,
    /// What it said when it was ready.
    ready: String,
}

impl Cluster {
    /// With this as descriptor 3.
    fn start(schedule: &str, listen: &str, inherited: Stdio) -> Cluster {
        Cluster::start_program(schedule, PROGRAM, listen, inherited)
    }

    fn start_program(schedule: &str, program: &str, listen: &str, inherited: Stdio) -> Cluster {
        let script = "exec 3<&0 </dev/null; exec \"$0\" \"$@\"";
        let flags = ["--workers", "2", "--schedule", schedule, "--", "node", "-e", program, "--", listen];
        let mut command = Command::new("sh");
        command.args(["-c", script, CLUSTER]).args(flags).stdin(inherited);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        out.read_line(&mut ready).unwrap();
        Cluster { child, out, ready: ready.trim_end().to_owned() }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn workers(&self) -> BTreeSet<i32> {
        family(self.child.id() as i32).iter().skip(1).map(|process| process.pid).collect()
    }

    fn stop(mut self) -> ServerReport {
        self.signal(Signal::SIGTERM);
        serde_json::from_reader(&mut self.out).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the program is told to listen on.
fn at(path: &str) -> String {
    format!("{{\"path\":{path:?}}}")
}

/// What is answered on this connection: the last line says which worker it was.
#[track_caller]
fn ask(mut stream: impl Read + Write) -> String {
    stream.write_all(GET_AND_CLOSE).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    answer.lines().find(|line| line.starts_with("worker ")).expect("it says who it is").to_owned()
}

#[track_caller]
fn ask_at(path: &str) -> String {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(FOREVER)).unwrap();
    ask(stream)
}

#[test]
fn a_unix_socket_is_served_by_all_workers_survives_a_reload_and_goes_with_the_master() {
    if !has_node() {
        return;
    }
    for schedule in ["rr", "none"] {
        let folder = TempFolder::new("served");
        let socket = folder.file("socket");
        let cluster = Cluster::start(schedule, &at(&socket), Stdio::null());
        assert_eq!(cluster.ready, format!("ready unix:{socket}"));
        let before = cluster.workers();
        let answers = [ask_at(&socket), ask_at(&socket)];
        assert!(schedule == "none" || answers[0] != answers[1], "{answers:?}");
        cluster.signal(Signal::SIGHUP);
        let replaced = poll_until(FOREVER, || {
            ask_at(&socket);
            let now = cluster.workers();
            (now.len() == 2 && now.is_disjoint(&before)).then_some(now)
        });
        let answer = ask_at(&socket);
        let now = replaced.expect("both are replaced");
        assert!(now.iter().any(|pid| answer.ends_with(&format!(" pid {pid}"))), "{schedule}: {answer} {now:?}");
        let report = cluster.stop();
        assert_eq!((report.listen, fs::exists(&socket).unwrap()), (format!("unix:{socket}"), false));
    }
}

#[test]
fn a_unix_socket_of_another_process_is_a_taken_address_and_stays() {
    if !has_node() {
        return;
    }
    let folder = TempFolder::new("taken");
    let socket = folder.file("socket");
    let _theirs = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let listen = at(&socket);
    let output = run(&["--workers", "1", "--max-restarts", "0", "--", "node", "-e", PROGRAM, "--", &listen]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let line = format!("worker 0: listen {socket:?}: address already in use");
    assert!(said.contains(&line) && fs::exists(&socket).unwrap(), "{said}");
}

#[test]
fn a_descriptor_that_the_master_was_started_with_is_what_its_workers_serve() {
    if !has_node() {
        return;
    }
    for schedule in ["rr", "none"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // A client that comes before the cluster does is not lost.
        let connect = || {
            let stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(FOREVER)).unwrap();
            stream
        };
        let early = connect();
        let cluster = Cluster::start(schedule, r#"{"fd":3}"#, OwnedFd::from(listener).into());
        assert_eq!(cluster.ready, format!("ready {address}"));
        let before = [ask(early), ask(connect())];
        cluster.signal(Signal::SIGHUP);
        let replaced = poll_until(FOREVER, || (!before.contains(&ask(connect()))).then_some(()));
        assert!(replaced.is_some(), "{schedule}");
        assert_eq!(cluster.stop().listen, address.to_string());
    }
}

#[test]
fn another_file_in_the_place_of_the_socket_is_left_alone() {
    if !has_node() {
        return;
    }
    let folder = TempFolder::new("replaced");
    let socket = folder.file("socket");
    let cluster = Cluster::start("rr", &at(&socket), Stdio::null());
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "theirs").unwrap();
    cluster.stop();
    assert_eq!(fs::read(&socket).unwrap(), b"theirs");
}

#[test]
fn a_unix_socket_is_for_everybody_where_the_program_says_so() {
    if !has_node() {
        return;
    }
    let folder = TempFolder::new("mode");
    let socket = folder.file("socket");
    let listen = format!("{{\"path\":{socket:?},\"readableAll\":true,\"writableAll\":true}}");
    let cluster = Cluster::start("rr", &listen, Stdio::null());
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o666, 0o666);
    ask_at(&socket);
    drop(cluster);
}

/// It may be asked for again, by a program that has closed it: it could not be opened anew.
#[test]
fn a_descriptor_that_was_closed_may_be_listened_on_again() {
    if !has_node() {
        return;
    }
    let again = r#"
const http = require('node:http');
const answer = (request, response) => response.end('worker again');
const first = http.createServer().listen({ fd: 3 }, () => {
  first.close();
  // The master closes what its workers have closed a tenth of a second later.
  setTimeout(() => http.createServer(answer).listen({ fd: 3 }), 400);
});
"#;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let _cluster = Cluster::start_program("rr", again, "null", OwnedFd::from(listener).into());
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(FOREVER)).unwrap();
    assert_eq!(ask(stream), "worker again");
}

#[test]
fn a_descriptor_that_is_not_a_socket_is_a_listen_that_fails() {
    if !has_node() {
        return;
    }
    for fd in ["3", "250"] {
        // Descriptor 3 is a file here, and 250 is none.
        let command =
            format!("exec {CLUSTER} --workers 1 --max-restarts 0 -- node -e \"$0\" -- '{{\"fd\":{fd}}}' 3</dev/null");
        let output = Command::new("sh").args(["-c", &command, PROGRAM]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("worker 0: listen on descriptor {fd}: ")), "{said}");
    }
}
