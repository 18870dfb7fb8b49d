//! The master and its workers: who is given the connection, and what happens when they do not take it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use acceptlab::lab::check::client::{ANSWER_TIMEOUT, Client, GET, GET_AND_CLOSE, Response, served};
use acceptlab::lab::check::server::Server;
use acceptlab::lab::observe::processes::{Process, poll_until};
use acceptlab::report::ServerReport;
use acceptlab::scoreboard::{Count, Scoreboard};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

use crate::contract::keeps_the_contract;
use crate::endings::{ends_under_load, outlives_a_worker};
use crate::support::{FOREVER, TempFolder, answer, ask_together, connect, held, kind, load, start, start_after};

const POLICIES: [&str; 6] = ["round-robin", "random", "least-connections", "first-free", "acknowledged", "sticky"];

/// Every way to dispatch: the program and its flags.
fn ways() -> impl Iterator<Item = (&'static str, [&'static str; 2])> {
    let policies = POLICIES.iter().map(|&policy| ("master-dispatch", ["--policy", policy]));
    policies.chain(["serves", "closes"].map(|copy| ("pass-listener", ["--master", copy])))
}

/// A server whose scoreboard we watch.
pub struct Watched {
    pub server: Server,
    pub board: Scoreboard,
    _folder: TempFolder,
}

impl Watched {
    pub fn start(name: &str, flags: &[&str]) -> Watched {
        let folder = TempFolder::new(name);
        let path = folder.file("board");
        let server = start(name, &[&["--scoreboard", &path], flags].concat());
        let board = Scoreboard::open(path.as_ref()).expect("the server has made it");
        Watched { server, board, _folder: folder }
    }

    pub fn active(&self) -> Vec<u64> {
        (0..self.board.rows()).map(|id| self.board.row(id).get(Count::Active)).collect()
    }

    /// Waits until so many connections are open: an answer and a close arrive a moment before they are counted.
    #[track_caller]
    fn await_active(&self, count: u64) {
        let arrived = poll_until(FOREVER, || (self.active().iter().sum::<u64>() == count).then_some(()));
        assert!(arrived.is_some(), "{count} open connections expected, found {:?}", self.active());
    }

    /// A connection that stays open, and the worker that has it.
    #[track_caller]
    pub fn hold(&self) -> (Client, usize) {
        let mut client = connect(&self.server);
        held(client.send(GET));
        let worker = held(answer(&mut client).worker());
        (client, worker)
    }
}

/// A process of the server that hangs until this is dropped.
pub struct Stopped(Process);

