//! `lab check -- COMMAND…`: does this program keep section 1 of the contract, point by point?
//!
//! The program may be written in any language. It is started with `--listen` and the flags a point needs,
//! appended to COMMAND; nothing else is known about it. Each point is one entry of a table: an id, the sentence
//! it holds the program to, and a probe. To see every point fail that needs a parser:
//! `lab check -- target/release/null-server`.
//!
//! In reading order: [`server`] and [`processes`](crate::lab::observe::processes) (the program as a process), [`client`] and [`queues`] (the
//! program as seen from the wire), then the tables: [`start`], [`serve`], [`bad_input`], [`patience`], [`work`],
//! [`stop`].

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, mpsc};

use serde::Serialize;

pub mod client;
pub mod server;

mod queues;

mod bad_input;
mod patience;
mod serve;
mod start;
mod stop;
mod work;

use server::{NotReady, Program, Server};

/// Points that start servers of their own mostly wait, so a few run at once; more would only make the waits of
/// a two-CPU machine less honest.
const EXAMINERS: usize = 4;

/// Why a point does not hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Unheld {
    Broken { expected: String, found: String },
    NotApplicable { why: String },
}

/// What a probe returns: the point holds, or why not.
pub type Verdict<T = ()> = Result<T, Unheld>;

/// A broken point.
pub fn broken<T>(expected: impl Into<String>, found: impl Into<String>) -> Verdict<T> {
    Err(Unheld::Broken { expected: expected.into(), found: found.into() })
}

/// One sentence of the contract and the probe that tries it.
pub struct Point {
    pub id: &'static str,
    /// The contract's sentence, shortened.
    pub says: &'static str,
    probe: Probe,
}

enum Probe {
    /// Asks the one server that all of these share. It closes its connections before it returns, because a
    /// server that takes one connection at a time would keep the next probe waiting.
    Shared(fn(&Server) -> Verdict),
    /// Starts servers of its own.
    Own(fn(&Program) -> Verdict),
}

const fn shared(id: &'static str, says: &'static str, probe: fn(&Server) -> Verdict) -> Point {
    Point { id, says, probe: Probe::Shared(probe) }
}

const fn own(id: &'static str, says: &'static str, probe: fn(&Program) -> Verdict) -> Point {
    Point { id, says, probe: Probe::Own(probe) }
}

/// All points, in the order of the contract.
pub fn points() -> Vec<&'static Point> {
    [start::POINTS, serve::POINTS, bad_input::POINTS, patience::POINTS, work::POINTS, stop::POINTS]
        .into_iter()
        .flatten()
        .collect()
}

/// Judges `command` on every point, prints the verdicts as they come, and returns whether all hold. An error is
/// a command that could not even be started.
pub fn run(command: &[String], json: bool) -> Result<bool, String> {
    let points = points();
    let colour = std::io::stdout().is_terminal();
    let verdicts = judge(command, &points, |point, verdict| {
        if !json {
            print(&line(point, verdict, colour));
        }
    })?;
    let tally = Tally::of(&verdicts);
    if json {
        print(&document(command, &points, &verdicts, &tally));
    } else {
        print(&format!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped));
    }
    Ok(tally.failed == 0)
}

/// Judges `command` on `points`; `tell` hears each verdict once, in the order of `points`. A program that does
/// not get as far as its ready line is broken in that one point and not asked any other.
pub fn judge(
    command: &[String],
    points: &[&'static Point],
    mut tell: impl FnMut(&Point, &Verdict),
) -> Result<Vec<Verdict>, String> {
    let Some(name) = command.first() else {
        return Err("lab check needs a command to start: lab check -- ./server …".into());
    };
    let program = Program::new(command);
    let first_start = match program.start_on("127.0.0.1:0", &[]) {
        Err(NotReady::NotRun(error)) => {
            return Err(format!("start {name}: {error}; is the path right?"));
        }
        Err(not_ready) => Err(not_ready.into_broken(&[])),
        Ok(server) => start::listens(&server),
    };
    match first_start {
        Ok(()) => Ok(judge_running(&program, points, tell)),
        Err(why) => {
            let verdicts: Vec<Verdict> = points
                .iter()
                .map(|point| match point.id {
                    id if id == start::READY.id => Err(why.clone()),
                    _ => not_applicable("it does not get ready"),
                })
                .collect();
            std::iter::zip(points, &verdicts).for_each(|(point, verdict)| tell(point, verdict));
            Ok(verdicts)
        }
    }
}

/// Hands the points to the examiners and puts their verdicts back into the order of `points`.
fn judge_running(
    program: &Program,
    points: &[&'static Point],
    mut tell: impl FnMut(&Point, &Verdict),
) -> Vec<Verdict> {
    let jobs = Mutex::new(jobs(points));
    let mut verdicts: Vec<Option<Verdict>> = points.iter().map(|_| None).collect();
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..EXAMINERS {
            let (sender, jobs) = (sender.clone(), &jobs);
            scope.spawn(move || examine(program, points, jobs, &sender));
        }
        drop(sender);
        let mut told = 0;
        for (index, verdict) in receiver {
            verdicts[index] = Some(verdict);
            while let Some(Some(verdict)) = verdicts.get(told) {
                tell(points[told], verdict);
                told += 1;
            }
        }
    });
    verdicts.into_iter().map(|verdict| verdict.expect("every point is in one job")).collect()
}

