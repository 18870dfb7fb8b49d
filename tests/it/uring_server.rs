//! `uring`: three ways to get a connection, and a kernel that gives it no ring.

use std::process::Command;

use acceptlab::lab::check::client::served;

use crate::contract::all_keep_the_contract;
use crate::support::{can_trace, held, load, start};

#[test]
fn each_way_to_accept_keeps_the_contract() {
    all_keep_the_contract("uring", &[["--accept", "shared"], ["--accept", "handoff"]]);
}

#[test]
fn an_acceptor_passes_connections_to_the_rings_in_turns() {
    let server = start("uring", &["--workers", "3", "--accept", "handoff"]);
    let passed: Vec<usize> = (0..9).map(|_| held(held(served(server.addr)).worker())).collect();
    assert!(passed.windows(2).all(|pair| pair[1] == (pair[0] + 1) % 3), "{passed:?}");
}

/// Answers are gathered while one is being sent, and a body takes more than one of the ring's buffers.
#[test]
fn large_answers_and_many_requests_at_once_arrive_whole() {
    for accept in ["shared", "reuseport", "handoff"] {
        let server = start("uring", &["--workers", "2", "--accept", accept, "--body", "1000000"]);
        let report = load(server.addr, &["--connections", "8", "--requests", "64", "--pipeline", "4"]);
        assert_eq!((report.requests, report.errors.total()), (64, 0), "{accept}: {:?}", report.errors);
    }
}

/// strace plays the kernel that does not allow it.
#[test]
fn a_kernel_without_io_uring_is_one_line_that_names_the_same_with_epoll() {
    if !can_trace() {
        return;
    }
    for (errno, words) in [("ENOSYS", "has no io_uring"), ("EPERM", "is not allowed"), ("EINVAL", "Linux 6.1")] {
        let output = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=io_uring_setup"])
            .args(["-e", &format!("inject=io_uring_setup:error={errno}"), env!("CARGO_BIN_EXE_uring")])
            .args(["--listen", "127.0.0.1:0"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(words) && said.contains("reuseport") && said.lines().count() == 1, "{said}");
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    }
}