impl Stopped {
    #[track_caller]
    pub fn new(pid: i32) -> Stopped {
        let process = Process::find(pid).expect("it runs");
        assert!(process.stop(ANSWER_TIMEOUT), "process {pid} does not stop");
        Stopped(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.signal(Signal::SIGCONT);
    }
}

/// The process of worker `id`, which has to be asked for until it answers.
#[track_caller]
fn pid_of(server: &Server, id: usize) -> i32 {
    let found = poll_until(FOREVER, || {
        let (worker, pid) = held(held(served(server.addr)).signature());
        (worker == id).then_some(pid)
    });
    found.unwrap_or_else(|| panic!("worker {id} never answers"))
}

/// Moves those who are answered out of `waiting`, until `left` wait.
#[track_caller]
pub fn await_answers(waiting: &mut Vec<Client>, left: usize) -> Vec<(Client, Response)> {
    let mut answered = Vec::new();
    let done = poll_until(FOREVER, || {
        for i in (0..waiting.len()).rev() {
            if let Ok(answer) = waiting[i].answer_or_close(Duration::from_micros(100)) {
                let answer = answer.unwrap_or_else(|| panic!("a connection is closed without an answer"));
                answered.push((waiting.swap_remove(i), answer));
            }
        }
        (waiting.len() <= left).then_some(())
    });
    assert!(done.is_some(), "{} clients wait, {left} should", waiting.len());
    answered
}

/// Asks in one connection after another, until so many in a row are answered; those who wait for a worker that hangs.
#[track_caller]
fn fill(server: &Server, in_a_row: usize) -> Vec<Client> {
    let mut waiting: Vec<Client> = Vec::new();
    let mut answered = 0;
    while answered < in_a_row {
        let mut client = connect(server);
        // A client that is answered was accepted after all before it: each of those had a message of its own.
        held(client.send(GET_AND_CLOSE));
        match client.answer_within(Duration::from_millis(20)) {
            Ok(_) => answered += 1,
            Err(_) => {
                waiting.push(client);
                answered = 0;
            }
        }
        // On a busy machine some were only slow. They have their answers by now, or are slow once more.
        if waiting.len() >= 300 || answered == in_a_row {
            waiting.retain_mut(|client| client.answer_within(Duration::from_millis(1)).is_err());
        }
        assert!(waiting.len() < 300, "{} connections wait for the hung worker", waiting.len());
    }
    waiting
}

#[track_caller]
pub fn stop(server: &mut Server) -> ServerReport {
    held(server.stop())
}

pub fn accepted(report: &ServerReport) -> Vec<u64> {
    report.workers.iter().map(|worker| worker.accepted).collect()
}

pub fn spread(counts: &[u64]) -> u64 {
    counts.iter().max().unwrap() - counts.iter().min().unwrap()
}

#[test]
fn round_robin_is_exact_over_a_thousand_connections() {
    let mut server = start("master-dispatch", &["--workers", "4"]);
    for _ in 0..1000 {
        held(served(server.addr));
    }
    let accepted = accepted(&stop(&mut server));
    assert!(spread(&accepted) <= 1 && accepted.iter().sum::<u64>() == 1000, "{accepted:?}");
}

/// Also with 64 at a time: the master deals, whoever is ready or not.
#[test]
fn round_robin_is_exact_under_load() {
    let mut server = start("master-dispatch", &["--workers", "4", "--policy", "round-robin"]);
    load(server.addr, &["--requests-per-connection", "1", "--connections", "64", "--requests", "4000"]);
    let accepted = accepted(&stop(&mut server));
    assert!(spread(&accepted) <= 1 && accepted.iter().sum::<u64>() == 4000, "{accepted:?}");
}

#[test]
fn random_reaches_every_worker_and_is_not_exact() {
    let mut server = start("master-dispatch", &["--workers", "4", "--policy", "random"]);
    for _ in 0..1000 {
        held(served(server.addr));
    }
    let accepted = accepted(&stop(&mut server));
    // Standard deviation 13.7 per worker: 170 to 330 is six of them, and an exact deal has a chance of about 1e-5.
    assert!(accepted.iter().all(|share| (170..330).contains(share)), "{accepted:?}");
    assert!(spread(&accepted) > 1, "{accepted:?}");
}

#[test]
fn one_client_address_always_finds_the_same_worker_and_many_addresses_find_several() {
    let server = start("master-dispatch", &["--workers", "4", "--policy", "sticky"]);
    let home = |last: u8| {
        let workers: BTreeSet<usize> =
            (0..5).map(|_| worker_for(Ipv4Addr::new(127, 0, 7, last), server.addr)).collect();
        assert_eq!(workers.len(), 1, "127.0.7.{last} was served by {workers:?}");
        workers.into_iter().next()
    };
    let homes: BTreeSet<_> = (1..=40).map(home).collect();
    assert!(homes.len() >= 3, "40 addresses live with {homes:?}");
}

/// The worker that answers a client with this address.
fn worker_for(source: Ipv4Addr, server: SocketAddr) -> usize {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect_timeout(&server.into(), ANSWER_TIMEOUT).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(FOREVER)).unwrap();
    stream.write_all(GET_AND_CLOSE).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let worker = answer.to_lowercase().split_once("x-worker: ").unwrap().1.split_whitespace().next().map(str::parse);
    worker.unwrap().unwrap()
}

#[test]
fn under_load_a_sticky_client_stays_with_its_worker() {
    let mut server = start("master-dispatch", &["--workers", "4", "--policy", "sticky"]);
    load(server.addr, &["--requests-per-connection", "1", "--connections", "32", "--requests", "2000"]);
    let accepted = accepted(&stop(&mut server));
    assert_eq!(accepted.iter().filter(|&&share| share > 0).count(), 1, "{accepted:?}");
}

