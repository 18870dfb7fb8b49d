//! What a signal does to those who are busy, who are stopped, and who were started in an odd way.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use acceptlab::lab::check::client::{ANSWER_TIMEOUT, GET, served};
use acceptlab::lab::check::server::{Program, Server};
use acceptlab::lab::observe::processes::{Process, poll_until};
use acceptlab::server::GRACE;
use nix::sys::signal::Signal;

use crate::support::{FOREVER, ask_together, connect, ends_at_once, held, kind, start};

/// Its only worker, or one of two, sleeps in a request for longer than the whole test.
#[test]
fn after_sigterm_a_worker_in_the_middle_of_a_request_is_not_connected_to() {
    let ways: [(&str, &[&str]); 7] = [
        ("event-driven", &[]),
        ("event-loop", &[]),
        ("reuseport", &["--workers", "2"]),
        ("reuseport", &["--workers", "2", "--select", "live-set"]),
        ("peers", &["--workers", "2"]),
        ("pass-listener", &["--workers", "2"]),
        ("pass-listener", &["--workers", "2", "--master", "serves"]),
    ];
    std::thread::scope(|scope| {
        for (name, flags) in ways {
            scope.spawn(move || is_not_connected_to(name, flags));
        }
    });
}

fn is_not_connected_to(name: &str, flags: &[&str]) {
    let server = start(name, &[&["--work", "block:60s"], flags].concat());
    let busy = ask_together(&server, 1);
    held(busy[0].was_read());
    server.signal(Signal::SIGTERM);
    // When the grace is over it gives up, and then nobody listens in any case.
    let refused = poll_until(GRACE, || {
        TcpStream::connect(server.addr).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused).then_some(())
    });
    assert!(refused.is_some(), "{name} {flags:?} goes on taking connections");
}

/// The socket is everybody's: a worker that is told while the others are not does not shut it.
#[test]
fn a_sigterm_to_one_worker_of_a_shared_listener_leaves_the_others_accepting() {
    let ways: [(&str, &[&str]); 3] =
        [("shared-accept", &[]), ("pass-listener", &[]), ("pass-listener", &["--master", "serves"])];
    for (name, flags) in ways {
        let mut server = start(name, &[&["--workers", "3"], flags].concat());
        let worker = server.processes()[1];
        worker.signal(Signal::SIGTERM);
        let gone = poll_until(FOREVER, || (!worker.is_alive()).then_some(()));
        assert!(gone.is_some(), "{name} {flags:?}: the worker does not end");
        for _ in 0..20 {
            held(served(server.addr));
        }
        assert_eq!(held(server.stop()).workers.len(), 3, "{name} {flags:?}");
    }
}

/// SIG_IGN survives exec, and with it the kernel reaps children by itself. (dash would not set it.)
#[test]
fn a_server_started_with_sigchld_ignored_stops_at_once_and_knows_what_its_workers_used() {
    let command = ["bash", "-c", "trap '' CHLD; exec \"$0\" \"$@\"", kind("prefork").path];
    let mut server = held(Program::new(&command.map(String::from)).start(&["--workers", "2"]));
    held(served(server.addr));
    let report = ends_at_once(&mut server, Signal::SIGTERM);
    assert!(report.workers.iter().all(|worker| worker.max_rss_kib > 0), "{:?}", report.workers);
}

#[test]
fn a_killed_worker_has_no_connection_open_in_the_report() {
    let mut server = start("prefork", &["--workers", "2"]);
    let mut client = connect(&server);
    let (_, victim) = held(held(client.ask(GET)).signature());
    Process::find(victim).expect("it has just answered").kill();
    held(client.closes(ANSWER_TIMEOUT));
    let workers = held(server.stop()).workers;
    assert!(workers.iter().all(|worker| worker.active == 0), "{workers:?}");
}

/// SIGCONT interrupts epoll_wait (signal(7)); there was no connection, and nobody looked for one.
#[test]
fn stopping_and_continuing_a_worker_does_not_count_as_a_wake_up() {
    let ways: [(&str, &[&str]); 4] =
        [("prefork", &[]), ("prefork-poll", &[]), ("prefork-poll", &["--call", "epoll"]), ("shared-accept", &[])];
    for (name, wait) in ways {
        let mut server = start(name, &[&["--workers", "1"], wait].concat());
        let worker = server.processes()[1];
        for _ in 0..5 {
            assert!(worker.stop(ANSWER_TIMEOUT) && worker.resume(ANSWER_TIMEOUT), "{name} {wait:?}");
        }
        let workers = held(server.stop()).workers;
        let counts = (workers[0].wakeups, workers[0].empty_wakeups, workers[0].accept_eagain);
        assert_eq!(counts, (0, 0, 0), "{name} {wait:?}: {workers:?}");
    }
}

/// The master finishes its own request just before the five seconds are over, and the worker hangs.
#[test]
fn a_master_that_serves_does_not_give_its_workers_the_grace_a_second_time() {
    let mut server = start("pass-listener", &["--master", "serves", "--workers", "2", "--work", "wait:4s"]);
    let worker = server.processes()[1];
    assert!(worker.stop(ANSWER_TIMEOUT));
    let own = ask_together(&server, 1);
    held(own[0].was_read());
    stops_within(&mut server, Duration::from_secs(7));
}

fn stops_within(server: &mut Server, most: Duration) {
    server.signal(Signal::SIGTERM);
    held(held(server.ended(most)).report());
}

/// The request and the reset behind it are one report to a worker that was kept from the CPU meanwhile.
#[test]
fn a_client_that_resets_just_behind_its_request_is_not_waited_for() {
    for name in ["event-driven", "event-loop"] {
        let mut server = start(name, &["--work", "wait:60s"]);
        let mut client = connect(&server);
        let (half, rest) = GET.split_at(10);
        held(client.send(half));
        held(client.was_read());
        let worker = server.processes()[0];
        assert!(worker.stop(ANSWER_TIMEOUT));
        held(client.send(rest));
        client.reset();
        assert!(worker.resume(ANSWER_TIMEOUT));
        let report = ends_at_once(&mut server, Signal::SIGTERM);
        assert_eq!((report.workers[0].client_errors, report.workers[0].active), (1, 0), "{name}");
    }
}
