//! Points about flags and the start: what it listens on, when it says so, and how it explains a failure.

use std::net::TcpListener;

use super::client::served;
use super::server::{NotReady, Program, Server, with_flags};
use super::{Point, Verdict, broken, not_applicable, own, shared};

pub const READY: Point =
    shared("ready-line", "the first line is `ready ADDR:PORT`, printed when it takes connections", listens);

pub const POINTS: &[Point] = &[
    READY,
    own("port-0", "port 0 takes any free port", free_port),
    own("ipv6", "IPv6 works", ipv6),
    own("workers", "--workers N serves with workers 0 … N-1", workers),
    own("backlog", "--backlog N is taken", |program| serves_with(program, &["--backlog", "16"])),
    own("pin", "--pin is taken", |program| serves_with(program, &["--pin"])),
    own("scoreboard", "--scoreboard PATH puts the live counters in this file", scoreboard),
    own("taken-port", "a start that fails prints one line and exits with status 1", taken_port),
    own("wrong-flag", "a wrong flag exits with 2", |program| refused(program, &["--no-such-flag"])),
    own("wrong-duration", "a duration without a unit is wrong", |program| refused(program, &["--idle-timeout", "5"])),
];

/// The line means that a client is answered at once.
pub fn listens(server: &Server) -> Verdict {
    served(server.addr).map(drop)
}

fn free_port(program: &Program) -> Verdict {
    let (one, other) = (program.start(&[])?, program.start(&[])?);
    if one.addr.port() == 0 || one.addr.port() == other.addr.port() {
        return broken("two starts, two ports", format!("{} and {}", one.addr, other.addr));
    }
    served(one.addr)?;
    served(other.addr).map(drop)
}

fn ipv6(program: &Program) -> Verdict {
    if TcpListener::bind("[::1]:0").is_err() {
        return not_applicable("this machine has no IPv6 loopback");
    }
    let server = program.start_on("[::1]:0", &[]).map_err(|why| why.into_broken(&["--listen", "[::1]:0"]))?;
    served(server.addr).map(drop)
}

fn workers(program: &Program) -> Verdict {
    let flags = ["--workers", "3"];
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

fn serves_with(program: &Program, flags: &[&str]) -> Verdict {
    let server = program.start(flags)?;
    served(server.addr).map(drop)
}

fn scoreboard(program: &Program) -> Verdict {
    let path = std::env::temp_dir().join(format!("acceptlab-check-{:016x}", fastrand::u64(..)));
    let Some(name) = path.to_str() else {
        return not_applicable("the path of the temporary folder is not UTF-8");
    };
    let server = program.start(&["--scoreboard", name])?;
    let before = std::fs::read(&path);
    let answer = served(server.addr);
    let after = std::fs::read(&path);
    drop(server);
    let _ = std::fs::remove_file(&path);
    answer?;
    match (before, after) {
        (Ok(before), Ok(after)) if before != after => Ok(()),
        (Ok(same), Ok(_)) => broken("a file that changes with a request", format!("the same {} bytes", same.len())),
        (Err(error), _) | (_, Err(error)) => broken(format!("the file {name}"), error.to_string()),
    }
}

fn taken_port(program: &Program) -> Verdict {
    let owner = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
    let taken = owner.local_addr().expect("a bound socket has an address").to_string();
    let expected = format!("exit status 1 and one line on standard error that names {taken}");
    match program.start_on(&taken, &[]) {
        Ok(_) => broken(expected, "it says that it is ready"),
        Err(NotReady::Silent { status: Some(status), stderr, .. })
            if status.code() == Some(1) && stderr.lines().count() == 1 && stderr.contains(&taken) =>
        {
            Ok(())
        }
        Err(NotReady::Silent { status: Some(status), stderr, .. }) => {
            broken(expected, format!("{status}, and it said {stderr:?}"))
        }
        Err(_) => broken(expected, "it is still running and not ready"),
    }
}

/// A wrong flag is the caller's mistake; its exit status is another than that of a failed start.
pub fn refused(program: &Program, flags: &[&str]) -> Verdict {
    let expected = with_flags("exit status 2 and a line about it on standard error", flags);
    match program.start_on("127.0.0.1:0", flags) {
        Err(NotReady::Silent { status: Some(status), stderr, .. }) => {
            if status.code() == Some(2) && !stderr.trim().is_empty() {
                return Ok(());
            }
            broken(expected, format!("{status}, and it said {stderr:?}"))
        }
        Err(_) => broken(expected, "it is still running and not ready"),
        Ok(_) => broken(expected, "it says that it is ready"),
    }
}
