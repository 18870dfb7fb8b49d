//! What travels from the master to its workers: a listener once, or connections, and what passing them costs.

use std::time::Duration;

use acceptlab::lab::check::client::{ANSWER_TIMEOUT, Client, served, served_within};
use acceptlab::lab::check::server::{Program, STOP_WITHIN, Server};
use acceptlab::lab::observe::processes::poll_until;
use nix::sys::signal::Signal;

use crate::dispatch::{Stopped, accepted, await_answers, stop};
use crate::support::{
    FOREVER, TempFolder, answer, ask_together, can_trace, held, kind, load, raise_descriptor_limit, said_with, start,
};

#[test]
fn a_passed_listener_that_the_master_closes_is_served_by_the_workers_alone() {
    let mut server = start("pass-listener", &["--workers", "3"]);
    for _ in 0..50 {
        let (_, pid) = held(held(served(server.addr)).signature());
        assert_ne!(pid, server.pid());
    }
    let report = stop(&mut server);
    assert_eq!(accepted(&report).iter().sum::<u64>(), 50);
    assert!(report.master.is_some());
}

/// The first of the two curl sessions of the text that lesson 1 follows: sometimes the child, sometimes the parent.
#[test]
fn a_passed_listener_that_the_master_keeps_is_served_by_the_master_too() {
    let mut server = start("pass-listener", &["--workers", "3", "--master", "serves"]);
    let master = server.pid();
    assert_eq!(server.processes().len(), 3, "the master is one of three workers");
    let children: Vec<Stopped> =
        server.processes().iter().filter(|child| child.pid != master).map(|child| Stopped::new(child.pid)).collect();
    assert_eq!(held(held(served(server.addr)).signature()), (2, master));
    drop(children);
    let by_a_child = poll_until(FOREVER, || {
        let (worker, pid) = held(held(served(server.addr)).signature());
        (pid != master).then(|| assert!(worker < 2))
    });
    assert!(by_a_child.is_some(), "no child answers");
    let report = stop(&mut server);
    assert_eq!((report.workers[2].pid, report.master), (master, None));
}

/// It has a request to answer for some seconds more, and with `block` it cannot even tell the others meanwhile.
#[test]
fn a_master_that_serves_takes_nobody_new_while_it_ends_its_own_connections() {
    for work in ["wait:4s", "block:4s"] {
        let mut server = start("pass-listener", &["--workers", "2", "--master", "serves", "--work", work]);
        let child = server.processes().last().expect("it has a child").pid;
        let hung = Stopped::new(child);
        let mut of_the_master = ask_together(&server, 1);
        held(of_the_master[0].was_read());
        drop(hung);
        server.signal(Signal::SIGTERM);
        let closed = poll_until(Duration::from_secs(2), || Client::connect(server.addr).is_err().then_some(()));
        assert!(closed.is_some(), "{work}: the server takes connections while it stops");
        assert_eq!(held(answer(&mut of_the_master[0]).worker()), 1);
        held(held(server.ended(STOP_WITHIN)).report());
    }
}

#[test]
fn the_death_of_all_children_leaves_a_master_that_serves() {
    let server = start("pass-listener", &["--workers", "2", "--master", "serves"]);
    let child = *server.processes().last().expect("it has a child");
    child.kill();
    assert!(Server::left_behind(&[child], ANSWER_TIMEOUT).is_empty());
    for _ in 0..5 {
        assert_eq!(held(held(served_within(server.addr, FOREVER)).signature()), (1, server.pid()));
    }
    said_with(&server, "was killed by SIGKILL; 0 left");
}

/// The master sleeps until 64 connections are in its accept queue. Then it passes them sixteen at a time, eight to
/// each worker, and each message wakes its worker once.
#[test]
fn connections_that_are_ready_together_travel_together() {
    raise_descriptor_limit();
    let mut server = start("master-dispatch", &["--workers", "2"]);
    let master = Stopped::new(server.pid());
    let mut waiting = ask_together(&server, 64);
    drop(master);
    await_answers(&mut waiting, 0);
    let report = stop(&mut server);
    assert_eq!(accepted(&report), [32, 32]);
    let wakeups: u64 = report.workers.iter().map(|worker| worker.wakeups).sum();
    // Half as many go into a message where ulimit -n is 1024.
    assert!(wakeups <= 16, "{wakeups} messages for 64 connections");
}

/// Counted by strace(1).
#[test]
fn passing_costs_at_most_two_system_calls_per_connection_on_each_side() {
    for connections in ["1", "64"] {
        let folder = TempFolder::new("strace");
        let log = folder.file("log");
        // As a detached grandchild: the server is our child, and has its signals.
        let strace = ["strace", "-D", "-f", "-qq", "-e", "trace=sendmsg,recvmsg,close,close_range", "-o"];
        let mut command: Vec<String> = strace.iter().map(|&word| word.to_owned()).collect();
        command.extend([log.clone(), kind("master-dispatch").path.to_owned()]);
        if !can_trace() {
            return;
        }
        let mut server = held(Program::new(&command).start(&["--workers", "2"]));
        let before = std::fs::read_to_string(&log).unwrap().len();
        let load =
            load(server.addr, &["--requests-per-connection", "1", "--connections", connections, "--requests", "2000"]);
        assert_eq!(load.requests, 2000);
        let after = std::fs::read_to_string(&log).unwrap().split_off(before);
        let master = server.pid().to_string();
        let report = stop(&mut server);
        let count = |is_master: bool, calls: &[&str]| {
            let lines = after.lines().filter_map(|line| line.split_once(' '));
            let ours = lines.filter(|(pid, _)| (*pid == master) == is_master);
            let begun = ours.filter_map(|(_, call)| call.trim_start().split_once('('));
            begun.filter(|(name, _)| calls.contains(name)).count() as f64 / 2000.0
        };
        let master = count(true, &["sendmsg", "close", "close_range"]);
        let wakeups = report.workers.iter().map(|worker| worker.wakeups).sum::<u64>() as f64 / 2000.0;
        let worker = count(false, &["recvmsg"]) + wakeups;
        eprintln!(
            "{connections} at a time: {master:.3} calls per connection in the master, {worker:.3} in the workers"
        );
        // The hundredth is for what else a process closes; nothing at all would mean that nothing was traced.
        let bounds = 0.01..=2.01;
        assert!(bounds.contains(&master), "{connections} at a time: {master} calls of the master per connection");
        assert!(bounds.contains(&worker), "{connections} at a time: {worker} calls of the workers per connection");
    }
}
