//! `loadgen`'s times: what a think time, a handshake, a first byte and a stall take, and when its progress is printed.

use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::{bar, judged};
use crate::generator::*;

/// Catches users who think too short (on any machine), and users who wait for one another, or twice.
#[test]
fn a_user_who_thinks_asks_once_in_a_think_time() {
    // Ten users for a second, once in 20 ms: at most 510. With the chance in exp (σ = √500, five of it) 390 to 620; and
    // a twentieth of the time is the programs' and, as tolerated, the machine's.
    for (think, range) in [("20ms", 450..=510), ("exp:20ms", 370..=620)] {
        judged(Duration::from_millis(50), || {
            let address = serve(|_, stream| answer_all(stream));
            let report = run(&format!("--connections 10 --duration 1s --think {think}"), address);
            assert_eq!(report.errors.total(), 0, "{think}: {:?}", report.errors);
            assert!(report.requests <= *range.end(), "{think}: {}", report.requests);
            assert_eq!(report.latency_us, report.service_us, "{think}: a closed loop has one response time");
            bar(range.contains(&report.requests), || format!("{think}: {} requests", report.requests))
        });
    }
}

/// Catches a first byte that is noted with the last one: then no time is between them. The server lets 30 ms pass; half
/// of it may get lost where the client hears of the first byte late.
#[test]
fn the_first_byte_and_the_whole_answer_have_times_of_their_own() {
    judged(Duration::from_millis(15), || {
        let address = serve(|_, mut stream| {
            while read_request(&mut stream).is_some() {
                let (begin, end) = OK.split_at(20);
                stream.write_all(begin.as_bytes()).unwrap();
                thread::sleep(Duration::from_millis(30));
                if stream.write_all(end.as_bytes()).is_err() {
                    return;
                }
            }
        });
        let report = run("--connections 1 --requests 5", address);
        assert!(report.service_us.p50 >= 30e3 * 0.999, "{:?}", report.service_us);
        let between_us = report.service_us.p50 - report.first_byte_us.p50;
        bar(between_us >= 15e3, || format!("{between_us} us between the first byte and the last"))
    });
}

/// Catches a client that waits for all hundred handshakes before it looks at the first: that took fifty times as long.
/// A handshake takes a fraction of a millisecond, so a machine that withholds more than two has decided the result.
#[test]
fn a_handshake_that_nobody_waits_for_takes_no_longer_than_one_that_carries_a_request() {
    judged(Duration::from_millis(2), || {
        // Fewer than the backlog of this server, or the kernel would drop some and try again after a second.
        let address = serve(|_, stream| answer_all(stream));
        let before_the_run = run("--rate 50 --connections 100 --duration 300ms", address).connect_us;
        let with_a_request = run("--connections 100 --requests 100", address).connect_us;
        bar(before_the_run.p50 < 15.0 * with_a_request.p50, || format!("{before_the_run:?} {with_a_request:?}"))
    });
}

/// Catches a client that waits with its schedule while the server stalls: its run takes a second longer, and its
/// percentiles of response and service times are alike.
#[test]
fn a_stall_of_one_second_shows_in_the_response_time_and_not_in_the_service_time() {
    const STALLS_AT: u64 = 100;
    judged(Duration::from_millis(400), || {
        let requests = AtomicU64::new(0);
        let address = serve(move |_, mut stream| {
            while read_request(&mut stream).is_some() {
                if requests.fetch_add(1, Ordering::SeqCst) == STALLS_AT {
                    thread::sleep(Duration::from_secs(1));
                }
                stream.write_all(OK.as_bytes()).unwrap();
            }
        });
        let report = run("--rate 200 --requests 400 --connections 1", address);
        assert_eq!((report.requests, report.errors.total()), (400, 0));
        // One request of 400 met the stall after it was sent; 200 more were due while it lasted, and waited up to
        // a second.
        let (service, response) = (&report.service_us, &report.latency_us);
        assert!(service.max >= 1e6 && response.max >= 1e6, "{service:?} {response:?}");
        assert!(response.p90 >= 0.5e6, "{response:?}");
        // The last request is due at 399/200 s.
        assert!(report.duration_s >= 1.99, "{}", report.duration_s);
        bar(service.p90 < response.p90 / 2.0 && report.duration_s < 2.9, || {
            format!("{} s, service {service:?}, response {response:?}", report.duration_s)
        })
    });
}

/// Catches a progress line that does not come each second second, or comes again at the end half a second later.
#[test]
fn without_a_terminal_it_is_declined_in_one_line_and_the_run_goes_on_with_plain_lines() {
    judged(Duration::from_millis(250), || {
        let flags = "--progress live --connections 2 --rate 100 --duration 2500ms --format json";
        let address = serve(|_, stream| answer_all(stream));
        let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .args(flags.split_whitespace())
            .arg(url(address))
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr.clone()).unwrap();
        assert!(said.chars().all(|c| c == '\n' || !c.is_control()), "{said:?}");
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines[0].contains("--progress live: standard error is not a terminal"), "{said}");
        let report = report(&output);
        // Every one that was due is counted; on a busy machine the end may come before the last answer, or before it
        // was sent.
        assert_eq!(report.requests + report.outside_window.late + report.censored, 250);
        let is_told = lines.len() == 2 && lines[1].starts_with("measuring 2 s of 2.5 s · ");
        bar(is_told && report.requests > 200, || format!("{} answers; {said}", report.requests))
    });
}
