//! The ways to wait for one socket: each of them serves, outlives a worker and ends as it should.

use std::process::Command;

use acceptlab::lab::check::client::{Client, GET};
use acceptlab::lab::observe::processes::{Process, poll_until};
use acceptlab::scoreboard::Count;
use acceptlab::server::GRACE;
use nix::sys::signal::Signal;

use crate::contract::all_keep_the_contract;
use crate::dispatch::{Stopped, Watched, spread};
use crate::endings::{ends_under_load, outlives_a_worker};
use crate::support::{FOREVER, connect, ends_at_once, held, kind, load, said_with, start};

/// A program, and the flags that make it wait in this way.
const WAYS: [(&str, &[&str]); 9] = [
    ("prefork", &[]),
    ("prefork-poll", &["--call", "poll"]),
    ("prefork-poll", &["--call", "epoll"]),
    ("shared-accept", &["--wait", "epoll"]),
    ("shared-accept", &["--wait", "epoll-edge"]),
    ("shared-accept", &["--wait", "epoll-exclusive"]),
    ("shared-accept", &["--wait", "epoll-exclusive-rearm"]),
    ("shared-accept", &["--yield", "1ms"]),
    ("shared-accept", &["--wait", "epoll-exclusive", "--yield", "1ms"]),
];

#[test]
fn every_way_of_waiting_serves_every_connection_and_both_sides_count_the_same() {
    for (name, wait) in WAYS {
        let mut server = start(name, &[&["--workers", "4"], wait].concat());
        let flags = ["--connections", "16", "--requests-per-connection", "1", "--requests", "2000"];
        let load = load(server.addr, &flags);
        assert_eq!(load.errors.total(), 0, "{name} {wait:?}: {:?}", load.errors);
        let report = held(server.stop());
        let accepted: u64 = report.workers.iter().map(|worker| worker.accepted).sum();
        assert_eq!((accepted, load.requests), (2000, 2000), "{name} {wait:?}");
    }
}

#[test]
fn sigterm_under_load_answers_what_was_read_however_the_workers_wait() {
    for (name, wait) in WAYS {
        ends_under_load(name, &[&["--workers", "4"], wait].concat());
    }
    ends_under_load("shared-accept", &["--workers", "4", "--wait", "epoll-exclusive-rearm", "--rearm", "16"]);
}

/// Also where the dead one slept in an epoll that it shared, or was the first in the line.
#[test]
fn a_killed_worker_leaves_the_others_serving_however_they_wait() {
    for (name, wait) in WAYS {
        outlives_a_worker(name, wait);
    }
}

/// `contract.rs` has the defaults.
#[test]
fn every_way_of_waiting_keeps_the_contract() {
    all_keep_the_contract("prefork-poll", &[["--call", "epoll"]]);
    let others = ["epoll-edge", "epoll-exclusive", "epoll-exclusive-rearm"];
    all_keep_the_contract("shared-accept", &others.map(|wait| ["--wait", wait]));
    all_keep_the_contract("shared-accept", &[["--yield", "1ms"]]);
}

/// The loops that can look again before they sleep.
const SPINNING: [&str; 10] = [
    "event-driven",
    "select-poll",
    "coroutines",
    "shared-accept",
    "accept-mutex",
    "reuseport",
    "master-dispatch",
    "pass-listener",
    "peers",
    "uring",
];

/// The others wait in the same places: an epoll, a master's epoll, a ring.
#[test]
fn a_loop_that_spins_keeps_the_contract_and_so_does_one_that_spins_while_it_pays() {
    for name in ["event-driven", "master-dispatch", "uring"] {
        all_keep_the_contract(name, &[["--spin", "50us"], ["--spin", "adaptive:200us"]]);
    }
}

#[test]
fn a_loop_that_spins_does_not_sleep_between_requests_and_one_that_does_not_sleeps_before_each() {
    for name in SPINNING {
        let sleeps = |flags: &[&str]| {
            let mut server = start(name, flags);
            let load = load(server.addr, &["--connections", "1", "--requests", "1000", "--threads", "1"]);
            assert_eq!(load.errors.total(), 0, "{name} {flags:?}: {:?}", load.errors);
            let report = held(server.stop());
            report.workers.iter().map(|worker| worker.voluntary_switches).sum::<u64>()
        };
        // A few at the start and at the end. A window of a minute is longer than any pause between two requests. On a
        // busy machine a loop that does not spin is often preempted where it would sleep.
        let (spinning, sleeping) = (sleeps(&["--spin", "1m"]), sleeps(&[]));
        assert!(sleeping > 3 * (spinning + 5), "{name}: {spinning} sleeps with a spin, {sleeping} without");
    }
}

