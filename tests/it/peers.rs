//! `peers`: what a worker passes on, and what becomes of it.

use acceptlab::lab::check::client::Client;
use acceptlab::lab::check::server::STOP_WITHIN;
use acceptlab::lab::observe::processes::{Process, poll_until};
use acceptlab::scoreboard::Count;
use nix::sys::signal::Signal;

use crate::dispatch::{Stopped, Watched, accepted, await_answers, spread, stop};
use crate::support::{FOREVER, ask_together, held, raise_descriptor_limit, start, start_after};

/// Where each connection goes to a worker by chance, the spread is four or less once in seven times.
#[test]
fn connections_that_stay_are_spread_evenly_because_some_are_passed_on() {
    let mut watched = Watched::start("peers", &["--workers", "4"]);
    let clients: Vec<(Client, usize)> = (0..64).map(|_| watched.hold()).collect();
    assert!(spread(&watched.active()) <= 4, "{:?}", watched.active());
    drop(clients);
    let report = stop(&mut watched.server);
    // A connection that is passed wakes two workers.
    let wakeups: u64 = report.workers.iter().map(|worker| worker.wakeups).sum();
    let passed = wakeups - accepted(&report).iter().sum::<u64>();
    assert!((1..=48).contains(&passed), "{passed} of 64 were passed on");
}

#[test]
fn a_worker_without_peers_serves_everything() {
    let mut server = start("peers", &["--workers", "1"]);
    ask_together(&server, 20).iter_mut().for_each(|client| drop(held(client.answer())));
    assert_eq!(accepted(&stop(&mut server)), [20]);
}

/// Two workers, of which the second hangs; the first has so many connections open, and more to accept.
fn with_a_hung_peer(clients: usize, until_active: u64) -> (Watched, Stopped, Vec<Client>) {
    let watched = Watched::start("peers", &["--workers", "2"]);
    let hung = Stopped::new(watched.board.row(1).get(Count::Pid) as i32);
    let clients = ask_together(&watched.server, clients);
    let is_there = poll_until(FOREVER, || (watched.active()[0] >= until_active).then_some(()));
    assert!(is_there.is_some(), "of {} clients {:?} are open", clients.len(), watched.active());
    (watched, hung, clients)
}

/// What was passed counts as open there, although nobody has taken it.
#[test]
fn a_hung_worker_is_passed_connections_until_it_has_as_many_as_the_other() {
    let (watched, hung, mut waiting) = with_a_hung_peer(100, 10);
    let before = watched.active()[0];
    let passed = watched.active()[1];
    let after = watched.active()[0];
    assert!((before - 1..=after).contains(&passed), "{passed} while the other had {before} to {after}");
    drop(hung);
    await_answers(&mut waiting, 0);
}

#[test]
fn what_waits_in_the_inbox_of_a_hung_worker_is_answered_when_the_server_stops() {
    let (mut watched, hung, mut clients) = with_a_hung_peer(100, 10);
    watched.server.signal(Signal::SIGTERM);
    drop(hung);
    // What is in the accept queues is not accepted any more.
    let answers = clients.iter_mut().filter_map(|client| held(client.answer_or_close(FOREVER)));
    let by_the_second = answers.filter(|answer| held(answer.worker()) == 1).count() as u64;
    let report = held(held(watched.server.ended(STOP_WITHIN)).report());
    assert!(by_the_second >= 9, "{by_the_second}");
    assert_eq!(accepted(&report)[1], by_the_second);
    assert!(report.workers.iter().all(|worker| worker.active == 0), "{:?}", report.workers);
}

#[test]
fn what_a_full_inbox_does_not_take_the_worker_that_accepted_serves() {
    raise_descriptor_limit();
    let (watched, hung, mut waiting) = with_a_hung_peer(600, 150);
    let passed = watched.active()[1];
    assert!((20..150).contains(&passed), "an inbox takes {passed}");
    drop(hung);
    await_answers(&mut waiting, 0);
}

/// A connection in an inbox would be lost if its worker received it and had no descriptor for it.
#[test]
fn workers_without_descriptors_lose_nothing_that_was_passed_to_them() {
    let server = start_after("ulimit -n 32", "peers", &["--workers", "3"]);
    let mut waiting = ask_together(&server, 100);
    while !waiting.is_empty() {
        let left = waiting.len() - 1;
        // Those who are answered leave, and make room.
        await_answers(&mut waiting, left);
    }
}

/// It has none open: whoever compares would always choose it.
#[test]
fn a_killed_peer_is_passed_nothing() {
    let watched = Watched::start("peers", &["--workers", "2"]);
    let victim = Process::find(watched.board.row(1).get(Count::Pid) as i32).expect("it runs");
    victim.kill();
    assert!(poll_until(FOREVER, || (!victim.is_alive()).then_some(())).is_some());
    let clients: Vec<(Client, usize)> = (0..20).map(|_| watched.hold()).collect();
    assert!(clients.iter().all(|(_, worker)| *worker == 0));
    assert_eq!(watched.active(), [20, 0]);
}
