//! The client's counts against the servers': both count every connection and request per worker, neither knows of
//! the other.

use std::collections::BTreeMap;

use acceptlab::lab::check::client::{ANSWER_TIMEOUT, GET, served};
use acceptlab::lab::observe::processes::poll_until;
use acceptlab::report::AcceptCounts;
use acceptlab::scoreboard::Count;
use acceptlab::scoreboard::Scoreboard;

use crate::support::{SERVERS, TempFolder, connect, held, load, start};

/// Runs `loadgen` with `flags` against a fresh server and compares the counts worker by worker.
fn both_sides_count_the_same(name: &str, server_flags: &[&str], flags: &[&str]) {
    let mut server = start(name, server_flags);
    let load = load(server.addr, &[&["--requests", "2000"], flags].concat());
    assert_eq!(load.errors.total(), 0, "{name}: {:?}", load.errors);
    // Workers that got nothing are told by their absence: a client cannot know all of them.
    let number = |id: &String| id.parse().expect("X-Worker is a number");
    let mut clients: BTreeMap<usize, (u64, u64)> =
        load.workers.iter().map(|(id, share)| (number(id), (share.connections, share.requests))).collect();
    clients.retain(|_, (connections, requests)| *connections + *requests > 0);
    let report = held(server.stop());
    let mut servers: BTreeMap<usize, (u64, u64)> =
        report.workers.iter().map(|worker| (worker.id, (worker.accepted, worker.requests))).collect();
    servers.retain(|_, (accepted, requests)| *accepted + *requests > 0);
    assert_eq!(clients, servers, "{name} {flags:?}");
    assert_eq!(clients.values().map(|(_, requests)| requests).sum::<u64>(), 2000, "{name} {flags:?}");
}

fn both_ways(name: &str) {
    // A blocking worker belongs to its connection for as long as that is open, so the others need their own.
    let (connections, server_flags): (_, &[&str]) = match name {
        "sync" => ("1", &[]),
        "prefork" | "prefork-poll" | "prefork-lock" | "prethreaded" | "thread-pool" => ("8", &["--workers", "8"]),
        _ => ("8", &[]),
    };
    both_sides_count_the_same(name, server_flags, &["--connections", connections]);
    both_sides_count_the_same(name, &[], &["--connections", "8", "--requests-per-connection", "1"]);
}

macro_rules! the_clients_counts_equal_the_servers {
    ($($test:ident $server:literal)*) => {
        $(#[test] fn $test() { both_ways($server); })*
        /// The servers that these tests compare with their client.
        const COMPARED: &[&str] = &[$($server),*];
    };
}

the_clients_counts_equal_the_servers! {
    the_clients_counts_equal_those_of_sync "sync"
    the_clients_counts_equal_those_of_fork "fork"
    the_clients_counts_equal_those_of_prefork "prefork"
    the_clients_counts_equal_those_of_prefork_poll "prefork-poll"
    the_clients_counts_equal_those_of_prefork_lock "prefork-lock"
    the_clients_counts_equal_those_of_threaded "threaded"
    the_clients_counts_equal_those_of_prethreaded "prethreaded"
    the_clients_counts_equal_those_of_thread_pool "thread-pool"
    the_clients_counts_equal_those_of_idle_busy "idle-busy"
    the_clients_counts_equal_those_of_half_sync "half-sync"
    the_clients_counts_equal_those_of_pipeline "pipeline"
    the_clients_counts_equal_those_of_leader_follower "leader-follower"
    the_clients_counts_equal_those_of_select_poll "select-poll"
    the_clients_counts_equal_those_of_event_driven "event-driven"
    the_clients_counts_equal_those_of_event_loop "event-loop"
    the_clients_counts_equal_those_of_shared_accept "shared-accept"
    the_clients_counts_equal_those_of_accept_mutex "accept-mutex"
    the_clients_counts_equal_those_of_reuseport "reuseport"
    the_clients_counts_equal_those_of_master_dispatch "master-dispatch"
    the_clients_counts_equal_those_of_pass_listener "pass-listener"
    the_clients_counts_equal_those_of_peers "peers"
    the_clients_counts_equal_those_of_proxy "proxy"
    the_clients_counts_equal_those_of_uring "uring"
    the_clients_counts_equal_those_of_coroutines "coroutines"
    the_clients_counts_equal_those_of_tokio "tokio"
}

#[test]
fn every_server_is_compared_with_its_client() {
    assert_eq!(COMPARED, SERVERS.iter().map(|kind| kind.name).collect::<Vec<_>>());
}

#[test]
fn a_scoreboard_is_readable_while_the_server_runs() {
    let folder = TempFolder::new("readable");
    let file = folder.file("board");
    let server = start("event-driven", &["--scoreboard", &file]);
    let board = Scoreboard::open(file.as_ref()).expect("the server has made it");
    assert_eq!((board.model().as_str(), board.rows()), ("event-driven", 1));
    let mut clients = [connect(&server), connect(&server)];
    for client in &mut clients {
        for _ in 0..3 {
            held(held(client.ask(GET)).expect(200));
        }
    }
    // An answer may arrive a moment before it is counted.
    let row = board.row(0);
    let counts = || [Count::Accepted, Count::Active, Count::Requests].map(|count| row.get(count));
    let counted = poll_until(ANSWER_TIMEOUT, || (counts() == [2, 2, 6]).then_some(()));
    assert_eq!(counted, Some(()), "accepted, active, requests: {:?}", counts());
}

#[test]
fn a_second_server_does_not_disturb_the_scoreboard_of_the_first() {
    let folder = TempFolder::new("disputed");
    let start = || start("event-driven", &["--scoreboard", &folder.file("board")]);
    let mut first = start();
    held(served(first.addr));
    let mut second = start();
    for asked in [&first, &second, &second, &first] {
        held(served(asked.addr));
    }
    for (server, requests) in [(&mut first, 3), (&mut second, 2)] {
        let worker = held(server.stop()).workers.remove(0);
        assert_eq!((worker.accepted, worker.requests), (requests, requests), "{worker:?}");
    }
}

/// Connections that come one after another, each in a wake-up of its own unless the master is still at the last one.
#[test]
fn a_master_that_accepts_counts_its_accepts_and_one_that_only_supervises_has_no_counts() {
    let counts_of = |name| {
        let mut server = start(name, &["--workers", "2"]);
        for _ in 0..50 {
            held(served(server.addr));
        }
        held(server.stop()).master.expect("there is one").accepts
    };
    assert_eq!(counts_of("prefork"), None);
    for name in ["master-dispatch", "proxy", "thread-pool", "idle-busy", "half-sync", "pipeline"] {
        let counts = counts_of(name).unwrap_or_else(|| panic!("{name} has no counts"));
        let AcceptCounts { accepted, wakeups, empty_wakeups, accept_eagain } = counts;
        assert_eq!(accepted, 50, "{name}: {counts:?}");
        match name {
            // Told once for all that are there, it asks how many these are, and takes them.
            "master-dispatch" => {
                assert!(wakeups - empty_wakeups <= 50 && accept_eagain == 0, "{name}: {counts:?}")
            }
            // One connection for each wake-up, and no second look.
            _ => assert_eq!((wakeups, empty_wakeups, accept_eagain), (50, 0, 0), "{name}: {counts:?}"),
        }
    }
}
