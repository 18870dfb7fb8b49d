//! Clients by the hundred that do nothing, too few descriptors for them, and clients that leave or read late.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::{Duration, Instant};

use acceptlab::lab::check::client::{Client, GET, GET_AND_CLOSE, served, served_within};
use acceptlab::lab::check::server::Server;
use acceptlab::lab::observe::processes::poll_until;

use crate::support::{
    FOREVER, Needs, Processes, SERVERS, ask_together, connect, held, inconclusive, raise_descriptor_limit, start,
    start_after,
};

#[test]
fn a_thousand_silent_connections_do_not_stop_an_event_loop() {
    raise_descriptor_limit();
    for kind in SERVERS.iter().filter(|kind| kind.is_event_loop) {
        let server = start(kind.name, &[]);
        let clients: Vec<Client> = (0..1000).map(|_| connect(&server)).collect();
        held(served(server.addr));
        drop(clients);
        held(served(server.addr));
    }
}

/// With 32 descriptors a server can hold at most 32 of 100 clients. It takes no more for the moment, does not
/// spin about it, says so once per process, and serves again when they are gone.
#[test]
fn a_server_without_descriptors_backs_off_says_so_once_and_serves_again() {
    std::thread::scope(|scope| {
        for kind in SERVERS {
            scope.spawn(|| is_out_of_descriptors(kind.name));
        }
    });
}

fn is_out_of_descriptors(name: &str) {
    // A worker that is nearly full leaves turns to the others, and each of them takes as long as a retry.
    let flags: &[&str] = if name == "accept-mutex" { &["--retry", "1ms"] } else { &[] };
    let mut server = start_after("ulimit -n 32", name, flags);
    held(served(server.addr));
    let clients: Vec<Client> = (0..100).map(|_| connect(&server)).collect();
    let mut said = String::new();
    // Workers that take one connection at a time leave the others in the accept queue; a parent that forks keeps none.
    let runs_out = !["sync", "fork", "prefork", "prefork-lock", "prefork-poll", "prethreaded"].contains(&name);
    if runs_out {
        let complaint = poll_until(Duration::from_secs(5), || {
            said += &server.said();
            said.contains("descriptor").then_some(())
        });
        assert!(complaint.is_some(), "{name} said {said:?}");
    }
    let (since, before) = (Instant::now(), scheduled(&server));
    std::thread::sleep(Duration::from_secs(1));
    let length_s = since.elapsed().as_secs_f64();
    for (thread, (ran_s, waited_s)) in scheduled(&server) {
        let (ran_before_s, waited_before_s) = before.get(&thread).copied().unwrap_or_default();
        // A thread that spins runs whenever it may: on a busy machine it has less of the CPU, and waits for it instead.
        let (ran_s, waited_s) = (ran_s - ran_before_s, waited_s - waited_before_s);
        let share = ran_s / (length_s - waited_s).max(0.01);
        if share >= 0.2 && waited_s > length_s / 2.0 {
            // Its time to wake up is over before it may sleep, so what is left is no time in which it could sleep.
            let why = format!("{name}: thread {thread} waited {waited_s} of {length_s} s for a CPU");
            inconclusive(Needs::QuietMachine, why);
            continue;
        }
        assert!(share < 0.2, "{name}: thread {thread} runs {share} of the time while nothing can be done");
    }
    drop(clients);
    held(served_within(server.addr, FOREVER));
    let processes = server.processes().len();
    held(server.stop());
    said += &server.said();
    let complaints = said.lines().filter(|line| line.contains("descriptor")).count();
    assert!(complaints <= processes, "{name} said {said:?}");
    assert!(complaints == 1 || !runs_out || processes > 1, "{name} said {said:?}");
}

/// For how long each thread has had a CPU, and has waited for one, in seconds (/proc/PID/schedstat, sched-stats.rst).
fn scheduled(server: &Server) -> BTreeMap<i32, (f64, f64)> {
    let mut times = BTreeMap::new();
    for process in server.processes() {
        for thread in std::fs::read_dir(format!("/proc/{}/task", process.pid)).into_iter().flatten().flatten() {
            let id = thread.file_name().to_string_lossy().parse().expect("a thread's number");
            // It may have ended.
            let Ok(line) = std::fs::read_to_string(thread.path().join("schedstat")) else { continue };
            let ns: Vec<f64> = line.split(' ').map(|field| field.trim().parse().expect("a number")).collect();
            times.insert(id, (ns[0] / 1e9, ns[1] / 1e9));
        }
    }
    assert!(!times.is_empty(), "a kernel without CONFIG_SCHED_INFO");
    times
}

/// A worker that receives a connection it has no descriptor for must not drop it: each of 80 clients is answered,
/// if only when others have left.
#[test]
fn a_server_at_its_descriptor_limit_loses_no_connection() {
    std::thread::scope(|scope| {
        scope.spawn(|| loses_nobody("master-dispatch", &["--workers", "2"]));
        scope.spawn(|| loses_nobody("proxy", &["--workers", "2"]));
        scope.spawn(|| loses_nobody("event-driven", &[]));
    });
}

fn loses_nobody(name: &str, flags: &[&str]) {
    let server = start_after("ulimit -n 32", name, flags);
    let mut waiting = ask_together(&server, 80);
    let mut lost = 0;
    let all_heard = poll_until(Duration::from_secs(20), || {
        waiting.retain_mut(|client| match client.answer_or_close(Duration::from_millis(1)) {
            // Its connection is closed here, which makes room for another.
            Ok(answer) => {
                lost += usize::from(answer.is_none());
                false
            }
            Err(_) => true,
        });
        waiting.is_empty().then_some(())
    });
    assert_eq!((lost, waiting.len()), (0, 0), "{name}: connections (lost, not answered) of 80");
    assert_eq!(all_heard, Some(()), "{name}");
}

/// Answers are gathered in a buffer that all connections of an event loop share.
#[test]
fn an_answer_that_cannot_be_sent_does_not_go_to_the_next_client() {
    for kind in SERVERS.iter().filter(|kind| kind.is_event_loop) {
        let one_loop: &[&str] = if kind.processes == Processes::Workers { &["--workers", "1"] } else { &[] };
        let server = start(kind.name, &[one_loop, &["--work", "spin:50ms"]].concat());
        for _ in 0..3 {
            let mut leaving = connect(&server);
            held(leaving.send(GET));
            held(leaving.was_read());
            leaving.reset();
            let mut next = connect(&server);
            held(next.send(GET_AND_CLOSE));
            next.stream.set_read_timeout(Some(FOREVER)).expect("the time is not zero");
            let mut received = String::new();
            next.stream.read_to_string(&mut received).expect("text, then a close");
            assert_eq!(received.matches("HTTP/1.1 ").count(), 1, "{}: {received:?}", kind.name);
        }
    }
}

/// The client's requests have all been read when it begins to read: no further request will come to remind the
/// server of those it has set aside.
#[test]
fn pipelined_waiting_requests_are_all_answered_even_if_the_client_reads_late() {
    let flags = ["--work", "wait:10us", "--body", "20000", "--idle-timeout", "5s"];
    let server = start("event-driven", &flags);
    let mut client = connect(&server);
    held(client.send(&GET.repeat(1000)));
    held(client.lets_answers_pile_up());
    for _ in 0..1000 {
        assert_eq!(held(client.answer()).body.len(), 20_000);
    }
}
