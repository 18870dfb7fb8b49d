//! How the architectures behave and differ. How long they take is in timing/servers.rs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use acceptlab::lab::check::client::{ANSWER_TIMEOUT, Client, GET, GET_AND_CLOSE, served};
use acceptlab::lab::check::server::STOP_WITHIN;
use nix::sys::signal::Signal;

use crate::support::{FOREVER, answer, ask_together, connect, held, load, raise_descriptor_limit, start};

/// Servers whose threads serve a request, and not a connection to its end.
pub const THREADS_FOR_REQUESTS: [&str; 4] = ["idle-busy", "half-sync", "pipeline", "leader-follower"];

fn short_queue(name: &str) -> &'static [&'static str] {
    if name == "leader-follower" { &[] } else { &["--queue", "1"] }
}

#[test]
fn one_slow_wait_request_does_not_hold_up_the_others_in_an_event_loop() {
    others_are_answered("event-driven", "50%none,50%wait:60s");
}

#[test]
fn a_request_that_blocks_a_helper_thread_does_not_hold_up_the_others() {
    others_are_answered("event-loop", "50%none,50%block:60s");
}

/// Half the requests wait for a minute. Of clients who ask one after another, those who drew nothing to wait for
/// are answered, although one who came first is still waiting.
fn others_are_answered(name: &str, work: &str) {
    let server = start(name, &["--work", work]);
    let soon = Duration::from_millis(500);
    let mut waiting = Vec::new();
    let mut answered_while_one_waits = false;
    for _ in 0..40 {
        let mut client = connect(&server);
        held(client.send(GET));
        match client.answer_within(soon) {
            Ok(_) => answered_while_one_waits |= !waiting.is_empty(),
            Err(_) => waiting.push(client),
        }
        if answered_while_one_waits {
            return;
        }
    }
    panic!("of 40 clients {} were left waiting, and none was answered behind one", waiting.len());
}

#[test]
fn the_master_deals_connections_to_its_workers_in_turn() {
    let server = start("master-dispatch", &["--workers", "3"]);
    let dealt: Vec<usize> = (0..9).map(|_| held(held(served(server.addr)).worker())).collect();
    assert!(dealt.windows(2).all(|pair| pair[1] == (pair[0] + 1) % 3), "{dealt:?}");
}

/// The queue between acceptor and workers is bounded: connections beyond it stay in the kernel's accept queue and
/// cost the server neither memory nor descriptors.
#[test]
fn a_pooled_servers_full_queue_is_back_pressure_not_memory() {
    let server = start("thread-pool", &["--workers", "2", "--queue", "8", "--work", "block:20ms"]);
    held(served(server.addr));
    let idle = server.open_descriptors();
    let mut clients = ask_together(&server, 400);
    answer(&mut clients[0]);
    let busy = server.open_descriptors() - idle;
    // Two being served, eight in the queue, one that the acceptor has accepted and cannot queue.
    assert!(busy <= 11, "{busy} descriptors for 400 clients of two workers");
    let answered: BTreeSet<usize> =
        clients.drain(..).skip(1).map(|mut client| held(answer(&mut client).worker())).collect();
    assert_eq!(answered, BTreeSet::from([0, 1]));
}

/// One request per connection: whoever draws the cost must not begin the same draws with each of them.
#[test]
fn every_connection_of_a_mixture_draws_its_own_cost() {
    for name in ["threaded", "event-driven"] {
        let server = start(name, &["--work", "50%none,50%block:20ms"]);
        let is_dear = |_: &u32| {
            let since = Instant::now();
            held(served(server.addr));
            since.elapsed() >= Duration::from_millis(20)
        };
        let dear = (0..40).filter(is_dear).count();
        // Binomial(40, 1/2) leaves this range once in 100 million times.
        assert!((5..=35).contains(&dear), "{name}: {dear} of 40 requests took 20ms");
    }
}

#[test]
fn a_thousand_kept_connections_need_no_thread_each() {
    raise_descriptor_limit();
    for name in THREADS_FOR_REQUESTS {
        let server = start(name, &["--workers", "8"]);
        let mut clients = ask_together(&server, 1000);
        clients.iter_mut().for_each(|client| drop(answer(client)));
        for client in &mut clients {
            held(client.send(GET));
            answer(client);
        }
    }
}

/// The idle time-out is half a minute: a client that held the only thread for that long would be noticed.
#[test]
fn a_client_that_sends_half_a_request_or_does_not_read_holds_no_thread() {
    for name in THREADS_FOR_REQUESTS {
        let server = start(name, &["--workers", "1", "--body", "8000000"]);
        let mut half = connect(&server);
        held(half.send(&GET[..10]));
        held(half.was_read());
        let mut unread = connect(&server);
        held(unread.send(GET));
        held(unread.lets_answers_pile_up());
        held(connect(&server).ask(GET));
        held(half.send(&GET[10..]));
        answer(&mut half);
        assert_eq!(answer(&mut unread).body.len(), 8_000_000, "{name}");
    }
}

