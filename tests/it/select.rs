//! `reuseport --select`: who gets a connection, what becomes of it when a worker hangs or dies, and what a missing
//! privilege is called.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use acceptlab::cpu;
use acceptlab::lab::check::client::{ANSWER_TIMEOUT, Client, GET, served, served_within};
use acceptlab::lab::check::server::{NotReady, Program, Server};
use acceptlab::lab::observe::processes::{Process, poll_until};
use acceptlab::report::LoadReport;
use acceptlab::scoreboard::{Count, Scoreboard};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::contract::all_keep_the_contract;
use crate::endings::ends_under_load;
use crate::support::{
    FOREVER, Needs, Ordinary, TempFolder, answer, connect, held, inconclusive, kind, one_after_another, said_with,
    start,
};

/// As anybody may run them.
const UNPRIVILEGED: [&str; 4] = ["hash", "cpu", "random", "live-set"];
const PRIVILEGED: [&str; 2] = ["round-robin", "least-loaded"];

/// A client without an answer by then is in the queue of a worker that hangs, or on a machine that does.
const STUCK_AFTER: Duration = Duration::from_secs(1);

fn reuseport() -> Program {
    Program::new(&[kind("reuseport").path.into()])
}

fn four(select: &str, flags: &[&str]) -> Option<Server> {
    started(&[&["--workers", "4", "--select", select], flags].concat())
}

/// `None`, and the test is inconclusive, where the privilege for this is missing.
#[track_caller]
fn started(flags: &[&str]) -> Option<Server> {
    match reuseport().start_on("127.0.0.1:0", flags) {
        Ok(server) => Some(server),
        Err(NotReady::Silent { stderr, .. }) if stderr.trim_end().ends_with("needs CAP_BPF") => {
            inconclusive(Needs::Privilege("CAP_BPF"), format!("{flags:?}"));
            None
        }
        Err(not_ready) => panic!("{:?}", not_ready.into_broken(flags)),
    }
}

/// The exit status of a start that fails, and what it said.
fn refusal(program: &Program, flags: &[&str]) -> (Option<i32>, String) {
    match program.start_on("127.0.0.1:0", flags) {
        Ok(_) => panic!("started with {flags:?}"),
        Err(NotReady::Silent { status: Some(status), stderr, .. }) => (status.code(), stderr),
        Err(not_ready) => panic!("{:?}", not_ready.into_broken(flags)),
    }
}

/// All selectors for which we have the privilege.
fn available() -> impl Iterator<Item = &'static str> {
    each_of_four().map(|(select, _)| select)
}

/// A server with each of them.
fn each_of_four() -> impl Iterator<Item = (&'static str, Server)> {
    UNPRIVILEGED.into_iter().chain(PRIVILEGED).filter_map(|select| Some((select, four(select, &[])?)))
}

/// A thousand connections, each with one request, so many at a time.
fn load(server: &Server, connections: &str) -> LoadReport {
    let flags = ["--connections", connections, "--requests-per-connection", "1", "--requests", "1000"];
    crate::support::load(server.addr, &flags)
}

/// The connections of each worker, as the client counted them.
fn shares(load: &LoadReport) -> Vec<u64> {
    let mut shares = vec![0; 4];
    for (worker, share) in &load.workers {
        shares[worker.parse::<usize>().expect("X-Worker is a number")] = share.connections;
    }
    shares
}

fn spread(shares: &[u64]) -> u64 {
    shares.iter().max().unwrap() - shares.iter().min().unwrap()
}

/// Worker and pid of all four, from their answers.
fn pids(server: &Server) -> BTreeMap<usize, i32> {
    let mut pids = BTreeMap::new();
    let all = poll_until(FOREVER, || {
        pids.extend(served(server.addr).and_then(|answer| answer.signature()));
        (pids.len() == 4).then_some(())
    });
    all.unwrap_or_else(|| panic!("only {pids:?} answer"));
    pids
}

fn tell(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("it is there");
}

/// Asks until forty connections in a row are answered, by these workers and by nobody else. Where one connection in
/// four is lost, no luck lasts forty times.
#[track_caller]
fn is_served_by(server: &Server, workers: &[usize]) {
    let mut in_a_row = Vec::new();
    let expected: BTreeSet<usize> = workers.iter().copied().collect();
    let mut last = BTreeSet::new();
    let done = poll_until(FOREVER, || {
        match served_within(server.addr, STUCK_AFTER) {
            Ok(answer) => in_a_row.push(held(answer.worker())),
            Err(_) => in_a_row.clear(),
        }
        if in_a_row.len() == 40 {
            last = in_a_row.drain(..).collect();
        }
        (last == expected).then_some(())
    });
    assert!(done.is_some(), "the last forty in a row: {last:?}, not {expected:?}");
}

