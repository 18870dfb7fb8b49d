//! `coroutines`: what a stack for each connection costs, and what happens when there is none.

use std::fs;
use std::process::Command;

use acceptlab::lab::check::client::{ANSWER_TIMEOUT, Client, GET, served, served_within};
use acceptlab::lab::check::server::Server;
use acceptlab::lab::observe::processes::poll_until;

use crate::contract::keeps_the_contract;
use crate::endings::ends_under_load;
use crate::support::{
    FOREVER, answer, ask_together, connect, held, kind, load, raise_descriptor_limit, said_with, start, start_after,
};

/// Heads of 16 KiB, bodies of 1 MiB, signals in the midst of work: all that the contract has.
#[test]
fn the_smallest_stack_is_enough_for_the_whole_contract_and_a_smaller_one_is_refused() {
    keeps_the_contract("coroutines", &["--stack", "32"]);
    let refused = Command::new(kind("coroutines").path).args(["--stack", "31"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("a stack has 32 to"), "{said}");
}

#[test]
fn sigterm_under_load_answers_what_was_read_also_in_the_smallest_stack() {
    ends_under_load("coroutines", &["--stack", "32"]);
}

/// Lines of /proc/PID/maps: a stack has two, itself and the page that guards it.
fn mappings(server: &Server) -> usize {
    fs::read_to_string(format!("/proc/{}/maps", server.pid())).unwrap().lines().count()
}

#[test]
fn stacks_of_ended_connections_are_used_again_and_after_a_burst_most_are_given_back() {
    raise_descriptor_limit();
    let mut server = start("coroutines", &[]);
    held(served(server.addr));
    let (before, descriptors) = (mappings(&server), server.open_descriptors());
    let requests = ["--connections", "1", "--requests-per-connection", "1", "--requests", "500"];
    assert_eq!(load(server.addr, &requests).errors.total(), 0);
    assert!(mappings(&server) < before + 20, "one connection at a time takes one stack");

    let mut burst = ask_together(&server, 600);
    burst.iter_mut().for_each(|client| drop(answer(client)));
    assert!(mappings(&server) >= before + 2 * 599, "{} mappings", mappings(&server));
    drop(burst);
    // At most, since the first client's connection may have been open yet when they were counted.
    let are_gone = poll_until(FOREVER, || (server.open_descriptors() <= descriptors).then_some(()));
    assert!(are_gone.is_some(), "{} descriptors are open", server.open_descriptors());
    assert!(mappings(&server) < before + 2 * 300, "{} mappings", mappings(&server));
    held(server.stop());
}

/// As with vm.max_map_count, which is the whole system's.
#[test]
fn a_connection_without_a_stack_waits_in_the_accept_queue_and_the_server_says_so_once() {
    // Room for the program and for two stacks of 256 MiB.
    let mut server = start_after("ulimit -v 700000", "coroutines", &["--stack", "262144"]);
    let mut clients: Vec<Client> = (0..4).map(|_| connect(&server)).collect();
    clients.iter_mut().for_each(|client| held(client.send(GET)));
    answer(&mut clients[0]);
    let said = said_with(&server, "map a stack: out of memory; connections wait until others end");
    assert_eq!(said.lines().count(), 1, "{said}");
    for _ in 0..3 {
        drop(clients.remove(0));
        answer(&mut clients[0]);
    }
    drop(clients);
    held(served_within(server.addr, FOREVER));
    assert_eq!(server.said(), "");
    assert_eq!(held(server.stop()).workers[0].accepted, 5);
}

/// What arrives meanwhile is for later, in order.
#[test]
fn requests_that_come_while_one_waits_are_answered_after_it_one_by_one() {
    let mut server = start("coroutines", &["--work", "wait:50ms"]);
    let mut client = connect(&server);
    for _ in 0..3 {
        held(client.send(GET));
    }
    let since = std::time::Instant::now();
    for _ in 0..3 {
        answer(&mut client);
    }
    assert!(since.elapsed().as_millis() >= 100, "three in {:?}", since.elapsed());
    client.reset();
    held(served_within(server.addr, ANSWER_TIMEOUT));
    held(server.stop());
}
