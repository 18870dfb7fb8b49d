//! The master that forwards bytes: what a connection costs it, and that nothing is lost, kept or stuck on the way.

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use acceptlab::lab::check::client::{ANSWER_TIMEOUT, Client, GET, GET_AND_CLOSE, served};
use acceptlab::lab::check::server::{STOP_WITHIN, Server};
use acceptlab::lab::observe::processes::{Process, poll_until};
use acceptlab::report::WorkerReport;
use nix::sys::signal::Signal;

use crate::support::{FOREVER, answer, connect, ends_at_once, held, said_with, start};

fn proxy(flags: &[&str]) -> Server {
    start("proxy", flags)
}

/// Of the master, then of each worker.
fn descriptors(server: &Server) -> Vec<usize> {
    server.processes().iter().map(Process::open_descriptors).collect()
}

/// Awaits that of the master's descriptors no more are left than it had before the clients.
#[track_caller]
fn lets_go(server: &Server, before: usize) {
    let mut found = 0;
    let has_let_go = poll_until(FOREVER, || {
        found = descriptors(server)[0];
        (found == before).then_some(())
    });
    assert!(has_let_go.is_some(), "the master holds {found} descriptors, before the clients {before}");
}

/// The most memory the master has had, in KiB (proc_pid_status(5), VmHWM).
fn peak_kib(server: &Server) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", server.processes()[0].pid)).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse().unwrap()
}

#[test]
fn a_connection_costs_the_master_two_descriptors_and_its_worker_one() {
    let server = proxy(&["--workers", "2"]);
    let nobody = descriptors(&server)[0];
    // A client that was answered and stays has its descriptors in both processes, and nothing is on its way: the counts
    // are exact.
    let answered = || {
        let mut client = connect(&server);
        held(held(client.ask(GET)).expect(200));
        client
    };
    let two: Vec<Client> = (0..2).map(|_| answered()).collect();
    let with_two = descriptors(&server);
    assert_eq!(with_two[0], nobody + 4);
    let ten_more: Vec<Client> = (0..10).map(|_| answered()).collect();
    assert_eq!(descriptors(&server), [with_two[0] + 20, with_two[1] + 5, with_two[2] + 5]);
    drop((two, ten_more));
    lets_go(&server, nobody);
}

#[test]
fn the_forwarding_master_deals_connections_to_its_workers_in_turn() {
    let server = proxy(&["--workers", "3"]);
    let dealt: Vec<usize> = (0..9).map(|_| held(held(served(server.addr)).worker())).collect();
    assert!(dealt.windows(2).all(|pair| pair[1] == (pair[0] + 1) % 3), "{dealt:?}");
}

#[test]
fn a_client_that_has_sent_its_last_byte_still_gets_its_answer_and_then_the_end() {
    let server = proxy(&["--workers", "1", "--work", "wait:200ms"]);
    let nobody = descriptors(&server)[0];
    let mut client = connect(&server);
    held(client.send(GET));
    client.stream.shutdown(Shutdown::Write).unwrap();
    answer(&mut client);
    held(client.closes(ANSWER_TIMEOUT));
    // With the client still there: both ends have said their last byte, so nobody is waited for.
    lets_go(&server, nobody);
}

/// Four hundred megabytes of answers are asked for, and nobody reads them: they wait in the workers and in the
/// sockets. The master keeps a buffer for each direction, which is 64 KiB.
#[test]
fn clients_that_do_not_read_do_not_fill_the_masters_memory_and_lose_nothing() {
    let server = proxy(&["--workers", "2", "--body", "1000000"]);
    held(served(server.addr));
    let before = peak_kib(&server);
    let mut clients: Vec<Client> = (0..20).map(|_| connect(&server)).collect();
    for client in &mut clients {
        held(client.send(&GET.repeat(20)));
    }
    clients.iter().for_each(|client| held(client.lets_answers_pile_up()));
    held(served(server.addr));
    let more = peak_kib(&server) - before;
    assert!(more < 20 * 64 * 2, "the master has taken {more} KiB for 20 clients that do not read");
    for _ in 0..20 {
        assert_eq!(answer(&mut clients[0]).body.len(), 1_000_000);
    }
}

/// The worker sleeps over the first request and does not read the second.
#[test]
fn a_worker_that_does_not_read_does_not_fill_the_masters_memory() {
    let server = proxy(&["--workers", "1", "--work", "block:30s"]);
    let mut client = connect(&server);
    held(client.send(GET));
    held(client.was_read());
    let before = peak_kib(&server);
    client.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let megabyte = vec![b'x'; 1_000_000];
    let sent = (0..100).take_while(|_| client.stream.write_all(&megabyte).is_ok()).count();
    assert!(sent < 100, "somebody has taken a hundred megabytes");
    let more = peak_kib(&server) - before;
    assert!(more < 1024, "the master has taken {more} KiB for one client");
}

#[test]
fn a_client_that_reads_nothing_is_let_go_after_the_idle_time_out() {
    let server = proxy(&["--workers", "1", "--body", "1000000", "--idle-timeout", "300ms"]);
    let nobody = descriptors(&server)[0];
    let mut client = connect(&server);
    held(client.send(&GET.repeat(20)));
    held(client.lets_answers_pile_up());
    lets_go(&server, nobody);
    drop(client);
}