#[track_caller]
fn comes_back(server: &Server, worker: usize) {
    let came = poll_until(FOREVER, || (held(held(served(server.addr)).worker()) == worker).then_some(()));
    assert!(came.is_some(), "worker {worker} gets no connections any more");
}

#[test]
fn round_robin_gives_four_workers_a_quarter_each_exactly() {
    let Some(mut server) = four("round-robin", &[]) else { return };
    let load = load(&server, "1");
    assert_eq!(load.errors.total(), 0, "{:?}", load.errors);
    let accepted: Vec<u64> = held(server.stop()).workers.iter().map(|worker| worker.accepted).collect();
    assert_eq!(shares(&load), accepted);
    assert_eq!(accepted.iter().sum::<u64>(), 1000);
    assert!(spread(&accepted) <= 1, "{accepted:?}");
}

#[test]
fn a_hash_and_a_random_choice_give_every_worker_some_connections() {
    for select in ["hash", "random", "live-set"] {
        let server = start("reuseport", &["--workers", "4", "--select", select]);
        let shares = shares(&load(&server, "1"));
        // Binomial(1000, 1/4) leaves this range once in ten million times.
        assert!(shares.iter().all(|share| (175..=330).contains(share)), "{select}: {shares:?}");
    }
}

/// On the loopback a SYN is processed by the CPU that has sent it.
#[test]
fn clients_on_one_cpu_meet_the_worker_that_is_pinned_there() {
    let cpus = cpu::allowed();
    let workers = cpus.len().to_string();
    let server = start("reuseport", &["--workers", &workers, "--pin", "--select", "cpu"]);
    for (expected, &cpu) in cpus.iter().enumerate() {
        let addr = server.addr;
        let client = std::thread::spawn(move || {
            cpu::pin_to(&[cpu]).expect("it is allowed");
            (0..20).map(|_| held(held(served(addr)).worker())).collect::<BTreeSet<_>>()
        });
        assert_eq!(client.join().expect("served"), BTreeSet::from([expected]), "CPU {cpu}");
    }
}

#[test]
fn long_lived_connections_are_levelled_by_least_loaded() {
    let folder = TempFolder::new("levelled");
    let file = folder.file("board");
    let Some(server) = four("least-loaded", &["--scoreboard", &file]) else { return };
    let board = Scoreboard::open(file.as_ref()).expect("the server has made it");
    let active = || (0..4).map(|id| board.row(id).get(Count::Active)).collect::<Vec<_>>();
    let open = || {
        let mut client = connect(&server);
        held(client.send(GET));
        let worker = held(answer(&mut client).worker());
        (worker, client)
    };
    let mut clients: Vec<(usize, Client)> = (0..41).map(|_| open()).collect();
    assert!(spread(&active()) <= 1, "{:?}", active());
    // Whoever loses its connections is sent the next.
    clients.retain(|&(worker, _)| worker != 2);
    poll_until(ANSWER_TIMEOUT, || (active()[2] == 0).then_some(())).expect("closed connections are noticed");
    let next: Vec<usize> = (0..8)
        .map(|_| open())
        .map(|(worker, client)| {
            clients.push((worker, client));
            worker
        })
        .collect();
    assert_eq!(next, [2; 8]);
}

/// It is not silent for long enough to be noticed; it is only sent less than the others, because it finishes nothing.
#[test]
fn a_hung_worker_keeps_few_connections_under_least_loaded_and_loses_none() {
    let folder = TempFolder::new("hung");
    let file = folder.file("board");
    let Some(server) = four("least-loaded", &["--scoreboard", &file]) else { return };
    let board = Scoreboard::open(file.as_ref()).expect("the server has made it");
    let others_are_idle = || [0, 2, 3].iter().all(|&id| board.row(id).get(Count::Active) == 0).then_some(());
    let hung = pids(&server)[&1];
    tell(hung, Signal::SIGSTOP);
    let mut waiting: Vec<Client> = Vec::new();
    for _ in 0..60 {
        poll_until(FOREVER, others_are_idle).expect("closed connections are noticed");
        let mut client = connect(&server);
        held(client.send(GET));
        if client.answer_within(STUCK_AFTER).is_err() {
            waiting.push(client);
        }
    }
    tell(hung, Signal::SIGCONT);
    // On a slow machine an answer of the others may have been late, too.
    let stuck = waiting.iter_mut().map(|client| held(answer(client).worker())).filter(|&worker| worker == 1).count();
    // One as soon as all loads are equal; then it has more to do than the others, who are idle.
    assert!(stuck <= 1, "{stuck} of 60 were sent to a worker that hangs");
    // What it has open still counts, and what it has finished does no more.
    drop(waiting);
    comes_back(&server, 1);
}

