//! The Node programs of the experiments: the same file under Node's own primary and under `cluster`. Without Node these
//! tests are inconclusive.

use std::fs;
use std::process::Command;
use std::time::Duration;

use acceptlab::lab::check::client::{GET, served_within};
use acceptlab::lab::check::server::{Program, Server};
use acceptlab::lab::observe::processes::poll_until;
use acceptlab::report::{ClusterReport, LoadReport};
use acceptlab::scoreboard::{Count, Scoreboard};
use acceptlab::units::monotonic_ns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::{CLUSTER, await_events, has_node};
use crate::support::{FOREVER, TempFolder, answer, connect, held, load};

/// Both masters, with two workers each.
const MASTERS: [&str; 2] = ["node", "cluster"];

#[track_caller]
fn start(master: &str, program: &str, flags: &[&str]) -> Server {
    let file = format!("{}/experiments/{program}", env!("CARGO_MANIFEST_DIR"));
    let node = [&["node", &file], flags].concat();
    let command = match master {
        "node" => [&node[..], &["--workers", "2"]].concat(),
        _ => [&[CLUSTER, "--workers", "2", "--"], &node[..]].concat(),
    };
    held(Program::new(&command.into_iter().map(String::from).collect::<Vec<_>>()).start(&[]))
}

#[track_caller]
fn stopped(server: &mut Server) -> ClusterReport {
    held(server.stop()).cluster.expect("a book of what the master did")
}

/// One answer on a connection of its own: which worker gave it, and its text.
#[track_caller]
fn ask(server: &Server) -> (usize, i32, String) {
    let mut client = connect(server);
    held(client.send(GET));
    let answer = answer(&mut client);
    let (worker, pid) = held(answer.signature());
    (worker, pid, String::from_utf8_lossy(&answer.body).into_owned())
}

/// Loads the server while something is done to it.
fn load_while(server: &Server, act: impl FnOnce()) -> LoadReport {
    let addr = server.addr;
    let flags = ["--retry", "--connections", "8", "--duration", "2s", "--requests-per-connection", "10"];
    std::thread::scope(|scope| {
        let loaded = scope.spawn(move || load(addr, &flags));
        act();
        loaded.join().unwrap()
    })
}

/// Waits until another process answers as this worker. `cluster` answers all clients that ask meanwhile.
/// Node's own primary may: what it has passed to a worker that ends without an answer, it forgets. There another asks.
#[track_caller]
fn await_successor(master: &str, server: &Server, worker: usize, pid: i32) {
    let timeout = if master == "node" { Duration::from_secs(1) } else { FOREVER };
    let replaced = poll_until(FOREVER, || match served_within(server.addr, timeout) {
        Ok(answer) => {
            let (other, now) = held(answer.signature());
            (other == worker && now != pid).then_some(())
        }
        Err(_) if master == "node" => None,
        Err(why) => panic!("{master}: {why:?}"),
    });
    assert!(replaced.is_some(), "{master}: worker {worker} has no successor");
}

/// A file of our own, which need not exist.
struct Source(TempFolder);

impl Source {
    fn new(name: &str) -> Source {
        Source(TempFolder::new(name))
    }

    fn path(&self) -> String {
        self.0.file("source")
    }

    /// Writes the time, all at once.
    fn renew(&self) -> String {
        let (value, fresh) = (monotonic_ns().to_string(), self.0.file("fresh"));
        fs::write(&fresh, &value).and_then(|()| fs::rename(&fresh, self.path())).unwrap();
        value
    }
}

/// Asks one worker to behave as if it had met a fatal error.
#[track_caller]
fn see_a_suicide(master: &str, server: &Server) {
    let (worker, pid, _) = ask(server);
    kill(Pid::from_raw(pid), Signal::SIGUSR2).unwrap();
    await_successor(master, server, worker, pid);
}

#[test]
fn a_worker_that_meets_a_fatal_error_tells_either_master_and_has_a_successor() {
    if !has_node() {
        return;
    }
    for master in MASTERS {
        let mut server = start(master, "node-cluster.js", &[]);
        see_a_suicide(master, &server);
        let report = stopped(&mut server);
        assert_eq!((report.forks, report.suicides, report.deaths), (3, 1, 0), "{master}");
        assert_eq!(report.recovery_ms.unwrap().count, 1, "{master}");
    }
}

/// Node's own primary does not promise that, see [`await_successor`].
#[test]
fn under_the_cluster_no_request_is_lost_to_a_fatal_error() {
    if !has_node() {
        return;
    }
    let server = start("cluster", "node-cluster.js", &[]);
    let loaded = load_while(&server, || (0..3).for_each(|_| see_a_suicide("cluster", &server)));
    assert_eq!(loaded.errors.total(), 0, "{:?} {:?}", loaded.errors, loaded.lost);
}

