//! How servers end: asked to, killed, in part or not at all started.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use acceptlab::lab::check::client::{ANSWER_TIMEOUT, Client, GET, served};
use acceptlab::lab::check::server::{NotReady, Program, STOP_WITHIN, Server};
use acceptlab::lab::observe::processes::{Process, poll_until};
use nix::sys::signal::Signal;

use crate::support::{
    FOREVER, Kind, Processes, SERVERS, ask_together, connect, held, kind, raise_descriptor_limit, start,
};

/// Also by a server of the same kind, which for SO_REUSEPORT would be no error to the kernel.
#[test]
fn a_taken_port_is_explained() {
    for Kind { name, path, .. } in SERVERS {
        let first = start(name, &[]);
        let taken = first.addr.to_string();
        match Program::new(&[path.to_string()]).start_on(&taken, &[]) {
            Ok(_) => panic!("{name} shares {taken} with another server"),
            Err(NotReady::Silent { status: Some(status), stderr, .. }) => {
                assert_eq!(status.code(), Some(1), "{name}: {stderr}");
                assert_eq!(stderr.lines().count(), 1, "{name}: {stderr}");
                let expected = format!("bind {taken}: address already in use; ");
                assert!(stderr.starts_with(&expected), "{name}: {stderr}");
            }
            Err(not_ready) => panic!("{name}: {:?}", not_ready.into_broken(&[])),
        }
    }
}

/// Whatever a server has counted as answered has arrived, nothing arrives in part, and nobody stays behind.
#[test]
fn sigterm_under_load_answers_what_was_read_and_leaves_no_process_behind() {
    std::thread::scope(|scope| {
        for kind in SERVERS {
            scope.spawn(|| ends_under_load(kind.name, &[]));
        }
    });
}

pub fn ends_under_load(name: &str, flags: &[&str]) {
    let mut server = start(name, flags);
    let (addr, answered) = (server.addr, AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| ask_until_it_ends(addr, &answered));
        }
        let busy = poll_until(FOREVER, || (answered.load(Ordering::Relaxed) > 500).then_some(()));
        assert!(busy.is_some(), "{name} answered {} requests", answered.load(Ordering::Relaxed));
        let processes = server.processes();
        server.signal(Signal::SIGTERM);
        let report = held(held(server.ended(STOP_WITHIN)).report());
        let left = Server::left_behind(&processes, ANSWER_TIMEOUT);
        assert!(left.is_empty(), "{name} left {left:?}");
        let counted: u64 = report.workers.iter().map(|worker| worker.requests).sum();
        let arrived = poll_until(ANSWER_TIMEOUT, || (answered.load(Ordering::Relaxed) == counted).then_some(()));
        assert!(arrived.is_some(), "{name} answered {counted}, {} arrived", answered.load(Ordering::Relaxed));
    });
}

