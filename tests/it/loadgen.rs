//! `loadgen` against servers that are good, slow, rude and wrong. The servers are a few lines each, so that a test says
//! both sides of the conversation.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use acceptlab::report::LoadReport;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use nix::sys::signal::Signal;
use socket2::{Domain, SockRef, Socket, Type};

use crate::generator::*;
use crate::support::{Needs, TempFolder, inconclusive, reserve_port};

// ---- the counts -------------------------------------------------------------------------------------------

#[test]
fn a_number_of_requests_is_sent_exactly_and_both_sides_count_the_same() {
    for flags in ["", "--rate 2000", "--rate 2000 --arrivals poisson", "--requests-per-connection 3"] {
        let (connections, requests) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counted = (connections.clone(), requests.clone());
        let address = serve(move |_, mut stream| {
            counted.0.fetch_add(1, Ordering::SeqCst);
            while let Some(request) = read_request(&mut stream) {
                counted.1.fetch_add(1, Ordering::SeqCst);
                let last = request.contains("Connection: close\r\n");
                stream.write_all(if last { OK_AND_CLOSE } else { OK }.as_bytes()).unwrap();
                if last {
                    return;
                }
            }
        });
        let report = run(&format!("--requests 301 --connections 7 --threads 2 {flags}"), address);
        assert_eq!(report.requests, 301, "{flags}");
        assert_eq!(requests.load(Ordering::SeqCst), 301, "{flags}");
        assert_eq!(report.connections.established, connections.load(Ordering::SeqCst), "{flags}");
        assert_eq!(report.errors.total(), 0, "{flags}: {:?}", report.errors);
        let share = &report.workers["0"];
        assert_eq!((share.connections, share.requests), (report.connections.answered, 301), "{flags}");
        assert!(report.latency_us.max > 0.0 && report.latency_us.p50 <= report.latency_us.max);
    }
}

#[test]
fn the_warm_up_is_not_counted() {
    let requests = Arc::new(AtomicU64::new(0));
    let seen = requests.clone();
    let address = serve(move |_, mut stream| {
        while read_request(&mut stream).is_some() {
            seen.fetch_add(1, Ordering::SeqCst);
            stream.write_all(OK.as_bytes()).unwrap();
        }
    });
    // Long enough for a request on a busy machine.
    let report = run("--requests 20 --warmup 1s --connections 2", address);
    assert!(report.outside_window.warmup > 0);
    // A request sent in the warm-up and answered after it counts for the rate, not for the number to be sent.
    assert_eq!(report.requests + report.outside_window.warmup, requests.load(Ordering::SeqCst));
    assert!((20..=22).contains(&report.requests), "{}", report.requests);
}

#[test]
fn k_requests_go_over_each_connection_and_the_last_one_asks_for_the_close() {
    let (tell, hear) = mpsc::channel();
    let tell = Mutex::new(tell);
    let address = serve(move |_, mut stream| {
        let mut closing = Vec::new();
        while let Some(request) = read_request(&mut stream) {
            closing.push(request.contains("Connection: close\r\n"));
            let last = closing.last() == Some(&true);
            stream.write_all(if last { OK_AND_CLOSE } else { OK }.as_bytes()).unwrap();
            if last {
                break;
            }
        }
        tell.lock().unwrap().send(closing).unwrap();
    });
    let report = run("--requests 12 --connections 1 --requests-per-connection 3", address);
    assert_eq!((report.requests, report.connections.established), (12, 4));
    assert_eq!(report.errors.total(), 0, "{:?}", report.errors);
    for _ in 0..4 {
        assert_eq!(hear.recv().unwrap(), [false, false, true]);
    }
}

#[test]
fn the_server_closes_first_so_no_time_wait_stays_at_the_client() {
    // The client waits for the FIN of a server that announced it: the reads below end because of *our* close,
    // and only then.
    let (tell, hear) = mpsc::channel();
    let tell = Mutex::new(tell);
    let address = serve(move |_, mut stream| {
        read_request(&mut stream).unwrap();
        stream.write_all(OK_AND_CLOSE.as_bytes()).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        // Unlike read it goes on when a signal interrupts it.
        tell.lock().unwrap().send(stream.read_exact(&mut [0]).map_err(|error| error.kind())).unwrap();
    });
    run("--requests 2 --connections 1 --requests-per-connection 1", address);
    assert_eq!(hear.recv().unwrap(), Err(std::io::ErrorKind::WouldBlock));
}

