//! The load models of `loadgen`: who asks when, on which connection, and how a connection ends.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::generator::*;
use crate::support::{TempFolder, reserve_port};

#[test]
fn a_session_has_a_connection_of_its_own_and_asks_k_times() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let book = seen.clone();
    let address = serve(move |number, mut stream| {
        let mut requests = 0;
        while let Some(request) = read_request(&mut stream) {
            requests += 1;
            let last = request.contains("Connection: close\r\n");
            stream.write_all(if last { OK_AND_CLOSE } else { OK }.as_bytes()).unwrap();
            if last {
                break;
            }
        }
        book.lock().unwrap().push((number, requests));
    });
    let flags = "--rate 200 --sessions --requests-per-connection 3 --think exp:2ms --requests 40 --connections 20";
    let report = run(flags, address);
    assert_eq!((report.requests, report.connections.established), (120, 40));
    assert_eq!(report.errors.total(), 0, "{:?}", report.errors);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 40);
    assert!(seen.iter().all(|&(_, requests)| requests == 3), "{seen:?}");
}

#[test]
fn connect_only_opens_and_closes_and_says_nothing() {
    for close in ["fin", "rst"] {
        let (connections, bytes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counted = (connections.clone(), bytes.clone());
        let address = serve(move |_, mut stream| {
            counted.0.fetch_add(1, Ordering::SeqCst);
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all);
            counted.1.fetch_add(all.len() as u64, Ordering::SeqCst);
        });
        let report =
            run(&format!("--requests-per-connection 0 --connections 4 --requests 50 --close {close}"), address);
        assert_eq!((report.requests, report.connections.established), (50, 50), "{close}");
        assert_eq!(report.errors.total(), 0, "{close}: {:?}", report.errors);
        assert_eq!(bytes.load(Ordering::SeqCst), 0, "{close}");
        assert!(report.connect_us.p50 > 0.0 && report.evenness.is_none(), "{close}");
    }
}

#[test]
fn a_deadline_sheds_what_is_stale_and_abandons_what_is_under_way() {
    // One connection, and a server that answers nobody: until the first request is given up, hundreds have grown stale,
    // and each that still goes out is given up in turn.
    let address = serve(|_, stream| wait_for_close(stream));
    let report = run("--connections 1 --rate 4000 --duration 250ms --deadline 60ms --timeout 10s", address);
    let book = report.deadline.unwrap();
    assert!(book.abandoned >= 1 && book.shed >= 1, "{book:?}");
    assert_eq!(book.abandoned + book.shed + report.errors.timeout, 1000, "{:?}", report.errors);
    assert_eq!((report.censored, report.requests), (1000, 0));
    assert!(report.latency_us.p50 >= 60e3 * 0.999, "each is counted at its age: {:?}", report.latency_us);
}

#[test]
fn a_reset_ends_a_connection_without_time_wait() {
    let (told, ends) = mpsc::channel();
    let told = Mutex::new(told);
    let address = serve(move |_, mut stream| {
        let request = read_request(&mut stream).unwrap();
        stream.write_all(OK.as_bytes()).unwrap();
        let end = stream.read(&mut [0; 16]).map_err(|error| error.kind());
        told.lock().unwrap().send((request.contains("Connection: close"), end)).unwrap();
    });
    let report = run("--requests 5 --connections 1 --requests-per-connection 1 --close rst", address);
    assert_eq!((report.requests, report.errors.total()), (5, 0));
    for _ in 0..5 {
        assert_eq!(ends.recv_timeout(Duration::from_secs(10)).unwrap(), (false, Err(ErrorKind::ConnectionReset)));
    }
}

#[test]
fn source_addresses_take_turns() {
    let peers = Arc::new(Mutex::new(Vec::new()));
    let book = peers.clone();
    let address = serve(move |_, stream| {
        book.lock().unwrap().push(stream.peer_addr().unwrap().ip());
        answer_all(stream);
    });
    let report =
        run("--requests 12 --connections 3 --requests-per-connection 1 --source 127.0.3.0/30,127.0.9.9", address);
    assert_eq!((report.requests, report.errors.total()), (12, 0));
    let seen: BTreeSet<IpAddr> = peers.lock().unwrap().iter().copied().collect();
    let expected = ["127.0.3.0", "127.0.3.1", "127.0.3.2", "127.0.3.3", "127.0.9.9"];
    assert_eq!(seen, expected.iter().map(|text| text.parse().unwrap()).collect());
}

#[test]
fn a_source_address_that_is_not_ours_is_one_line_and_status_1() {
    let address = serve(|_, stream| answer_all(stream));
    let (line, status) = failure("--requests 1 --connections 1 --source 192.0.2.1", &url(address));
    assert_eq!(status, Some(1));
    assert!(line.contains("cannot assign requested address") && line.lines().count() == 1, "{line}");
}

