//! Life and death under `cluster`, with our own event loop as the program: which worker is replaced, when, and what the
//! clients see of it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use acceptlab::lab::check::client::{GET, GET_AND_CLOSE, served_within};
use acceptlab::lab::check::server::{Program, Server};
use acceptlab::lab::observe::processes::{Process, poll_until};
use acceptlab::report::{ClusterReport, ServerReport};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::{CLUSTER, await_events, count, events_in, run, start_with};
use crate::dispatch::Stopped;
use crate::support::{FOREVER, Needs, TempFolder, answer, connect, held, inconclusive, load};

const PROGRAM: &str = env!("CARGO_BIN_EXE_event-driven");

#[track_caller]
fn start(flags: &[&str]) -> Server {
    start_with(flags, &[PROGRAM])
}

#[track_caller]
fn stopped(server: &mut Server) -> ClusterReport {
    held(server.stop()).cluster.expect("a cluster's report")
}

/// The workers' pids, by number.
fn pids(server: &Server, workers: usize) -> Vec<i32> {
    let mut found = vec![None; workers];
    let all = poll_until(FOREVER, || {
        let (worker, pid) = held(held(served_within(server.addr, FOREVER)).signature());
        found[worker] = Some(pid);
        found.iter().copied().collect::<Option<Vec<i32>>>()
    });
    all.expect("every worker answers")
}

/// Of the worker that has begun to listen.
fn new_pid(events: &[Value]) -> i32 {
    let listening = events.iter().find(|event| event["event"] == "listening").unwrap();
    listening["pid"].as_i64().unwrap() as i32
}

/// A program whose next version can be anything.
struct Deployed(TempFolder);

impl Deployed {
    fn new(name: &str) -> Deployed {
        let deployed = Deployed(TempFolder::new(name));
        deployed.publish(&format!("exec {PROGRAM} \"$@\""));
        deployed
    }

    fn publish(&self, line: &str) {
        fs::write(self.path(), format!("{line}\n")).unwrap();
    }

    fn path(&self) -> String {
        self.0.file("program.sh")
    }
}

/// Loads the server while something is done to it: nothing may fail.
#[track_caller]
fn nothing_is_lost_while(server: &Server, per_connection: &str, act: impl FnOnce()) {
    let addr = server.addr;
    let flags = ["--retry", "--connections", "16", "--duration", "3s", "--requests-per-connection", per_connection];
    let report = std::thread::scope(|scope| {
        let loaded = scope.spawn(move || load(addr, &flags));
        act();
        loaded.join().unwrap()
    });
    assert_eq!(report.errors.total(), 0, "{:?} {:?}", report.errors, report.lost);
    assert!(report.requests > 0);
}

#[test]
fn a_worker_that_says_it_will_end_has_a_successor_and_no_request_is_lost() {
    for (schedule, per_connection) in [("rr", "1"), ("rr", "1000000"), ("none", "1"), ("none", "1000000")] {
        let mut server = start(&["--workers", "2", "--schedule", schedule]);
        await_events(&server, "listening", 2);
        nothing_is_lost_while(&server, per_connection, || {
            let mut pid = pids(&server, 2)[0];
            for _ in 0..3 {
                kill(Pid::from_raw(pid), Signal::SIGUSR2).unwrap();
                pid = new_pid(&await_events(&server, "listening", 1));
            }
        });
        let report = stopped(&mut server);
        assert_eq!((report.suicides, report.deaths, report.forks), (3, 0, 5), "{schedule}");
        assert_eq!(report.recovery_ms.unwrap().count, 3);
    }
}

#[test]
fn all_workers_may_end_at_once_and_every_client_waits_for_a_successor() {
    let mut server = start(&["--workers", "2"]);
    let pids = pids(&server, 2);
    nothing_is_lost_while(&server, "1", || {
        pids.iter().for_each(|&pid| kill(Pid::from_raw(pid), Signal::SIGUSR2).unwrap());
        await_events(&server, "listening", 2);
    });
    assert_eq!(stopped(&mut server).suicides, 2);
}

#[test]
fn a_reload_replaces_every_worker_and_no_request_is_lost() {
    for (schedule, per_connection) in [("rr", "1"), ("rr", "1000000"), ("none", "1"), ("none", "1000000")] {
        let mut server = start(&["--workers", "2", "--schedule", schedule]);
        let before = pids(&server, 2);
        nothing_is_lost_while(&server, per_connection, || {
            server.signal(Signal::SIGHUP);
            await_events(&server, "reloaded", 1);
        });
        assert!(pids(&server, 2).iter().all(|pid| !before.contains(pid)));
        let report = stopped(&mut server);
        assert_eq!((report.reloads, report.deaths, report.forks), (1, 0, 4), "{schedule}");
    }
}