#[test]
fn a_loop_that_spins_ends_at_once_when_it_is_asked_to() {
    for name in SPINNING {
        let mut server = start(name, &["--spin", "1m"]);
        ends_at_once(&mut server, Signal::SIGTERM);
    }
}

/// Command lines in scripts and lessons that are older than the split go on working.
#[test]
fn a_flag_of_a_program_that_was_split_starts_the_program_that_has_it_now() {
    for (name, flags, successor) in [
        ("shared-accept", &["--lock=none", "--wait=blocking"][..], "prefork"),
        ("shared-accept", &["--lock=none", "--wait=poll"], "prefork-poll"),
        ("shared-accept", &["--wait", "epoll-shared"], "prefork-poll"),
        ("shared-accept", &["--lock", "semaphore", "--wait", "blocking"], "prefork-lock"),
        ("shared-accept", &["--lock", "accept-mutex", "--retry", "1ms"], "accept-mutex"),
        ("master-dispatch", &["--pass", "connection"], "master-dispatch"),
        ("master-dispatch", &["--pass", "listener", "--master", "serves"], "pass-listener"),
    ] {
        let mut server = start(name, &[&["--workers", "2"], flags].concat());
        assert_eq!(held(server.stop()).model, successor, "{name} {flags:?}");
    }
}

#[test]
fn flags_that_do_not_fit_the_way_of_waiting_are_refused() {
    for flags in [
        &["--rearm", "4"][..],
        &["--wait", "epoll-exclusive-rearm", "--rearm", "0"],
        &["--wait", "epoll-edge", "--yield", "5ms"],
    ] {
        let output = Command::new(kind("shared-accept").path).args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
    }
}

/// Sixteen connections come one after another and stay. All workers sleep each time, and nobody but the first is woken.
#[test]
fn a_worker_that_yields_does_not_have_all_connections_that_stay() {
    let shares = |flags: &[&str]| {
        let watched = Watched::start("shared-accept", &[&["--workers", "4"], flags].concat());
        let _clients: Vec<(Client, usize)> = (0..16).map(|_| watched.hold()).collect();
        watched.active()
    };
    let alone = shares(&["--wait", "epoll-exclusive"]);
    assert!(spread(&alone) >= 8, "{alone:?}");
    for wait in ["epoll", "epoll-exclusive"] {
        let yielded = shares(&["--wait", wait, "--yield", "50ms"]);
        assert!(spread(&yielded) <= 2, "{wait}: {yielded:?}");
    }
}

/// A worker that waited for those who are not there would not answer for a minute.
#[test]
fn a_worker_without_others_or_whose_only_peer_is_dead_yields_to_nobody() {
    let alone = Watched::start("shared-accept", &["--workers", "1", "--yield", "60s"]);
    let _clients: Vec<(Client, usize)> = (0..5).map(|_| alone.hold()).collect();

    let left = Watched::start("shared-accept", &["--workers", "2", "--yield", "60s"]);
    Process::find(left.board.row(1).get(Count::Pid) as i32).expect("it runs").kill();
    said_with(&left.server, "1 left");
    let _clients: Vec<(Client, usize)> = (0..5).map(|_| left.hold()).collect();
}

/// The other has none, and hangs.
#[test]
fn a_worker_yields_for_a_while_and_then_takes_the_connection_whatever_others_do() {
    let watched = Watched::start("shared-accept", &["--workers", "2", "--yield", "20ms"]);
    let _hung = Stopped::new(watched.board.row(1).get(Count::Pid) as i32);
    let _clients: Vec<(Client, usize)> = (0..5).map(|_| watched.hold()).collect();
    assert_eq!(watched.active(), [5, 0]);
    let row = watched.board.row(0);
    // It accepted later and not in vain.
    assert_eq!((row.get(Count::Wakeups), row.get(Count::EmptyWakeups)), (5, 0));
}

#[test]
fn sigterm_ends_a_worker_that_yields_at_once() {
    let mut watched = Watched::start("shared-accept", &["--workers", "2", "--yield", "60s"]);
    let hung = Stopped::new(watched.board.row(1).get(Count::Pid) as i32);
    let _first = watched.hold();
    let mut second = connect(&watched.server);
    held(second.send(GET));
    let yields = poll_until(FOREVER, || (watched.board.row(0).get(Count::Wakeups) == 2).then_some(()));
    assert!(yields.is_some());
    watched.server.signal(Signal::SIGTERM);
    drop(hung);
    held(held(watched.server.ended(GRACE / 2)).report());
}