#[test]
fn a_server_on_a_unix_socket_is_reached() {
    let folder = TempFolder::new("unix");
    let path = folder.file("socket");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut buffer = [0; 1024];
                while matches!(stream.read(&mut buffer), Ok(1..)) && stream.write_all(OK.as_bytes()).is_ok() {}
            });
        }
    });
    let flags = "--requests 20 --connections 2 --format json";
    let url = format!("http://unix:{path}:/");
    let report = report(&loadgen(flags, &url).output().unwrap());
    assert_eq!((report.requests, report.errors.total()), (20, 0));
    std::fs::remove_file(&path).unwrap();
    let (line, status) = failure("--requests 1 --connections 1", &url);
    assert_eq!(status, Some(1));
    assert!(line.contains(&path), "{line}");
}

#[test]
fn pipelined_requests_are_all_under_way_before_the_first_answer() {
    let address = serve(|_, mut stream| {
        // A client that waits for an answer before the fourth request waits for ever.
        while (0..4).all(|_| read_request(&mut stream).is_some()) {
            // In pieces that end in the middle of an answer.
            let answers = OK.repeat(4);
            for piece in answers.as_bytes().chunks(50) {
                stream.write_all(piece).unwrap();
            }
        }
    });
    let report = run("--connections 2 --requests 40 --pipeline 4", address);
    assert_eq!((report.requests, report.errors.total(), report.pipeline), (40, 0, Some(4)));
    assert_eq!(report.workers["0"].requests, 40);
}

#[test]
fn a_server_that_closes_in_mid_pipeline_leaves_the_others_unanswered() {
    let address = serve(|_, mut stream| {
        if (0..4).all(|_| read_request(&mut stream).is_some()) {
            stream.write_all(OK_AND_CLOSE.as_bytes()).unwrap();
        }
    });
    let report = run("--connections 1 --requests 8 --pipeline 4", address);
    assert_eq!((report.requests, report.censored), (2, 6), "{:?}", report.errors);
    assert_eq!(report.errors.read["eof"], 6);
}

#[test]
fn a_request_that_found_no_connection_in_time_was_sent_late() {
    // One connection and 20 ms of service: of 100 requests a second every second one is late, ever later.
    let address = serve(|_, mut stream| {
        while read_request(&mut stream).is_some() {
            thread::sleep(Duration::from_millis(20));
            if stream.write_all(OK.as_bytes()).is_err() {
                return;
            }
        }
    });
    let report = run("--connections 1 --rate 100 --requests 30", address);
    assert!(report.send_delay_us.max >= 250e3, "{:?}", report.send_delay_us);
    // Each of the two times is the upper end of its histogram's bucket, at most 1/1,024 of the time wide.
    let least_us = (report.send_delay_us.max + 20e3) * (1.0 - 1.0 / 1024.0);
    assert!(report.latency_us.max >= least_us, "{} of at least {least_us}", report.latency_us.max);
    assert_eq!(report.offered_per_s.map(|rate| rate > 0.0), Some(true));
}