#[test]
fn a_killed_worker_loses_only_its_outstanding_requests_and_each_is_reported() {
    for schedule in ["rr", "none"] {
        let server = start(&["--workers", "2", "--schedule", schedule]);
        let (pids, addr) = (pids(&server, 2), server.addr);
        let flags = ["--retry", "--connections", "16", "--duration", "3s"];
        let (victim, report) = std::thread::scope(|scope| {
            let loaded = scope.spawn(move || load(addr, &flags));
            // With `none` one worker may have all connections.
            let is_loaded = |&worker: &usize| {
                Process::find(pids[worker]).is_some_and(|found| found.cpu_time() > Duration::from_millis(10))
            };
            let victim = poll_until(FOREVER, || (0..2).find(is_loaded)).expect("somebody works");
            kill(Pid::from_raw(pids[victim]), Signal::SIGKILL).unwrap();
            (victim as u32, loaded.join().unwrap())
        });
        assert_eq!(report.lost.len() as u64, report.errors.total(), "{schedule}");
        assert!(report.lost.len() <= 16, "{schedule}: {:?}", report.lost);
        // The worker that had answered last on that connection, and would have answered this.
        let of_the_dead = report.lost.iter().all(|lost| lost.worker == Some(victim) && lost.client.is_some());
        assert!(of_the_dead, "{schedule}: {:?}", report.lost);
    }
}

#[test]
fn a_master_without_descriptors_for_a_successor_says_so_and_the_others_go_on() {
    let command = ["sh", "-c", "ulimit -n 21; exec \"$0\" \"$@\"", CLUSTER, "--workers", "2", "--", PROGRAM];
    let server = held(Program::new(&command.map(String::from)).start(&[]));
    server.signal(Signal::SIGHUP);
    let events = await_events(&server, "reload-failed", 1);
    let failed = events.iter().find(|event| event["event"] == "reload-failed").unwrap();
    assert!(failed["why"].as_str().unwrap().contains("too many open files"), "{failed}");
    // More clients than it can accept at once.
    let mut clients: Vec<_> = (0..40).map(|_| connect(&server)).collect();
    clients.iter_mut().for_each(|client| held(client.send(GET_AND_CLOSE)));
    clients.iter_mut().for_each(|client| drop(answer(client)));
}

#[test]
fn there_is_never_one_too_few_and_never_more_than_one_too_many_in_a_reload() {
    let server = start(&["--workers", "3"]);
    server.signal(Signal::SIGHUP);
    let (mut serving, mut alive) = (3, 3);
    let events = await_events(&server, "reloaded", 1);
    for event in events.iter().skip_while(|event| event["event"] != "reload") {
        match event["event"].as_str().unwrap() {
            "fork" => alive += 1,
            "listening" => serving += 1,
            "disconnect" => serving -= 1,
            "exit" => alive -= 1,
            _ => {}
        }
        assert!(serving >= 3 && alive <= 4, "{events:?}");
    }
}

#[test]
fn a_new_version_that_ends_or_never_listens_replaces_no_worker() {
    let program = Deployed::new("new-version");
    let flags = ["--workers", "2", "--listen-timeout", "500ms"];
    let mut server = start_with(&flags, &["sh", &program.path()]);
    let before = pids(&server, 2);
    for (broken, named) in [("exit 3", "status 3"), ("exec sleep 60", "500ms (--listen-timeout)")] {
        program.publish(broken);
        nothing_is_lost_while(&server, "1", || {
            server.signal(Signal::SIGHUP);
            let events = await_events(&server, "reload-failed", 1);
            let failed = events.iter().find(|event| event["event"] == "reload-failed").unwrap();
            let why = failed["why"].as_str().unwrap();
            assert!(why.contains(named), "{why}");
        });
        assert_eq!(pids(&server, 2), before);
    }
    let report = stopped(&mut server);
    assert_eq!((report.reloads, report.reloads_failed, report.gave_up), (0, 2, false));
}

#[test]
fn a_worker_that_dies_in_a_reload_is_replaced_by_the_new_version() {
    let program = Deployed::new("dies-in-reload");
    let server = start_with(&["--workers", "1"], &["sh", &program.path()]);
    let old = pids(&server, 1)[0];
    program.publish(&format!("sleep 0.3; exec {PROGRAM} \"$@\""));
    server.signal(Signal::SIGHUP);
    await_events(&server, "fork", 2);
    kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
    let events = await_events(&server, "reloaded", 1);
    assert_eq!(count(&events, "fork"), 0, "{events:?}");
    held(served_within(server.addr, FOREVER));
}