#[test]
fn a_full_queue_delays_requests_and_loses_none() {
    for name in THREADS_FOR_REQUESTS {
        let server = start(name, &[short_queue(name), &["--workers", "2", "--work", "block:2ms"]].concat());
        let mut clients: Vec<Client> = ask_together(&server, 200);
        clients.iter_mut().for_each(|client| drop(answer(client)));
    }
}

/// One request is being worked on, one is in each queue, one waits for room in it, and the rest is in the sockets.
#[test]
fn sigterm_answers_what_is_in_every_stage() {
    for name in THREADS_FOR_REQUESTS {
        let mut server = start(name, &[short_queue(name), &["--workers", "1", "--work", "block:100ms"]].concat());
        let mut clients = ask_together(&server, 8);
        clients.iter_mut().for_each(|client| drop(answer(client)));
        clients.iter_mut().for_each(|client| held(client.send(GET)));
        server.signal(Signal::SIGTERM);
        for client in &mut clients {
            held(held(client.answer_within(FOREVER)).expect_connection("close"));
            held(client.closes(ANSWER_TIMEOUT));
        }
        let workers = held(held(server.ended(STOP_WITHIN)).report()).workers;
        assert_eq!((workers[0].accepted, workers[0].requests, workers[0].active), (8, 16, 0), "{name}");
    }
}

#[test]
fn sigterm_reaches_a_poller_that_waits_for_a_full_queue() {
    for name in THREADS_FOR_REQUESTS {
        let mut server = start(name, &[short_queue(name), &["--workers", "1", "--work", "block:30s"]].concat());
        let clients = ask_together(&server, 6);
        held(clients[0].was_read());
        server.signal(Signal::SIGTERM);
        held(held(server.ended(STOP_WITHIN)).report());
    }
}

/// One is being worked on, two are in that queue, the reading stage has one; two are in its queue, the main thread has
/// one. The reading stage may have a few more connections, which it has not read from when it finds the queue full.
#[test]
fn a_full_stage_of_a_pipeline_stops_those_before_it_until_connections_wait_in_the_kernel() {
    let server = start("pipeline", &["--workers", "1", "--queue", "2", "--work", "block:10ms"]);
    held(served(server.addr));
    let idle = server.open_descriptors();
    let ask = |_| {
        let mut client = connect(&server);
        held(client.send(GET_AND_CLOSE));
        client
    };
    let mut clients: Vec<Client> = (0..200).map(ask).collect();
    answer(&mut clients[0]);
    let busy = server.open_descriptors() - idle;
    assert!(busy <= 30, "{busy} descriptors for 200 clients of one worker");
    clients.iter_mut().skip(1).for_each(|client| drop(answer(client)));
}

#[test]
fn sigterm_lets_a_pipeline_finish_what_is_in_its_stages_and_an_answer_that_is_not_read_yet() {
    let flags = ["--workers", "1", "--queue", "1", "--work", "block:20ms", "--body", "8000000"];
    let mut server = start("pipeline", &flags);
    let mut clients = ask_together(&server, 6);
    clients.iter_mut().for_each(|client| drop(answer(client)));
    let mut unread = ask_together(&server, 1).remove(0);
    held(unread.lets_answers_pile_up());
    clients.iter_mut().for_each(|client| held(client.send(GET)));
    server.signal(Signal::SIGTERM);
    for client in &mut clients {
        held(held(client.answer_within(FOREVER)).expect_connection("close"));
        held(client.closes(ANSWER_TIMEOUT));
    }
    assert_eq!(answer(&mut unread).body.len(), 8_000_000);
    let worker = &held(held(server.ended(STOP_WITHIN)).report()).workers[0];
    assert_eq!((worker.accepted, worker.requests, worker.active), (7, 13, 0), "{worker:?}");
}

/// Without work its stage only passes requests on; the calls for the network are the other stages'.
#[test]
fn what_the_other_stages_of_a_pipeline_use_is_the_masters() {
    let mut server = start("pipeline", &["--workers", "1"]);
    assert_eq!(load(server.addr, &["--connections", "8", "--requests", "3000"]).requests, 3000);
    let report = held(server.stop());
    let (master, worker) = (report.master.expect("it has one"), &report.workers[0]);
    let (others_us, worker_us) = (master.cpu_user_us + master.cpu_system_us, worker.cpu_user_us + worker.cpu_system_us);
    assert!(worker_us > 0 && others_us > worker_us, "{master:?} {worker:?}");
}