#[test]
fn a_client_that_stays_when_its_worker_has_ended_is_let_go() {
    // Long enough for a client that a busy machine keeps from asking.
    let server = proxy(&["--workers", "1", "--idle-timeout", "1s"]);
    let nobody = descriptors(&server)[0];
    let mut client = connect(&server);
    held(held(client.ask(GET)).expect(200));
    held(client.closes(ANSWER_TIMEOUT));
    lets_go(&server, nobody);
    drop(client);
}

/// Its answers did not fit into the sockets, so the master has had reason to wait for an hour, before it had one to
/// wait for a moment.
#[test]
fn a_client_that_was_slow_and_stays_when_its_worker_has_ended_is_let_go() {
    let server = proxy(&["--workers", "1", "--body", "1000000", "--idle-timeout", "1h"]);
    let nobody = descriptors(&server)[0];
    let mut client = connect(&server);
    held(client.send(&[&GET.repeat(19), GET_AND_CLOSE].concat()));
    held(client.lets_answers_pile_up());
    for _ in 0..20 {
        answer(&mut client);
    }
    held(client.closes(ANSWER_TIMEOUT));
    lets_go(&server, nobody);
    drop(client);
}

/// The worker waits for a minute; without the reset the server would end when the grace is over, and not before.
#[test]
fn a_clients_reset_reaches_its_worker() {
    let mut server = proxy(&["--workers", "1", "--work", "wait:60s"]);
    let nobody = descriptors(&server)[0];
    let mut client = connect(&server);
    held(client.send(GET));
    held(client.was_read());
    client.reset();
    lets_go(&server, nobody);
    let report = ends_at_once(&mut server, Signal::SIGTERM);
    assert_eq!((report.workers[0].client_errors, report.workers[0].active), (1, 0));
}

#[test]
fn a_dead_workers_turn_goes_to_the_next_worker_and_no_client_notices() {
    let mut server = proxy(&["--workers", "3"]);
    let (worker, victim) = held(held(served(server.addr)).signature());
    Process::find(victim).expect("it has just answered").kill();
    // From the moment it is gone its port refuses; what the master says about it may come later.
    let gone = poll_until(ANSWER_TIMEOUT, || Process::find(victim).is_none().then_some(()));
    assert!(gone.is_some(), "worker {worker} survives SIGKILL");
    for _ in 0..30 {
        assert_ne!(held(held(served(server.addr)).worker()), worker);
    }
    said_with(&server, "was killed by SIGKILL; 2 left");
    let report = held(server.stop());
    assert_eq!(report.workers.iter().map(|worker| worker.requests).sum::<u64>(), 31);
}

#[test]
fn a_master_whose_last_worker_has_died_says_so_and_ends() {
    let mut server = proxy(&["--workers", "2"]);
    let processes = server.processes();
    processes[1..].iter().for_each(Process::kill);
    let ended = held(server.ended(STOP_WITHIN));
    assert_eq!(ended.status.code(), Some(1));
    assert_eq!(ended.stderr.lines().last(), Some("serve: the last worker has died"));
}

/// Sixty-four clients who ask again and again, each request takes so long that a worker has some in hand even while a
/// busy machine runs no client, and the end comes in the middle: what a worker has counted as answered has reached its
/// client, whole, and says that it was the last.
#[test]
fn a_stop_under_load_relays_every_answer_and_both_sides_count_the_same() {
    // Long work: at any moment most requests are at a worker, also where clients and master are late.
    let mut server = proxy(&["--workers", "2", "--work", "wait:500ms"]);
    let (addr, answered, connections, last) = (server.addr, AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                let Ok(mut client) = Client::connect(addr) else { return };
                held(client.send(GET));
                let mut is_known = false;
                while let Some(answer) = held(client.answer_or_close(FOREVER)) {
                    held(answer.expect(200));
                    answered.fetch_add(1, Ordering::Relaxed);
                    connections.fetch_add(u64::from(!is_known), Ordering::Relaxed);
                    is_known = true;
                    last.fetch_add(u64::from(answer.expect_connection("close").is_ok()), Ordering::Relaxed);
                    held(client.send(GET));
                }
            });
        }
        let busy = poll_until(FOREVER, || (answered.load(Ordering::Relaxed) > 150).then_some(()));
        assert!(busy.is_some(), "{} answers", answered.load(Ordering::Relaxed));
        server.signal(Signal::SIGTERM);
    });
    let report = held(held(server.ended(STOP_WITHIN)).report());
    let sum = |of: fn(&WorkerReport) -> u64| report.workers.iter().map(of).sum::<u64>();
    assert_eq!(sum(|worker| worker.requests), answered.into_inner());
    assert_eq!(sum(|worker| worker.accepted), connections.into_inner());
    assert_eq!(sum(|worker| worker.active), 0);
    assert!(last.into_inner() > 0, "nobody was told that an answer was the last");
}

/// A client that says more than one buffer holds and hears more than one buffer holds, at the same time.
#[test]
fn a_long_conversation_in_both_directions_arrives_byte_by_byte() {
    let server = proxy(&["--workers", "1", "--body", "100000"]);
    let mut client = connect(&server);
    let mut writer = client.stream.try_clone().unwrap();
    let post = [&b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n"[..], &vec![b'x'; 500_000]].concat();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..50).for_each(|_| writer.write_all(&post).unwrap()));
        for _ in 0..50 {
            assert_eq!(answer(&mut client).body.len(), 100_000);
        }
    });
}
