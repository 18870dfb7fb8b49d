//! Errors that the network or a sandbox causes, put in the place of a system call's result by strace(1): a server
//! serves on each time.

use std::time::{Duration, Instant};

use acceptlab::lab::check::client::{Client, served, served_within};
use acceptlab::lab::check::server::{Program, Server};

use crate::support::{FOREVER, SERVERS, can_trace, held, kind, said_with};

/// A server in which `error` comes in the place of some of a system call's results. Strace is a detached grandchild:
/// the server is our child, and has its signals.
fn start_with(injected: &str, name: &str, flags: &[&str]) -> Server {
    let calls = injected.split_once(':').expect("CALL:error=…").0;
    let strace = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")];
    let inject = ["-e", &format!("inject={injected}"), kind(name).path];
    let command: Vec<String> = strace.iter().chain(&inject).map(|&word| word.to_owned()).collect();
    held(Program::new(&command).start(&[&["--backlog", "128"], flags].concat()))
}

#[test]
fn an_error_of_one_connections_network_leaves_the_others_to_be_served() {
    if !can_trace() {
        return;
    }
    let waits = ["epoll-edge", "epoll-exclusive", "epoll-exclusive-rearm"];
    let ways = waits.iter().map(|&wait| ("shared-accept", vec!["--wait", wait]));
    let ways = ways.chain([("prefork-poll", vec!["--call", "epoll"])]);
    let ways = ways.chain(SERVERS.iter().map(|kind| (kind.name, Vec::new())));
    for (name, flags) in ways {
        for injected in ["accept4:error=EOPNOTSUPP:when=2..4", "accept4:error=ECONNABORTED:when=1"] {
            let mut server = start_with(injected, name, &flags);
            for request in 1..=8 {
                if let Err(why) = served(server.addr) {
                    let (why, said) = (server.explain(why), server.said());
                    panic!("{name} {flags:?} {injected}, request {request}: {why:?}; it said: {said:?}");
                }
            }
            let report = held(server.stop());
            let accepted: u64 = report.workers.iter().map(|worker| worker.accepted).sum();
            assert_eq!(accepted, 8, "{name} {flags:?} {injected}");
        }
    }
}

/// As a sandbox or a security module may refuse every accept for a while.
#[test]
fn accepts_that_fail_again_and_again_are_logged_and_cost_next_to_nothing() {
    if !can_trace() {
        return;
    }
    for (name, flags) in
        [("prefork", &["--workers", "1"][..]), ("shared-accept", &["--workers", "1", "--wait", "epoll-edge"])]
    {
        let mut server = start_with("accept4:error=EPERM:when=1..400", name, flags);
        held(served_within(server.addr, FOREVER).map_err(|why| server.explain(why)));
        assert_eq!(
            said_with(&server, "accept: ").trim_end(),
            "accept: operation not permitted; connections wait, and it is tried again and again",
            "{name}"
        );
        held(server.stop());
    }
}

/// As ulimit -u would let it fail for anybody but root.
#[test]
fn a_process_that_cannot_be_forked_is_said_and_costs_one_client() {
    if !can_trace() {
        return;
    }
    let mut server = start_with("clone:error=EAGAIN:when=1", "fork", &[]);
    let mut lost = held(Client::connect(server.addr));
    held(lost.closes(FOREVER));
    held(served_within(server.addr, FOREVER).map_err(|why| server.explain(why)));
    let expected = "fork a process: try again; its connection is closed (raise ulimit -u)";
    assert_eq!(said_with(&server, "fork a process").trim_end(), expected);
    held(server.stop());
}

#[test]
fn a_kernel_without_memory_for_a_connection_is_not_called_one_without_descriptors() {
    if !can_trace() {
        return;
    }
    for name in ["sync", "event-driven", "event-loop", "master-dispatch", "proxy"] {
        let mut server = start_with("accept4:error=ENOBUFS:when=1", name, &[]);
        held(served(server.addr).map_err(|why| server.explain(why)));
        let said = said_with(&server, "no memory");
        assert!(!said.contains("descriptor"), "{name}: {said}");
        held(server.stop());
    }
}

/// On a busy machine a server may be kept from the CPU between a wait and an accept.
#[test]
fn a_client_has_its_whole_idle_timeout_however_late_the_server_was() {
    if !can_trace() {
        return;
    }
    for name in ["event-driven", "event-loop"] {
        let server = start_with("accept4:delay_exit=400000:when=1", name, &["--idle-timeout", "300ms"]);
        let since = Instant::now();
        let mut client = held(Client::connect(server.addr));
        held(client.closes(FOREVER));
        let waited = since.elapsed();
        assert!(waited > Duration::from_millis(650), "{name}: closed after {waited:?}");
    }
}

/// Waiting with nanoseconds came late (Linux 5.11), so the lists of many sandboxes do not have it.
#[test]
fn a_wait_that_a_sandbox_refuses_is_made_another_way() {
    if !can_trace() {
        return;
    }
    for error in ["EPERM", "ENOSYS"] {
        let injected = format!("epoll_pwait2:error={error}");
        let mut server = start_with(&injected, "event-driven", &["--work", "wait:3ms"]);
        let start = std::time::Instant::now();
        held(served(server.addr).map_err(|why| server.explain(why)));
        assert!(start.elapsed() >= Duration::from_millis(3));
        held(server.stop());
    }
}

/// As a sandbox may: then the master accepts until there is none.
#[test]
fn a_master_that_cannot_ask_how_many_connections_wait_serves_all_the_same() {
    if !can_trace() {
        return;
    }
    let mut server = start_with("getsockopt:error=ENOPROTOOPT", "master-dispatch", &["--workers", "2"]);
    (0..8).for_each(|_| drop(held(served(server.addr))));
    let accepts = held(server.stop()).master.and_then(|master| master.accepts).expect("it accepts");
    assert!(accepts.accepted == 8 && accepts.accept_eagain > 0, "{accepts:?}");
}
