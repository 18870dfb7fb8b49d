//! What becomes of a request that the server drops: sent once more where HTTP allows it (`--retry`), otherwise lost,
//! and named.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use acceptlab::report::{IntervalReport, LoadReport};

use crate::generator::{OK, loadgen, read_request, reset, run, serve, url};
use crate::support::TempFolder;

/// Answers so many requests on each connection, and closes instead of answering the next.
fn close_instead_after(answers: u64) -> SocketAddr {
    serve(move |_, stream| close_after(stream, answers))
}

fn close_after(mut stream: TcpStream, answers: u64) {
    for _ in 0..answers {
        if read_request(&mut stream).is_none() || stream.write_all(OK.as_bytes()).is_err() {
            return;
        }
    }
    read_request(&mut stream);
}

fn read_errors(report: &LoadReport) -> u64 {
    report.errors.read.values().sum()
}

#[test]
fn a_request_that_a_kept_connection_did_not_answer_is_sent_once_more_and_is_no_error() {
    let report = run("--retry --connections 1 --requests 10", close_instead_after(3));
    assert_eq!((report.requests, report.errors.total(), report.lost.len()), (10, 0, 0));
    // Three on each connection; the fourth, seventh and tenth are answered on the next.
    assert_eq!((report.retried, report.connections.established), (3, 4));
}

#[test]
fn without_retry_it_is_an_error() {
    let report = run("--connections 1 --requests 8", close_instead_after(3));
    assert_eq!((report.requests, report.retried), (6, 0));
    assert_eq!(report.errors.read, BTreeMap::from([("eof".to_string(), 2)]));
    assert_eq!(report.lost.len(), 2);
}

#[test]
fn a_kept_connection_that_is_reset_is_treated_the_same() {
    let address = serve(|_, mut stream| {
        if read_request(&mut stream).is_some() && stream.write_all(OK.as_bytes()).is_ok() {
            read_request(&mut stream);
            reset(stream);
        }
    });
    let report = run("--retry --connections 1 --requests 5", address);
    assert_eq!((report.requests, report.retried, report.errors.total()), (5, 4, 0));
}

#[test]
fn the_first_request_on_a_fresh_connection_is_never_sent_again() {
    let report = run("--retry --connections 1 --requests 5", close_instead_after(0));
    assert_eq!((report.requests, report.retried, read_errors(&report)), (0, 0, 5));
    let each_its_own = run("--retry --requests-per-connection 1 --connections 2 --requests 6", {
        serve(|number, stream| close_after(stream, number % 2))
    });
    assert_eq!(each_its_own.retried, 0);
    assert_eq!(read_errors(&each_its_own), each_its_own.lost.len() as u64);
}

#[test]
fn a_second_failure_is_an_error() {
    // Every other connection answers one request; the rest answer none.
    let address = serve(|number, stream| close_after(stream, (number + 1) % 2));
    let report = run("--retry --connections 1 --requests 8", address);
    // One answered, the next sent twice and lost, and so on.
    assert_eq!((report.requests, report.retried, read_errors(&report)), (4, 4, 4));
    assert_eq!(report.lost.len(), 4);
    assert!(report.lost.iter().all(|lost| lost.worker.is_none()), "nobody answered on the second connection");
}

#[test]
fn an_answer_that_had_begun_is_not_asked_for_again() {
    let address = serve(|_, mut stream| {
        read_request(&mut stream);
        stream.write_all(OK.as_bytes()).unwrap();
        read_request(&mut stream);
        stream.write_all(&OK.as_bytes()[..20]).unwrap();
    });
    let report = run("--retry --connections 1 --requests 4", address);
    assert_eq!((report.requests, report.retried, read_errors(&report)), (2, 0, 2));
}

#[test]
fn the_time_of_a_request_sent_twice_counts_from_the_first_time() {
    let held = std::time::Duration::from_millis(30);
    let address = serve(move |number, mut stream| {
        read_request(&mut stream);
        let _ = stream.write_all(OK.as_bytes());
        // The first connection holds its second request, and then drops it.
        if number == 0 {
            read_request(&mut stream);
            std::thread::sleep(held);
        } else {
            while read_request(&mut stream).is_some() && stream.write_all(OK.as_bytes()).is_ok() {}
        }
    });
    let report = run("--retry --connections 1 --requests 3", address);
    assert_eq!((report.requests, report.retried), (3, 1));
    assert!(report.latency_us.max >= held.as_micros() as f64, "{:?}", report.latency_us);
}