#[test]
fn a_program_that_is_given_up_after_it_has_served_leaves_a_report_and_a_failure() {
    let mut server = start(&["--workers", "1", "--max-restarts", "1"]);
    for _ in 0..2 {
        let pid = new_pid(&await_events(&server, "listening", 1));
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    let ended = held(server.ended(FOREVER));
    assert_eq!(ended.status.code(), Some(1));
    let report: ServerReport = serde_json::from_str(&ended.stdout).unwrap();
    let counts = report.cluster.unwrap();
    assert_eq!((counts.gave_up, counts.forks, counts.deaths), (true, 2, 2));
    assert!(ended.stderr.lines().last().unwrap().starts_with("serve: the last worker has died"));
}

#[test]
fn a_program_that_fails_slowly_is_given_up_too() {
    let slow = ["--workers", "1", "--within", "10ms", "--max-restarts", "2"];
    let output = run(&[&slow[..], &["--", "sh", "-c", "sleep 0.05; exit 3"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), count(&events_in(&said), "fork")), (Some(1), 3), "{said}");
    assert!(said.lines().last().unwrap().ends_with("last: worker 0 ended with status 3"), "{said}");
}

#[test]
fn a_reload_takes_up_a_program_that_was_given_up() {
    let mut server = start(&["--workers", "2", "--max-restarts", "0"]);
    kill(Pid::from_raw(pids(&server, 2)[0]), Signal::SIGKILL).unwrap();
    await_events(&server, "giveup", 1);
    server.signal(Signal::SIGHUP);
    await_events(&server, "reloaded", 1);
    assert_eq!(pids(&server, 2).len(), 2);
    assert!(!stopped(&mut server).gave_up);
}

#[test]
fn a_hung_worker_is_reported_given_nothing_and_back_when_it_lives_again() {
    let server = start(&["--workers", "2", "--heartbeat", "200ms"]);
    let worker = pids(&server, 2)[0];
    let hung = Stopped::new(worker);
    let events = await_events(&server, "hang", 1);
    let hang = events.iter().find(|event| event["event"] == "hang").unwrap();
    assert_eq!((hang["worker"].as_u64(), hang["pid"].as_i64()), (Some(0), Some(worker.into())));
    for _ in 0..10 {
        assert_eq!(held(held(served_within(server.addr, FOREVER)).worker()), 1);
    }
    drop(hung);
    await_events(&server, "recovered", 1);
    assert_eq!(pids(&server, 2)[0], worker);
}

#[test]
fn a_hung_worker_is_replaced_after_the_time_out_and_its_connection_is_answered() {
    let mut server = start(&["--workers", "1", "--hang-timeout", "300ms"]);
    let worker = pids(&server, 1)[0];
    let _hung = Stopped::new(worker);
    let mut client = connect(&server);
    held(client.send(GET_AND_CLOSE));
    let (_, pid) = held(answer(&mut client).signature());
    assert_ne!(pid, worker);
    let report = stopped(&mut server);
    assert_eq!((report.hangs, report.deaths, report.forks), (1, 1, 2));
}

#[test]
fn a_busy_worker_is_not_taken_for_a_hung_one() {
    let flags = ["--workers", "1", "--heartbeat", "1s"];
    let mut server = start_with(&flags, &[PROGRAM, "--work", "spin:20ms"]);
    let report = load(server.addr, &["--connections", "4", "--duration", "4s"]);
    assert!(report.requests > 0);
    let hangs = stopped(&mut server).hangs;
    // Four clients wait for 80 ms each; where one has waited for half a heartbeat, the machine has delayed the worker.
    if hangs > 0 && report.latency_us.max > 500_000.0 {
        return inconclusive(Needs::QuietMachine, format!("an answer took {} us", report.latency_us.max));
    }
    assert_eq!(hangs, 0);
}

/// The connections for one that hangs go elsewhere, and do not use up the master.
#[test]
fn sticky_clients_of_a_hung_worker_go_to_another() {
    let server = start(&["--workers", "2", "--policy", "sticky", "--heartbeat", "100ms"]);
    let (home, pid) = held(held(served_within(server.addr, FOREVER)).signature());
    let _hung = Stopped::new(pid);
    let mut clients: Vec<_> = (0..40).map(|_| connect(&server)).collect();
    clients.iter_mut().for_each(|client| held(client.send(GET_AND_CLOSE)));
    // One at most, the first, has been sent to it before it was known to hang.
    for client in &mut clients[1..] {
        assert_ne!(held(answer(client).worker()), home);
    }
}

#[test]
fn an_answer_that_is_on_its_way_at_a_reload_is_sent_whole() {
    let bytes = 30_000_000;
    let server = start_with(&["--workers", "1"], &[PROGRAM, "--body", &bytes.to_string()]);
    let mut client = connect(&server);
    held(client.send(GET));
    held(client.lets_answers_pile_up());
    server.signal(Signal::SIGHUP);
    await_events(&server, "listening", 2);
    // Longer than a silent client would be waited for.
    std::thread::sleep(Duration::from_millis(1500));
    let last = held(client.answer_within(FOREVER));
    assert_eq!((held(last.content_length()), last.body.len()), (bytes, bytes));
}

#[test]
fn a_worker_that_is_killed_beside_its_predecessor_leaves_no_wrong_count() {
    let mut server = start(&["--workers", "1", "--kill-timeout", "20s"]);
    let mut clients: Vec<_> = (0..3).map(|_| connect(&server)).collect();
    let mut old = 0;
    for client in &mut clients {
        old = held(held(client.ask(GET)).signature()).1;
        // It has begun something, so that its worker stays for it.
        held(client.send(b"GET / HT"));
    }
    await_events(&server, "listening", 1);
    kill(Pid::from_raw(old), Signal::SIGUSR2).unwrap();
    let successor = new_pid(&await_events(&server, "listening", 1));
    kill(Pid::from_raw(successor), Signal::SIGKILL).unwrap();
    await_events(&server, "listening", 1);
    drop(clients);
    await_events(&server, "exit", 1);
    assert_eq!(held(server.stop()).workers[0].active, 0);
}

#[test]
fn what_a_worker_has_started_does_not_outlive_it() {
    let program = format!("sleep 600 & exec {PROGRAM} \"$@\"");
    let mut server = start_with(&["--workers", "1"], &["sh", "-c", &program, "sh"]);
    let master = server.processes()[0];
    let descriptors = master.open_descriptors();
    for _ in 0..3 {
        server.signal(Signal::SIGHUP);
        await_events(&server, "reloaded", 1);
    }
    let settled = poll_until(FOREVER, || {
        let is_as_before = server.processes().len() == 3 && master.open_descriptors() == descriptors;
        is_as_before.then_some(())
    });
    assert!(settled.is_some(), "{:?}, {} descriptors", server.processes(), master.open_descriptors());
    let processes = server.processes();
    held(server.stop());
    // They have been killed; the kernel may take a moment.
    assert!(Server::left_behind(&processes, FOREVER).is_empty());
}

#[test]
fn with_backoff_each_restart_waits_twice_as_long_as_the_one_before() {
    let output = run(&["--workers", "1", "--max-restarts", "3", "--backoff", "100ms", "--", "false"]);
    assert_eq!(output.status.code(), Some(1));
    let events = events_in(&String::from_utf8_lossy(&output.stderr));
    let at = |name: &str| -> Vec<f64> {
        let found = events.iter().filter(|event| event["event"] == name);
        found.map(|event| event["at_s"].as_f64().unwrap()).collect()
    };
    // A worker is missed from the end of its channel on; how it has ended may be known a little later.
    let (forks, ends) = (at("fork"), at("disconnect"));
    assert_eq!((forks.len(), ends.len()), (4, 4), "{events:?}");
    for (i, pause_s) in [0.1, 0.2, 0.4].into_iter().enumerate() {
        assert!(forks[i + 1] - ends[i] >= pause_s, "{events:?}");
    }
}

#[test]
fn what_a_killed_worker_was_given_and_had_not_answered_for_goes_to_its_successor() {
    let server = start(&["--workers", "1"]);
    let worker = pids(&server, 1)[0];
    let _hung = Stopped::new(worker);
    let mut clients: Vec<_> = (0..5).map(|_| connect(&server)).collect();
    clients.iter_mut().for_each(|client| held(client.send(GET_AND_CLOSE)));
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    for client in &mut clients {
        assert_ne!(held(answer(client).signature()).1, worker);
    }
}

#[test]
fn every_policy_of_a_master_that_accepts_is_there() {
    for policy in ["acknowledged", "round-robin", "random", "least-connections", "first-free", "sticky"] {
        let mut server = start(&["--workers", "3", "--policy", policy]);
        let report = load(server.addr, &["--connections", "1", "--requests-per-connection", "1", "--requests", "60"]);
        let shares: Vec<u64> = report.workers.values().map(|share| share.connections).collect();
        match policy {
            "round-robin" => assert_eq!(shares, [20, 20, 20]),
            // One client at a time: all are free, and have nothing. But what a worker has taken or ended may be known
            // when the next clients have come, and then it misses a turn.
            "acknowledged" | "least-connections" => {
                assert!(shares.len() == 3 && shares.iter().all(|n| (15..=25).contains(n)), "{policy}: {shares:?}");
            }
            // The end of one may be counted after the next has come.
            "first-free" => assert!(shares[0] >= 50, "{policy}: {shares:?}"),
            "sticky" => assert!(shares.contains(&60), "{policy}: {shares:?}"),
            // One in a hundred million is less even.
            _ => assert!(shares.len() == 3 && shares.iter().all(|&n| n >= 3), "{policy}: {shares:?}"),
        }
        let server_report = held(server.stop());
        let accepted: u64 = server_report.workers.iter().map(|worker| worker.accepted).sum();
        assert_eq!(accepted, 60, "{policy}");
        assert_eq!(server_report.cluster.unwrap().passed, 60);
    }
    let output = run(&["--schedule", "none", "--policy", "random", "--", "true"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn sticky_clients_of_many_addresses_are_spread_over_all_workers() {
    let server = start(&["--workers", "3", "--policy", "sticky"]);
    let flags = ["--connections", "8", "--requests-per-connection", "1", "--requests", "300"];
    let report = load(server.addr, &[&flags[..], &["--source", "127.1.0.0/16"]].concat());
    let shares: Vec<u64> = report.workers.values().map(|share| share.connections).collect();
    assert!(shares.len() == 3 && shares.iter().all(|&n| n > 30), "{shares:?}");
}

#[test]
fn workers_run_as_another_user_with_the_environment_they_are_given() {
    if !nix::unistd::geteuid().is_root() {
        return inconclusive(Needs::Privilege("root"), "only root may choose another user");
    }
    let flags = ["--workers", "1", "--uid", "65533", "--gid", "65532", "--env", "WHO=me", "--max-restarts", "0"];
    let output = run(&[&flags[..], &["--", "sh", "-c", "id -u; id -g; echo $WHO"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    for line in ["worker 0: 65533", "worker 0: 65532", "worker 0: me"] {
        assert!(said.contains(line), "{said}");
    }
}

#[test]
fn the_cluster_keeps_no_descriptor_and_no_zombie_of_the_dead() {
    let server = start(&["--workers", "2", "--max-restarts", "1000"]);
    let master = server.processes()[0];
    let before = master.open_descriptors();
    let mut pid = pids(&server, 2)[0];
    await_events(&server, "listening", 2);
    for _ in 0..20 {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        pid = new_pid(&await_events(&server, "listening", 1));
    }
    held(served_within(server.addr, FOREVER));
    let settled = poll_until(FOREVER, || (master.open_descriptors() == before).then_some(()));
    assert!(settled.is_some(), "{} descriptors, then {}", before, master.open_descriptors());
    assert_eq!(children_of(master.pid).len(), 2);
}

/// Zombies included.
fn children_of(pid: i32) -> Vec<String> {
    let children = Path::new("/proc").join(pid.to_string()).join("task").join(pid.to_string()).join("children");
    let text = fs::read_to_string(children).unwrap();
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_counts_of_workers_that_were_replaced_are_in_the_report() {
    let mut server = start(&["--workers", "2"]);
    let loads = || {
        let report = load(server.addr, &["--connections", "4", "--requests-per-connection", "1", "--requests", "100"]);
        assert_eq!(report.errors.total(), 0);
    };
    loads();
    server.signal(Signal::SIGHUP);
    await_events(&server, "reloaded", 1);
    loads();
    let report = held(server.stop());
    assert_eq!(report.workers.iter().map(|worker| worker.requests).sum::<u64>(), 200);
    assert_eq!(report.workers.iter().map(|worker| worker.active).sum::<u64>(), 0);
}

#[test]
fn an_event_has_its_time_and_its_worker() {
    let server = start(&["--workers", "1"]);
    let events = await_events(&server, "listening", 1);
    let first = &events[0];
    assert_eq!(first["event"], Value::from("setup"));
    let listening = events.iter().find(|event| event["event"] == "listening").unwrap();
    assert_eq!((listening["worker"].as_u64(), listening["unique_id"].as_u64()), (Some(0), Some(1)));
    assert_eq!(listening["address"], Value::from(server.addr.to_string()));
    assert!(listening["at_s"].as_f64().unwrap() < Duration::from_secs(60).as_secs_f64());
    assert!(listening["time"].as_str().unwrap().ends_with('Z'));
}
