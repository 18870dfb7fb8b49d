//! `uring`: three ways to get a connection, and a kernel that gives it no ring.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use acceptlab::lab::check::client::{ANSWER_TIMEOUT, GET, served};
use acceptlab::lab::observe::processes::Process;
use nix::sys::signal::Signal;

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

/// The worker that answers has asked first, so the next connection wakes its ring and no other. It may be closed
/// without an answer, as every connection whose request has not come when its worker stops; its client hears of that.
#[test]
fn a_worker_that_is_stopped_leaves_no_connection_in_the_shared_queue() {
    for _ in 0..20 {
        let server = start("uring", &["--workers", "3", "--accept", "shared"]);
        let (_, worker) = held(held(served(server.addr)).signature());
        Process::find(worker).expect("it has just answered").signal(Signal::SIGTERM);
        let mut client = TcpStream::connect(server.addr).unwrap();
        client.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        let _ = client.write_all(GET);
        let heard = client.read(&mut [0]);
        assert!(!heard.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "nobody has taken the connection");
    }
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
    let programs = [env!("CARGO_BIN_EXE_uring"), env!("CARGO_BIN_EXE_null-uring")];
    for (errno, words) in [
        ("ENOSYS", "has no io_uring"),
        ("EPERM", "is not allowed"),
        ("EINVAL", "Linux 6.1"),
        ("ENOMEM", "ulimit -l"),
        ("EMFILE", "ulimit -n"),
    ] {
        for program in programs {
            let output = Command::new("strace")
                .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=io_uring_setup"])
                .args(["-e", &format!("inject=io_uring_setup:error={errno}"), program])
                .args(["--listen", "127.0.0.1:0"])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                said.contains(words) && said.contains("the same with epoll") && said.lines().count() == 1,
                "{said}"
            );
            assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        }
    }
}
