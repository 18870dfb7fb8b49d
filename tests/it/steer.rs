//! `lab steer` on servers that know nothing of it: who hangs gets no connection, and at the end, whatever end it is, the
//! group is as it was.

use std::cell::RefCell;
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

use acceptlab::lab::check::server::Server;
use acceptlab::lab::observe::processes::{Process, children, family, poll_until};
use acceptlab::lab::plan::command::ServerCommand;
use acceptlab::lab::program::{Program, Running, on_path};
use acceptlab::lab::run::contender::Contender;
use acceptlab::sys::descriptors::Descriptors;
use acceptlab::sys::foreign_listener::{detach_selector, duplicate};
use acceptlab::sys::pidfd::PidFd;
use acceptlab::sys::sock_diag::listeners;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, geteuid};
use serde_json::Value;

use crate::support::{FOREVER, Needs, Ordinary, TempFolder, copy_program, inconclusive, kind, load, start};

pub const LAB: &str = env!("CARGO_BIN_EXE_lab");

/// A running `lab steer` and the events that it has printed.
pub struct Steer {
    pub running: Running,
    said: RefCell<String>,
}

impl Steer {
    /// From the moment when its program is attached.
    #[track_caller]
    pub fn begin(program: Program, words: &[&str]) -> Steer {
        let running = program.launch(&[words, &["--format", "json"]].concat()).unwrap();
        let mut steer = Steer { running, said: RefCell::default() };
        let begun = poll_until(FOREVER, || (steer.has("steering") || !steer.is_alive()).then_some(()));
        assert!(begun.is_some() && steer.is_alive(), "{}", steer.running.failure("did not begin"));
        steer
    }

    #[track_caller]
    pub fn of(server: &Server, select: &str) -> Steer {
        Steer::begin(lab(), &["steer", &server.addr.to_string(), "--select", select])
    }

    fn is_alive(&self) -> bool {
        Process::find(self.running.pid()).is_some()
    }

