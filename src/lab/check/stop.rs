//! Points about the end: after SIGTERM a server answers what it has read, reports, and leaves nothing behind.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::client::{Client, GET, PATIENCE, served};
use super::server::{Ended, Program, STOP_WITHIN, Server};
use super::{Point, Verdict, broken, not_applicable, own};

/// How long a process may still exist when it has nothing left to do, or its parent has died.
const GONE_WITHIN: Duration = Duration::from_secs(2);

/// From the signal to the moment when every worker must know of it; only what is accepted later is wrong.
const GRACE: Duration = Duration::from_millis(500);

pub const POINTS: &[Point] = &[
    own("sigterm", "SIGTERM: exit status 0 and one JSON document", |program| {
        stopped_by(program, Signal::SIGTERM)?.1.document().map(drop)
    }),
    own("sigint", "SIGINT: the same", |program| stopped_by(program, Signal::SIGINT)?.1.document().map(drop)),
    own("report-fields", "the document has every field of the contract", fields),
    own("books", "accepted and requests are what the clients counted", counts_agree),
    own("sigterm-answers", "requests it has read are answered with `Connection: close`", answers_what_it_read),
    own("sigterm-prompt", "with the last answer sent it ends", ends_with_the_last_answer),
    own("sigterm-idle", "an idle connection does not keep it from ending", ends_beside_an_idle_client),
    own("sigterm-half-request", "half a request does not keep it from ending", ends_beside_half_a_request),
    own("sigterm-half-answer", "a half-sent answer is sent whole, and then it ends", sends_the_rest),
    own("sigterm-refuses", "after SIGTERM no new connection is taken", takes_no_new_connection),
    own("sigterm-gives-up", "it gives up after 5 s", gives_up),
    own("sigterm-reaps", "no process is left behind after SIGTERM", reaps),
    own("sigkill-parent", "no child outlives its parent, however the parent dies", children_die_too),
];

fn stopped_by(program: &Program, signal: Signal) -> Verdict<(Server, Ended)> {
    let mut server = program.start(&[])?;
    served(server.addr)?;
    server.signal(signal);
    let ended = server.ended(STOP_WITHIN)?;
    Ok((server, ended))
}

fn fields(program: &Program) -> Verdict {
    let (server, ended) = stopped_by(program, Signal::SIGTERM)?;
    let document = ended.document()?;
    if document["listen"].as_str() != Some(&server.addr.to_string()) {
        return broken(format!("listen {:?}", server.addr.to_string()), document["listen"].to_string());
    }
    for (name, is_right) in [
        ("model", document["model"].is_string()),
        ("uptime_s", document["uptime_s"].is_f64()),
        ("workers", document["workers"].as_array().is_some_and(|workers| !workers.is_empty())),
    ] {
        if !is_right {
            return broken(format!("{name:?} in the document"), document.to_string());
        }
    }
    for worker in document["workers"].as_array().into_iter().flatten() {
        for name in WORKER_FIELDS {
            if !worker[name].is_u64() {
                return broken(format!("a count {name:?} for every worker"), worker.to_string());
            }
        }
    }
    Ok(())
}

#[rustfmt::skip]
const WORKER_FIELDS: [&str; 13] = [
    "id", "pid", "accepted", "requests", "active", "wakeups", "empty_wakeups", "client_errors",
    "cpu_user_us", "cpu_system_us", "voluntary_switches", "involuntary_switches", "max_rss_kib",
];

