//! The servers of Stevens' comparison that came before event loops: a process for each connection, threads that wait
//! together, select and poll.

use std::collections::BTreeSet;
use std::fs;

use acceptlab::lab::check::client::{ANSWER_TIMEOUT, Client, GET, served, served_within};
use acceptlab::lab::check::server::Server;
use acceptlab::lab::observe::processes::{Process, poll_until};
use nix::sys::signal::Signal;

use crate::contract::all_keep_the_contract;
use crate::endings::ends_under_load;
use crate::support::{FOREVER, answer, ask_together, connect, held, load, raise_descriptor_limit, said_with, start};

fn pid_of_its_server(client: &mut Client) -> i32 {
    held(held(client.ask(GET)).signature()).1
}

#[test]
fn each_connection_of_fork_has_a_process_which_is_reaped_when_the_connection_ends() {
    let mut server = start("fork", &[]);
    let mut clients: Vec<Client> = (0..20).map(|_| connect(&server)).collect();
    let pids: BTreeSet<i32> = clients.iter_mut().map(pid_of_its_server).collect();
    assert_eq!(pids.len(), 20);
    assert!(!pids.contains(&server.pid()));
    drop(clients);
    // Nobody connects any more, so it is no accept that reaps them.
    let is_alone = poll_until(FOREVER, || (server.processes().len() == 1).then_some(()));
    assert!(is_alone.is_some(), "{:?} are left", server.processes());
    let report = held(server.stop());
    let worker = &report.workers[0];
    assert_eq!((worker.accepted, worker.requests, worker.active), (20, 20, 0), "{worker:?}");
    assert!(worker.cpu_user_us + worker.cpu_system_us > 0, "the children's CPU time is counted: {worker:?}");
}

#[test]
fn killing_the_parent_of_fork_leaves_none_of_its_children() {
    let server = start("fork", &[]);
    let mut clients = ask_together(&server, 4);
    clients.iter_mut().for_each(|client| drop(answer(client)));
    let processes = server.processes();
    assert_eq!(processes.len(), 5);
    server.signal(Signal::SIGKILL);
    let left = Server::left_behind(&processes, ANSWER_TIMEOUT);
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_killed_child_of_fork_takes_one_client_with_it_and_no_connection_stays_counted_as_open() {
    let mut server = start("fork", &[]);
    let (mut victim, mut other) = (connect(&server), connect(&server));
    let pid = pid_of_its_server(&mut victim);
    let survivor = pid_of_its_server(&mut other);
    Process::find(pid).expect("it has just answered").kill();
    held(victim.closes(ANSWER_TIMEOUT));
    assert_eq!(pid_of_its_server(&mut other), survivor);
    held(served(server.addr));
    let worker = &held(server.stop()).workers[0];
    assert_eq!((worker.accepted, worker.active), (3, 0), "{worker:?}");
}

/// Only the parent shuts the socket that all have.
#[test]
fn a_sigterm_to_one_child_of_fork_leaves_the_parent_accepting() {
    let mut server = start("fork", &[]);
    let mut client = connect(&server);
    let child = Process::find(pid_of_its_server(&mut client)).expect("it has just answered");
    child.signal(Signal::SIGTERM);
    held(client.closes(ANSWER_TIMEOUT));
    held(served(server.addr));
    held(server.stop());
}

/// How many threads of a server sleep in accept (proc(5), /proc/PID/task/TID/syscall).
fn threads_in_accept(server: &Server) -> usize {
    let accept = libc::SYS_accept4.to_string();
    let threads = fs::read_dir(format!("/proc/{}/task", server.pid())).into_iter().flatten().flatten();
    let calls = threads.map(|thread| fs::read_to_string(thread.path().join("syscall")).unwrap_or_default());
    calls.filter(|call| call.split(' ').next() == Some(&accept)).count()
}

#[test]
fn of_idle_threads_exactly_one_sleeps_in_accept_with_the_mutex_and_all_without() {
    for (lock, expected) in [("none", 8), ("mutex", 1)] {
        let mut server = start("prethreaded", &["--workers", "8", "--lock", lock]);
        for _ in 0..10 {
            let found = poll_until(FOREVER, || (threads_in_accept(&server) == expected).then_some(()));
            assert!(found.is_some(), "--lock {lock}: {} sleep in accept", threads_in_accept(&server));
            held(served(server.addr));
        }
        held(server.stop());
    }
}

#[test]
fn prethreaded_serves_every_connection_with_and_without_the_mutex_and_both_sides_count_the_same() {
    for lock in ["none", "mutex"] {
        let mut server = start("prethreaded", &["--workers", "4", "--lock", lock]);
        let flags = ["--connections", "16", "--requests-per-connection", "1", "--requests", "2000"];
        let load = load(server.addr, &flags);
        assert_eq!(load.errors.total(), 0, "--lock {lock}: {:?}", load.errors);
        let workers = held(server.stop()).workers;
        assert_eq!(workers.iter().map(|worker| worker.accepted).sum::<u64>(), 2000, "--lock {lock}");
        for worker in &workers {
            assert_eq!((worker.wakeups, worker.empty_wakeups), (worker.accepted, 0), "--lock {lock}: {worker:?}");
        }
    }
}

#[test]
fn sigterm_under_load_answers_what_was_read_with_a_mutex_and_in_select() {
    ends_under_load("prethreaded", &["--workers", "4", "--lock", "mutex"]);
    ends_under_load("select-poll", &["--call", "select"]);
}

/// `contract.rs` has the defaults.
#[test]
fn a_mutex_between_threads_and_select_keep_the_contract() {
    all_keep_the_contract("prethreaded", &[["--lock", "mutex"]]);
    all_keep_the_contract("select-poll", &[["--call", "select"]]);
}

/// Its set has 1,024 bits; a descriptor beyond them would be written somewhere else.
#[test]
fn select_opens_no_descriptor_that_it_cannot_watch_says_so_and_serves_the_others_later() {
    raise_descriptor_limit();
    let mut server = start("select-poll", &["--call", "select"]);
    let silent: Vec<Client> = (0..1100).map(|_| connect(&server)).collect();
    let is_full = poll_until(FOREVER, || (server.open_descriptors() == libc::FD_SETSIZE).then_some(()));
    assert!(is_full.is_some(), "{} descriptors are open", server.open_descriptors());
    let mut waiting = connect(&server);
    held(waiting.send(GET));
    drop(silent);
    answer(&mut waiting);
    said_with(&server, "select watches 1024 sockets at most");
    held(server.stop());
}

#[test]
fn poll_watches_more_descriptors_than_select_can() {
    raise_descriptor_limit();
    let mut server = start("select-poll", &["--call", "poll"]);
    let mut clients: Vec<Client> = (0..1100).map(|_| connect(&server)).collect();
    answer_of(clients.last_mut().expect("there are some"));
    answer_of(&mut clients[0]);
    drop(clients);
    held(served_within(server.addr, FOREVER));
    held(server.stop());
}

fn answer_of(client: &mut Client) {
    held(client.send(GET));
    answer(client);
}