#[test]
fn a_hung_worker_leaves_the_live_set_and_comes_back() {
    let server = start("reuseport", &["--workers", "4", "--select", "live-set"]);
    let hung = pids(&server)[&1];
    tell(hung, Signal::SIGSTOP);
    is_served_by(&server, &[0, 2, 3]);
    tell(hung, Signal::SIGCONT);
    comes_back(&server, 1);
}

/// The last socket moves to the number of the dead worker's: from then on worker 3 is number 0.
#[test]
fn the_live_set_follows_its_workers_when_a_death_gives_them_other_numbers() {
    let mut server = start("reuseport", &["--workers", "4", "--select", "live-set"]);
    let pids = pids(&server);
    tell(pids[&0], Signal::SIGKILL);
    is_served_by(&server, &[1, 2, 3]);
    tell(pids[&3], Signal::SIGSTOP);
    is_served_by(&server, &[1, 2]);
    tell(pids[&1], Signal::SIGKILL);
    is_served_by(&server, &[2]);
    tell(pids[&3], Signal::SIGCONT);
    comes_back(&server, 3);
    held(server.stop());
}

/// The parent has a copy of the dead worker's socket, and with it of its queue.
#[test]
fn connections_that_wait_for_a_worker_of_the_live_set_are_closed_when_it_dies() {
    let server = start("reuseport", &["--workers", "4", "--select", "live-set"]);
    let dying = Process::find(pids(&server)[&1]).expect("it has just answered");
    // A parent that hangs too does not take the worker out of the set before the clients are there.
    let parent = Process::find(server.pid()).expect("it runs");
    assert!(parent.stop(ANSWER_TIMEOUT) && dying.stop(ANSWER_TIMEOUT), "they do not stop");
    let mut clients: Vec<Client> = (0..40).map(|_| connect(&server)).collect();
    clients.iter_mut().for_each(|client| held(client.send(GET)));
    dying.kill();
    parent.signal(Signal::SIGCONT);
    let answered = clients.iter_mut().filter_map(|client| held(client.answer_or_close(FOREVER))).count();
    // Binomial(40, 3/4): all of them once in a hundred thousand times, and then nothing was tried.
    assert!(answered < 40, "nobody waited for the worker that died");
}

/// A set in which nobody is live has no use: the last program stays, and when all wake up all is as before.
#[test]
fn when_all_workers_hang_nobody_is_refused() {
    // With the default backlog a kernel whose somaxconn is smaller is a line of its own.
    let server = start("reuseport", &["--workers", "4", "--select", "live-set", "--backlog", "128"]);
    let pids = pids(&server);
    pids.values().for_each(|&pid| tell(pid, Signal::SIGSTOP));
    let mut clients: Vec<Client> = (0..40).map(|_| connect(&server)).collect();
    clients.iter_mut().for_each(|client| held(client.send(GET)));
    assert!(clients[0].answer_within(STUCK_AFTER).is_err(), "somebody is awake");
    pids.values().for_each(|&pid| tell(pid, Signal::SIGCONT));
    clients.iter_mut().for_each(|client| drop(answer(client)));
    assert_eq!(server.said(), "");
}

#[test]
fn every_selector_passes_over_a_killed_worker() {
    for (select, server) in each_of_four() {
        if select == "cpu" {
            // Not every worker has a CPU of its own, so it is not known who is left to answer.
            continue;
        }
        tell(pids(&server)[&1], Signal::SIGKILL);
        is_served_by(&server, &[0, 2, 3]);
    }
}

#[test]
fn where_the_worker_of_a_cpu_is_killed_another_takes_its_connections() {
    let server = start("reuseport", &["--workers", "2", "--select", "cpu"]);
    let (victim, pid) = held(held(served(server.addr)).signature());
    tell(pid, Signal::SIGKILL);
    is_served_by(&server, &[1 - victim]);
}

#[test]
fn every_selector_serves_every_connection_and_both_sides_count_the_same() {
    for (select, mut server) in each_of_four() {
        let load = load(&server, "16");
        assert_eq!(load.errors.total(), 0, "{select}: {:?}", load.errors);
        let report = held(server.stop());
        let accepted: Vec<u64> = report.workers.iter().map(|worker| worker.accepted).collect();
        assert_eq!(shares(&load), accepted, "{select}");
        assert_eq!(accepted.iter().sum::<u64>(), 1000, "{select}");
        assert!(report.workers.iter().all(|worker| worker.active == 0), "{select}: {:?}", report.workers);
    }
}

