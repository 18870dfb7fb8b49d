//! What `loadgen` counts as an answer, and what it calls everything else. The answers are those that users of such
//! programs have met; RFC 9112 allows them, or a client that everybody has takes them all the same.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use acceptlab::report::LoadReport;

use crate::generator::*;

/// Asks three times; the server sends these bytes each time, and perhaps closes its side behind them.
fn ask(answer: &[u8], then_closes: bool) -> LoadReport {
    let answer = answer.to_vec();
    let address = serve(move |_, mut stream| {
        while read_request(&mut stream).is_some() && stream.write_all(&answer).is_ok() {
            if then_closes {
                finish(&mut stream);
            }
        }
    });
    run("--requests 3 --connections 1", address)
}

/// Says that nothing more comes, and waits until the other side says so too.
fn finish(stream: &mut TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn answers_that_curl_or_node_take_are_counted() {
    let many: String = (0..150).map(|i| format!("X-{i}: y\r\n")).collect();
    for answer in [
        &format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 2\r\n\r\nok"),
        "HTTP/1.1 200 OK\r\nServer : x\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0000000000000000002\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, deflate\r\n\r\nok",
    ] {
        let report = ask(answer.as_bytes(), answer.contains("deflate"));
        assert_eq!((report.requests, report.errors.total()), (3, 0), "{answer}: {:?}", report.errors);
    }
}

#[test]
fn what_is_malformed_is_named_by_its_place() {
    for (answer, cause) in [
        ("SSH-2.0-OpenSSH\r\n", "malformed: status line"),
        ("HTTP/1.1 200 OK\r\nnothing\r\n\r\n", "malformed: header name"),
        ("HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n", "malformed: content length"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nten\r\n", "malformed: chunk size"),
    ] {
        let report = ask(answer.as_bytes(), false);
        assert_eq!(report.errors.read.get(cause), Some(&3), "{:?}", report.errors);
        assert_eq!((report.requests, report.errors.total()), (0, 3));
    }
}

#[test]
fn an_interim_answer_is_not_the_final_one() {
    let report = ask(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false);
    assert_eq!((report.requests, report.errors.total()), (3, 0), "{:?}", report.errors);
    let report = ask(b"HTTP/1.1 100 Continue\r\n\r\n", true);
    assert_eq!((report.requests, report.errors.read.get("eof")), (0, Some(&3)), "{:?}", report.errors);
}

#[test]
fn bytes_behind_an_answer_are_unsolicited_and_the_answer_counts() {
    let report = ask(OK.repeat(2).as_bytes(), false);
    assert_eq!((report.requests, report.errors.total()), (3, 3), "{:?}", report.errors);
    assert_eq!(report.errors.read.get("unsolicited"), Some(&3), "{:?}", report.errors);
}

#[test]
fn an_answer_to_a_request_that_was_never_sent_is_unsolicited() {
    // The first connections of an open loop wait for their request.
    let address = serve(|number, mut stream| {
        if number == 0 {
            stream.write_all(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n").unwrap();
            finish(&mut stream);
        } else {
            answer_all(stream);
        }
    });
    let report = run("--rate 1 --requests 1 --arrivals poisson --connections 1", address);
    assert_eq!((report.requests, report.errors.read.get("unsolicited")), (1, Some(&1)), "{:?}", report.errors);
}

#[test]
fn an_answer_without_a_length_on_a_connection_that_stays_open_has_a_cause_of_its_own() {
    let address = serve(|_, mut stream| {
        read_request(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nok").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let report = run("--requests 3 --connections 1 --timeout 500ms", address);
    assert_eq!(report.errors.read.get("no length"), Some(&3), "{:?}", report.errors);
    assert_eq!((report.requests, report.errors.timeout, report.errors.total()), (0, 0, 3));
}