    pub fn events(&self) -> Vec<Value> {
        *self.said.borrow_mut() += &self.running.unread_stdout();
        self.said.borrow().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn has(&self, event: &str) -> bool {
        self.events().iter().any(|found| found["event"] == event)
    }

    #[track_caller]
    pub fn await_event(&self, event: &str) -> Value {
        let found = poll_until(FOREVER, || self.events().into_iter().rfind(|found| found["event"] == event));
        found.unwrap_or_else(|| panic!("no {event} in {:?}", self.events()))
    }

    /// Until these are the processes of the group that it has said last.
    #[track_caller]
    fn await_pids<const N: usize>(&self, pids: [Option<i32>; N]) {
        let pids = Value::from(pids.map(Value::from).to_vec());
        let are_last = || self.events().iter().rfind(|event| event["pids"].is_array()).map(|last| last["pids"] == pids);
        assert!(poll_until(FOREVER, || are_last().filter(|are| *are)).is_some(), "{:?}", self.events());
    }

    /// Ctrl-C, and the exit status.
    pub fn end(&mut self) -> Option<i32> {
        self.running.signal(Signal::SIGINT);
        self.running.await_exit(FOREVER).unwrap().unwrap().code()
    }
}

fn lab() -> Program {
    Program::new(&[LAB.to_string()])
}

/// What the servers in Python have in common.
const LISTENER: &str = "
import socket
def listener(port):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(('127.0.0.1', port))
    s.listen(100)
    return s
";

/// The command of such a server; `None`, and the test inconclusive, where there is no Python.
fn python(server: &str) -> Option<[String; 3]> {
    if on_path("python3").is_none() {
        inconclusive(Needs::Tool("python3"), "not installed");
        return None;
    }
    Some(["python3", "-c", &(LISTENER.to_string() + server)].map(String::from))
}

/// A listener of the server, taken as `lab steer` takes it; the test has started the server, so Yama allows it.
fn listener_of(server: &Server) -> OwnedFd {
    let own: Vec<u32> = listeners().unwrap().iter().filter(|l| l.ip() == Some(server.addr)).map(|l| l.inode).collect();
    let found = family(server.pid()).into_iter().find_map(|process| {
        let descriptors = Descriptors::of(process.pid)?;
        let is_one = |number: &i32| descriptors.socket(*number).is_some_and(|inode| own.contains(&inode));
        let number = (0..1000).find(is_one)?;
        duplicate(&PidFd::open(Pid::from_raw(process.pid)).unwrap(), number).ok()
    });
    found.expect("it listens")
}

/// Whether the group has no program; if it has one, it has none afterwards.
fn has_no_program(server: &Server) -> bool {
    detach_selector(listener_of(server)) == Err(Errno::ENOENT)
}

pub fn ask(server: &Server, connections: u32) -> u64 {
    let connections = connections.to_string();
    let flags = ["--connections", "50", "--requests-per-connection", "1", "--rate", "500", "--timeout", "2s"];
    load(server.addr, &[&flags[..], &["--requests", &connections]].concat()).errors.timeout
}

/// Of a server with a worker that is stopped.
#[track_caller]
fn leaves_a_stopped_worker_out(select: &str) {
    let server = start("reuseport", &["--workers", "4"]);
    let mut steer = Steer::of(&server, select);
    let worker = children(server.pid())[2];
    assert!(worker.stop(FOREVER));
    let out = steer.await_event("out");
    assert_eq!((&out["pid"], &out["why"]), (&worker.pid.into(), &"it is stopped by a signal".into()), "{out}");
    assert_eq!(ask(&server, 200), 0, "nobody may be sent to it");
    let queued = || listeners().unwrap().iter().filter(|l| l.ip() == Some(server.addr)).map(|l| l.queued).sum::<u32>();
    assert_eq!(queued(), 1, "only lab's own connection, which shows that its number is right");
    assert!(worker.resume(FOREVER));
    assert_eq!(steer.await_event("back")["pid"], worker.pid);
    assert_eq!(steer.end(), Some(0));
    assert!(has_no_program(&server));
}

#[test]
fn a_stopped_worker_gets_nothing_until_it_goes_on_and_the_group_is_as_it_was() {
    ["live-set", "least-loaded"].iter().for_each(|select| leaves_a_stopped_worker_out(select));
}

/// Of a server whose workers are all stopped.
#[track_caller]
fn chooses_all_when_all_are_out(select: &str) {
    let server = start("reuseport", &["--workers", "2"]);
    let mut steer = Steer::of(&server, select);
    let workers = children(server.pid());
    assert!(workers.iter().all(|worker| worker.stop(FOREVER)));
    steer.await_event("all-out");
    assert!(workers.iter().all(|worker| worker.resume(FOREVER)));
    let back = || steer.events().iter().filter(|event| event["event"] == "back").count();
    assert!(poll_until(FOREVER, || (back() >= 2).then_some(())).is_some(), "{:?}", steer.events());
    assert_eq!((ask(&server, 50), steer.end()), (0, Some(0)));
}

#[test]
fn when_all_are_out_all_get_connections_and_it_is_said() {
    ["live-set", "least-loaded"].iter().for_each(|select| chooses_all_when_all_are_out(select));
}

/// Of five workers two are left that are stopped, and nobody knows which number each of them has.
#[track_caller]
fn with_two_unknown() -> (Server, Steer, Vec<Process>) {
    let server = start("reuseport", &["--workers", "5"]);
    let steer = Steer::of(&server, "live-set");
    let workers = children(server.pid());
    let is_out = |pid| steer.events().iter().any(|event| event["event"] == "out" && event["pid"] == pid);
    for stopped in &workers[3..] {
        assert!(stopped.stop(FOREVER));
        assert!(poll_until(FOREVER, || is_out(stopped.pid).then_some(())).is_some(), "{:?}", steer.events());
    }
    // Two die between two looks, the second one last: the stopped ones change places, and cannot say it.
    let us = Process::find(steer.running.pid()).unwrap();
    assert!(us.stop(FOREVER));
    for (worker, left) in [(&workers[2], 4), (&workers[1], 3)] {
        worker.kill();
        let sockets = || listeners().unwrap().iter().filter(|l| l.ip() == Some(server.addr)).count();
        assert!(poll_until(FOREVER, || (sockets() == left).then_some(())).is_some());
    }
    us.signal(Signal::SIGCONT);
    steer.await_pids([Some(workers[0].pid), None, None]);
    (server, steer, workers)
}

#[test]
fn a_number_that_nobody_has_confirmed_is_not_taken_for_known() {
    let (server, mut steer, workers) = with_two_unknown();
    assert!(workers[3].resume(FOREVER));
    // Its number is known as soon as it has accepted, and that of the other with it.
    steer.await_pids([0, 3, 4].map(|it| Some(workers[it].pid)));
    assert_eq!(ask(&server, 200), 0, "{:?}", steer.events());
    assert!(workers[4].resume(FOREVER));
    assert_eq!(steer.end(), Some(0));
}

#[test]
fn a_worker_stays_out_when_one_leaves_whose_number_is_not_known() {
    let (_server, mut steer, workers) = with_two_unknown();
    let outs = || steer.events().iter().filter(|event| event["event"] == "out").count();
    let before = outs();
    workers[4].kill();
    steer.await_pids([0, 3].map(|it| Some(workers[it].pid)));
    assert!(workers[3].resume(FOREVER));
    let is_back = || steer.events().iter().any(|it| it["event"] == "back" && it["pid"] == workers[3].pid);
    assert!(poll_until(FOREVER, || is_back().then_some(())).is_some(), "{:?}", steer.events());
    assert_eq!(outs(), before, "{:?}", steer.events());
    assert_eq!(steer.end(), Some(0));
}

#[test]
fn a_socket_that_leaves_while_numbers_are_asked_is_no_error() {
    let server = start("reuseport", &["--workers", "4"]);
    let workers = children(server.pid());
    // As long as it does not answer, they are asked.
    assert!(workers[3].stop(FOREVER));
    let running =
        lab().launch(&["steer", &server.addr.to_string(), "--select", "live-set", "--replace", "--format", "json"]);
    let mut steer = Steer { running: running.unwrap(), said: RefCell::default() };
    let is_asked = || listeners().unwrap().iter().any(|l| l.ip() == Some(server.addr) && l.queued > 0);
    assert!(poll_until(FOREVER, || is_asked().then_some(())).is_some());
    workers[1].kill();
    let begun = steer.await_event("steering");
    let is_too_late = begun["pids"].as_array().map(Vec::len) == Some(4);
    let all = if is_too_late { steer.await_event("changed") } else { begun };
    let pids = all["pids"].as_array().unwrap();
    assert!(pids.len() == 3 && pids.iter().all(|pid| *pid != workers[1].pid && !pid.is_null()), "{all}");
    assert!(workers[3].resume(FOREVER));
    assert_eq!((ask(&server, 50), steer.end()), (0, Some(0)));
    if is_too_late {
        inconclusive(Needs::QuietMachine, "all numbers were known when the worker was killed");
    }
}

#[test]
fn every_way_to_choose_serves_all_and_takes_its_program_away() {
    let server = start("reuseport", &["--workers", "3"]);
    for select in ["cpu", "random", "live-set", "least-loaded", "hash"] {
        let mut steer = Steer::of(&server, select);
        assert_eq!((ask(&server, 50), steer.end()), (0, Some(0)), "{select}");
        assert!(has_no_program(&server), "{select}");
    }
}

#[test]
fn after_sigkill_the_watchdog_gives_the_group_back() {
    for select in ["random", "least-loaded"] {
        let server = start("reuseport", &["--workers", "2"]);
        let steer = Steer::of(&server, select);
        let watchdog = children(steer.running.pid());
        assert_eq!(watchdog.len(), 1);
        Process::find(steer.running.pid()).unwrap().kill();
        assert!(poll_until(FOREVER, || (!watchdog[0].is_alive()).then_some(())).is_some());
        assert!(has_no_program(&server), "{select}");
    }
}

#[test]
fn without_its_watchdog_it_gives_the_group_back_and_ends() {
    let server = start("reuseport", &["--workers", "2"]);
    let mut steer = Steer::of(&server, "random");
    children(steer.running.pid())[0].kill();
    assert_eq!(steer.running.await_exit(FOREVER).unwrap().unwrap().code(), Some(1));
    assert!(steer.running.unread_stderr().contains("the watchdog was killed"));
    assert!(has_no_program(&server));
}

#[test]
fn a_watchdog_that_is_killed_while_it_is_released_leaves_no_program() {
    let server = start("reuseport", &["--workers", "2"]);
    let mut steer = Steer::of(&server, "random");
    let watchdog = children(steer.running.pid())[0];
    assert!(watchdog.stop(FOREVER));
    steer.running.signal(Signal::SIGINT);
    // Its end of the socket pair is closed: it waits for the watchdog.
    let has_released = || Descriptors::of(steer.running.pid()).is_some_and(|open| open.sockets().next().is_none());
    assert!(poll_until(FOREVER, || has_released().then_some(())).is_some());
    watchdog.kill();
    assert_eq!(steer.running.await_exit(FOREVER).unwrap().unwrap().code(), Some(0));
    assert!(has_no_program(&server));
}

#[test]
fn a_dead_workers_queue_leaves_the_group_although_the_watchdog_had_a_duplicate() {
    let server = start("reuseport", &["--workers", "3"]);
    let mut steer = Steer::of(&server, "live-set");
    // The first is the one whose listener it took.
    for left in [2, 1] {
        children(server.pid())[0].kill();
        let is_smaller =
            || steer.events().last().is_some_and(|last| last["pids"].as_array().map(Vec::len) == Some(left));
        assert!(poll_until(FOREVER, || is_smaller().then_some(())).is_some(), "{:?}", steer.events());
        assert_eq!(ask(&server, 50), 0);
    }
    assert_eq!(steer.end(), Some(0));
    assert!(has_no_program(&server));
}

#[test]
fn it_ends_when_the_server_ends() {
    let mut server = start("reuseport", &["--workers", "2"]);
    let mut steer = Steer::of(&server, "least-loaded");
    server.stop().unwrap();
    assert_eq!(steer.running.await_exit(FOREVER).unwrap().unwrap().code(), Some(0));
    assert_eq!(steer.await_event("ended")["why"], "the server does not listen any more");
}

/// Two processes, each with a listener of its own, of which the one that is asked for /hang sleeps, and is not stopped.
const MAY_HANG: &str = "
import os, time
one = listener(0)
two = listener(one.getsockname()[1])
if os.fork():
    two.close()
    print('ready 127.0.0.1:%d' % one.getsockname()[1], flush=True)
else:
    one.close()
    one = two
while True:
    c, _ = one.accept()
    try:
        c.settimeout(5)
        head = c.recv(10000)
        if b'/hang' in head: time.sleep(2)
        body = b'handled by worker 0, pid %d' % os.getpid()
        if head: c.sendall(b'HTTP/1.1 200 OK\\r\\nX-Worker: 0\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n%s' % (len(body), body))
    except OSError: pass
    c.close()
";

#[test]
fn a_worker_that_does_not_accept_gets_nothing_until_it_does() {
    let Some(words) = python(MAY_HANG) else { return };
    let mut server = Program::new(&words).launch(&[]).unwrap();
    let address = server.await_ready(FOREVER).unwrap_or_else(|why| panic!("{why:?}"));
    let mut steer = Steer::begin(lab(), &["steer", &address, "--select", "live-set"]);
    let mut hangs = TcpStream::connect(&address).unwrap();
    hangs.write_all(b"GET /hang HTTP/1.1\r\n\r\n").unwrap();
    let url = address.parse().unwrap();
    let flags = ["--connections", "50", "--requests-per-connection", "1", "--rate", "100", "--timeout", "10s"];
    // Connections that come meanwhile find out that nobody accepts.
    let report = load(url, &[&flags[..], &["--requests", "200"]].concat());
    assert_eq!(report.errors.timeout, 0, "those that waited were served when it went on");
    assert_eq!(steer.await_event("out")["why"], "it does not accept");
    steer.await_event("back");
    assert_eq!(steer.end(), Some(0));
}

#[test]
fn a_reload_of_nginx_is_followed_and_costs_no_request() {
    if on_path("nginx").is_none() {
        return inconclusive(Needs::Contender("nginx"), "scripts/install_contenders.sh installs it");
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/contenders/nginx");
    let command = ServerCommand::from(format!("{script} reuseport --workers 2 --listen 127.0.0.1:0"));
    let contender = Contender::new().unwrap();
    let mut nginx = contender.program(&command).launch(&[]).unwrap();
    let address = contender.await_ready(&mut nginx, FOREVER).unwrap_or_else(|why| panic!("{why:?}"));
    let mut steer = Steer::begin(lab(), &["steer", &address, "--select", "live-set"]);
    let before: Vec<i32> = children(nginx.pid()).iter().map(|worker| worker.pid).collect();
    let flags = ["--connections", "50", "--requests-per-connection", "1", "--rate", "300", "--timeout", "10s"];
    let loaded = std::thread::scope(|scope| {
        let loaded = scope.spawn(|| load(address.parse().unwrap(), &[&flags[..], &["--requests", "600"]].concat()));
        nginx.signal(Signal::SIGHUP);
        let changed = steer.await_event("changed");
        let pids = changed["pids"].as_array().unwrap();
        assert!(pids.iter().any(|pid| !before.contains(&(pid.as_i64().unwrap_or(0) as i32))), "{changed}");
        loaded.join().unwrap()
    });
    assert_eq!((loaded.errors.timeout, loaded.lost.len()), (0, 0));
    // The workers of now are the ones that it looks at.
    let is_new = || {
        let steered = steer.events().last()?["pids"].as_array()?.iter().filter_map(Value::as_i64).collect::<Vec<_>>();
        let now: Vec<i64> = children(nginx.pid()).iter().map(|worker| worker.pid.into()).collect();
        (now.len() == 2 && now.iter().all(|pid| steered.contains(pid))).then_some(now[0] as i32)
    };
    let worker = Process::find(poll_until(FOREVER, is_new).expect("two new ones")).unwrap();
    assert!(worker.stop(FOREVER));
    assert_eq!(steer.await_event("out")["pid"], worker.pid);
    worker.resume(FOREVER);
    assert_eq!(steer.end(), Some(0));
    nginx.signal(Signal::SIGTERM);
    contender.await_end(&mut nginx, FOREVER).unwrap_or_else(|why| panic!("{why:?}"));
}

#[test]
fn a_command_is_started_steered_signalled_and_its_exit_status_is_ours() {
    let server = kind("reuseport").path;
    let words = ["steer", "--select", "live-set", "--", server, "--workers", "2", "--listen", "127.0.0.1:0"];
    let mut running = lab().launch(&words).unwrap();
    let address = running.await_ready(FOREVER).unwrap_or_else(|why| panic!("{why:?}"));
    let mut said = String::new();
    let is_steered = poll_until(FOREVER, || {
        said += &running.unread_stderr();
        said.contains("is steered by live-set: 2 sockets").then_some(())
    });
    assert!(is_steered.is_some(), "{said}");
    assert_eq!(load(address.parse().unwrap(), &["--requests", "10"]).errors.timeout, 0);
    running.signal(Signal::SIGTERM);
    let report = running.finish(FOREVER, |_| ()).unwrap_or_else(|why| panic!("{why:?}"));
    assert!(report.contains(r#""model":"reuseport""#), "{report}");
    let ended = Command::new(LAB).args(["steer", "--select", "cpu", "--", "sh", "-c", "exit 7"]).output().unwrap();
    assert_eq!(ended.status.code(), Some(7), "{ended:?}");
}

/// Three processes that wait in accept(2), each with a listener of its own; the last one is the parent.
const BLOCKING: &str = "
import os
s = listener(0)
port = s.getsockname()[1]
for _ in range(2):
    if not os.fork(): break
    s.close()
    s = listener(port)
while True:
    c, _ = s.accept()
    try: c.recv(100)
    except OSError: pass
    c.close()
";

/// A process with 2,100 listeners.
const MANY: &str = "
import resource, select
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
all, accepted, poll = [], [], select.epoll()
for _ in range(2100):
    s = listener(all[0].getsockname()[1] if all else 0)
    s.setblocking(False)
    poll.register(s, select.EPOLLIN)
    all.append(s)
numbered = {s.fileno(): s for s in all}
print('ready 127.0.0.1:%d' % all[0].getsockname()[1], flush=True)
while True:
    for number, _ in poll.poll(): accepted.append(numbered[number].accept())
";

#[test]
fn more_sockets_than_one_program_can_ask_for_are_asked_in_turns() {
    let Some(words) = python(MANY) else { return };
    let mut server = Program::new(&words).launch(&[]).unwrap();
    let address = server.await_ready(FOREVER).unwrap_or_else(|why| panic!("{why:?}"));
    let mut steer = Steer::begin(lab(), &["steer", &address, "--select", "random"]);
    steer.await_pids([Some(server.pid()); 2100]);
    assert_eq!(steer.end(), Some(0));
}

/// A master that opens both listeners, and starts its workers when a connection waits in one.
const FORKS_LATE: &str = "
import os, select
one = listener(0)
both = [one, listener(one.getsockname()[1])]
print('ready 127.0.0.1:%d' % one.getsockname()[1], flush=True)
select.select(both, [], [])
for own in both:
    if not os.fork():
        for other in both:
            if other is not own: other.close()
        while True:
            c, _ = own.accept()
            try: c.recv(100)
            except OSError: pass
            c.close()
while True: os.wait()
";

#[test]
fn workers_that_are_forked_while_numbers_are_asked_are_found() {
    let Some(words) = python(FORKS_LATE) else { return };
    let mut server = Program::new(&words).launch(&[]).unwrap();
    let address = server.await_ready(FOREVER).unwrap_or_else(|why| panic!("{why:?}"));
    let mut steer = Steer::begin(lab(), &["steer", &address, "--select", "live-set"]);
    let both = || <[Process; 2]>::try_from(children(server.pid())).ok();
    let workers = poll_until(FOREVER, both).expect("a connection has come");
    steer.await_pids(workers.map(|worker| Some(worker.pid)));
    assert!(workers[1].stop(FOREVER));
    assert_eq!(steer.await_event("out")["pid"], workers[1].pid);
    assert_eq!(steer.end(), Some(0));
}

/// Three processes with a listener each that accept nothing, and the last of them opens and closes others all the time.
const COME_AND_GO: &str = "
import os, time
s = listener(0)
port = s.getsockname()[1]
for _ in range(2):
    if os.fork(): break
    s.close()
    s = listener(port)
else:
    print('ready 127.0.0.1:%d' % port, flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        s = listener(port)
        time.sleep(0.01)
while True: os.wait()
";

#[test]
fn while_sockets_come_and_go_it_hears_signals_and_takes_no_program_for_absent() {
    let Some(words) = python(COME_AND_GO) else { return };
    let mut server = Program::new(&words).launch(&[]).unwrap();
    let address = server.await_ready(FOREVER).unwrap_or_else(|why| panic!("{why:?}"));
    let said = refused(&[&address]);
    assert!(said.contains("come and go") && said.contains("--replace"), "{said}");
    let mut steer = Steer::begin(lab(), &["steer", &address, "--select", "live-set", "--replace"]);
    assert_eq!(steer.await_event("steering")["pids"][0], Value::Null);
    assert_eq!(steer.end(), Some(0));
}

#[test]
fn of_a_command_the_watchdog_is_no_worker_although_it_has_a_listener() {
    let Some(command) = python(BLOCKING) else { return };
    let steer = ["steer", "--select", "live-set", "--format", "json", "--"];
    let mut running = lab().launch(&[&steer[..], &command.each_ref().map(String::as_str)].concat()).unwrap();
    let said = RefCell::new(String::new());
    let pids = |count: usize| {
        *said.borrow_mut() += &running.unread_stderr();
        let said = said.borrow();
        let mut events = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let last = events.rfind(|event| event["pids"].is_array())?;
        let pids: Option<Vec<i32>> = last["pids"].as_array()?.iter().map(|pid| Some(pid.as_i64()? as i32)).collect();
        pids.filter(|pids| pids.len() == count)
    };
    let begun = poll_until(FOREVER, || pids(3)).unwrap_or_else(|| panic!("{}", said.borrow()));
    // One that was forked: what is looked at afterwards has been looked for again.
    let is_child = |pid: &&i32| begun.iter().any(|parent| children(*parent).iter().any(|child| child.pid == **pid));
    let killed = begun.iter().find(is_child).unwrap();
    Process::find(*killed).unwrap().kill();
    let left = poll_until(FOREVER, || pids(2)).unwrap_or_else(|| panic!("{}", said.borrow()));
    assert!(left.iter().all(|pid| begun.contains(pid) && pid != killed), "{}", said.borrow());
    running.signal(Signal::SIGTERM);
    assert_eq!(running.await_exit(FOREVER).unwrap().unwrap().code(), Some(143));
    // The parent has ended; nobody else ends the other child.
    left.iter().filter_map(|pid| Process::find(*pid)).for_each(|child| child.kill());
}

#[test]
fn a_command_that_cannot_be_steered_is_ended_and_that_is_said() {
    let server = kind("tokio").path;
    let listen = ["--listen", "127.0.0.1:0", "--workers", "2", "--runtime", "per-core"];
    let words = [&["steer", "--select", "live-set", "--", server][..], &listen].concat();
    let output = Command::new(LAB).args(words).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("by threads") && said.ends_with("the command was ended (SIGTERM)\n"), "{said}");
}

#[test]
fn its_own_file_may_be_replaced_before_the_watchdog_is_started() {
    let folder = TempFolder::new("steer");
    let copy = folder.path().join("lab");
    copy_program(LAB, &copy);
    let script = format!("rm {}; exec {} --workers 2 --listen 127.0.0.1:0", copy.display(), kind("reuseport").path);
    let words = ["steer", "--select", "cpu", "--", "sh", "-c", &script];
    let mut running = Program::new(&[copy.display().to_string()]).launch(&words).unwrap();
    let mut said = String::new();
    let is_steered = poll_until(FOREVER, || {
        said += &running.unread_stderr();
        (said.contains("is steered by cpu") || running.has_ended()).then_some(())
    });
    assert!(is_steered.is_some() && said.contains("is steered by cpu"), "{said}");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.await_exit(FOREVER).unwrap().unwrap().code(), Some(0));
}

fn steer(words: &[&str]) -> Output {
    Command::new(LAB).arg("steer").args(words).args(["--select", "live-set"]).output().unwrap()
}

/// The line on standard error of what cannot be steered.
#[track_caller]
fn refused(words: &[&str]) -> String {
    let output = steer(words);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len(), said.lines().count()), (Some(1), 0, 1), "{said}");
    said
}

#[test]
fn a_group_with_a_program_of_its_own_is_left_alone() {
    let server = start("reuseport", &["--workers", "3", "--select", "random"]);
    let said = refused(&[&server.addr.to_string()]);
    assert!(said.contains("has a program of its own") && said.contains("--replace"), "{said}");
    assert!(!has_no_program(&server), "it still has it");
}

#[test]
fn a_group_is_not_taken_for_one_without_a_program_because_nobody_answers() {
    let server = start("reuseport", &["--workers", "2", "--select", "random"]);
    let workers = children(server.pid());
    assert!(workers.iter().all(|worker| worker.stop(FOREVER)));
    let said = refused(&[&server.addr.to_string()]);
    assert!(said.contains("cannot be seen") && said.contains("--replace"), "{said}");
    assert!(!has_no_program(&server), "it still has it");
    assert!(workers.iter().all(|worker| worker.resume(FOREVER)));
}

#[test]
fn what_is_missing_is_one_line_with_the_way_out() {
    let one = TcpListener::bind("127.0.0.1:0").unwrap();
    let said = refused(&[&one.local_addr().unwrap().to_string()]);
    assert!(said.contains("has one socket") && said.contains("reuseport"), "{said}");

    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let said = refused(&[&datagrams.local_addr().unwrap().to_string()]);
    assert!(said.contains("nobody listens") && said.contains("UDP"), "{said}");

    let folder = TempFolder::new("steer");
    let path = folder.path().join("socket");
    let _unix = UnixListener::bind(&path).unwrap();
    let said = refused(&[&format!("unix:{}", path.display())]);
    assert!(said.contains("a Unix socket, which has one queue"), "{said}");

    let threads = start("tokio", &["--workers", "2", "--runtime", "per-core"]);
    let said = refused(&[&threads.addr.to_string()]);
    assert!(said.contains("by threads") && said.contains("--select cpu or random"), "{said}");
    assert!(has_no_program(&threads));

    assert!(refused(&["2147483647"]).contains("there is no process"));
    let usage = Command::new(LAB).args(["steer", "--select", "cpu"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn another_users_server_is_one_line_and_ones_own_needs_no_root() {
    let Some(ordinary) = Ordinary::new(LAB) else { return };
    let server = Ordinary::new(kind("reuseport").path).expect("as the first");
    let mut server = server.program().start(&["--workers", "2"]).unwrap_or_else(|why| panic!("{why:?}"));
    let words: Vec<String> = std::iter::once(ordinary.command().get_program())
        .chain(ordinary.command().get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or("0".into());
    let address = server.addr.to_string();
    if yama.trim() == "0" {
        let mut steer = Steer::begin(Program::new(&words), &["steer", &address, "--select", "live-set"]);
        assert_eq!(steer.end(), Some(0));
    } else {
        let output = ordinary.command().args(["steer", &address, "--select", "cpu"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("Yama") && said.contains("-- COMMAND"), "{said}");
    }
    server.stop().unwrap();
    if !geteuid().is_root() {
        return inconclusive(Needs::Privilege("root"), "to have a server of another user");
    }
    let theirs = start("reuseport", &["--workers", "2"]);
    let output = ordinary.command().args(["steer", &theirs.addr.to_string(), "--select", "cpu"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("run it as root"), "{said}");
    assert!(has_no_program(&theirs));
}