#[test]
fn workers_are_told_apart_and_those_that_got_nothing_count_too() {
    let address = serve(|number, mut stream| {
        let worker = number % 2;
        while read_request(&mut stream).is_some() {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Worker: {worker}\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let report = run("--requests 400 --connections 40 --workers 4", address);
    let connections: Vec<u64> = ["0", "1", "2", "3"].iter().map(|worker| report.workers[*worker].connections).collect();
    assert_eq!(connections, [20, 20, 0, 0]);
    let evenness = report.evenness.unwrap().connections;
    assert_eq!((evenness.workers, evenness.n), (4, 40));
    // X² = 4 · 10² / 10 on three degrees of freedom.
    assert!((evenness.dispersion - 40.0 / 3.0).abs() < 1e-9);
    assert_eq!(evenness.max_over_mean, 2.0);
}

#[test]
fn without_x_worker_the_balance_is_unknown() {
    let address = serve(|_, mut stream| {
        while read_request(&mut stream).is_some() {
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        }
    });
    let report = run("--requests 5 --connections 1", address);
    assert_eq!((report.requests, report.errors.total()), (5, 0));
    assert!(report.evenness.is_none() && report.workers.is_empty());
}

// ---- answers in every shape -------------------------------------------------------------------------------

#[test]
fn an_answer_in_one_byte_pieces_is_one_answer() {
    let address = serve(|_, mut stream| {
        stream.set_nodelay(true).unwrap();
        while read_request(&mut stream).is_some() {
            for byte in OK.as_bytes() {
                stream.write_all(&[*byte]).unwrap();
            }
        }
    });
    let report = run("--requests 20 --connections 2 --show answers:1", address);
    assert_eq!((report.requests, report.errors.total()), (20, 0));
    assert_eq!((report.trace[0].status, report.trace[0].bytes, report.trace[0].worker), (200, 2, Some(0)));
}

#[test]
fn chunked_and_close_delimited_answers_are_read() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let until_close = "HTTP/1.1 200 OK\r\n\r\nhello";
    let address = serve(move |number, mut stream| {
        read_request(&mut stream).unwrap();
        stream.write_all(if number == 0 { chunked } else { until_close }.as_bytes()).unwrap();
        if number == 0 && read_request(&mut stream).is_some() {
            stream.write_all(chunked.replace("200 OK\r\n", "200 OK\r\nConnection: close\r\n").as_bytes()).unwrap();
        }
    });
    let report = run("--requests 5 --connections 1 --show answers:9", address);
    assert_eq!((report.requests, report.errors.total()), (5, 0), "{:?}", report.errors);
    assert_eq!(report.connections.established, 4);
    assert!(report.trace.iter().all(|answer| answer.bytes == 5));
}

#[test]
fn an_answer_larger_than_the_receive_buffer_arrives_whole() {
    const BODY_BYTES: usize = 3_000_000;
    let address = serve(|_, mut stream| {
        while read_request(&mut stream).is_some() {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {BODY_BYTES}\r\n\r\n").unwrap();
            stream.write_all(&vec![b'x'; BODY_BYTES]).unwrap();
        }
    });
    let report = run("--requests 4 --connections 2 --show answers:4", address);
    assert_eq!((report.requests, report.errors.total()), (4, 0));
    assert!(report.trace.iter().all(|answer| answer.bytes == BODY_BYTES as u64));
}

#[test]
fn head_and_post_are_sent_as_they_should_be() {
    let head = serve(|_, mut stream| {
        while let Some(request) = read_request(&mut stream) {
            assert!(request.starts_with("HEAD / HTTP/1.1\r\nHost: "));
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").unwrap();
        }
    });
    let report = run("--requests 3 --connections 1 --method HEAD", head);
    assert_eq!((report.requests, report.errors.total()), (3, 0));

    // Far more than a socket buffer holds: the request is written in many pieces.
    const BODY_BYTES: usize = 12_000_000;
    let post = serve(|_, mut stream| {
        while let Some(request) = read_request(&mut stream) {
            assert!(request.contains(&format!("\r\nX-A: b\r\nContent-Length: {BODY_BYTES}\r\n")));
            let mut body = vec![0; BODY_BYTES];
            stream.read_exact(&mut body).unwrap();
            stream.write_all(OK.as_bytes()).unwrap();
        }
    });
    let report = run(&format!("--requests 3 --connections 1 --method POST:{BODY_BYTES} -H X-A:b"), post);
    assert_eq!((report.requests, report.errors.total()), (3, 0), "{:?}", report.errors);
}

#[test]
fn a_server_on_ipv6_is_reached() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        return inconclusive(Needs::Kernel("IPv6"), "::1 cannot be bound");
    };
    let address = serve_on(listener, |_, stream| answer_all(stream));
    assert_eq!(run("--requests 10 --connections 2", address).requests, 10);
}