/// Points by index: those that share a server are one job, each other one is its own. The last points of the
/// table wait longest, so they are begun first.
fn jobs(points: &[&'static Point]) -> VecDeque<Vec<usize>> {
    let (shared, own): (Vec<usize>, Vec<usize>) =
        (0..points.len()).partition(|&index| matches!(points[index].probe, Probe::Shared(_)));
    std::iter::once(shared).chain(own.into_iter().rev().map(|index| vec![index])).collect()
}

fn examine(
    program: &Program,
    points: &[&'static Point],
    jobs: &Mutex<VecDeque<Vec<usize>>>,
    verdicts: &mpsc::Sender<(usize, Verdict)>,
) {
    loop {
        let Some(job) = jobs.lock().expect("no examiner panics with the lock").pop_front() else { return };
        let mut server = None;
        for index in job {
            let verdict = match points[index].probe {
                Probe::Own(probe) => probe(program),
                Probe::Shared(probe) => on_shared(program, &mut server, probe),
            };
            verdicts.send((index, verdict)).expect("the judge listens until all examiners are gone");
        }
    }
}

/// Runs a probe on the shared server. A server that broke a point may be dead or stuck, and the next point is
/// not to suffer for it: it gets a fresh one.
fn on_shared(program: &Program, server: &mut Option<Server>, probe: fn(&Server) -> Verdict) -> Verdict {
    let asked = match server.take() {
        Some(server) => server,
        None => program.start(&[])?,
    };
    probe(&asked).map_err(|why| asked.explain(why))?;
    *server = Some(asked);
    Ok(())
}

fn not_applicable<T>(why: impl Into<String>) -> Verdict<T> {
    Err(Unheld::NotApplicable { why: why.into() })
}

#[derive(Serialize)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Tally {
    fn of(verdicts: &[Verdict]) -> Tally {
        let count = |is: fn(&Verdict) -> bool| verdicts.iter().filter(|verdict| is(verdict)).count();
        Tally {
            passed: count(Verdict::is_ok),
            failed: count(|verdict| matches!(verdict, Err(Unheld::Broken { .. }))),
            skipped: count(|verdict| matches!(verdict, Err(Unheld::NotApplicable { .. }))),
        }
    }
}

/// One verdict for people: a word, the id, the sentence, and what was expected and found where it is broken.
pub fn line(point: &Point, verdict: &Verdict, colour: bool) -> String {
    let (word, ansi, more) = match verdict {
        Ok(()) => ("ok", "32", String::new()),
        Err(Unheld::Broken { expected, found }) => {
            ("FAIL", "31", format!("\n        expected  {expected}\n        found     {found}"))
        }
        Err(Unheld::NotApplicable { why }) => ("n/a", "33", format!("\n        {why}")),
    };
    let word = if colour { format!("\x1b[{ansi}m{word:<5}\x1b[0m") } else { format!("{word:<5}") };
    format!("{word} {:<24} {}{more}", point.id, point.says)
}

/// The verdicts for machines.
fn document(command: &[String], points: &[&'static Point], verdicts: &[Verdict], tally: &Tally) -> String {
    #[derive(Serialize)]
    struct Row<'a> {
        id: &'a str,
        says: &'a str,
        #[serde(flatten)]
        verdict: Outcome<'a>,
    }
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Outcome<'a> {
        Held { verdict: &'static str },
        Unheld(&'a Unheld),
    }
    let rows: Vec<Row> = std::iter::zip(points, verdicts)
        .map(|(point, verdict)| Row {
            id: point.id,
            says: point.says,
            verdict: verdict.as_ref().map_or_else(Outcome::Unheld, |()| Outcome::Held { verdict: "held" }),
        })
        .collect();
    serde_json::json!({ "schema": 1, "command": command, "tally": tally, "points": rows }).to_string()
}

/// A reader that went away (`lab check … | head`) is no reason to panic; the exit status still tells.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_has_an_id_of_its_own() {
        let mut ids: Vec<_> = points().iter().map(|point| point.id).collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all);
    }

    #[test]
    fn a_broken_point_shows_what_was_expected_and_what_was_found() {
        let shown = line(&start::READY, &broken("200", "500"), false);
        assert!(shown.starts_with("FAIL  ready-line"), "{shown}");
        assert!(shown.ends_with("expected  200\n        found     500"), "{shown}");
    }

    #[test]
    fn the_document_for_machines_names_each_verdict() {
        let points = [&start::READY; 3];
        let verdicts = [Ok(()), broken("200", "500"), not_applicable("one process")];
        let text = document(&["server".into()], &points, &verdicts, &Tally::of(&verdicts));
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["points"][0]["verdict"], "held");
        assert_eq!(document["points"][1]["found"], "500");
        assert_eq!(document["points"][2]["verdict"], "not_applicable");
        assert_eq!(document["tally"], serde_json::json!({ "passed": 1, "failed": 1, "skipped": 1 }));
    }
}
