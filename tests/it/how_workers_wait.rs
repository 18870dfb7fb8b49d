//! The ways to wait for one socket: each of them serves, outlives a worker and ends as it should.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::contract::all_keep_the_contract;
use crate::endings::{ends_under_load, outlives_a_worker};
use crate::support::{ends_at_once, held, kind, load, start};

/// A program, and the flags that make it wait in this way.
const WAYS: [(&str, &[&str]); 7] = [
    ("prefork", &[]),
    ("prefork-poll", &["--call", "poll"]),
    ("prefork-poll", &["--call", "epoll"]),
    ("shared-accept", &["--wait", "epoll"]),
    ("shared-accept", &["--wait", "epoll-edge"]),
    ("shared-accept", &["--wait", "epoll-exclusive"]),
    ("shared-accept", &["--wait", "epoll-exclusive-rearm"]),
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
}

/// The loops that can look again before they sleep.
const SPINNING: [&str; 3] = ["event-driven", "reuseport", "uring"];

#[test]
fn a_loop_that_spins_keeps_the_contract_and_so_does_one_that_spins_while_it_pays() {
    for name in SPINNING {
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
        // A few at the start and at the end. A window of a minute is longer than any pause between two requests.
        let (spinning, sleeping) = (sleeps(&["--spin", "1m"]), sleeps(&[]));
        assert!(spinning < 50 && sleeping > 200, "{name}: {spinning} sleeps with a spin, {sleeping} without");
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
fn a_rearm_count_without_its_way_of_waiting_is_refused() {
    for flags in [&["--rearm", "4"][..], &["--wait", "epoll-exclusive-rearm", "--rearm", "0"]] {
        let output = Command::new(kind("shared-accept").path).args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
    }
}
