//! The baselines hold each other to their numbers: what the bare client counted, the null server has answered.

use std::process::{Command, Output};

use acceptlab::lab::check::server::Program;
use acceptlab::sys::uring::Uring;
use serde_json::Value;

use crate::support::{Needs, held, inconclusive};

fn bare_client(url: &str, flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bare-client")).args(flags).arg(url).output().unwrap()
}

#[test]
fn every_request_the_bare_client_counts_was_answered_and_at_most_one_more_per_connection() {
    let (epoll, ring) = (env!("CARGO_BIN_EXE_null-server"), env!("CARGO_BIN_EXE_null-uring"));
    for (program, flags, churn) in [(epoll, &[][..], false), (epoll, &["--close"], true), (ring, &[], false)] {
        if let (true, Err(why)) = (program == ring, Uring::probe()) {
            inconclusive(Needs::Kernel("io_uring"), why);
            continue;
        }
        let mut server = held(Program::new(&[program.into()]).start(flags));
        let url = format!("http://{}/", server.addr);
        let mode: &[&str] = if churn { &["--churn"] } else { &[] };
        let output = bare_client(&url, &[&["--connections", "8", "--duration", "200ms"], mode].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let counted = report["requests"].as_u64().unwrap();
        assert!(counted > 0 && report["duration_s"].as_f64().unwrap() >= 0.2, "{report}");

        let book = &held(server.stop()).workers[0];
        assert!((counted..=counted + 8).contains(&book.requests), "{counted} counted, {}", book.requests);
        // Each of the last eight may have been accepted, and closed by its client before it was read.
        let expected = if churn { counted..=counted + 8 } else { 8..=8 };
        assert!(expected.contains(&book.accepted), "{counted} counted, {} accepted", book.accepted);
    }
}

#[test]
fn a_bare_client_without_a_server_says_so_in_one_line() {
    let output = bare_client("http://127.0.0.1:1/", &["--duration", "1s"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), told.lines().count()), (Some(1), 1), "{told}");
    assert!(told.contains("127.0.0.1:1") && told.contains("is a server there?"), "{told}");
}
