//! What carries the bytes must not show in what is measured: every scenario again with the other engine, and what
//! only one of them can do wrong.

use std::io::{Read, Write};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use acceptlab::lab::observe::processes::poll_until;
use acceptlab::sys::uring::Uring;

use crate::generator::*;
use crate::inconclusive;
use crate::support::{FOREVER, Needs, can_trace, inconclusive};
use crate::timing::alone;

const BOTH: [&str; 2] = ["--engine epoll", "--engine io-uring"];

/// The engines that this machine has; without io_uring the test is inconclusive.
#[track_caller]
fn engines() -> impl Iterator<Item = &'static str> {
    let probed = Uring::probe();
    if let Err(why) = &probed {
        inconclusive(Needs::Kernel("io_uring"), why);
    }
    BOTH.into_iter().take(if probed.is_ok() { 2 } else { 1 })
}

#[test]
fn every_scenario_holds_with_io_uring_too() {
    if engines().count() == 1 {
        return;
    }
    let _alone = alone();
    for scenarios in ["loadgen::", "loadgen_models::", "timing::clients::"] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([scenarios, "--test-threads", "4"])
            .env(ENGINE, "io-uring")
            .env_remove(inconclusive::FILE)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        assert!(!said.contains("running 0 tests"), "{said}");
        let could_not_look = String::from_utf8_lossy(&output.stderr).into_owned();
        if let Some((_, tests)) = could_not_look.split_once("inconclusive, which is not passed:") {
            inconclusive(Needs::QuietMachine, format!("with io_uring: {tests}"));
        }
    }
}

#[test]
fn never_sleeping_changes_nothing_but_the_cpu_time() {
    for engine in engines() {
        // The same half second, which a client that sleeps hardly uses: on a machine that gives a spinning one a fifth
        // of a CPU the difference is still threefold.
        let [asleep_us, busy_us] = ["", "--busy-poll"].map(|flag| {
            let address = serve(|_, stream| answer_all(stream));
            let flags = format!("{engine} {flag} --connections 4 --threads 1 --requests 25 --rate 50");
            let report = run(&flags, address);
            assert_eq!((report.requests, report.errors.total()), (25, 0), "{engine}");
            report.client.cpu_user_us + report.client.cpu_system_us
        });
        assert!(busy_us > 3 * asleep_us, "{engine}: {busy_us} us of CPU with --busy-poll, {asleep_us} without");
    }
}

/// The ring has 16 buffers for so few connections, each of 8 KiB.
#[test]
fn answers_larger_than_all_receive_buffers_arrive_whole() {
    let body = "x".repeat(1_000_000);
    for engine in engines() {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let address = serve(move |_, mut stream| {
            while read_request(&mut stream).is_some() {
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let report = run(&format!("{engine} --connections 3 --requests 30"), address);
        assert_eq!((report.requests, report.errors.total()), (30, 0), "{engine}");
    }
}

/// More than the socket buffers on both sides hold, so that the client has to wait for room in the middle.
#[test]
fn a_request_larger_than_the_socket_buffer_goes_out_whole() {
    const BODY: usize = 1 << 20;
    for engine in engines() {
        let address = serve(|_, mut stream| {
            while read_request(&mut stream).is_some() {
                // The body stays away from us until the client has filled every buffer between.
                std::thread::sleep(Duration::from_millis(5));
                let mut body = vec![0; BODY];
                stream.read_exact(&mut body).unwrap();
                assert!(body.iter().all(|&byte| byte == b'x'));
                stream.write_all(OK.as_bytes()).unwrap();
            }
        });
        let flags = format!("{engine} --connections 2 --requests 6 --method POST:{BODY}");
        let report = run(&flags, address);
        assert_eq!((report.requests, report.errors.total()), (6, 0), "{engine}");
    }
}

/// Whatever the kernel still does for a connection keeps it open: the server must see its end all the same.
#[test]
fn a_connection_that_is_given_up_is_closed_for_the_server_too() {
    for engine in engines() {
        let closed = Arc::new(AtomicU64::new(0));
        let seen = closed.clone();
        let address = serve(move |_, mut stream| {
            read_request(&mut stream);
            // No answer: the end of the stream can only come from the client.
            if matches!(stream.read(&mut [0]), Ok(0)) {
                seen.fetch_add(1, Ordering::SeqCst);
            }
        });
        let report = run(&format!("{engine} --connections 2 --requests 4 --timeout 50ms"), address);
        assert_eq!(report.errors.timeout, 4, "{engine}: {:?}", report.errors);
        let all_closed = poll_until(FOREVER, || (closed.load(Ordering::SeqCst) == 4).then_some(()));
        assert!(all_closed.is_some(), "{engine}: the server saw {} of 4 ends", closed.load(Ordering::SeqCst));
    }
}

#[test]
fn more_connections_than_receive_buffers_are_all_served() {
    for engine in engines() {
        let address = serve(|_, stream| answer_all(stream));
        let report = run(&format!("{engine} --connections 300 --requests 3000 --requests-per-connection 5"), address);
        assert_eq!((report.requests, report.errors.total()), (3000, 0), "{engine}: {:?}", report.errors);
        assert!((600..=900).contains(&report.connections.established), "{engine}");
    }
}

/// strace plays the kernel that does not allow it.
#[test]
fn a_kernel_without_io_uring_is_one_line_and_a_run_with_epoll() {
    if !can_trace() {
        return;
    }
    let address = serve(|_, stream| answer_all(stream));
    let flags = ["--engine", "io-uring", "--requests", "2", "--connections", "1", "--format", "json"];
    for (errno, words) in [("ENOSYS", "has no io_uring"), ("EPERM", "is not allowed"), ("EINVAL", "Linux 6.1")] {
        let command = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=io_uring_setup"])
            .args(["-e", &format!("inject=io_uring_setup:error={errno}"), env!("CARGO_BIN_EXE_loadgen")])
            .args(flags)
            .arg(url(address))
            .output();
        let output = command.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.starts_with("loadgen: --engine io-uring: ") && said.lines().count() == 1, "{said}");
        assert!(said.contains(words) && said.ends_with("; epoll is used instead\n"), "{said}");
        let report = report(&output);
        assert_eq!(report.requests, 2);
        assert!(report.run.expect("a report of this version").configuration.engine == "epoll");
    }
}

/// What fails is named, and not the server, which is there.
#[test]
fn a_thread_that_cannot_be_pinned_is_no_unreachable_server() {
    if !can_trace() {
        return;
    }
    let address = serve(|_, stream| answer_all(stream));
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=sched_setaffinity"])
        .args(["-e", "inject=sched_setaffinity:error=EPERM", env!("CARGO_BIN_EXE_loadgen")])
        .args(["--pin", "--requests", "2", &url(address)])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("loadgen: pin a thread to CPU ") && said.lines().count() == 1, "{said}");
    assert!(said.ends_with(": operation not permitted; does a sandbox forbid it? measure without --pin\n"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_report_says_which_engine_it_was() {
    let address = serve(|_, stream| answer_all(stream));
    for engine in engines() {
        let report = run(&format!("{engine} --requests 2 --connections 1"), address);
        let name = if engine.ends_with("epoll") { "epoll" } else { "io-uring" };
        assert_eq!(report.run.expect("a report of this version").configuration.engine, name);
    }
}