/// Connections and requests per worker, counted here from `X-Worker` and there by the worker.
fn counts_agree(program: &Program) -> Verdict {
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

/// A client whose request the server has read and is working on.
fn in_work(server: &Server) -> Verdict<Client> {
    let mut client = Client::connect(server.addr)?;
    client.send(GET)?;
    client.was_read()?;
    Ok(client)
}

fn answers_what_it_read(program: &Program) -> Verdict {
    for work in ["block:500ms", "wait:500ms"] {
        answered_last(program, work)?.ended(STOP_WITHIN)?.document()?;
    }
    Ok(())
}

/// The five seconds are for requests in work; a server that waits for their end has missed that all is done.
fn ends_with_the_last_answer(program: &Program) -> Verdict {
    for work in ["block:500ms", "wait:500ms"] {
        answered_last(program, work)?.ended(GONE_WITHIN)?;
    }
    Ok(())
}

/// A server that got SIGTERM while it worked on its only request, and has answered it.
fn answered_last(program: &Program, work: &str) -> Verdict<Server> {
    let server = program.start(&["--work", work])?;
    let mut client = in_work(&server)?;
    server.signal(Signal::SIGTERM);
    let answer = client.answer()?;
    answer.expect(200)?;
    answer.expect_connection("close")?;
    client.closes(PATIENCE)?;
    Ok(server)
}

fn ends_beside_an_idle_client(program: &Program) -> Verdict {
    let mut server = program.start(&[])?;
    let mut client = Client::connect(server.addr)?;
    client.ask(GET)?.expect(200)?;
    let _silent = Client::connect(server.addr)?;
    server.signal(Signal::SIGTERM);
    server.ended(Duration::from_secs(6))?.document().map(drop)
}

/// Half a request needs no answer.
fn ends_beside_half_a_request(program: &Program) -> Verdict {
    let mut server = program.start(&[])?;
    let mut client = Client::connect(server.addr)?;
    client.send(b"GET / HTTP/1.1\r\nHo")?;
    client.was_read()?;
    server.signal(Signal::SIGTERM);
    server.ended(GONE_WITHIN)?.document()?;
    drop(client);
    Ok(())
}

/// Twice what the sockets of both ends hold for a client that does not read (tcp(7): 4 MB by default), so SIGTERM
/// comes in the middle of it.
fn sends_the_rest(program: &Program) -> Verdict {
    let body = 8_000_000;
    let mut server = program.start(&["--body", &body.to_string()])?;
    let mut client = Client::connect(server.addr)?;
    client.send(GET)?;
    client.lets_answers_pile_up()?;
    server.signal(Signal::SIGTERM);
    let answer = client.answer()?;
    answer.expect(200)?;
    if answer.body.len() != body {
        return broken(format!("{body} bytes in the body"), answer.body.len().to_string());
    }
    server.ended(GONE_WITHIN)?.document().map(drop)
}

/// The first client's request keeps the server from ending while the second connects. The kernel may establish the second
/// connection; the server must neither accept nor answer it.
fn takes_no_new_connection(program: &Program) -> Verdict {
    let mut server = program.start(&["--work", "block:1200ms"])?;
    let mut first = in_work(&server)?;
    server.signal(Signal::SIGTERM);
    std::thread::sleep(GRACE);
    if let Ok(mut second) = Client::connect(server.addr)
        && let Ok(answer) = second.ask(GET)
    {
        let expected = format!("no answer to a client that came {GRACE:?} after SIGTERM");
        return broken(expected, format!("{answer:?}"));
    }
    first.answer()?.expect(200)?;
    let report = server.ended(STOP_WITHIN)?.report()?;
    match report.workers.iter().map(|worker| worker.accepted).sum() {
        1 => Ok(()),
        accepted => broken("1 connection accepted, the one before SIGTERM", format!("{accepted}")),
    }
}

/// A worker that sleeps and one that waits: both get the signal at the same time, because each needs five seconds.
fn gives_up(program: &Program) -> Verdict {
    let mut servers = [program.start(&["--work", "block:60s"])?, program.start(&["--work", "wait:60s"])?];
    let clients = [in_work(&servers[0])?, in_work(&servers[1])?];
    servers.iter().for_each(|server| server.signal(Signal::SIGTERM));
    for server in &mut servers {
        server.ended(STOP_WITHIN)?.document()?;
    }
    drop(clients);
    Ok(())
}

fn reaps(program: &Program) -> Verdict {
    let server = program.start(&[])?;
    served(server.addr)?;
    takes_all_along(server, Signal::SIGTERM)
}

fn children_die_too(program: &Program) -> Verdict {
    let server = program.start(&[])?;
    served(server.addr)?;
    match server.processes().len() {
        1 => not_applicable("it is one process"),
        _ => takes_all_along(server, Signal::SIGKILL),
    }
}

/// When this signal has ended the server, none of its processes is left.
fn takes_all_along(mut server: Server, signal: Signal) -> Verdict {
    let processes = server.processes();
    server.signal(signal);
    server.ended(STOP_WITHIN)?;
    match Server::left_behind(&processes, GONE_WITHIN).as_slice() {
        [] => Ok(()),
        left => broken("no process", format!("{left:?}")),
    }
}