#[test]
fn first_free_gives_an_idle_server_s_connections_to_the_first_worker() {
    let watched = Watched::start("master-dispatch", &["--workers", "4", "--policy", "first-free"]);
    for _ in 0..50 {
        assert_eq!(held(held(served(watched.server.addr)).worker()), 0);
        watched.await_active(0);
    }
}

#[test]
fn first_free_fills_the_workers_in_the_order_of_the_list() {
    let watched = Watched::start("master-dispatch", &["--workers", "4", "--policy", "first-free"]);
    let mut clients: Vec<(Client, usize)> = (0..6).map(|_| watched.hold()).collect();
    let takers: Vec<usize> = clients.iter().map(|(_, worker)| *worker).collect();
    assert_eq!(takers, [0, 1, 2, 3, 0, 1]);
    // Workers 2 and 3 have one each; the one of worker 2 leaves.
    clients.remove(2);
    watched.await_active(5);
    assert_eq!(watched.hold().1, 2);
}

#[test]
fn least_connections_evens_out_what_leaving_clients_have_made_uneven() {
    let watched = Watched::start("master-dispatch", &["--workers", "4", "--policy", "least-connections"]);
    let mut clients: Vec<(Client, usize)> = (0..40).map(|_| watched.hold()).collect();
    assert_eq!(watched.active(), [10; 4]);
    let mut leaving = 0;
    clients.retain(|(_, worker)| {
        leaving += usize::from(*worker == 1 || *worker == 2);
        *worker == 0 || *worker == 3 || leaving > 15
    });
    watched.await_active(25);
    assert!(spread(&watched.active()) > 5, "{:?}", watched.active());
    clients.extend((0..13).map(|_| watched.hold()));
    watched.await_active(38);
    assert!(spread(&watched.active()) <= 1, "{:?}", watched.active());
}

#[test]
fn every_way_to_dispatch_serves_every_connection_and_both_sides_count_the_same() {
    for (name, way) in ways() {
        let mut server = start(name, &[&["--workers", "4"], &way[..]].concat());
        let load = load(server.addr, &["--requests-per-connection", "1", "--connections", "64", "--requests", "2000"]);
        assert_eq!((load.errors.total(), load.requests), (0, 2000), "{way:?}: {:?}", load.errors);
        let report = stop(&mut server);
        for (id, share) in accepted(&report).iter().enumerate() {
            let seen = load.workers.get(&id.to_string()).map_or(0, |worker| worker.connections);
            assert_eq!(*share, seen, "{way:?}, worker {id}");
        }
        assert!(report.workers.iter().all(|worker| worker.active == 0), "{way:?}: {:?}", report.workers);
    }
}

#[test]
fn a_killed_worker_is_passed_over_by_every_way_to_dispatch() {
    for (name, way) in ways() {
        outlives_a_worker(name, &way);
    }
}

#[test]
fn sigterm_under_load_ends_every_way_to_dispatch_well() {
    for (name, way) in ways() {
        ends_under_load(name, &way);
    }
}

/// Where connections are acknowledged, and where the master serves too, a stop takes another course.
#[test]
fn a_master_that_awaits_acknowledgements_and_one_that_serves_keep_the_contract() {
    std::thread::scope(|scope| {
        scope.spawn(|| keeps_the_contract("master-dispatch", &["--policy", "acknowledged"]));
        scope.spawn(|| keeps_the_contract("pass-listener", &["--master", "serves", "--workers", "2"]));
    });
}

/// A worker that hangs has not acknowledged its last connection, so it is given no other.
#[test]
fn a_hung_worker_that_acknowledges_connections_holds_one_at_most() {
    let server = start("master-dispatch", &["--workers", "3", "--policy", "acknowledged"]);
    let hung = Stopped::new(pid_of(&server, 1));
    let mut waiting = ask_together(&server, 60);
    let answered = await_answers(&mut waiting, 1);
    assert!(answered.iter().all(|(_, answer)| held(answer.worker()) != 1));
    for _ in 0..20 {
        held(served(server.addr));
    }
    drop(hung);
    await_answers(&mut waiting, 0);
}

