//! What an experiment needs of a server: connections that stay open, the flags that a matrix varies, live counters, and
//! a report at the end whose counts are true.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nix::sys::signal::Signal;

use super::client::{ANSWER_TIMEOUT, Client, GET, GET_AND_CLOSE, served};
use super::server::{NotReady, Program, Server};
use super::stop::stopped_by;
use super::{FLAGS, Point, ProbeResult, SCOREBOARD, SERVE, STOP, broken, not_applicable, own, shared};
use crate::lab::observe::processes::poll_until;
use crate::scoreboard::{Count, Scoreboard};

pub const POINTS: &[Point] = &[
    shared(SERVE, "keep-alive-1.1", "a 1.1 connection stays open", keep_alive_1_1),
    shared(SERVE, "close-1.1", "Connection: close is honoured", close_1_1),
    own(FLAGS, "workers", "--workers N serves with workers 0 … N-1", workers),
    own(FLAGS, "backlog", "--backlog N is taken", |program| serves_with(program, &["--backlog", "16"]))
        .hint("N is the second argument of listen(2)"),
    own(FLAGS, "pin", "--pin is taken", |program| serves_with(program, &["--pin"]))
        .hint("sched_setaffinity(2) in each worker; among the CPUs that sched_getaffinity(2) returns"),
    own(FLAGS, "body-n", "--body N bytes in the response body", body_n),
    own(STOP, "sigterm", "SIGTERM: exit status 0 and one JSON document", |program| {
        stopped_by(program, Signal::SIGTERM)?.1.document().map(drop)
    }),
    own(STOP, "report-fields", "the document has every field of the contract", fields),
    own(STOP, "counts", "accepted and requests are what the clients counted", counts_agree),
    own(SCOREBOARD, "scoreboard", "--scoreboard PATH puts the live counters in this file", scoreboard),
];

fn keep_alive_1_1(server: &Server) -> ProbeResult {
    let mut client = Client::connect(server.addr)?;
    for _ in 0..3 {
        client.ask(GET)?.expect(200)?;
    }
    Ok(())
}

fn close_1_1(server: &Server) -> ProbeResult {
    let mut client = Client::connect(server.addr)?;
    client.ask(GET)?.expect(200)?;
    client.ask(GET_AND_CLOSE)?.expect(200)?;
    client.closes(ANSWER_TIMEOUT)
}

fn workers(program: &Program) -> ProbeResult {
    let flags = ["--workers", "3"];
    if program.names(flags[0]) {
        return not_applicable("the command line sets --workers itself");
    }
    let mut server = match program.start_on("127.0.0.1:0", &flags) {
        Ok(server) => server,
        Err(NotReady::Silent { status: Some(status), .. }) if status.code() == Some(2) => {
            return not_applicable("it has one worker only: --workers is a wrong flag to it");
        }
        Err(not_ready) => return Err(not_ready.into_broken(&flags)),
    };
    for _ in 0..12 {
        let worker = served(server.addr)?.worker()?;
        if worker >= 3 {
            return broken("X-Worker below 3", worker.to_string());
        }
    }
    let mut ids: Vec<usize> = server.stop()?.workers.iter().map(|worker| worker.id).collect();
    ids.sort_unstable();
    if ids != [0, 1, 2] {
        return broken("workers 0, 1 and 2 in the report", format!("{ids:?}"));
    }
    Ok(())
}

fn serves_with(program: &Program, flags: &[&str]) -> ProbeResult {
    let server = program.start(flags)?;
    served(server.addr).map(drop)
}

fn body_n(program: &Program) -> ProbeResult {
    let server = program.start(&["--body", "1000"])?;
    let answer = served(server.addr)?;
    answer.signature()?;
    match answer.body.len() {
        1000 => Ok(()),
        other => broken("1000 bytes in the body", other.to_string()),
    }
}

