//! Points about clients that send nothing, stop in the middle, never read or reset: the server closes their connections
//! in time and goes on serving the others.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::client::{ANSWER_TIMEOUT, Client, GET, GET_AND_CLOSE, served};
use super::server::Program;
use super::{FLAGS, Point, ProbeResult, SERVE, broken, not_applicable, own};

/// Short enough to wait for, long enough not to hit a client that is only slow to be scheduled.
const IDLE: (&str, Duration) = ("300ms", Duration::from_millis(300));

pub const POINTS: &[Point] = &[
    own(FLAGS, "idle-silent", "a connection that sends nothing is closed after --idle-timeout", |program| {
        let_go(program, b"")
    }),
    own(FLAGS, "idle-half-request", "half a request and silence: 408 or a close after --idle-timeout", |program| {
        let_go(program, b"GET / HTTP/1.1\r\nHo")
    }),
    own(FLAGS, "idle-half-body", "half a body and silence: 408 or a close after --idle-timeout", |program| {
        let_go(program, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
    }),
    own(FLAGS, "idle-keep-alive", "an idle keep-alive connection is closed after --idle-timeout", idle_keep_alive),
    own(SERVE, "idle-cpu", "waiting for a client costs no CPU time", idle_cpu),
    own(SERVE, "never-reads", "a client that never reads delays others by --idle-timeout at most", never_reads),
    own(SERVE, "reset", "a reset in the middle of a request harms no other client", reset),
    own(SERVE, "silent-clients", "100 connections that send nothing: the next client is served", silent_clients),
];

fn let_go(program: &Program, half: &[u8]) -> ProbeResult {
    let server = program.start(&["--idle-timeout", IDLE.0])?;
    let since = Instant::now();
    let mut client = Client::connect(server.addr)?;
    client.send(half)?;
    closes_when_idle(&mut client, since)?;
    drop(client);
    served_in_time(server.addr, IDLE.1)
}

/// A close, or 408 and a close, not before the time-out and within [`ANSWER_TIMEOUT`]. `since` is before the connection
/// was opened, or before its last byte was sent: before the server could start its clock, however late we read ours.
fn closes_when_idle(client: &mut Client, since: Instant) -> ProbeResult {
    if let Some(answer) = client.answer_or_close(ANSWER_TIMEOUT)? {
        answer.expect(408)?;
    }
    client.closes(ANSWER_TIMEOUT)?;
    let waited = since.elapsed();
    if waited < IDLE.1 * 4 / 5 {
        return broken(format!("408 or a close after {:?}", IDLE.1), format!("a close after {waited:?}"));
    }
    Ok(())
}

fn idle_keep_alive(program: &Program) -> ProbeResult {
    let server = program.start(&["--idle-timeout", IDLE.0])?;
    let (mut client, since) = ask_in_time(server.addr, GET, IDLE.1, ANSWER_TIMEOUT)?;
    closes_when_idle(&mut client, since)?;
    drop(client);
    served_in_time(server.addr, IDLE.1)
}

/// A busy loop uses all of a CPU that the other examiners leave to it; a tenth of a CPU is more than ten ticks of
/// rounding.
fn idle_cpu(program: &Program) -> ProbeResult {
    let server = program.start(&[])?;
    served(server.addr)?;
    let mut half = Client::connect(server.addr)?;
    half.send(b"GET / HTTP/1.1\r\nHo")?;
    half.was_read()?;
    let _silent = Client::connect(server.addr)?;
    let (watched, allowed) = (Duration::from_secs(1), Duration::from_millis(100));
    let before = server.cpu_time();
    // The time to measure over; nothing is ordered by it.
    std::thread::sleep(watched);
    let used = server.cpu_time().saturating_sub(before);
    if used > allowed {
        return broken(format!("at most {allowed:?} CPU time in {watched:?}"), format!("{used:?}"));
    }
    Ok(())
}

/// Sends requests and reads no answer, until the server takes no more; then others are served while the client is still
/// connected, and after it has left.
fn never_reads(program: &Program) -> ProbeResult {
    let server = program.start(&["--body", "1000000", "--idle-timeout", IDLE.0])?;
    let mut client = Client::connect(server.addr)?;
    let no_room_within = Duration::from_millis(100);
    client.stream.set_write_timeout(Some(no_room_within)).expect("the time is not zero");
    // Each answer is a megabyte: a hundred fill every socket buffer long before the requests fill theirs.
    for _ in 0..100 {
        if client.stream.write_all(GET).is_err() {
            break;
        }
    }
    served_in_time(server.addr, IDLE.1)?;
    drop(client);
    served_in_time(server.addr, IDLE.1)
}

fn reset(program: &Program) -> ProbeResult {
    let server = program.start(&[])?;
    for request in [&GET[..10], GET, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc", b""] {
        for _ in 0..5 {
            let mut client = Client::connect(server.addr)?;
            client.send(request)?;
            client.reset();
        }
    }
    served(server.addr).map(drop)
}

/// A server that takes one connection at a time reaches the next client after a hundred time-outs.
fn silent_clients(program: &Program) -> ProbeResult {
    let idle = Duration::from_millis(50);
    let server = program.start(&["--idle-timeout", "50ms"])?;
    let silent: Vec<Client> = (0..100).map(|_| Client::connect(server.addr)).collect::<ProbeResult<_>>()?;
    let timeout = idle * 100 + 2 * ANSWER_TIMEOUT;
    ask_in_time(server.addr, GET_AND_CLOSE, idle, timeout)?;
    drop(silent);
    ask_in_time(server.addr, GET_AND_CLOSE, idle, timeout).map(drop)
}

fn served_in_time(addr: SocketAddr, idle: Duration) -> ProbeResult {
    ask_in_time(addr, GET_AND_CLOSE, idle, ANSWER_TIMEOUT).map(drop)
}

/// Asks once on a connection of its own, expects a 200, and returns the client and a time before it asked. The
/// time-out `idle` holds for this client, too: one that a busy machine kept from asking for so long asks again. Whoever
/// asked in time is to be answered.
fn ask_in_time(addr: SocketAddr, request: &[u8], idle: Duration, timeout: Duration) -> ProbeResult<(Client, Instant)> {
    const MOST_ATTEMPTS: usize = 20;
    for _ in 0..MOST_ATTEMPTS {
        // Before the connection is there, so before the server can start its clock.
        let since = Instant::now();
        let mut client = Client::connect(addr)?;
        client.send(request)?;
        let was_in_time = since.elapsed() < idle * 4 / 5;
        match client.answer_within(timeout) {
            Ok(answer) => return answer.expect(200).map(|()| (client, since)),
            Err(why) if was_in_time => return Err(why),
            Err(_) => {}
        }
    }
    not_applicable(format!("{MOST_ATTEMPTS} times this machine kept the client from asking within {idle:?}"))
}
