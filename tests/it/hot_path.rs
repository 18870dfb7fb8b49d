//! What a server does between accept and answer, and how a connection ends, seen from outside.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use acceptlab::lab::check::server::Program;

use crate::support::{Needs, SERVERS, TempFolder, can_trace, held, inconclusive, load, start};

/// Servers with a queue between threads, or a role that threads hand on.
const HANDS_ON: [&str; 5] = ["thread-pool", "idle-busy", "half-sync", "pipeline", "leader-follower"];

/// Servers that make something for each connection: a process, a thread, a task.
const FOR_EACH_CONNECTION: [&str; 3] = ["fork", "threaded", "tokio"];

/// Of a server's hundred connections with ten requests each strace(1) sees the calls for memory, for a lock that is
/// contended and for a log. What an architecture is about is left out: a lock of a queue between threads, and what is
/// made for each connection, so that such a server has one connection only, for all requests.
#[test]
fn between_accept_and_response_there_is_no_allocation_lock_or_log() {
    if !can_trace() {
        return;
    }
    for server in SERVERS.iter().filter(|server| !HANDS_ON.contains(&server.name)) {
        let folder = TempFolder::new("strace");
        let log = folder.file("log");
        // As a detached grandchild: the server is our child, and has its signals.
        let strace = "strace -D -f -qq -e trace=brk,mmap,munmap,mremap,madvise,futex,write,openat -o";
        let mut command: Vec<String> = strace.split(' ').map(String::from).collect();
        command.extend([log.clone(), server.path.to_string()]);
        let mut running = held(Program::new(&command).start(&[]));
        let ten_each: &[&str] = match FOR_EACH_CONNECTION.contains(&server.name) {
            true => &[],
            false => &["--requests-per-connection", "10"],
        };
        let flags = |count| [&["--connections", "1", "--requests", count], ten_each].concat();
        let requests = |count| load(running.addr, &flags(count)).requests;
        let lines = || fs::read_to_string(&log).unwrap().lines().count();
        assert_eq!(requests("200"), 200);
        let before = lines();
        assert!(before > 0, "{}: nothing was traced", server.name);
        assert_eq!(requests("1000"), 1000);
        let calls = lines() - before;
        held(running.stop());
        // A thread for the connection, and its end, are a few; one call for a connection would be a hundred.
        assert!(calls < 50, "{}: {calls} calls for memory, locks or logs in 1000 requests", server.name);
    }
}

/// The kernel's count of a connection's segments, read from the client's end.
fn segments_received(client: &TcpStream) -> Option<u32> {
    let (ours, theirs) = (client.local_addr().ok()?.to_string(), client.peer_addr().ok()?.to_string());
    let output = Command::new("ss").args(["-tinH", "src", &ours, "dst", &theirs]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().find_map(|word| word.strip_prefix("segs_in:")?.parse().ok())
}

/// A connection of its own, on which this is asked; it waits for the end of the stream, or for `bytes`.
fn segments_of(addr: SocketAddr, request: &[u8], bytes: usize) -> (usize, Option<u32>) {
    let mut client = TcpStream::connect(addr).unwrap();
    client.write_all(request).unwrap();
    let mut answer = Vec::new();
    (&mut client).take(bytes as u64).read_to_end(&mut answer).unwrap();
    (answer.len(), segments_received(&client))
}

/// The request may be acknowledged by a segment of its own, or not: hence the least of several connections, and many
/// more of them before a server is accused.
#[test]
fn the_end_of_a_connection_travels_in_the_segment_of_its_last_answer() {
    for name in ["threaded", "event-driven", "coroutines", "tokio", "uring"] {
        let mut server = start(name, &[]);
        let closing = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let kept = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let (length, _) = segments_of(server.addr, closing, usize::MAX);
        let kept_length = length - "Connection: close\r\n".len();
        let least = |request: &[u8], bytes| (0..8).filter_map(|_| segments_of(server.addr, request, bytes).1).min();
        let (mut with_end, mut without) = (u32::MAX, u32::MAX);
        for _ in 0..100 {
            let (Some(some), Some(others)) = (least(closing, usize::MAX), least(kept, kept_length)) else {
                return inconclusive(Needs::Tool("ss"), "the count of a connection's segments");
            };
            (with_end, without) = (with_end.min(some), without.min(others));
            if with_end == without {
                break;
            }
        }
        held(server.stop());
        assert_eq!(with_end, without, "{name}: segments of a connection that ends, and of one that stays");
    }
}

#[test]
fn the_baseline_sends_the_end_with_its_answer_or_where_it_is_asked_to_in_a_segment_of_its_own() {
    let baseline = Program::new(&[env!("CARGO_BIN_EXE_null-server").into()]);
    let along = held(baseline.start(&["--close"]));
    let apart = held(baseline.start(&["--close", "--fin", "apart"]));
    let least = |addr: SocketAddr| {
        (0..8).filter_map(|_| segments_of(addr, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", usize::MAX).1).min()
    };
    for _ in 0..100 {
        let (Some(with_it), Some(after_it)) = (least(along.addr), least(apart.addr)) else {
            return inconclusive(Needs::Tool("ss"), "the count of a connection's segments");
        };
        if after_it == with_it + 1 {
            return;
        }
    }
    panic!("in eight hundred connections the end never took one segment more");
}
