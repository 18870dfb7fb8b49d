//! Each finding, from a recorded look: files that `lab inspect --save` has written, with a few of their looks.

use super::super::look;
use super::*;

pub fn recorded(name: &str) -> Recording {
    let path = format!("{}/src/lab/inspect/findings/recorded/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn ids(diagnosis: &Diagnosis) -> Vec<&'static str> {
    diagnosis.findings.iter().map(|finding| finding.id).collect()
}

/// The only finding of a recording, as it was changed.
#[track_caller]
fn only_finding(recording: &Recording) -> Finding {
    let diagnosis = diagnose(recording);
    let [finding] = &diagnosis.findings[..] else { panic!("{:?}", diagnosis.findings) };
    finding.clone()
}

/// Gives the threads of a process at the last look this share of a CPU, and of the time ready without one.
fn load(recording: &mut Recording, pid: i32, cpu_share: f64, waited_share: f64) {
    let ns = recording.seconds() * 1e9;
    let find = |look: &look::Look| look.processes.iter().position(|process| process.pid == pid).expect("it was there");
    let first = recording.first().processes[find(recording.first())].clone();
    let last = recording.looks.last_mut().expect("it has looks");
    let at = find(last);
    let process = &mut last.processes[at];
    process.cpu_ns = first.cpu_ns + (cpu_share * ns) as u64;
    process.tasks[0].cpu_ns = first.tasks[0].cpu_ns + (cpu_share * ns) as u64;
    process.tasks[0].wait_ns = first.tasks[0].wait_ns + (waited_share * ns) as u64;
}

#[test]
fn a_stopped_worker_of_a_group_hangs_and_the_hash_goes_on_to_choose_it() {
    let diagnosis = diagnose(&recorded("hung"));
    assert_eq!(ids(&diagnosis), ["hung-worker", "blind-selector"]);
    let hung: Vec<&Worker> = diagnosis.workers.iter().filter(|worker| worker.state == State::Hung).collect();
    let [hung] = hung[..] else { panic!("{hung:?}") };
    assert_eq!(diagnosis.findings[0].numbers["pid"], f64::from(hung.pid));
    assert!(diagnosis.findings[0].says.contains("stopped by a signal; in its own queue wait "), "{diagnosis:#?}");
    assert_eq!(diagnosis.findings[1].numbers["queued"], f64::from(hung.queued.unwrap()));
    assert_eq!((diagnosis.listeners[0].sharing, diagnosis.listeners[0].sockets), (Sharing::Reuseport, 4));
}

#[test]
fn a_worker_that_sleeps_or_runs_while_connections_wait_hangs() {
    for (name, why) in [
        ("blocked", "asleep in another call"),
        ("spin", "running, and in no system call"),
        // Its helper threads sleep, one of them in epoll.
        ("spin-node", "running, and in no system call"),
        // The main thread of gunicorn's gthread goes on to accept.
        ("deadlock", "all threads that answer sleep at locks"),
    ] {
        let finding = only_finding(&recorded(name));
        assert!(finding.id == "hung-worker" && finding.says.contains(why), "{name}: {finding:?}");
    }
    // Beside coroutines idle threads sleep at locks, too, and the main thread serves.
    let mut recording = recorded("deadlock");
    recording.commands.values_mut().for_each(|words| words.extend(["-k", "gevent"].map(String::from)));
    assert!(diagnose(&recording).workers.iter().all(|worker| worker.state != State::Hung));
}

#[test]
fn a_thread_that_ends_takes_the_time_it_ran_with_it_and_its_process_has_run() {
    let mut recording = recorded("blocked");
    let (earlier, last) = recording.looks.split_at_mut(4);
    earlier.iter_mut().flat_map(|look| &mut look.processes).for_each(|process| {
        let more = look::Task { tid: 7, call: look::Call::Running, cpu_ns: 9_000_000, ..process.tasks[0].clone() };
        process.tasks.push(more);
    });
    last[0].processes[0].cpu_ns += 1_000_000;
    assert!(diagnose(&recording).workers.iter().all(|worker| worker.state != State::Hung));
}

#[test]
fn a_process_that_got_the_number_of_one_that_ended_is_another() {
    let mut recording = recorded("hung");
    let hung = diagnose(&recording).findings[0].numbers["pid"] as i32;
    let last = recording.looks.last_mut().unwrap();
    let successor = last.processes.iter_mut().find(|process| process.pid == hung).unwrap();
    (successor.started, successor.state, successor.cpu_ns, successor.child_faults) = (successor.started + 1, 'S', 0, 0);
    let diagnosis = diagnose(&recording);
    assert!(!ids(&diagnosis).contains(&"hung-worker"), "{:?}", diagnosis.findings);
}

#[test]
fn nobody_hangs_before_a_second_has_passed() {
    for name in ["blocked", "spin"] {
        let mut recording = recorded(name);
        let since = recording.last().at_ns - 900_000_000;
        recording.looks.retain(|look| look.at_ns > since);
        let diagnosis = diagnose(&recording);
        assert!(diagnosis.workers.iter().all(|worker| worker.state != State::Hung), "{name}");
        assert!(diagnosis.unseen.last().is_some_and(|line| line.starts_with("what takes a second: ")), "{name}");
    }
}

#[test]
fn a_worker_that_waits_for_its_silent_client_does_not_hang_but_nobody_accepts() {
    let diagnosis = diagnose(&recorded("silent"));
    assert_eq!(ids(&diagnosis), ["nobody-accepts"]);
    assert_eq!(diagnosis.totals.unaccepted_long, 4);
    assert!(diagnosis.findings[0].says.ends_with("the workers wait for bytes of the clients they have"));
    assert!(diagnosis.unseen[0].contains("wait for a connection: none was seen to"), "{:?}", diagnosis.unseen);
}

#[test]
fn why_nobody_accepts_is_told_by_the_thread_that_would() {
    // As a Node that finishes one long request after the other.
    let mut recording = recorded("spin-node");
    let mut open = 10;
    change(&mut recording, |process| {
        open -= 1;
        process.open = open;
    });
    let finding = only_finding(&recording);
    assert_eq!(finding.id, "nobody-accepts");
    assert!(finding.says.ends_with("the workers have no CPU time left for them"), "{finding:?}");
    assert!(finding.advice.starts_with("Node: what takes long"), "{finding:?}");
}

#[test]
fn a_full_queue_has_more_than_its_backlog_and_names_what_limits_it() {
    let mut recording = recorded("full");
    let full = diagnose(&recording).findings.remove(0);
    assert_eq!((full.id, full.numbers["most_queued"], full.numbers["backlog"]), ("queue-full", 3.0, 2.0));
    assert!(full.numbers["drops"] > 0.0 && !full.advice.contains("somaxconn"), "{full:?}");
    recording.machine.somaxconn = 2;
    recording.commands.values_mut().for_each(|words| words[0] = "nginx: master process".to_string());
    let full = diagnose(&recording).findings.remove(0);
    assert!(full.advice.starts_with("nginx: `listen 80 backlog="), "{full:?}");
    assert!(full.advice.ends_with("net.core.somaxconn is 2, so it must rise first"), "{full:?}");
    for look in &mut recording.looks {
        look.listeners.iter_mut().for_each(|listener| (listener.queued, listener.drops) = (2, 7));
    }
    assert!(!ids(&diagnose(&recording)).contains(&"queue-full"), "the kernel takes one more than the backlog");
}

#[test]
fn a_herd_is_seen_in_the_switches_for_each_connection() {
    let mut recording = recorded("herd");
    let findings = diagnose(&recording).findings;
    // Whoever is the first to run has more than its share, too.
    let [finding, Finding { id: "uneven", .. }] = &findings[..] else { panic!("{findings:?}") };
    assert!(finding.id == "herd" && finding.numbers["switches_per_connection"] > 3.0, "{finding:?}");
    assert_eq!(finding.lesson, "06-the-thundering-herd");
    // As many switches for requests on connections that were there are no herd.
    recording.looks.last_mut().unwrap().requests = Some(3000);
    assert_eq!(ids(&diagnose(&recording)), [""; 0]);
    // Nor are switches for requests that nobody could count.
    let mut recording = recorded("herd");
    recording.looks[1].requests = None;
    let diagnosis = diagnose(&recording);
    assert_eq!((ids(&diagnosis), diagnosis.totals.more_requests), (vec![], None));
    assert!(diagnosis.unseen[0].contains("whether there is a herd"), "{:?}", diagnosis.unseen);
}

#[test]
fn workers_that_ask_a_database_for_requests_on_connections_that_stay_are_no_herd() {
    // uvicorn, with three calls to another server for each of ten requests on a connection: 9 switches per request.
    let diagnosis = diagnose(&recorded("backends"));
    let Totals { new_connections, more_requests, .. } = diagnosis.totals;
    assert!(new_connections >= ENOUGH && more_requests > Some(2 * new_connections), "{:?}", diagnosis.totals);
    assert!(!ids(&diagnosis).contains(&"herd"), "{:?}", diagnosis.findings);
}

#[test]
fn the_favourite_of_epollexclusive_is_explained_by_the_offered_load() {
    let finding = only_finding(&recorded("exclusive"));
    assert!(finding.id == "uneven" && finding.says.ends_with("which explains it"), "{finding:?}");
    assert!(finding.numbers["max_over_mean"] > 3.5 && finding.numbers["offered_load"] < 0.1, "{finding:?}");
}

#[test]
fn a_healthy_server_has_no_findings_whatever_its_mechanism() {
    use Dispatch::*;
    for (name, dispatch, way, wait, workers) in [
        ("hash", WorkersAccept, Way::OwnAccept, Wait::Epoll, 4),
        ("lock", WorkersAccept, Way::OwnAccept, Wait::Lock, 3),
        ("pool", Threads, Way::Handover, Wait::Accept, 1),
        ("dispatch", MasterPassesDescriptors, Way::Channel, Wait::EpollEdge, 3),
        ("proxy", MasterProxies, Way::OtherPorts, Wait::Epoll, 3),
        ("children", MasterPassesDescriptors, Way::Children, Wait::Poll, 4),
    ] {
        let diagnosis = diagnose(&recorded(name));
        let acceptor = diagnosis.master.as_ref().unwrap_or(&diagnosis.workers[0]);
        let seen = (diagnosis.dispatch, diagnosis.way, acceptor.waits_in, diagnosis.workers.len());
        assert_eq!(seen, (dispatch, way, wait, workers), "{name}");
        assert_eq!((ids(&diagnosis), &diagnosis.unseen[..]), (vec![], &[][..]), "{name}");
    }
}

#[test]
fn one_acceptor_is_at_its_ceiling_while_its_workers_have_time() {
    let mut recording = recorded("dispatch");
    let master = diagnose(&recording).master.expect("it has one").pid;
    load(&mut recording, master, 0.97, 0.02);
    let finding = only_finding(&recording);
    assert!(finding.id == "one-acceptor" && finding.says.contains("uses 97.0 % of a CPU"), "{finding:?}");
    let workers: Vec<i32> = diagnose(&recording).workers.iter().map(|worker| worker.pid).collect();
    workers.into_iter().for_each(|pid| load(&mut recording, pid, 0.9, 0.1));
    assert_eq!(ids(&diagnose(&recording)), [""; 0]);
}

#[test]
fn reuseport_that_was_asked_for_and_is_not_there_is_named() {
    let mut recording = recorded("lock");
    recording.commands.values_mut().for_each(|words| words.push("--reuse-port".to_string()));
    let finding = only_finding(&recording);
    assert_eq!(finding.id, "no-reuseport");
    assert!(finding.says.starts_with("--reuse-port is asked for, but 3 workers share one socket of "), "{finding:?}");
    for refused in ["--no-reuse-port", "reuse_port=False", "reusePort: false", "--bind=/reuseport"] {
        recording.commands.values_mut().for_each(|words| *words.last_mut().unwrap() = refused.to_string());
        assert_eq!(ids(&diagnose(&recording)), [""; 0], "{refused}");
    }
    let refused = ["--reuse-port", "false"].map(String::from);
    recording.commands.values_mut().for_each(|words| words.extend(refused.clone()));
    assert_eq!(ids(&diagnose(&recording)), [""; 0]);
}

#[test]
fn more_event_loops_than_cpus_wait_for_each_other() {
    let mut recording = recorded("hash");
    recording.machine.cpus = 1.0;
    let pids: Vec<i32> = diagnose(&recording).workers.iter().map(|worker| worker.pid).collect();
    pids.iter().for_each(|&pid| load(&mut recording, pid, 0.24, 0.7));
    let finding = only_finding(&recording);
    assert!(finding.id == "more-workers-than-cpus" && finding.says.starts_with("4 event loops share 1 CPU"));
    // A container may be given a part of one.
    recording.machine.cpus = 0.5;
    assert!(only_finding(&recording).says.starts_with("4 event loops share 0.5 CPUs"));
    // And one loop uses it.
    pids.iter().for_each(|&pid| load(&mut recording, pid, 0.76, 0.8));
    recording.machine.cpus = 3.5;
    assert_eq!(ids(&diagnose(&recording)), [""; 0]);
}

#[test]
fn connections_of_the_whole_namespace_are_the_listeners_only_where_no_other_listens() {
    let mut recording = recorded("hash");
    recording.machine.other_listeners = 1;
    let seen = diagnose(&recording).totals.new_connections;
    recording.looks.iter_mut().for_each(|look| {
        look.listeners.iter_mut().for_each(|listener| listener.address = "10.0.0.1:80".to_string());
    });
    let mut with_all = |all: u64| {
        recording.looks.last_mut().unwrap().passive_opens = recording.looks[0].passive_opens + all;
        let diagnosis = diagnose(&recording);
        (diagnosis.totals.new_connections, diagnosis.unseen.len())
    };
    // Where most of all were seen at the listener, these are its connections.
    assert_eq!(with_all(2 * seen), (seen, 0));
    assert_eq!(with_all(9 * seen), (9 * seen, 1));
}

#[test]
fn every_finding_has_a_lesson_that_exists_and_an_id_that_can_be_asked_for() {
    let names = ["hung", "full", "silent", "herd", "exclusive"];
    for finding in names.iter().flat_map(|name| diagnose(&recorded(name)).findings) {
        let path = format!("{}/experiments/{}.md", env!("CARGO_MANIFEST_DIR"), finding.lesson);
        assert!(std::path::Path::new(&path).exists() && IDS.contains(&finding.id), "{finding:?}");
        assert!(!finding.numbers.is_empty() && !finding.advice.is_empty(), "{finding:?}");
    }
}

#[test]
fn a_report_fits_a_terminal_of_80_columns() {
    use crate::terminal::{Paint, columns_of};
    for name in ["hung", "herd", "dispatch", "children", "silent"] {
        let text = super::super::output::text(&diagnose(&recorded(name)), 80, Paint { has_colour: false });
        let long: Vec<&str> = text.lines().filter(|line| columns_of(line) > 80).collect();
        assert!(long.is_empty() && !text.contains('…'), "{name}: {long:#?}\n{text}");
    }
}

#[test]
fn a_title_that_a_process_gives_itself_cannot_write_on_the_terminal() {
    let mut recording = recorded("full");
    call_itself(&mut recording, "\u{1b}]0;title\u{7}\u{9b}2J reuse-port\r");
    recording.looks.iter_mut().flat_map(|look| &mut look.listeners).for_each(|listener| listener.address += "\u{1b}");
    let diagnosis = diagnose(&recording);
    let said = super::super::output::text(&diagnosis, 80, crate::terminal::Paint { has_colour: false });
    assert!(diagnosis.command.starts_with("\u{fffd}]0;title"), "{}", diagnosis.command);
    assert!(!said.contains(|character: char| character.is_control() && character != '\n'), "{said:?}");
}

#[test]
fn a_row_with_a_long_wait_keeps_its_last_column() {
    use crate::terminal::Paint;
    let mut diagnosis = diagnose(&recorded("exclusive"));
    diagnosis.workers.iter_mut().for_each(|worker| (worker.threads, worker.state) = (128, State::Hung));
    let table = super::super::output::table(&diagnosis, 80, Paint { has_colour: false });
    for row in &table[1..] {
        assert!(row.contains(" epoll-ex… × 128 ") && row.ends_with(" hung"), "{table:#?}");
    }
}

#[test]
fn a_master_that_sleeps_while_its_busy_worker_accepts_is_no_worker() {
    let diagnosis = diagnose(&recorded("master"));
    let [worker] = &diagnosis.workers[..] else { panic!("{:?}", diagnosis.workers) };
    assert!(worker.cpu_share > 0.3 && diagnosis.findings.is_empty(), "{diagnosis:#?}");
}

/// Changes every process of a recording at every look.
fn change(recording: &mut Recording, mut what: impl FnMut(&mut look::Process)) {
    recording.looks.iter_mut().flat_map(|look| &mut look.processes).for_each(&mut what);
}

fn call_itself(recording: &mut Recording, name: &str) {
    recording.commands.values_mut().for_each(|words| *words = vec![name.to_string()]);
}

fn waits(diagnosis: &Diagnosis) -> Vec<Wait> {
    diagnosis.master.as_ref().map_or(&diagnosis.workers[..], std::slice::from_ref).iter().map(|w| w.waits_in).collect()
}

#[test]
fn a_connection_in_the_queue_of_a_hung_worker_shows_the_blind_hash_whenever_it_came() {
    let mut recording = recorded("hung");
    recording.looks[0].listeners.iter_mut().for_each(|listener| listener.queued = 0);
    assert_eq!(ids(&diagnose(&recording)), ["hung-worker", "blind-selector"]);
    // All sockets may belong to one process; then nobody is left whom the hash could choose.
    let pid = diagnose(&recording).findings[0].numbers["pid"] as i32;
    recording.looks.iter_mut().for_each(|look| {
        let all = look.listeners.iter().map(|listener| listener.inode).collect();
        look.processes.retain(|process| process.pid == pid);
        look.processes.iter_mut().for_each(|process| (process.holds, process.watches) = (Clone::clone(&all), vec![]));
    });
    assert_eq!(ids(&diagnose(&recording)), ["hung-worker"]);
}

#[test]
fn of_an_owner_that_may_not_be_looked_into_it_is_not_said_that_nobody_accepts() {
    let mut recording = recorded("hung");
    let hung = diagnose(&recording).findings[0].numbers["pid"] as i32;
    recording.looks.iter_mut().for_each(|look| look.processes.retain(|process| process.pid != hung));
    let finding = diagnose(&recording).findings.remove(0);
    assert!(finding.says.contains("in that whose owner cannot be seen wait "), "{finding:?}");
    recording.looks.iter_mut().for_each(|look| look.unaccepted_long = 0);
    assert_eq!(ids(&diagnose(&recording)), [""; 0]);
}

#[test]
fn a_busy_worker_has_connections_in_its_queue_at_every_look_and_is_not_blocked() {
    let mut recording = recorded("hash");
    for look in &mut recording.looks {
        look.listeners[0].queued = 2;
    }
    assert_eq!(ids(&diagnose(&recording)), [""; 0]);
    recording.looks.last_mut().unwrap().unaccepted_long = 2;
    assert!(ids(&diagnose(&recording)).contains(&"blind-selector"));
}

#[test]
fn workers_that_have_inherited_the_sockets_of_all_accept_from_those_that_they_watch() {
    let mut recording = recorded("hung");
    let all = recording.last().listeners.iter().map(|listener| listener.inode).collect::<BTreeSet<u32>>();
    change(&mut recording, |process| process.holds = all.clone());
    let diagnosis = diagnose(&recording);
    assert!(diagnosis.listeners[0].queues.iter().all(|queue| queue.pids.len() == 1), "{:?}", diagnosis.listeners);
    assert_eq!(ids(&diagnosis), ["hung-worker", "blind-selector"]);
}

#[test]
fn a_stopped_worker_that_was_never_seen_to_accept_is_found_among_its_siblings() {
    // As gunicorn under load: nobody waits for the listener, and the stopped worker has no connection.
    let mut recording = recorded("lock");
    let stopped = recording.last().processes[3].pid;
    let master = recording.last().processes[0].pid;
    call_itself(&mut recording, "gunicorn");
    change(&mut recording, |process| {
        process.is_blocking = false;
        let is_master = process.pid == master;
        process.tasks[0].call = if is_master { look::Call::Futex } else { look::Call::Transfer };
        process.tasks[0].is_at_listener = false;
        process.open = u64::from(!is_master && process.pid != stopped);
        process.state = if process.pid == stopped { 'T' } else { 'S' };
    });
    let diagnosis = diagnose(&recording);
    assert_eq!(ids(&diagnosis), ["hung-worker"]);
    // Its arbiter holds the listener, too, and sleeps at a futex: that is no lock, and it is no worker.
    assert_eq!(waits(&diagnosis), [Wait::Select; 3], "{diagnosis:#?}");
}

#[test]
fn the_lock_may_go_from_one_worker_to_the_next_while_they_are_read() {
    let mut recording = recorded("exclusive");
    let workers: Vec<i32> = recording.last().processes[1..].iter().map(|process| process.pid).collect();
    let mut reads = 0;
    change(&mut recording, |process| {
        let has_it = process.pid == workers[0] || (reads < 5 && process.pid == workers[1]);
        reads += 1;
        if !has_it {
            process.watches.clear();
            process.tasks[0].is_at_listener = false;
        }
    });
    assert_eq!(waits(&diagnose(&recording)), [Wait::Lock; 4]);
}

#[test]
fn a_main_thread_that_waits_for_the_end_of_the_others_is_not_at_a_lock() {
    let mut recording = recorded("pool");
    change(&mut recording, |process| {
        let calls = [look::Call::Futex, look::Call::Accept, look::Call::Running, look::Call::Running];
        for (task, call) in process.tasks.iter_mut().zip(calls) {
            (task.call, task.is_at_listener, task.is_at_socket) = (call, call == look::Call::Accept, false);
        }
    });
    let first = &mut recording.looks[0].processes[0].tasks[2];
    (first.call, first.is_at_listener) = (look::Call::Accept, true);
    let diagnosis = diagnose(&recording);
    assert_eq!((diagnosis.way, waits(&diagnosis)), (Way::ThreadsAccept, vec![Wait::Accept]));
}

#[test]
fn threads_that_have_ended_are_known_by_the_time_that_they_used() {
    // As `threaded` when it is stopped: one thread, in accept, and none begins any more.
    let mut recording = recorded("pool");
    change(&mut recording, |process| {
        process.tasks.truncate(1);
        (process.cpu_ns, process.tasks[0].cpu_ns) = (9_000_000, 4_000_000);
    });
    assert_eq!(diagnose(&recording).dispatch, Dispatch::Threads);
    change(&mut recording, |process| process.cpu_ns = 4_000_000);
    assert_eq!(diagnose(&recording).dispatch, Dispatch::WorkersAccept);
}

#[test]
fn a_parent_that_never_sleeps_still_passes_its_connections_to_children() {
    let mut recording = recorded("children");
    let parent = recording.last().processes[0].pid;
    change(&mut recording, |process| {
        if process.pid == parent {
            (process.tasks[0].call, process.tasks[0].is_at_listener) = (look::Call::Running, false);
            process.open = 1;
        }
    });
    let diagnosis = diagnose(&recording);
    assert_eq!((diagnosis.way, waits(&diagnosis)), (Way::Children, vec![Wait::Poll]), "{diagnosis:#?}");
}

#[test]
fn who_is_stopped_in_the_middle_of_an_accept_that_does_not_wait_was_not_waiting() {
    let mut process = recorded("full").last().processes[0].clone();
    (process.tasks[0].call, process.tasks[0].is_at_listener) = (look::Call::Accept, true);
    assert_eq!(summary::seen_wait(&process), Some(Wait::Accept));
    process.is_blocking = false;
    assert_eq!(summary::seen_wait(&process), None);
}

#[test]
fn cpu_time_that_differs_says_little_of_shares_while_all_wait_for_a_cpu() {
    let uneven = |waited_share| {
        let mut recording = recorded("hash");
        change(&mut recording, |process| (process.open, process.new) = (0, 0));
        recording.looks.last_mut().unwrap().new = recording.first().new + 4_000;
        let pids: Vec<i32> = diagnose(&recording).workers.iter().map(|worker| worker.pid).collect();
        for (pid, share) in pids.into_iter().zip([0.2, 0.07, 0.06, 0.05]) {
            load(&mut recording, pid, share, waited_share);
        }
        let diagnosis = diagnose(&recording);
        // Chance deals out connections, and no CPU time.
        assert!(diagnosis.max_over_mean.is_some() && diagnosis.evenness_of_counts.is_none(), "{diagnosis:?}");
        let uneven = diagnosis.findings.iter().find(|finding| finding.id == "uneven");
        uneven.inspect(|found| assert!(!found.says.contains("chance") && !found.numbers.contains_key("p_value")));
        uneven.is_some()
    };
    assert!(uneven(0.01) && !uneven(0.3));
}

#[test]
fn workers_of_a_herd_wait_for_each_other_and_their_cpu_time_still_tells_their_shares() {
    // gunicorn with 11 gevent workers, on CPUs that are idle for most of the time; one has had 36 % of the connections.
    let diagnosis = diagnose(&recorded("herd-uneven"));
    let sum = |of: fn(&Worker) -> f64| diagnosis.workers.iter().map(of).sum::<f64>();
    assert!(sum(|worker| worker.waited_share) > 3.0 * sum(|worker| worker.cpu_share));
    assert_eq!((ids(&diagnosis), diagnosis.evenness_of), (vec!["herd", "uneven"], Some(Basis::Cpu)));
    assert!(diagnosis.findings[1].advice.contains("`--reuse-port`"), "{:?}", diagnosis.findings[1]);
}

#[test]
fn in_a_herd_less_cpu_time_is_notable_because_all_use_some_in_vain() {
    let mut recording = recorded("herd-uneven");
    let pids: Vec<i32> = diagnose(&recording).workers.iter().map(|worker| worker.pid).collect();
    // Five workers with so many times the mean, six with less.
    let mut found = |many: f64| {
        let shares = [many; 5].into_iter().chain([(11.0 - 5.0 * many) / 6.0; 6]);
        pids.iter().zip(shares).for_each(|(pid, times)| load(&mut recording, *pid, 0.01 * times, 0.05));
        ids(&diagnose(&recording))
    };
    assert_eq!((found(1.45), found(1.2)), (vec!["herd", "uneven"], vec!["herd"]));
}

#[test]
fn short_connections_that_a_look_happened_to_see_are_no_measure_of_shares() {
    let mut recording = recorded("hash");
    recording.looks.last_mut().unwrap().new = recording.first().new + 1_000_000;
    assert_eq!(diagnose(&recording).evenness_of, Some(Basis::Cpu));
}