fn fields(program: &Program) -> ProbeResult {
    let (server, ended) = stopped_by(program, Signal::SIGTERM)?;
    let document = ended.document()?;
    if document["listen"].as_str() != Some(&server.addr.to_string()) {
        return broken(format!("listen {:?}", server.addr.to_string()), document["listen"].to_string());
    }
    let workers = document["workers"].as_array().map_or(&[][..], Vec::as_slice);
    let of_server = [
        ("model", document["model"].is_string()),
        ("uptime_s", document["uptime_s"].is_number()),
        ("workers", !workers.is_empty()),
    ];
    let mut missing: BTreeSet<&str> =
        of_server.iter().filter(|(_, is_there)| !is_there).map(|(name, _)| *name).collect();
    missing.extend(WORKER_FIELDS.iter().filter(|name| !workers.iter().all(|worker| worker[**name].is_u64())));
    if missing.is_empty() {
        return Ok(());
    }
    broken(format!("{} in the document", missing.into_iter().collect::<Vec<_>>().join(", ")), document.to_string())
}

#[rustfmt::skip]
const WORKER_FIELDS: [&str; 13] = [
    "id", "pid", "accepted", "requests", "active", "wakeups", "empty_wakeups", "client_errors",
    "cpu_user_us", "cpu_system_us", "voluntary_switches", "involuntary_switches", "max_rss_kib",
];

/// Connections and requests per worker, counted here from `X-Worker` and there by the worker.
fn counts_agree(program: &Program) -> ProbeResult {
    let mut server = program.start(&[])?;
    let mut ours: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    for requests in [1, 4, 4, 7, 1, 4, 4, 7] {
        let mut client = Client::connect(server.addr)?;
        for request in 0..requests {
            let row = ours.entry(client.ask(GET)?.worker()?).or_default();
            row.0 += u64::from(request == 0);
            row.1 += 1;
        }
    }
    let workers = server.stop()?.workers;
    let served = workers.iter().filter(|worker| worker.accepted + worker.requests > 0);
    let theirs = served.map(|worker| (worker.id, (worker.accepted, worker.requests))).collect();
    if ours != theirs {
        return broken(format!("worker: (accepted, requests) {ours:?}"), format!("{theirs:?}"));
    }
    match workers.iter().find(|worker| worker.active > 0 || worker.empty_wakeups > worker.wakeups) {
        Some(worker) => broken("none active, and no more empty wake-ups than wake-ups", format!("{worker:?}")),
        None => Ok(()),
    }
}

/// The file has the layout of the contract, names the server's processes, and one request adds one to its counts.
fn scoreboard(program: &Program) -> ProbeResult {
    let path = std::env::temp_dir().join(format!("acceptlab-check-{:016x}", fastrand::u64(..)));
    let Some(name) = path.to_str() else {
        return not_applicable("the path of the temporary folder is not UTF-8");
    };
    let server = program.start(&["--scoreboard", name])?;
    let verdict = match Scoreboard::open(&path) {
        Ok(board) => counts_one_request(&server, board, &path),
        Err(failure) => broken("16 words of header and 16 for each worker, as the contract says", failure.to_string()),
    };
    let _ = std::fs::remove_file(&path);
    verdict
}

fn counts_one_request(server: &Server, board: Scoreboard, path: &Path) -> ProbeResult {
    let counts = || {
        // To read what a server has cut off its file would kill us (SIGBUS, mmap(2)).
        let is_whole = std::fs::metadata(path).is_ok_and(|file| file.len() >= board.bytes());
        let sum = |count: Count| (0..board.rows()).map(|id| board.row(id).get(count)).sum::<u64>();
        is_whole.then(|| (sum(Count::Accepted), sum(Count::Requests)))
    };
    let family: Vec<i32> = server.processes().iter().map(|process| process.pid).collect();
    let mut named = (0..board.rows()).map(|id| board.row(id).get(Count::Pid) as i32).chain([board.pid()]);
    if board.rows() == 0 || board.model().is_empty() || board.is_from_an_earlier_boot() {
        let found = format!("{} rows, {:?}, started {:.1} s ago", board.rows(), board.model(), board.uptime_s());
        return broken("a header with rows, the program's name and a start on CLOCK_MONOTONIC", found);
    }
    if let Some(stranger) = named.find(|pid| !family.contains(pid)) {
        return broken(format!("pids of the server in header and rows ({family:?})"), stranger.to_string());
    }
    let expected = counts().map(|(accepted, requests)| (accepted + 1, requests + 1));
    served(server.addr)?;
    // An answer may arrive a moment before it is counted.
    match poll_until(ANSWER_TIMEOUT, || (counts().is_some() && counts() == expected).then_some(())) {
        Some(()) => Ok(()),
        None => broken(format!("(accepted, requests) {expected:?} after a request"), format!("{:?}", counts())),
    }
}
