//! Points about the end: after SIGTERM a server answers what it has read, reports, and leaves nothing behind.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::client::{ANSWER_TIMEOUT, Client, GET, served};
use super::server::{Ended, Program, STOP_WITHIN, Server};
use super::{Point, ProbeResult, STOP, broken, not_applicable, own};

/// How long a process may still exist when it has nothing left to do, or its parent has died.
const GONE_WITHIN: Duration = Duration::from_secs(2);

/// From the signal to the moment when every worker must know of it; only what is accepted later is wrong.
const GRACE: Duration = Duration::from_millis(500);

/// An answer that comes so long after its work has ended tells that the machine is late.
const LATE: Duration = Duration::from_millis(50);

pub const POINTS: &[Point] = &[
    own(STOP, "sigint", "SIGINT: exit status 0 and one JSON document, as after SIGTERM", |program| {
        stopped_by(program, Signal::SIGINT)?.1.document().map(drop)
    }),
    own(STOP, "sigterm-answers", "requests it has read are answered with `Connection: close`", answers_what_it_read),
    own(STOP, "sigterm-prompt", "with the last answer sent it ends", ends_with_the_last_answer),
    own(STOP, "sigterm-idle", "an idle connection does not keep it from ending", ends_beside_an_idle_client),
    own(STOP, "sigterm-half-request", "half a request does not keep it from ending", ends_beside_half_a_request),
    own(STOP, "sigterm-half-answer", "a half-sent answer is sent whole, and then it ends", sends_the_rest),
    own(STOP, "sigterm-refuses", "after SIGTERM no new connection is taken", takes_no_new_connection),
    own(STOP, "sigterm-gives-up", "it gives up after 5 s", gives_up),
    own(STOP, "sigterm-reaps", "no process is left behind after SIGTERM", reaps),
    own(STOP, "sigkill-parent", "no child outlives its parent, however the parent dies", children_die_too),
];

pub fn stopped_by(program: &Program, signal: Signal) -> ProbeResult<(Server, Ended)> {
    let mut server = program.start(&[])?;
    served(server.addr)?;
    server.signal(signal);
    let ended = server.ended(STOP_WITHIN)?;
    Ok((server, ended))
}

/// A client whose request the server has read and is working on.
fn in_work(server: &Server) -> ProbeResult<Client> {
    let mut client = Client::connect(server.addr)?;
    client.send(GET)?;
    client.was_read()?;
    Ok(client)
}

fn answers_what_it_read(program: &Program) -> ProbeResult {
    for kind in ["block", "wait"] {
        answered_last(program, kind)?.ended(STOP_WITHIN)?.document()?;
    }
    Ok(())
}

/// The five seconds are for requests in work; a server that waits for their end has missed that all is done.
fn ends_with_the_last_answer(program: &Program) -> ProbeResult {
    for kind in ["block", "wait"] {
        answered_last(program, kind)?.ended(GONE_WITHIN)?;
    }
    Ok(())
}

/// A server that got SIGTERM while it worked on its only request, and has answered it. On a machine that is late the
/// work may have ended before the server heard the signal: then longer work tells.
fn answered_last(program: &Program, kind: &str) -> ProbeResult<Server> {
    let (short, long) = (Duration::from_millis(500), Duration::from_secs(3));
    let answered_after = |work: Duration| {
        let server = program.start(&["--work", &format!("{kind}:{}ms", work.as_millis())])?;
        let begun = Instant::now();
        let mut client = in_work(&server)?;
        server.signal(Signal::SIGTERM);
        let answer = client.answer()?;
        let is_late = begun.elapsed() > work + LATE;
        let is_last = answer.expect(200).and_then(|()| answer.expect_connection("close"));
        if is_last.is_ok() {
            client.closes(ANSWER_TIMEOUT)?;
        }
        Ok((server, is_last, is_late))
    };
    match answered_after(short)? {
        (_, Err(_), true) => answered_after(long).and_then(|(server, is_last, _)| is_last.map(|()| server)),
        (server, is_last, _) => is_last.map(|()| server),
    }
}

fn ends_beside_an_idle_client(program: &Program) -> ProbeResult {
    let mut server = program.start(&[])?;
    let mut client = Client::connect(server.addr)?;
    client.ask(GET)?.expect(200)?;
    let _silent = Client::connect(server.addr)?;
    server.signal(Signal::SIGTERM);
    server.ended(Duration::from_secs(6))?.document().map(drop)
}

/// Half a request needs no answer.
fn ends_beside_half_a_request(program: &Program) -> ProbeResult {
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
fn sends_the_rest(program: &Program) -> ProbeResult {
    let body = 8_000_000;
    let mut server = program.start(&["--body", &body.to_string()])?;
    let mut client = Client::connect(server.addr)?;
    client.send(GET)?;
    client.lets_answers_pile_up()?;
    server.signal(Signal::SIGTERM);
    let answer = client.answer()?;
    answer.expect(200)?;
    if answer.body.len() != body {
        return answer.broken(format!("{body} bytes in the body"), answer.body.len().to_string());
    }
    server.ended(GONE_WITHIN)?.document().map(drop)
}

/// The first client's request keeps the server from ending while the second connects. The kernel may establish the
/// second connection; the server must neither accept nor answer it.
fn takes_no_new_connection(program: &Program) -> ProbeResult {
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
fn gives_up(program: &Program) -> ProbeResult {
    let mut servers = [program.start(&["--work", "block:60s"])?, program.start(&["--work", "wait:60s"])?];
    let clients = [in_work(&servers[0])?, in_work(&servers[1])?];
    servers.iter().for_each(|server| server.signal(Signal::SIGTERM));
    for server in &mut servers {
        server.ended(STOP_WITHIN)?.document()?;
    }
    drop(clients);
    Ok(())
}

fn reaps(program: &Program) -> ProbeResult {
    let server = program.start(&[])?;
    served(server.addr)?;
    takes_all_along(server, Signal::SIGTERM)
}

fn children_die_too(program: &Program) -> ProbeResult {
    let server = program.start(&[])?;
    served(server.addr)?;
    match server.processes().len() {
        1 => not_applicable("it is one process"),
        _ => takes_all_along(server, Signal::SIGKILL),
    }
}

/// When this signal has ended the server, none of its processes is left.
fn takes_all_along(mut server: Server, signal: Signal) -> ProbeResult {
    let processes = server.processes();
    server.signal(signal);
    server.ended(STOP_WITHIN)?;
    match Server::left_behind(&processes, GONE_WITHIN).as_slice() {
        [] => Ok(()),
        left => broken("no process", format!("{left:?}")),
    }
}
