//! `lab steer --select least-loaded` where it may load a program that counts: what the draw of an ordinary user could not
//! promise. And that it says which of the two it is.

use std::net::TcpStream;
use std::process::Command;

use acceptlab::lab::check::client::{Client, GET};
use acceptlab::lab::check::server::Server;
use acceptlab::lab::observe::processes::{Process, children, poll_until};
use acceptlab::lab::program::{Program, on_path};
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
    others: Vec<usize>,
}

impl Open {
    fn of(server: &Server) -> Open {
        let workers = children(server.pid());
        let others = workers.iter().map(Process::open_descriptors).collect();
        Open { workers, others }
    }

    fn now(&self) -> Vec<usize> {
        self.workers.iter().zip(&self.others).map(|(worker, others)| worker.open_descriptors() - others).collect()
    }

    /// As soon as they are so many.
    #[track_caller]
    fn once_all_are(&self, number: usize) -> Vec<usize> {
        let are = || Some(self.now()).filter(|open| open.iter().sum::<usize>() == number);
        poll_until(FOREVER, are).unwrap_or_else(|| panic!("{:?}", self.now()))
    }
}

fn difference(counts: &[usize]) -> usize {
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
    assert!(difference(&counts) <= 1, "{counts:?}");
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
        let burst = (0..100).map(|_| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            // Its end is not awaited.
            let _ = socket.connect(&to.into());
            socket
        });
        let _burst: Vec<Socket> = burst.collect();
        let counts = open.once_all_are(100);
        assert!(difference(&counts) <= 2, "{listen} from {from}: {counts:?}");
        assert_eq!(steer.end(), Some(0));
    }
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
    // Until a look has shown it the workers take turns, and none gets two in a row.
    let mut two = || Some([one(), one()]).filter(|both| *both == [Some(2); 2]);
    assert!(poll_until(FOREVER, &mut two).is_some());
    let next: Vec<_> = (0..8).map(|_| one()).collect();
    assert_eq!(next, [Some(2); 8]);
    assert_eq!(steer.end(), Some(0));
}

#[test]
fn a_trial_says_how_even_the_open_connections_are_and_what_chance_would_give() {
    let words = ["steer-cost", "--even", "--select", "least-loaded", "--of", "reuseport", "--format", "json"];
    let output = Command::new(env!("CARGO_BIN_EXE_trial")).args(words).output().unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    if let Some(why) = found["skipped"].as_str() {
        return inconclusive(Needs::Privilege("CAP_BPF"), why);
    }
    let number = |key: &str| found[key].as_f64().unwrap_or_else(|| panic!("no {key} in {found}"));
    let (open, spread, chance) = (number("steer_open"), number("steer_spread"), number("steer_spread_chance"));
    // How much smaller it is depends on the machine; the lesson has a claim of it.
    assert!(open > 4.0 && spread > 0.0 && (chance - (open / 4.0).sqrt()).abs() < 1e-9, "{found}");
}

#[test]
fn without_the_capability_and_for_many_sockets_it_draws_and_says_why() {
    let drop = ["setpriv", "--bounding-set=-bpf,-sys_admin", LAB].map(String::from);
    let many = start("reuseport", &["--workers", "65"]);
    let mut steer = Steer::of(&many, "least-loaded");
    let begun = steer.await_event("steering");
    assert_eq!((&begun["exact"], ask(&many, 100), steer.end()), (&false.into(), 0, Some(0)), "{begun}");
    if !geteuid().is_root() {
        return inconclusive(Needs::Privilege("root"), "to have the capability and lose it");
    }
    assert_eq!(begun["why"], "more than 64 sockets");
    if on_path("setpriv").is_none() {
        return inconclusive(Needs::Tool("setpriv"), "not installed");
    }
    let server = start("reuseport", &["--workers", "3"]);
    let words = ["steer", &server.addr.to_string(), "--select", "least-loaded"];
    let mut steer = Steer::begin(Program::new(&drop), &words);
    let begun = steer.await_event("steering");
    assert_eq!((&begun["exact"], ask(&server, 100), steer.end()), (&false.into(), 0, Some(0)), "{begun}");
    assert_eq!(begun["why"], "make a BPF map: operation not permitted; needs CAP_BPF");
}