#[test]
fn a_server_on_the_second_address_of_its_name_is_reached() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        return inconclusive(Needs::Kernel("IPv6"), "::1 cannot be bound");
    };
    // The same port of the first address is bound, so that no other test's server gets it, and nobody listens there.
    let first = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
    let refuses = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    if refuses.bind(&first.into()).is_err() {
        return a_server_on_the_second_address_of_its_name_is_reached();
    }
    let address = serve_on(listener, |_, stream| answer_all(stream));
    let folder = TempFolder::new("hosts");
    let hosts = folder.file("hosts");
    std::fs::write(&hosts, "127.0.0.1 both.test\n::1 both.test\n").unwrap();
    // In a mount namespace of its own the machine's names are ours to write.
    let script = format!("mount --bind {hosts} /etc/hosts && exec \"$@\"");
    let url = format!("http://both.test:{}/", address.port());
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        &script,
        "sh",
        env!("CARGO_BIN_EXE_loadgen"),
        "--requests",
        "10",
        "--connections",
        "2",
        &url,
    ]);
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if err.contains("unshare failed") || err.contains("mount:") {
        return inconclusive(Needs::Privilege("root"), err);
    }
    assert!(output.status.success() && out.contains("errors       none"), "{out}{err}");
}

// ---- the open loop ----------------------------------------------------------------------------------------

#[test]
fn requests_that_were_due_are_sent_after_the_end_of_the_window_too() {
    let requests = Arc::new(AtomicU64::new(0));
    let seen = requests.clone();
    let address = serve(move |_, mut stream| {
        while read_request(&mut stream).is_some() {
            seen.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(5));
            if stream.write_all(OK.as_bytes()).is_err() {
                return;
            }
        }
    });
    let report = run("--rate 1000 --duration 100ms --connections 1", address);
    assert_eq!(report.requests + report.outside_window.late, 100);
    assert_eq!((requests.load(Ordering::SeqCst), report.errors.timeout), (100, 0));
    assert!(report.outside_window.late > 50);
    // 100 requests of at least 5 ms, the last one due at 99 ms.
    assert!(report.latency_us.max >= 400e3, "{:?}", report.latency_us);
}

#[test]
fn requests_that_were_due_and_never_sent_count_as_unanswered() {
    let address = serve(|_, mut stream| {
        read_request(&mut stream);
        wait_for_close(stream);
    });
    let report = run("--rate 1000 --duration 100ms --timeout 200ms --connections 1", address);
    assert_eq!((report.requests, report.errors.timeout), (0, 100));
    assert_eq!(report.errors.total(), 100);
    assert!(report.latency_us.max >= 200e3, "{:?}", report.latency_us);
}

// ---- everything that goes wrong is counted ----------------------------------------------------------------

#[test]
fn a_request_that_is_never_answered_is_counted_at_its_age() {
    let address = serve(|_, stream| wait_for_close(stream));
    let report = run("--requests 6 --connections 2 --timeout 100ms", address);
    assert_eq!((report.requests, report.errors.timeout, report.errors.total()), (0, 6, 6));
    assert!(report.latency_us.p50 >= 100e3, "{:?}", report.latency_us);
    assert_eq!((report.connections.established, report.connections.answered), (6, 0));
}