#[test]
fn a_killed_worker_has_a_successor_under_either_master() {
    if !has_node() {
        return;
    }
    for master in MASTERS {
        let mut server = start(master, "node-cluster.js", &[]);
        let (worker, pid, _) = ask(&server);
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        await_successor(master, &server, worker, pid);
        let report = stopped(&mut server);
        assert_eq!((report.forks, report.suicides, report.deaths), (3, 0, 1), "{master}");
    }
}

#[test]
fn the_pids_of_nodes_workers_are_in_the_scoreboard() {
    if !has_node() {
        return;
    }
    let board = Source::new("node-board");
    let server = start("node", "node-cluster.js", &["--scoreboard", &board.path()]);
    let scoreboard = Scoreboard::open(board.path().as_ref()).unwrap();
    let (worker, pid, _) = ask(&server);
    assert_eq!((scoreboard.rows(), scoreboard.pid()), (2, server.pid()));
    assert_eq!(scoreboard.row(worker).get(Count::Pid), pid as u64);
    assert_eq!(scoreboard.model(), "");
}

/// New values heard of, as a running cluster has counted them.
fn updates(control: &Source) -> f64 {
    let ctl = ["ctl", "--control", &control.path(), "--format", "json", "status"];
    let output = Command::new(CLUSTER).args(ctl).output().expect("cargo has built it");
    let status: Value = serde_json::from_slice(&output.stdout).expect("the status is JSON");
    status["restart_counts"]["counts"]["updates"].as_f64().unwrap_or(0.0)
}

#[test]
fn a_new_value_reaches_workers_that_poll_and_workers_that_are_notified() {
    if !has_node() {
        return;
    }
    let (source, control) = (Source::new("state"), Source::new("state-control"));
    let (path, socket) = (source.path(), control.path());
    let master = [CLUSTER, "--workers", "2", "--control", &socket];
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/state.js");
    let poll = [file, "--file", &path, "--poll", "5ms"];
    for command in [
        [&["node"], &poll[..]].concat(),
        [&master[..], &["--", "node"], &poll].concat(),
        [&master[..], &["--notify", &path, "--", "node", file]].concat(),
    ] {
        let command: Vec<String> = command.into_iter().map(String::from).collect();
        let mut server = held(Program::new(&command).start(&[]));
        let value = source.renew();
        let knows = |worker: usize| {
            poll_until(FOREVER, || {
                let (other, _, said) = ask(&server);
                (other == worker && said.contains(&value)).then_some(())
            })
        };
        assert!((0..2).all(|worker| knows(worker).is_some()), "{value} has not come to everybody");
        if command[0] == CLUSTER {
            // Node's primary asks for what was counted last; ours gets it in time.
            let told = poll_until(FOREVER, || (updates(&control) >= 2.0).then_some(()));
            assert!(told.is_some(), "the updates are not counted");
        }
        let counts = stopped(&mut server).counts;
        assert!(counts["updates"] >= 2.0 && counts["stale_us"] > 0.0, "{counts:?}");
        let has_polled = counts.contains_key("polls") && counts.contains_key("idle_polls");
        assert!(has_polled != counts.contains_key("notifier_pushes"), "{counts:?}");
    }
}

#[test]
fn with_once_all_requests_wait_for_the_one_outstanding_query() {
    if !has_node() {
        return;
    }
    let queries_per_expiry = |flags: &[&str]| {
        // Those who ask within the first query add to the queries, on a busy machine, too; eight queries for each
        // worker end before the client does.
        let flags = [&["--ttl", "10s", "--query", "300ms"], flags].concat();
        let mut server = start("cluster", "avalanche.js", &flags);
        let loaded = load(server.addr, &["--connections", "16", "--duration", "2500ms"]);
        assert_eq!(loaded.errors.total(), 0, "{:?}", loaded.errors);
        let counts = stopped(&mut server).counts;
        counts["queries"] / counts["expiries"]
    };
    assert_eq!(queries_per_expiry(&["--once"]), 1.0);
    let found = queries_per_expiry(&[]);
    assert!(found > 4.0, "{found}");
}

#[test]
fn a_broken_program_ends_at_its_request_and_its_next_version_never_listens() {
    if !has_node() {
        return;
    }
    let mut server = start("cluster", "broken.js", &["--die-at", "3"]);
    for _ in 0..8 {
        let mut client = connect(&server);
        // The request it ends at has no answer.
        let _ = client.send(GET).and_then(|()| client.answer_within(FOREVER));
    }
    await_events(&server, "exit", 2);
    assert!(stopped(&mut server).deaths >= 2);

    let never = ["--workers", "2", "--listen-timeout", "1s", "--", "node"];
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/broken.js");
    let command = [&[CLUSTER], &never[..], &[file, "--listeners", "2"]].concat();
    let command: Vec<String> = command.into_iter().map(String::from).collect();
    let mut server = held(Program::new(&command).start(&[]));
    server.signal(Signal::SIGHUP);
    await_events(&server, "reload-failed", 1);
    ask(&server);
    let report = stopped(&mut server);
    assert_eq!((report.reloads, report.reloads_failed), (0, 1));
}