#[test]
fn each_worker_has_its_own_times_and_the_order_of_the_workers_is_told() {
    let address = serve(|number, mut stream| {
        if let Some(request) = read_request(&mut stream) {
            let worker = number % 2;
            thread::sleep(Duration::from_millis(20 * worker));
            assert!(request.contains("Connection: close"));
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Worker: {worker}\r\nConnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let report = run("--connections 1 --requests 12 --requests-per-connection 1 --show order:8", address);
    assert_eq!(report.order, [0, 1, 0, 1, 0, 1, 0, 1]);
    let p50 = |worker: &str| report.workers[worker].latency_us.unwrap().p50;
    assert!(p50("1") >= 20e3 * 0.999 && p50("0") < p50("1"), "{} {}", p50("0"), p50("1"));
}

#[test]
fn a_run_begins_at_the_moment_it_is_told() {
    let address = serve(|_, stream| answer_all(stream));
    let moment = SystemTime::now() + Duration::from_millis(700);
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let report = run(&format!("--connections 1 --requests 5 --start-at {:.3}", since.as_secs_f64()), address);
    let info = report.run.unwrap();
    let (asked, began) = (info.start_at_unix_ns.unwrap(), info.started_unix_ns);
    assert!(asked.abs_diff(since.as_nanos() as u64) < 1_000_000);
    assert!(began + 1_000_000 >= asked, "began {} ns early", asked - began);
    assert!(SystemTime::now() >= moment);
}

#[test]
fn a_full_backlog_of_a_unix_socket_is_asked_again_ever_more_rarely() {
    let folder = TempFolder::new("backlog");
    let path = folder.file("socket");
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let flags = "--connections 8 --duration 300ms --timeout 200ms --format json";
    let url = format!("http://unix:{path}:/");
    let report = report(&loadgen(flags, &url).output().unwrap());
    // A refusal each 10, 20, 40, … ms, not a hundred thousand.
    let refused = report.errors.connect["EAGAIN"];
    assert!((1..200).contains(&refused), "{refused}");
}

/// Reads a head and so many bytes of body.
fn read_post(stream: &mut std::net::TcpStream, body: usize) -> bool {
    read_request(stream).is_some() && stream.read_exact(&mut vec![0; body]).is_ok()
}

#[test]
fn a_pipeline_larger_than_the_socket_buffer_is_answered_while_it_is_written() {
    const BODY: usize = 700_000;
    let address = serve(|_, mut stream| {
        while read_post(&mut stream, BODY) {
            if stream.write_all(OK.as_bytes()).is_err() {
                return;
            }
        }
    });
    let report = run(&format!("--pipeline 12 --method POST:{BODY} --connections 2 --requests 48"), address);
    assert_eq!((report.requests, report.errors.total()), (48, 0), "{:?}", report.errors);
}

#[test]
fn what_was_measured_before_the_server_died_is_reported_by_every_thread() {
    let (_port, address) = reserve_port();
    let listener = TcpListener::bind(address).unwrap();
    // It takes two connections, the third is refused, and two of four threads never had one.
    thread::spawn(move || {
        for _ in 0..2 {
            answer_all(listener.accept().unwrap().0);
        }
    });
    let flags = "--rate 10 --requests-per-connection 1 --threads 4 --connections 4 --duration 800ms --timeout 5s";
    let report = run(flags, address);
    assert_eq!(report.requests, 2, "{:?}", report.errors);
    assert!(report.errors.connect["ECONNREFUSED"] >= 1, "{:?}", report.errors);
}

#[test]
fn a_session_goes_on_over_a_new_connection_when_the_server_closed_the_old_one() {
    let address = serve(|_, mut stream| {
        // It closes after each answer and does not say so.
        if read_request(&mut stream).is_some() {
            stream.write_all(OK.as_bytes()).unwrap();
        }
    });
    let flags = "--rate 50 --arrivals fixed --sessions --requests-per-connection 3 --think 30ms --requests 10";
    let report = run(&format!("{flags} --connections 10"), address);
    assert_eq!((report.requests, report.connections.established), (30, 30), "{:?}", report.errors);
}

#[test]
fn the_end_of_the_window_leaves_room_for_the_sessions_that_are_still_due() {
    let address = serve(|_, stream| answer_all(stream));
    let flags = "--rate 40 --arrivals fixed --sessions --requests-per-connection 3 --think 300ms --duration 1s";
    let report = run(&format!("{flags} --connections 4 --timeout 5s"), address);
    // Four connections cannot hold all 40 users, but those who waited are served when the others have gone.
    assert_eq!((report.errors.timeout, report.censored), (0, 0), "{:?}", report.errors);
}

#[test]
fn a_server_that_stays_away_cuts_a_run_of_n_requests_short_and_the_report_says_so() {
    let (_port, address) = reserve_port();
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || answer_all(listener.accept().unwrap().0));
    let report = run("--connections 1 --requests 100 --requests-per-connection 10 --timeout 300ms", address);
    assert_eq!(report.requests, 10);
    assert!(report.run.unwrap().interrupted);
}

#[test]
fn a_connection_that_never_came_about_is_counted_at_its_age() {
    // A backlog of one, and nobody who accepts.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let report = run("--requests-per-connection 0 --connections 8 --duration 700ms --timeout 200ms", address);
    assert!(report.errors.connect["ETIMEDOUT"] >= 1, "{:?}", report.errors);
    assert!(report.censored >= 1 && report.latency_us.max >= 200e3 * 0.999, "{:?}", report.latency_us);
    assert!(report.connect_us.max >= 200e3 * 0.999, "{:?}", report.connect_us);
}

#[test]
fn one_lost_answer_of_a_number_of_requests_does_not_change_the_rate() {
    let address = serve(|number, stream| if number == 1 { wait_for_close(stream) } else { answer_all(stream) });
    let report = run("--connections 2 --rate 200 --requests 100 --timeout 2s", address);
    assert_eq!(report.errors.timeout, 1, "{:?}", report.errors);
    let offered = report.offered_per_s.unwrap();
    assert!((offered - 200.0).abs() < 10.0, "{offered}");
}
