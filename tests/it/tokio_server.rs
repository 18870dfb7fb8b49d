//! `tokio`: which thread runs a task, with one runtime for all threads and with one for each.

use std::collections::BTreeSet;
use std::fs;

use acceptlab::lab::check::client::{ANSWER_TIMEOUT, Client, GET, served};
use acceptlab::lab::check::server::{STOP_WITHIN, Server};
use acceptlab::lab::observe::processes::{Process, poll_until};
use nix::sys::signal::Signal;

use crate::cluster::run;
use crate::contract::all_keep_the_contract;
use crate::endings::ends_under_load;
use crate::support::{FOREVER, answer, ask_together, connect, held, kind, raise_descriptor_limit, start};

const RUNTIMES: [&str; 2] = ["stealing", "per-core"];

fn worker_of(client: &mut Client) -> usize {
    held(answer(client).worker())
}

/// `contract.rs` has the default.
#[test]
fn a_runtime_for_each_thread_keeps_the_contract() {
    all_keep_the_contract("tokio", &[["--runtime", "per-core"]]);
    ends_under_load("tokio", &["--runtime", "per-core", "--workers", "4"]);
}

/// All clients have asked before the server, which is stopped meanwhile, looks at any of them.
fn ask_while_it_is_stopped(server: &Server, clients: &mut [Client]) {
    let process = Process::find(server.pid()).expect("it has just answered");
    assert!(process.stop(FOREVER));
    clients.iter_mut().for_each(|client| held(client.send(GET)));
    assert!(process.resume(FOREVER));
}

#[test]
fn of_tasks_that_become_ready_together_a_thread_steals_what_another_has_no_time_for() {
    let server = start("tokio", &["--workers", "2", "--work", "block:50ms"]);
    let mut clients = ask_together(&server, 8);
    clients.iter_mut().for_each(|client| drop(answer(client)));
    ask_while_it_is_stopped(&server, &mut clients);
    let workers: BTreeSet<usize> = clients.iter_mut().map(worker_of).collect();
    assert_eq!(workers, BTreeSet::from([0, 1]));
}

#[test]
fn with_a_runtime_for_each_thread_a_connection_stays_where_it_was_accepted() {
    let mut server = start("tokio", &["--runtime", "per-core", "--workers", "2", "--work", "block:5ms"]);
    let mut clients = ask_together(&server, 8);
    let first: Vec<usize> = clients.iter_mut().map(worker_of).collect();
    ask_while_it_is_stopped(&server, &mut clients);
    assert_eq!(clients.iter_mut().map(worker_of).collect::<Vec<_>>(), first);
    for worker in held(server.stop()).workers {
        let connections = first.iter().filter(|&&id| id == worker.id).count() as u64;
        assert_eq!((worker.accepted, worker.requests), (connections, 2 * connections), "{worker:?}");
    }
}

/// Three clients who ask one after another: two of them belong to the thread that the first blocks.
#[test]
fn a_blocked_thread_with_its_own_runtime_stops_its_own_connections_and_no_others() {
    let server = start("tokio", &["--runtime", "per-core", "--workers", "2", "--work", "block:200ms"]);
    let mut clients = ask_together(&server, 12);
    let mut threads: [Vec<Client>; 2] = Default::default();
    clients.iter_mut().map(worker_of).collect::<Vec<_>>().into_iter().zip(clients).for_each(|(id, client)| {
        threads[id].push(client);
    });
    threads.sort_by_key(Vec::len);
    let [others, blocked] = &mut threads;
    let other = others.first_mut().expect("a hash gives all of 12 to one of two threads once in 2048 times");
    // A machine that is busy may hold up the other thread for as long as the request takes.
    let is_first = poll_until(FOREVER, || {
        held(blocked[0].send(GET));
        held(blocked[0].was_read());
        held(blocked[1].send(GET));
        held(other.send(GET));
        answer(other);
        blocked[1].stream.set_nonblocking(true).unwrap();
        let waits = blocked[1].stream.peek(&mut [0]).is_err();
        blocked[1].stream.set_nonblocking(false).unwrap();
        blocked.iter_mut().take(2).for_each(|client| drop(answer(client)));
        waits.then_some(())
    });
    assert!(is_first.is_some(), "the other thread's client always waits for both");
}

/// The thread that has waited for the sockets of all runs the only task that became ready, and wakes nobody to wait in
/// its place. Then a second request waits for the first one, although a thread is idle.
#[test]
fn a_request_that_blocks_the_thread_that_heard_of_it_may_keep_the_idle_one_from_hearing_of_the_next() {
    let server = start("tokio", &["--workers", "2", "--work", "block:200ms"]);
    let mut clients = ask_together(&server, 2);
    clients.iter_mut().for_each(|client| drop(answer(client)));
    let [first, second] = &mut clients[..] else { unreachable!("there are two") };
    let is_held_up = poll_until(FOREVER, || {
        held(first.send(GET));
        held(first.was_read());
        held(second.send(GET));
        (worker_of(first) == worker_of(second)).then_some(())
    });
    assert!(is_held_up.is_some(), "the idle thread always answers the second request");
}

#[test]
fn sigterm_answers_requests_that_wait_and_closes_silent_connections_at_once() {
    for runtime in RUNTIMES {
        let mut server = start("tokio", &["--runtime", runtime, "--workers", "2", "--work", "wait:300ms"]);
        let mut silent = connect(&server);
        let mut waiting = ask_together(&server, 6);
        waiting.iter().for_each(|client| held(client.was_read()));
        server.signal(Signal::SIGTERM);
        held(silent.closes(ANSWER_TIMEOUT));
        for client in &mut waiting {
            held(held(client.answer_within(FOREVER)).expect_connection("close"));
            held(client.closes(ANSWER_TIMEOUT));
        }
        let workers = held(held(server.ended(STOP_WITHIN)).report()).workers;
        let sum = |of: fn(&acceptlab::report::WorkerReport) -> u64| workers.iter().map(of).sum::<u64>();
        assert_eq!((sum(|worker| worker.requests), sum(|worker| worker.active)), (6, 0), "{runtime}: {workers:?}");
        assert!(workers.iter().all(|worker| worker.max_rss_kib > 0), "every thread accounts for itself: {workers:?}");
    }
}

fn anonymous_kib(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("see proc_pid_status(5)");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_silent_connection_takes_less_than_one_and_a_half_kib() {
    raise_descriptor_limit();
    for runtime in RUNTIMES {
        let server = start("tokio", &["--runtime", runtime, "--workers", "2"]);
        held(served(server.addr));
        let before = (anonymous_kib(&server), server.open_descriptors());
        let _silent: Vec<Client> = (0..2000).map(|_| connect(&server)).collect();
        // The first client's connection may have been open yet when they were counted.
        let all_accepted = poll_until(FOREVER, || (server.open_descriptors() + 1 >= before.1 + 2000).then_some(()));
        assert!(all_accepted.is_some());
        held(served(server.addr));
        let grown = anonymous_kib(&server) - before.0;
        assert!(2 * grown < 3 * 2000, "{runtime}: {grown} KiB for 2000 connections");
    }
}

#[test]
fn a_runtime_for_each_thread_says_that_it_cannot_be_a_worker_of_a_cluster() {
    let program = kind("tokio").path;
    let command = ["--workers", "1", "--max-restarts", "0", "--", program, "--listen", "127.0.0.1:0"];
    let output = run(&[&command[..], &["--runtime", "per-core"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("this is a worker of a cluster, which has one listener"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}
