//! `lab steer --select least-loaded` where it may load a program that counts: what the draw of an ordinary user could not
//! promise. And that it says which of the two it is.

use std::net::TcpStream;
use std::process::Command;

use acceptlab::lab::check::client::{Client, GET};
use acceptlab::lab::check::server::Server;
use acceptlab::lab::observe::processes::{Process, children, poll_until};
use acceptlab::lab::program::{Program, on_path};
use acceptlab::machine::sysctl;
use nix::unistd::geteuid;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::steer::{LAB, Steer, ask};
use crate::support::{FOREVER, Needs, connect, held, inconclusive, kind, start};

/// `None`, and the test is inconclusive, where it may not be exact.
#[track_caller]
fn exactly(server: &Server) -> Option<Steer> {
    let steer = Steer::of(server, "least-loaded");
    let begun = steer.await_event("steering");
    if begun["exact"] == true {
        return Some(steer);
    }
    inconclusive(Needs::Privilege("CAP_BPF"), &begun["why"]);
    None
}

/// The connections of each worker, by the descriptors that it has more than in the beginning.
struct Open {
    workers: Vec<Process>,
    others: Vec<i64>,
}

impl Open {
    fn of(server: &Server) -> Open {
        let workers = children(server.pid());
        let others = workers.iter().map(descriptors).collect();
        Open { workers, others }
    }

    fn now(&self) -> Vec<i64> {
        self.workers.iter().zip(&self.others).map(|(worker, others)| descriptors(worker) - others).collect()
    }

    /// As soon as they are so many.
    #[track_caller]
    fn once_all_are(&self, number: usize) -> Vec<i64> {
        let are = || Some(self.now()).filter(|open| open.iter().sum::<i64>() == number as i64);
        poll_until(FOREVER, are).unwrap_or_else(|| panic!("{:?}", self.now()))
    }
}

fn descriptors(worker: &Process) -> i64 {
    worker.open_descriptors() as i64
}

fn difference(counts: &[i64]) -> i64 {
    counts.iter().max().unwrap() - counts.iter().min().unwrap()
}

/// A new connection, and the worker that serves it.
fn served(server: &Server) -> (Client, usize) {
    let mut client = connect(server);
    let worker = held(held(client.ask(GET)).worker());
    (client, worker)
}

#[test]
fn connections_that_stay_are_as_many_at_each_worker() {
    let server = start("reuseport", &["--workers", "4"]);
    let open = Open::of(&server);
    let Some(mut steer) = exactly(&server) else { return };
    open.once_all_are(0);
    let mut clients: Vec<TcpStream> = Vec::new();
    for _ in 0..41 {
        clients.push(TcpStream::connect(server.addr).unwrap());
        open.once_all_are(clients.len());
    }
    let counts = open.now();
    // One more where a look came while a worker accepted.
    assert!(difference(&counts) <= 2, "{counts:?}");
    assert_eq!(steer.end(), Some(0));
}

#[test]
fn a_burst_is_as_even_as_connections_one_after_another_also_of_ipv6() {
    for (listen, from) in [("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "::1"), ("[::]:0", "127.0.0.1")] {
        let program = acceptlab::lab::check::server::Program::new(&[kind("reuseport").path.into()]);
        let Ok(server) = program.start_on(listen, &["--workers", "4"]) else {
            return inconclusive(Needs::Kernel("IPv6"), "no IPv6 socket can be bound");
        };
        let open = Open::of(&server);
        let Some(mut steer) = exactly(&server) else { return };
        open.once_all_are(0);
        let to = std::net::SocketAddr::new(from.parse().unwrap(), server.addr.port());
        // A look in the middle of a burst counts some twice.
        let differences: Vec<i64> = (0..5).map(|_| difference_after_burst(&open, to)).collect();
        assert!(differences.iter().any(|difference| *difference <= 2), "{listen} from {from}: {differences:?}");
        assert_eq!(steer.end(), Some(0));
    }
}

/// Of a hundred connections that come at once and go again.
fn difference_after_burst(open: &Open, to: std::net::SocketAddr) -> i64 {
    let burst = (0..100).map(|_| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        // Its end is not awaited.
        let _ = socket.connect(&to.into());
        socket
    });
    let burst: Vec<Socket> = burst.collect();
    let counts = open.once_all_are(100);
    drop(burst);
    open.once_all_are(0);
    difference(&counts)
}

#[test]
fn a_worker_that_had_connections_before_gets_none_until_the_others_have_as_many() {
    let server = start("reuseport", &["--workers", "4"]);
    let mut first = Vec::new();
    while first.len() < 50 {
        first.extend(Some(served(&server)).filter(|(_, worker)| *worker == 0));
    }
    let Some(mut steer) = exactly(&server) else { return };
    let (_clients, workers): (Vec<Client>, Vec<usize>) = (0..170).map(|_| served(&server)).unzip();
    let early = workers.iter().position(|worker| *worker == 0);
    assert!(early.is_some_and(|early| (135..165).contains(&early)), "{early:?}: {workers:?}");
    assert_eq!(steer.end(), Some(0));
}