/// Ten requests per connection, again and again, until the server takes no more of them.
fn ask_until_it_ends(addr: SocketAddr, answered: &AtomicU64) {
    while let Ok(mut client) = Client::connect(addr) {
        for _ in 0..10 {
            held(client.send(GET));
            // A close without a byte is a request that was not read; half an answer is a panic.
            match held(client.answer_or_close(FOREVER)) {
                Some(answer) => {
                    held(answer.expect(200));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                None => break,
            }
        }
    }
}

#[test]
fn killing_the_parent_with_sigkill_leaves_no_child() {
    for Kind { name, .. } in SERVERS.iter().filter(|kind| kind.processes == Processes::Workers) {
        let server = start(name, &["--workers", "4"]);
        let client = connect(&server);
        held(served(server.addr));
        let processes = server.processes();
        assert!(processes.len() >= 5, "{name} is {} processes", processes.len());
        server.signal(Signal::SIGKILL);
        let left = Server::left_behind(&processes, ANSWER_TIMEOUT);
        assert!(left.is_empty(), "{name} left {left:?}");
        drop(client);
    }
}

#[test]
fn a_worker_killed_in_the_middle_is_reaped_and_leaves_the_others_serving() {
    for Kind { name, .. } in SERVERS.iter().filter(|kind| kind.processes == Processes::Workers) {
        outlives_a_worker(name, &[]);
    }
}

pub fn outlives_a_worker(name: &str, flags: &[&str]) {
    let mut server = start(name, &[&["--workers", "3"], flags].concat());
    let (mut client, victim) = poll_until(FOREVER, || {
        let mut client = connect(&server);
        let (_, pid) = held(held(client.ask(GET)).signature());
        // A master may serve, too.
        (pid != server.pid()).then_some((client, pid))
    })
    .unwrap_or_else(|| panic!("{name} {flags:?}: only the master answers"));
    Process::find(victim).expect("it has just answered").kill();
    held(client.closes(ANSWER_TIMEOUT));
    // A connection that was the victim's own when it died is lost with it; later ones are not.
    let mut in_a_row = 0;
    let served_again = poll_until(FOREVER, || {
        in_a_row = if served(server.addr).is_ok() { in_a_row + 1 } else { 0 };
        (in_a_row == 20).then_some(())
    });
    assert!(served_again.is_some(), "{name} {flags:?} does not serve with two of three workers");
    let is_gone = || (!Path::new(&format!("/proc/{victim}")).exists()).then_some(());
    assert!(poll_until(FOREVER, is_gone).is_some(), "{name} {flags:?} does not reap a worker that has died");
    assert_eq!(held(server.stop()).workers.len(), 3, "{name} {flags:?}");
}

#[test]
fn ctrl_c_twice_ends_a_server_like_once() {
    for Kind { name, .. } in SERVERS {
        assert!([200, 3000].into_iter().any(|work_ms| ends_after_two_signals(name, work_ms)), "{name}");
    }
}

/// False where the machine was so slow that the work may have been done when the signals came.
fn ends_after_two_signals(name: &str, work_ms: u64) -> bool {
    let mut server = start(name, &["--work", &format!("block:{work_ms}ms")]);
    let mut client = connect(&server);
    let since = Instant::now();
    held(client.send(GET));
    held(client.was_read());
    server.signal(Signal::SIGINT);
    server.signal(Signal::SIGINT);
    if since.elapsed() > Duration::from_millis(work_ms / 2) {
        return false;
    }
    held(held(client.answer_within(FOREVER)).expect_connection("close"));
    held(held(server.ended(STOP_WITHIN)).report());
    true
}

/// Seven hundred connections are more than the channel to a worker that sleeps holds: the master waits for room in
/// it when the signal comes.
#[test]
fn sigterm_reaches_a_master_that_waits_for_a_full_channel() {
    raise_descriptor_limit();
    let mut server = start("master-dispatch", &["--workers", "1", "--work", "block:60s"]);
    let sleeps = ask_together(&server, 1);
    held(sleeps[0].was_read());
    let _clients = ask_together(&server, 699);
    server.signal(Signal::SIGTERM);
    held(held(server.ended(STOP_WITHIN)).report());
}

/// One connection is being worked on, one is in the queue, one waits in the acceptor for room in it, one is in the
/// kernel's queue.
#[test]
fn sigterm_reaches_an_acceptor_that_waits_for_a_full_queue() {
    let mut server = start("thread-pool", &["--workers", "1", "--queue", "1", "--work", "block:30s"]);
    let clients = ask_together(&server, 4);
    held(clients[0].was_read());
    server.signal(Signal::SIGTERM);
    held(held(server.ended(STOP_WITHIN)).report());
}

/// A test that forgets a server would leave it running; the handle does not let it.
#[test]
fn a_dropped_server_is_gone() {
    let server = start("prefork", &["--workers", "3"]);
    let processes = server.processes();
    drop(server);
    assert!(Server::left_behind(&processes, ANSWER_TIMEOUT).is_empty());
    assert_eq!(processes.len(), 4, "{} is a parent and three workers", kind("prefork").name);
}
