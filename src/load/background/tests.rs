use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::Receiver;

use socket2::{SockAddr, SockRef};

use super::*;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const LAST_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
const NONE: Background =
    Background { idle: 0, slow_send: 0, slow_read: 0, half_open: 0, gap: Duration::from_millis(1) };
const TIMEOUT: Duration = Duration::from_secs(10);

/// Gives each connection to a thread of its own, and tells when that is through with it.
fn serve(handler: fn(&mut TcpStream)) -> (SockAddr, Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // More than are opened at once: of a handshake that overflows the accept queue only the client may know.
    SockRef::from(&listener).listen(1024).unwrap();
    let address = listener.local_addr().unwrap().into();
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let done = done.clone();
            thread::spawn(move || {
                handler(&mut stream);
                drop(stream);
                let _ = done.send(());
            });
        }
    });
    (address, is_done)
}

fn to(address: SockAddr) -> Route {
    Route { address, sources: None, no_delay: false, reset: false }
}

fn start(route: Route, wanted: Background) -> BackgroundConnections {
    let background = BackgroundConnections::start(route, REQUEST.into(), wanted, TIMEOUT).unwrap();
    background.wait_until_open(&|| false).unwrap();
    background
}

fn read_request(stream: &mut TcpStream) {
    let mut request = [0; REQUEST.len()];
    stream.read_exact(&mut request).unwrap();
    assert_eq!(request, REQUEST);
}

/// Starts them, waits until the server has dealt with as many, and stops them.
fn counts_of(handler: fn(&mut TcpStream), wanted: Background) -> Vec<SlowCounts> {
    let (address, is_done) = serve(handler);
    let mut background = start(to(address), wanted);
    for _ in 0..wanted.total() {
        is_done.recv_timeout(Duration::from_secs(30)).unwrap();
    }
    background.stop().slow
}

fn expected(kind: &str, requested: u64, answered: u64, closed_by_server: u64) -> SlowCounts {
    let established = requested;
    SlowCounts { kind: kind.into(), requested, established, answered, closed_by_server, closed_after_ms: None }
}

#[test]
fn slow_clients_get_the_answers_of_a_patient_server() {
    let patient = |stream: &mut TcpStream| {
        for answer in [ANSWER, ANSWER, LAST_ANSWER] {
            read_request(stream);
            stream.write_all(answer).unwrap();
        }
        // They read on until they have seen the last of it; then they close.
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    };
    let counts = counts_of(patient, Background { slow_send: 3, slow_read: 2, half_open: 0, ..NONE });
    assert_eq!(counts, [expected("send", 3, 9, 0), expected("read", 2, 6, 0)]);
}

#[test]
fn what_the_server_ends_is_counted_with_its_age() {
    let impatient = |stream: &mut TcpStream| {
        stream.read_exact(&mut [0; 5]).unwrap();
        thread::sleep(Duration::from_millis(20));
        stream.write_all(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n").unwrap();
    };
    // The request takes much longer than the server waits.
    let gap = Duration::from_millis(50);
    let counts = counts_of(impatient, Background { slow_send: 2, half_open: 5, gap, ..NONE });
    for (counts, (kind, count)) in counts.iter().zip([("send", 2), ("half-open", 5)]) {
        let counted = (&*counts.kind, counts.established, counts.answered, counts.closed_by_server);
        assert_eq!(counted, (kind, count, 0, count));
        assert!(counts.closed_after_ms.unwrap() >= 20.0, "{counts:?}");
    }
}

#[test]
fn an_answer_that_was_complete_when_the_server_left_is_an_answer() {
    let leaving = |stream: &mut TcpStream| {
        read_request(stream);
        stream.write_all(ANSWER).unwrap();
    };
    assert_eq!(counts_of(leaving, Background { slow_read: 4, ..NONE }), [expected("read", 4, 4, 0)]);
    let breaking_off = |stream: &mut TcpStream| {
        read_request(stream);
        stream.write_all(&ANSWER[..ANSWER.len() - 1]).unwrap();
    };
    let counts = counts_of(breaking_off, Background { slow_read: 4, ..NONE });
    assert_eq!((counts[0].answered, counts[0].closed_by_server), (0, 4));
}

#[test]
fn a_slow_reader_takes_so_little_that_the_server_cannot_send_a_large_answer() {
    let large = |stream: &mut TcpStream| {
        read_request(stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        let body = vec![b'x'; 100_000_000];
        assert!(stream.write_all(&body).is_err());
        // Otherwise the kernel would go on sending what it took, and hide the close behind it.
        SockRef::from(&*stream).set_linger(Some(Duration::ZERO)).unwrap();
    };
    let counts = counts_of(large, Background { slow_read: 1, ..NONE });
    assert_eq!((counts[0].answered, counts[0].closed_by_server), (0, 1));
}

#[test]
fn slow_clients_come_from_their_sources_in_turn_and_reset_where_others_do() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let sources = Some("127.0.0.2,127.0.0.3".parse().unwrap());
    let address = listener.local_addr().unwrap().into();
    let gap = Duration::from_secs(3600);
    let wanted = Background { slow_send: 1, slow_read: 1, half_open: 2, gap, ..NONE };
    let mut background = start(Route { sources, reset: true, ..to(address) }, wanted);
    let mut streams: Vec<_> = (0..wanted.total()).map(|_| listener.accept().unwrap()).collect();
    let mut hosts: Vec<_> = streams.iter().map(|(_, peer)| peer.ip().to_string()).collect();
    hosts.sort();
    assert_eq!(hosts, ["127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3"]);
    background.stop();
    for (stream, _) in &mut streams {
        let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn idle_connections_say_nothing_and_are_counted_when_the_server_closes_them() {
    let closes_at_once = |stream: &mut TcpStream| {
        let _ = stream.write_all(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n");
    };
    let (address, is_done) = serve(closes_at_once);
    let mut background = start(to(address), Background { idle: 300, ..NONE });
    for _ in 0..300 {
        is_done.recv_timeout(Duration::from_secs(30)).unwrap();
    }
    let counts = background.stop();
    assert_eq!((counts.idle.established, counts.idle.closed_by_server, counts.failures.total()), (300, 300, 0));
    let (address, is_done) = serve(|stream| assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0));
    let counts = start(to(address), Background { idle: 20, ..NONE }).stop();
    assert_eq!((counts.idle.established, counts.idle.closed_by_server), (20, 0));
    for _ in 0..20 {
        is_done.recv_timeout(Duration::from_secs(30)).unwrap();
    }
}

#[test]
fn idle_connections_that_nobody_accepts_are_an_error_and_slow_ones_a_count() {
    let route = || to(TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().into());
    for idle in [1, 300] {
        let wanted = Background { idle, ..NONE };
        let background = BackgroundConnections::start(route(), REQUEST.into(), wanted, TIMEOUT).unwrap();
        assert_eq!(background.wait_until_open(&|| false), Err(Errno::ECONNREFUSED));
    }
    let wanted = Background { slow_send: 300, slow_read: 1, half_open: 1, ..NONE };
    let counts = start(route(), wanted).stop().slow;
    assert_eq!(counts.iter().map(|counts| counts.requested).collect::<Vec<_>>(), [300, 1, 1]);
    assert!(counts.iter().all(|counts| counts.established == 0));
}

#[test]
fn background_connections_end_when_they_are_dropped() {
    let (address, is_done) =
        serve(|stream| assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), half_of_the_head(REQUEST)));
    drop(start(to(address), Background { half_open: 20, ..NONE }));
    for _ in 0..20 {
        is_done.recv_timeout(Duration::from_secs(30)).unwrap();
    }
}