#[test]
fn new_connections_go_where_others_have_ended() {
    let server = start("reuseport", &["--workers", "4"]);
    let open = Open::of(&server);
    let Some(mut steer) = exactly(&server) else { return };
    let mut clients: Vec<(Client, usize)> = (0..80).map(|_| served(&server)).collect();
    clients.retain(|(_, worker)| *worker != 2);
    open.once_all_are(clients.len());
    let mut one = || {
        clients.push(served(&server));
        clients.last().map(|(_, worker)| *worker)
    };
    // Until a look has shown it the workers take turns, and none gets two in a row; it may show a part of it first.
    let mut in_a_row = 0;
    let all = || {
        in_a_row = if one() == Some(2) { in_a_row + 1 } else { 0 };
        (in_a_row == 8).then_some(())
    };
    assert!(poll_until(FOREVER, all).is_some());
    assert_eq!(steer.end(), Some(0));
}

/// The kernel moves the last number, the stopped worker's, to the place of the one that has died. While lab asks who has
/// which number, half a second, its share would be a third of the two hundred.
#[test]
fn a_stopped_worker_stays_out_while_numbers_are_asked() {
    let server = start("reuseport", &["--workers", "4"]);
    let Some(mut steer) = exactly(&server) else { return };
    let begun = steer.await_event("steering");
    let of_number = |number: usize| Process::find(begun["pids"][number].as_i64().unwrap() as i32).unwrap();
    let last = of_number(3);
    assert!(last.stop(FOREVER));
    steer.await_event("out");
    of_number(1).kill();
    let stuck = ask(&server, 200);
    assert!(stuck < 40, "{stuck}: {:?}", steer.events());
    assert!(last.resume(FOREVER));
    assert_eq!(steer.end(), Some(0));
}

#[test]
fn a_trial_says_how_even_the_open_connections_are_and_what_chance_would_give() {
    let words = ["steer-cost", "--even", "--select", "least-loaded", "--of", "reuseport", "--format", "json"];
    let output = Command::new(env!("CARGO_BIN_EXE_trial")).args(words).output().unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    if let Some(why) = found["skipped"].as_str() {
        let needs = if why.contains("busy") { Needs::QuietMachine } else { Needs::Privilege("CAP_BPF") };
        return inconclusive(needs, why);
    }
    let number = |key: &str| found[key].as_f64().unwrap_or_else(|| panic!("no {key} in {found}"));
    let (open, spread, chance) = (number("steer_open"), number("steer_spread"), number("steer_spread_chance"));
    // How much smaller it is depends on the machine; the lesson has a claim of it.
    assert!(open > 4.0 && spread > 0.0 && (chance - (open / 4.0).sqrt()).abs() < 1e-9, "{found}");
}

#[test]
fn without_the_capability_and_for_many_sockets_it_draws_and_says_why() {
    let without_bpf = ["setpriv", "--bounding-set=-bpf,-sys_admin", LAB].map(String::from);
    let many = start("reuseport", &["--workers", "65"]);
    let mut steer = Steer::of(&many, "least-loaded");
    let begun = steer.await_event("steering");
    assert_eq!((&begun["exact"], ask(&many, 100), steer.end()), (&false.into(), 0, Some(0)), "{begun}");
    if !geteuid().is_root() {
        return inconclusive(Needs::Privilege("root"), "to have the capability and lose it");
    }
    assert_eq!(begun["why"], "more than 64 sockets");
    let most = start("reuseport", &["--workers", "64"]);
    let Some(mut steer) = exactly(&most) else { return };
    assert_eq!((ask(&most, 100), steer.end()), (0, Some(0)));
    if on_path("setpriv").is_none() {
        return inconclusive(Needs::Tool("setpriv"), "not installed");
    }
    let server = start("reuseport", &["--workers", "3"]);
    let words = ["steer", &server.addr.to_string(), "--select", "least-loaded"];
    let mut steer = Steer::begin(Program::new(&without_bpf), &words);
    let begun = steer.await_event("steering");
    if sysctl("kernel.unprivileged_bpf_disabled").as_deref() == Some("0") {
        return inconclusive(Needs::Kernel("unprivileged_bpf_disabled"), "any user may load such a program");
    }
    assert_eq!((&begun["exact"], ask(&server, 100), steer.end()), (&false.into(), 0, Some(0)), "{begun}");
    assert_eq!(begun["why"], "make a BPF map: operation not permitted; needs CAP_BPF");
}