#[test]
fn statuses_outside_2xx_are_counted_by_status() {
    let address = serve(|_, mut stream| {
        for status in [200, 301, 404, 503, 503] {
            read_request(&mut stream).unwrap();
            write!(stream, "HTTP/1.1 {status} Reason\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
    });
    let report = run("--requests 5 --connections 1", address);
    let status: Vec<_> = report.errors.status.iter().map(|(status, n)| (status.as_str(), *n)).collect();
    assert_eq!(status, [("301", 1), ("404", 1), ("503", 2)]);
    assert_eq!((report.requests, report.errors.total()), (5, 4));
}

#[test]
fn a_close_a_reset_and_nonsense_in_place_of_an_answer_are_read_errors() {
    for (cause, misbehave) in [
        ("eof", (|_| {}) as fn(TcpStream)),
        ("eof", |mut stream| stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").unwrap()),
        ("ECONNRESET", reset),
        ("malformed: status line", |mut stream| stream.write_all(b"SSH-2.0-OpenSSH\r\n").unwrap()),
    ] {
        let address = serve(move |_, mut stream| {
            read_request(&mut stream);
            misbehave(stream);
        });
        let report = run("--requests 3 --connections 1", address);
        assert_eq!(report.errors.read.get(cause), Some(&3), "{:?}", report.errors);
        assert_eq!((report.requests, report.errors.total()), (0, 3));
        assert_eq!(report.connections.established, 3);
    }
}

#[test]
fn a_reset_while_the_request_is_being_written_is_a_write_error() {
    let address = serve(|_, mut stream| {
        stream.read_exact(&mut [0; 1024]).unwrap();
        reset(stream);
    });
    let report = run("--requests 2 --connections 1 --method POST:16000000", address);
    assert_eq!(report.errors.write.values().sum::<u64>(), 2, "{:?}", report.errors);
    assert_eq!((report.requests, report.errors.total()), (0, 2));
}

/// Answers one request and is gone: its port refuses from then on.
fn serve_once() -> (Socket, SocketAddr) {
    let (port, address) = reserve_port();
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        read_request(&mut stream);
        drop(listener);
        stream.write_all(OK_AND_CLOSE.as_bytes()).unwrap();
    });
    (port, address)
}

#[test]
fn a_server_that_dies_in_mid_run_is_asked_again_ever_more_rarely() {
    let (_port, address) = serve_once();
    let report = run("--duration 3s --connections 1", address);
    assert_eq!(report.requests, 1);
    // 0, 10, 30, 70, 150, 310, 630 and 1270 ms after the first refusal, then every second; a busy machine adds to the
    // pauses and takes nothing from them.
    let refused = report.errors.connect["ECONNREFUSED"];
    assert!((1..=10).contains(&refused), "{refused}");
}

#[test]
fn a_number_of_requests_is_given_up_when_the_server_stays_away() {
    let (_port, address) = serve_once();
    let report = run("--requests 10 --connections 1 --timeout 200ms", address);
    assert_eq!(report.requests, 1);
    assert!(report.errors.connect["ECONNREFUSED"] >= 1);
}

#[test]
fn a_close_between_two_requests_is_no_error() {
    let accepted = Arc::new(AtomicU64::new(0));
    let count = accepted.clone();
    let address = serve(move |_, mut stream| {
        count.fetch_add(1, Ordering::SeqCst);
        read_request(&mut stream).unwrap();
        // MSG_MORE holds the answer back until the close, so that it and the FIN are one segment (send(2)).
        SockRef::from(&stream).send_with_flags(OK.as_bytes(), nix::libc::MSG_MORE).unwrap();
    });
    for flags in ["", "--rate 100"] {
        accepted.store(0, Ordering::SeqCst);
        let report = run(&format!("--requests 10 --connections 1 {flags}"), address);
        assert_eq!((report.requests, report.errors.total()), (10, 0), "{flags}: {:?}", report.errors);
        assert_eq!(report.connections.established, 10);
        assert_eq!(accepted.load(Ordering::SeqCst), 10);
    }
}

// ---- idle connections --------------------------------------------------------------------------------------

#[test]
fn idle_connections_are_there_before_the_first_request_and_send_nothing() {
    let (accepted, silent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let counted = (accepted.clone(), silent.clone());
    let (tell, hear) = mpsc::channel();
    let tell = Mutex::new(tell);
    let address = serve(move |_, mut stream| {
        counted.0.fetch_add(1, Ordering::SeqCst);
        let mut answered = 0;
        while read_request(&mut stream).is_some() {
            answered += 1;
            stream.write_all(OK.as_bytes()).unwrap();
        }
        counted.1.fetch_add(u64::from(answered == 0), Ordering::SeqCst);
        tell.lock().unwrap().send(()).unwrap();
    });
    let report = run("--background idle:300 --requests 10 --connections 2", address);
    (0..302).for_each(|_| hear.recv().unwrap());
    assert_eq!((accepted.load(Ordering::SeqCst), silent.load(Ordering::SeqCst)), (302, 300));
    let book = report.connections;
    assert_eq!((book.requested, book.established, book.answered, book.idle_lost), (302, 302, 2, 0));
    assert_eq!(book.peak_open, 302);
}

#[test]
fn a_server_that_does_not_keep_idle_connections_is_found_out() {
    let (tell, hear) = mpsc::channel();
    let (tell, hear) = (Mutex::new(tell), Mutex::new(hear));
    let address = serve(move |number, mut stream| {
        // The idle ones come first, and the client has seen that they are closed before the one that asks is answered.
        if number < 5 {
            stream.shutdown(Shutdown::Write).unwrap();
            wait_for_close(stream);
            return tell.lock().unwrap().send(()).unwrap();
        }
        read_request(&mut stream).unwrap();
        (0..5).for_each(|_| hear.lock().unwrap().recv().unwrap());
        stream.write_all(OK.as_bytes()).unwrap();
        wait_for_close(stream);
    });
    let report = run("--background idle:5 --requests 1 --connections 1", address);
    assert_eq!((report.requests, report.connections.idle_lost), (1, 5));
}

// ---- beginnings and endings -------------------------------------------------------------------------------

#[test]
fn a_refused_connection_is_one_line_and_status_1() {
    let (_port, free) = reserve_port();
    for flags in ["", "--threads 4", "--rate 10", "--background idle:3", "--requests 5", "--requests-per-connection 1"]
    {
        let expected = format!("loadgen: connect {free}: connection refused; is the server running?\n");
        assert_eq!(failure(flags, &url(free)), (expected, Some(1)), "{flags}");
    }
}

#[test]
fn handshakes_that_never_end_are_one_line_and_status_1() {
    // A backlog of zero holds one connection; the kernel drops every further SYN.
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let _first = TcpStream::connect(address).unwrap();
    for flags in ["--timeout 200ms", "--duration 1s", "--timeout 200ms --rate 5"] {
        let (line, status) = failure(flags, &url(address));
        assert_eq!(line, format!("loadgen: connect {address}: connection timed out; is the server running?\n"));
        assert_eq!(status, Some(1));
    }
}

#[test]
fn names_and_files_that_do_not_exist_are_one_line_and_status_1() {
    let (line, status) = failure("", "http://nosuch.invalid/");
    assert!(line.starts_with("loadgen: resolve nosuch.invalid: ") && line.lines().count() == 1, "{line}");
    assert_eq!(status, Some(1));
    let (line, status) = failure("--hlog /nonexistent/file", "http://127.0.0.1:1/");
    assert!(line.starts_with("loadgen: create /nonexistent/file: ") && line.lines().count() == 1, "{line}");
    assert_eq!(status, Some(1));
}

#[test]
fn wrong_flags_exit_with_2() {
    for (flags, url, complaint) in [
        ("", "https://127.0.0.1/", "https is not spoken here"),
        ("", "127.0.0.1:80", "the scheme is missing"),
        ("--connections 0", "http://127.0.0.1/", "0"),
        ("--connections -1", "http://127.0.0.1/", "-1"),
        ("--connections 99999999999999999999", "http://127.0.0.1/", "number too large"),
        ("--duration 3", "http://127.0.0.1/", "is not a duration"),
        ("--rate 1e99", "http://127.0.0.1/", "a rate lies between"),
        ("--arrivals poisson", "http://127.0.0.1/", "--rate"),
        ("--threads 9 --connections 8", "http://127.0.0.1/", "9 threads cannot share 8 connections"),
        ("--nonsense", "http://127.0.0.1/", "--nonsense"),
    ] {
        let (lines, status) = failure(flags, url);
        assert!(lines.contains(complaint), "{flags}: {lines}");
        assert_eq!(status, Some(2), "{flags}");
    }
}

#[test]
fn ctrl_c_prints_what_was_measured_so_far() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (address, hear) = serve_and_tell();
        let child = start("--duration 1h --threads 2 --connections 4", address);
        (0..100).for_each(|_| hear.recv().unwrap());
        send_signal(&child, signal);
        let report = report(&child.wait_with_output().unwrap());
        // Each of four connections has one outstanding request; whoever sent the next one had its answer before.
        assert!(report.requests >= 96, "{}", report.requests);
        assert!(report.duration_s > 0.0 && report.duration_s < 600.0);
        assert_eq!(report.errors.total(), 0, "{:?}", report.errors);
    }
}