#[test]
fn what_is_lost_is_named_by_its_address_its_cause_and_who_answered_last() {
    let dropped: Arc<Mutex<Vec<String>>> = Arc::default();
    let book = dropped.clone();
    let connections = AtomicU64::new(0);
    let address = serve(move |_, mut stream| {
        read_request(&mut stream);
        stream.write_all(OK.replace("X-Worker: 0", "X-Worker: 3").as_bytes()).unwrap();
        if read_request(&mut stream).is_none() {
            return;
        }
        book.lock().unwrap().push(stream.peer_addr().unwrap().to_string());
        if connections.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            reset(stream);
        }
    });
    let report = run("--connections 2 --requests 12", address);
    // Each connection has its first request answered and its second dropped; which of the two the last one is depends
    // on how many fell to either user.
    let lost = report.lost.len() as u64;
    assert_eq!((report.requests + lost, report.lost_more), (12, 0));
    assert!([5, 6].contains(&lost), "{lost}");
    let mut named: Vec<String> = report.lost.iter().map(|lost| lost.client.clone().unwrap()).collect();
    named.sort();
    let mut dropped = dropped.lock().unwrap().clone();
    dropped.sort();
    assert_eq!(named, dropped);
    for lost in &report.lost {
        assert!(["read eof", "read ECONNRESET"].contains(&lost.cause.as_str()), "{lost:?}");
        assert_eq!(lost.worker, Some(3));
    }
    assert!(report.lost.is_sorted_by(|a, b| a.at_s <= b.at_s));
}

#[test]
fn ten_thousand_lost_requests_are_named_and_the_rest_counted() {
    let address = serve(|_, mut stream| drop(read_request(&mut stream)));
    let report = run("--connections 4 --threads 2 --requests 10020", address);
    assert_eq!((report.lost.len(), report.lost_more), (LoadReport::MOST_LOST, 20));
}

#[test]
fn intervals_tell_how_many_were_sent_again() {
    let folder = TempFolder::new("retry");
    let path = folder.file("a.ndjson");
    let address = close_instead_after(3);
    let output = loadgen("--retry --connections 1 --requests 10 --format json --interval 10ms", &url(address))
        .arg("--out")
        .arg(&path)
        .output()
        .unwrap();
    let report = crate::generator::report(&output);
    let text = std::fs::read_to_string(&path).unwrap();
    let intervals = text.lines().map(|line| serde_json::from_str::<IntervalReport>(line).unwrap());
    assert_eq!((report.retried, intervals.map(|interval| interval.retried).sum::<u64>()), (3, 3));
}

#[test]
fn only_what_may_be_asked_twice_is() {
    for (flags, said) in [
        ("--retry --method POST", "a method that may be asked twice"),
        ("--retry --pipeline 2", "one request at a time"),
        ("--retry --requests-per-connection 0", "without requests there is none to retry"),
    ] {
        let (error, status) = crate::generator::failure(flags, "http://127.0.0.1:9/");
        assert_eq!(status, Some(2), "{flags}");
        assert!(error.contains(said), "{flags}: {error}");
    }
}

#[test]
fn a_silence_and_the_second_it_fell_into_are_told() {
    let silence = std::time::Duration::from_millis(300);
    let served = AtomicU64::new(0);
    let address = serve(move |_, mut stream| {
        while read_request(&mut stream).is_some() {
            if served.fetch_add(1, Ordering::Relaxed) == 20 {
                std::thread::sleep(silence);
            }
            if stream.write_all(OK.as_bytes()).is_err() {
                return;
            }
        }
    });
    // Requests, and not a time that a busy machine uses up before the silence is over.
    let report = run("--connections 1 --rate 100 --requests 100", address);
    let silence_ms = report.longest_silence_ms.unwrap();
    assert!(silence_ms >= silence.as_millis() as u64 - 2, "{silence_ms} ms");
    let worst = report.worst_second.unwrap();
    assert!(worst.latency_us.max >= silence.as_micros() as f64 * 0.9, "{worst:?}");
}