#[test]
fn more_workers_than_a_program_has_room_for_are_refused_and_no_fewer() {
    if let Some(server) = started(&["--workers", "64", "--select", "least-loaded"]) {
        let served = (0..64).map(|_| held(held(served(server.addr)).worker())).collect::<BTreeSet<_>>();
        // In turn, but for a connection that is not yet closed when the next one comes.
        assert!(served.len() >= 48, "64 connections to 64 idle workers went to {served:?}");
    }
    for (select, workers) in [("least-loaded", "65"), ("live-set", "2048")] {
        let (status, stderr) = refusal(&reuseport(), &["--select", select, "--workers", workers]);
        assert_eq!(status, Some(2), "{select}: {stderr}");
        let most = workers.parse::<usize>().unwrap() - 1;
        assert!(stderr.lines().next().unwrap().ends_with(&format!("{most} workers")), "{stderr}");
    }
}

#[test]
fn the_live_set_of_an_ordinary_user_leaves_a_hung_worker_out_too() {
    let Some(ordinary) = Ordinary::new(kind("reuseport").path) else { return };
    let server = held(ordinary.program().start(&["--workers", "4", "--select", "live-set"]));
    let hung = pids(&server)[&1];
    tell(hung, Signal::SIGSTOP);
    is_served_by(&server, &[0, 2, 3]);
    tell(hung, Signal::SIGCONT);
    comes_back(&server, 1);
}

/// gdb(1) has an idle process call setresuid(2), number 117, with the instruction by which it waits in the kernel, and
/// gives back the registers that this changes. gdb's own `call` writes all of them, and gdb 13 fails to where the CPU
/// has more than it knows (AMX): what it then leaves behind is a process with registers that are not its own.
const BECOME_ORDINARY: [&str; 16] = [
    "set $old_rax = $rax",
    "set $old_orig_rax = $orig_rax",
    "set $old_rdi = $rdi",
    "set $old_rsi = $rsi",
    "set $old_rdx = $rdx",
    "set $rax = 117",
    "set $rdi = 65534",
    "set $rsi = 65534",
    "set $rdx = 65534",
    "set $rip = $rip - 2",
    "stepi",
    "set $rdi = $old_rdi",
    "set $rsi = $old_rsi",
    "set $rdx = $old_rdx",
    "set $rax = $old_rax",
    // With this number the kernel takes up the call that it was waiting in.
    "set $orig_rax = $old_orig_rax",
];

/// All processes become ordinary users in mid-run, which leaves them no capability (capabilities(7), "Effect of user
/// ID changes on capabilities"). Nobody can take one from a process but itself, so gdb makes each do it.
#[test]
fn a_server_that_loses_its_capability_while_it_runs_keeps_its_selector_and_its_counts() {
    for select in PRIVILEGED {
        let Some(mut server) = four(select, &["--backlog", "128"]) else { return };
        for process in server.processes() {
            let gdb = Command::new("gdb")
                .args(["-nx", "-batch", "-readnever", "-p", &process.pid.to_string()])
                .args(BECOME_ORDINARY.iter().flat_map(|command| ["-ex", command]))
                .output();
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
            if !status.contains("CapEff:\t0000000000000000") {
                let needs = if gdb.is_err() { Needs::Tool("gdb") } else { Needs::Privilege("ptrace") };
                return inconclusive(needs, format!("{gdb:?}"));
            }
        }
        one_after_another(&server, 400);
        let hung = pids(&server)[&1];
        tell(hung, Signal::SIGKILL);
        is_served_by(&server, &[0, 2, 3]);
        let said = said_with(&server, "\n");
        assert_eq!(said.lines().count(), 1, "{select}: {said}");
        let accepted: Vec<u64> = held(server.stop()).workers.iter().map(|worker| worker.accepted).collect();
        assert!(accepted.iter().all(|share| *share >= 100), "{select}: {accepted:?}");
    }
}

#[test]
fn sigterm_under_load_answers_what_was_read_with_every_selector() {
    for select in available() {
        ends_under_load("reuseport", &["--workers", "4", "--select", select]);
    }
}

#[test]
fn every_selector_keeps_the_contract() {
    let others: Vec<_> = available().filter(|select| *select != "hash").map(|select| ["--select", select]).collect();
    all_keep_the_contract("reuseport", &others);
}
