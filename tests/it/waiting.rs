//! The ways to wait for one socket: each of them serves, outlives a worker and ends as it should.

use std::process::Command;

use crate::contract::all_keep_the_contract;
use crate::endings::{ends_under_load, outlives_a_worker};
use crate::support::{held, kind, load, start};

const WAYS: [&str; 7] =
    ["blocking", "poll", "epoll-shared", "epoll", "epoll-edge", "epoll-exclusive", "epoll-exclusive-rearm"];

#[test]
fn every_way_of_waiting_serves_every_connection_and_balances_the_books() {
    for wait in WAYS {
        let mut server = start("shared-accept", &["--workers", "4", "--wait", wait]);
        let flags = ["--connections", "16", "--requests-per-connection", "1", "--requests", "2000"];
        let load = load(server.addr, &flags);
        assert_eq!(load.errors.total(), 0, "{wait}: {:?}", load.errors);
        let report = held(server.stop());
        let accepted: u64 = report.workers.iter().map(|worker| worker.accepted).sum();
        assert_eq!((accepted, load.requests), (2000, 2000), "{wait}");
    }
}

#[test]
fn sigterm_under_load_answers_what_was_read_however_the_workers_wait() {
    for wait in WAYS {
        ends_under_load("shared-accept", &["--workers", "4", "--wait", wait]);
    }
    ends_under_load("shared-accept", &["--workers", "4", "--wait", "epoll-exclusive-rearm", "--rearm", "16"]);
}

/// Also where the dead one slept in an epoll that it shared, or was the first in the line.
#[test]
fn a_killed_worker_leaves_the_others_serving_however_they_wait() {
    for wait in WAYS {
        outlives_a_worker("shared-accept", &["--wait", wait]);
    }
}

/// `contract.rs` has the defaults, and `prefork`, which is `blocking`.
#[test]
fn every_way_of_waiting_keeps_the_contract() {
    let others = ["epoll-shared", "epoll-edge", "epoll-exclusive", "epoll-exclusive-rearm"];
    all_keep_the_contract("shared-accept", &others.map(|wait| ["--wait", wait]));
}

#[test]
fn a_way_of_waiting_that_is_now_another_programs_goes_on_there() {
    for (wait, program) in [("blocking", "prefork"), ("poll", "prefork-poll"), ("epoll-shared", "prefork-poll")] {
        let mut server = start("shared-accept", &["--workers", "2", "--lock=none", &format!("--wait={wait}")]);
        assert_eq!(held(server.stop()).model, program, "{wait}");
    }
}

#[test]
fn a_rearm_count_without_its_way_of_waiting_is_refused() {
    for flags in [&["--rearm", "4"][..], &["--wait", "epoll-exclusive-rearm", "--rearm", "0"]] {
        let output = Command::new(kind("shared-accept").path).args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
    }
}