/// Whoever deals without looking fills the channel of a hung worker, and then passes it over.
#[test]
fn a_hung_worker_that_does_not_acknowledge_holds_what_its_channel_holds_and_the_others_serve_on() {
    for policy in ["round-robin", "random"] {
        let server = start("master-dispatch", &["--workers", "2", "--policy", policy]);
        let hung = Stopped::new(pid_of(&server, 1));
        let mut waiting = fill(&server, 20);
        eprintln!("{policy}: the channel of a hung worker holds {}", waiting.len());
        assert!(waiting.len() > 20, "{policy}: {} connections wait for the hung worker", waiting.len());
        drop(hung);
        await_answers(&mut waiting, 0);
    }
}

/// What a hung worker was given stays its load, so the others are preferred as long as they have less.
#[test]
fn least_connections_gives_a_hung_worker_few_connections() {
    for policy in ["least-connections", "first-free"] {
        let watched = Watched::start("master-dispatch", &["--workers", "2", "--policy", policy]);
        let hung = Stopped::new(watched.board.row(0).get(Count::Pid) as i32);
        let mut waiting = fill(&watched.server, 50);
        // A close that is counted late makes a tie.
        await_answers(&mut waiting, 10);
        assert!(!waiting.is_empty(), "{policy}: the hung worker was given nothing");
        eprintln!("{policy}: a hung worker holds {}", waiting.len());
        drop(hung);
        await_answers(&mut waiting, 0);
    }
}

/// The master has kept its copy until then.
#[test]
fn a_connection_that_was_not_acknowledged_survives_the_death_of_its_worker() {
    let server = start("master-dispatch", &["--workers", "2", "--policy", "acknowledged"]);
    let victim = pid_of(&server, 1);
    let _hung = Stopped::new(victim);
    let mut waiting = ask_together(&server, 4);
    await_answers(&mut waiting, 1);
    Process::find(victim).expect("it hangs").kill();
    let answered = await_answers(&mut waiting, 0);
    assert_eq!(held(answered[0].1.worker()), 0);
}

#[test]
fn a_worker_that_is_told_to_stop_gives_back_what_it_has_not_acknowledged() {
    let server = start("master-dispatch", &["--workers", "2", "--policy", "acknowledged"]);
    let leaving = pid_of(&server, 1);
    let hung = Stopped::new(leaving);
    let mut waiting = ask_together(&server, 4);
    await_answers(&mut waiting, 1);
    kill(Pid::from_raw(leaving), Signal::SIGTERM).expect("it hangs");
    drop(hung);
    let answered = await_answers(&mut waiting, 0);
    assert_eq!(held(answered[0].1.worker()), 0);
}

/// With 32 descriptors a worker has room for about twenty connections. All of them stay open.
#[test]
fn a_full_worker_refuses_and_the_connection_goes_to_one_that_has_room() {
    let server = start_after("ulimit -n 32", "master-dispatch", &["--workers", "2", "--policy", "acknowledged"]);
    let first = Process::find(pid_of(&server, 0)).expect("it has just answered");
    let hung = Stopped::new(pid_of(&server, 1));
    let mut waiting = ask_together(&server, 34);
    // Some are kept free, for receiving what it refuses.
    let is_full = poll_until(FOREVER, || (first.open_descriptors() >= 28).then_some(()));
    assert!(is_full.is_some(), "{} descriptors", first.open_descriptors());
    drop(hung);
    let answered = await_answers(&mut waiting, 0);
    let of_the_second = answered.iter().filter(|(_, answer)| held(answer.worker()) == 1).count();
    assert!((10..=20).contains(&of_the_second), "{of_the_second} of 34");
}

#[test]
fn flags_that_do_not_fit_together_are_refused() {
    for (name, flags) in [
        ("pass-listener", &["--policy", "random"][..]),
        ("pass-listener", &["--master", "serves", "--workers", "1"]),
        ("master-dispatch", &["--master", "closes"]),
        ("master-dispatch", &["--pass", "connection", "--master", "serves"]),
        ("master-dispatch", &["--policy", "fastest"]),
    ] {
        let output = Command::new(kind(name).path).args(flags).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name} {flags:?}: {said}");
        assert!(said.lines().next().is_some_and(|line| line.starts_with("error: ")), "{name} {flags:?}: {said}");
    }
}