/// Answers everything, and tells of every request.
fn serve_and_tell() -> (SocketAddr, Receiver<()>) {
    let (tell, hear) = mpsc::channel();
    let tell = Mutex::new(tell);
    let address = serve(move |_, mut stream| {
        while read_request(&mut stream).is_some() {
            let _ = tell.lock().unwrap().send(());
            if stream.write_all(OK.as_bytes()).is_err() {
                return;
            }
        }
    });
    (address, hear)
}

#[test]
fn ctrl_c_does_not_wait_for_a_server_that_does_not_answer() {
    let (tell, hear) = mpsc::channel();
    let tell = Mutex::new(tell);
    let address = serve(move |_, mut stream| {
        read_request(&mut stream);
        tell.lock().unwrap().send(()).unwrap();
        wait_for_close(stream);
    });
    let child = start("--duration 1h --timeout 1h --connections 1", address);
    hear.recv().unwrap();
    send_signal(&child, Signal::SIGINT);
    let report = report(&child.wait_with_output().unwrap());
    assert_eq!((report.requests, report.errors.timeout), (0, 1));
}

#[test]
fn phases_are_announced_in_order() {
    let address = serve(|_, stream| answer_all(stream));
    for (flags, expected) in [
        ("--duration 50ms", "measure drain"),
        ("--requests 5", "measure drain"),
        ("--duration 50ms --background idle:2 --warmup 50ms", "background warmup measure drain"),
    ] {
        let output =
            loadgen(flags, &url(address)).args(["--progress", "phases", "--connections", "2"]).output().unwrap();
        let lines = String::from_utf8(output.stderr).unwrap();
        let phases: Vec<_> = lines.lines().map(|line| line.strip_prefix("phase ").unwrap()).collect();
        assert_eq!(phases.join(" "), expected, "{flags}");
    }
}

// ---- what it prints ---------------------------------------------------------------------------------------

#[test]
fn the_text_report_has_the_trace_the_percentiles_and_a_bar_per_worker() {
    let address = serve(|number, mut stream| {
        while read_request(&mut stream).is_some() {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Worker: {number}\r\n\r\nok");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let output = loadgen("--requests 60 --connections 12 --show answers:2", &url(address)).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let traced: Vec<_> = text.lines().take_while(|line| !line.is_empty()).collect();
    assert_eq!(traced.len(), 2, "{text}");
    for line in traced {
        assert!(
            line.starts_with("HTTP/1.1 200   0.") && line.contains(" secs:       2 bytes ==> GET  /   worker "),
            "{line}"
        );
    }
    for part in
        ["60 answers in", "p99.9", "response", "connect", "errors       none", "D = 0.00", "    11          1 █"]
    {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert!(!text.contains('\x1b'), "colour without a terminal");
}

#[test]
fn the_interval_log_holds_the_same_histograms() {
    let address = serve(|_, stream| answer_all(stream));
    let folder = TempFolder::new("hlog");
    let path = folder.file("hlog");
    let report = run(&format!("--requests 200 --rate 2000 --connections 2 --hlog {path}"), address);
    let bytes = std::fs::read(&path).unwrap();
    let mut tags = Vec::new();
    for entry in IntervalLogIterator::new(&bytes) {
        let LogEntry::Interval(interval) = entry.unwrap() else { continue };
        let decoded = base64_decode(interval.encoded_histogram());
        let histogram: hdrhistogram::Histogram<u64> = Deserializer::new().deserialize(&mut decoded.as_slice()).unwrap();
        let tag = interval.tag().unwrap().as_str();
        let (latency, count) = match tag {
            "response" => (&report.latency_us, 200),
            "service" => (&report.service_us, 200),
            "connect" => (&report.connect_us, 2),
            "first_byte" => (&report.first_byte_us, 200),
            _ => (&report.send_delay_us, 200),
        };
        assert_eq!(histogram.len(), count, "{tag}");
        assert_eq!(histogram.value_at_quantile(0.99) as f64 / 1e3, latency.p99, "{tag}");
        tags.push(tag.to_string());
    }
    assert_eq!(tags, ["connect", "first_byte", "service", "response", "send_delay"]);
}

#[test]
fn a_full_disk_under_the_interval_log_does_not_cost_the_report() {
    let address = serve(|_, stream| answer_all(stream));
    let output = loadgen("--requests 5 --connections 1 --format json --hlog /dev/full", &url(address)).output();
    let output = output.unwrap();
    let report: LoadReport = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report.requests, output.status.code()), (5, Some(1)));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.starts_with("loadgen: write /dev/full: ") && line.lines().count() == 1, "{line}");
}

/// RFC 4648, section 4; a crate for one test would be too much.
fn base64_decode(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0u32, 0);
    for byte in text.bytes().filter(|&byte| byte != b'=') {
        let value = ALPHABET.iter().position(|&letter| letter == byte).unwrap() as u32;
        bits = bits << 6 | value;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}
