//! `lab check -- COMMAND…`: does this program keep section 1 of the contract, point by point?
//!
//! The program may be written in any language. It is started with `--listen` and the flags that a point needs, appended to
//! COMMAND; nothing else is known about it. Each point is one entry of a table: an id, a sentence of the contract, and a
//! probe. To see every point fail that needs a parser: `lab check -- target/release/null-server`.
//!
//! In reading order: [`server`] (the program as a process), [`client`] and [`queues`] (the program as seen from the
//! network), then the tables: [`start`], [`serve`], [`bad_input`], [`patience`], [`work`], [`stop`].

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, unbounded};
use serde::Serialize;
use serde_json::{Value, json};

use crate::console;
use crate::lab::observe::processes::{Process, family};
use crate::lab::program::{Interrupt, Stop, print_until};
use crate::terminal::Paint;

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

/// Points that start servers of their own mostly wait, so a few run at once. More would disturb each other on a machine
/// with two CPUs.
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
    /// Asks a server that all of these share. The probe closes its connections before it returns, because a server that
    /// takes one connection at a time would keep the next probe waiting.
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

/// Judges `command` on every point, prints the verdicts as they come, and returns whether all hold.
pub fn run(command: &[String], json: bool, interrupt: &Interrupt) -> Result<bool, Stop> {
    let points = points();
    let paint = Paint::on(&std::io::stdout());
    let program = Program::new(command).until(interrupt);
    let mut judged = 0;
    let verdicts = judge(&program, &points, |point, verdict| {
        judged += 1;
        if !json {
            // An interrupt is reported below.
            let _ = print_until(interrupt, &(line(point, verdict, paint) + "\n"));
        }
    });
    if matches!(verdicts, Err(Stop::Interrupted)) {
        console::log(format_args!("interrupted after {judged} of {} points", points.len()));
    }
    let verdicts = verdicts?;
    let [passed, failed, skipped] = tally(&verdicts);
    let end = match json {
        true => document(command, &points, &verdicts),
        false => format!("{passed} passed, {failed} failed, {skipped} skipped"),
    };
    print_until(interrupt, &(end + "\n"))?;
    Ok(failed == 0)
}

/// Judges `program` on `points`; `report` gets each verdict once, in the order of `points`. A program that does not get as
/// far as its ready line fails that point, and no other is tried.
pub fn judge(
    program: &Program,
    points: &[&'static Point],
    mut report: impl FnMut(&Point, &Verdict),
) -> Result<Vec<Verdict>, Stop> {
    let first_start = match program.start_on("127.0.0.1:0", &[]) {
        Err(NotReady::NotStarted(why)) => return Err(Stop::Failed(why)),
        Err(NotReady::Interrupted) => return Err(Stop::Interrupted),
        Err(not_ready) => Err(not_ready.into_broken(&[])),
        Ok(server) => start::listens(&server),
    };
    let Err(why) = first_start else { return judge_running(program, points, report) };
    let verdict = |point: &&'static Point| match point.id {
        id if id == start::READY.id => Err(why.clone()),
        _ => not_applicable("it does not get ready"),
    };
    let verdicts: Vec<Verdict> = points.iter().map(verdict).collect();
    std::iter::zip(points, &verdicts).for_each(|(point, verdict)| report(point, verdict));
    Ok(verdicts)
}

/// Hands the points to the examiners and puts their verdicts back into the order of `points`.
fn judge_running(
    program: &Program,
    points: &[&'static Point],
    mut report: impl FnMut(&Point, &Verdict),
) -> Result<Vec<Verdict>, Stop> {
    let jobs = Mutex::new(jobs(points));
    let mut verdicts: Vec<Option<Verdict>> = points.iter().map(|_| None).collect();
    std::thread::scope(|scope| {
        let (sender, receiver) = unbounded();
        for _ in 0..EXAMINERS {
            let (sender, jobs) = (sender.clone(), &jobs);
            scope.spawn(move || examine(program, points, jobs, &sender));
        }
        drop(sender);
        let mut reported = 0;
        loop {
            match receiver.recv_timeout(INTERRUPT_WITHIN) {
                Err(RecvTimeoutError::Disconnected) => break,
                _ if program.is_interrupted() => kill_descendants(),
                Ok((index, verdict)) => verdicts[index] = Some(verdict),
                Err(RecvTimeoutError::Timeout) => {}
            }
            while let Some(Some(verdict)) = verdicts.get(reported) {
                report(points[reported], verdict);
                reported += 1;
            }
        }
    });
    verdicts.into_iter().collect::<Option<Vec<Verdict>>>().ok_or(Stop::Interrupted)
}

/// How long an interrupt may go unnoticed.
const INTERRUPT_WITHIN: Duration = Duration::from_millis(50);

/// Every server that is running. An examiner that waits for an answer then stops waiting.
fn kill_descendants() {
    let we = std::process::id() as i32;
    family(we).iter().filter(|process| process.pid != we).for_each(Process::kill);
}

/// Points by index: those that share a server are one job, each other point is a job of its own. The last points of the
/// table wait longest, so they begin first.
fn jobs(points: &[&'static Point]) -> VecDeque<Vec<usize>> {
    let (shared, own): (Vec<usize>, Vec<usize>) =
        (0..points.len()).partition(|&index| matches!(points[index].probe, Probe::Shared(_)));
    std::iter::once(shared).chain(own.into_iter().rev().map(|index| vec![index])).collect()
}

fn examine(
    program: &Program,
    points: &[&'static Point],
    jobs: &Mutex<VecDeque<Vec<usize>>>,
    verdicts: &Sender<(usize, Verdict)>,
) {
    loop {
        let Some(job) = jobs.lock().expect("no examiner panics with the lock").pop_front() else { return };
        let mut server = None;
        for index in job {
            if program.is_interrupted() {
                return;
            }
            let verdict = match points[index].probe {
                Probe::Own(probe) => probe(program),
                Probe::Shared(probe) => on_shared(program, &mut server, probe),
            };
            verdicts.send((index, verdict)).expect("the receiver lives until all examiners have ended");
        }
    }
}

/// Runs a probe on the shared server. After a broken point the server may be dead or stuck, so the next point gets a new
/// one.
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

/// How many points passed, failed and were skipped.
fn tally(verdicts: &[Verdict]) -> [usize; 3] {
    let is_skipped = |verdict: &Verdict| matches!(verdict, Err(Unheld::NotApplicable { .. }));
    let passed = verdicts.iter().filter(|verdict| verdict.is_ok()).count();
    let skipped = verdicts.iter().filter(|verdict| is_skipped(verdict)).count();
    [passed, verdicts.len() - passed - skipped, skipped]
}

/// One verdict as text: a word, the id, the sentence, and what was expected and found where the point is broken.
pub fn line(point: &Point, verdict: &Verdict, paint: Paint) -> String {
    let (word, more) = match verdict {
        Ok(()) => (paint.green("ok   "), String::new()),
        Err(Unheld::Broken { expected, found }) => {
            (paint.red("FAIL "), format!("\n        expected  {expected}\n        found     {found}"))
        }
        Err(Unheld::NotApplicable { why }) => (paint.yellow("n/a  "), format!("\n        {why}")),
    };
    format!("{word} {:<24} {}{more}", point.id, point.says)
}

/// The verdicts as JSON.
fn document(command: &[String], points: &[&'static Point], verdicts: &[Verdict]) -> String {
    let point = |(point, verdict): (&&Point, &Verdict)| {
        let mut entry = match verdict {
            Ok(()) => json!({ "verdict": "held" }),
            Err(why) => json!(why),
        };
        (entry["id"], entry["says"]) = (json!(point.id), json!(point.says));
        entry
    };
    let rows: Vec<Value> = std::iter::zip(points, verdicts).map(point).collect();
    let [passed, failed, skipped] = tally(verdicts);
    let tally = json!({ "passed": passed, "failed": failed, "skipped": skipped });
    json!({ "schema": 1, "command": command, "tally": tally, "points": rows }).to_string()
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
        let shown = line(&start::READY, &broken("200", "500"), Paint { has_colour: false });
        assert!(shown.starts_with("FAIL  ready-line"), "{shown}");
        assert!(shown.ends_with("expected  200\n        found     500"), "{shown}");
    }

    #[test]
    fn the_json_document_names_each_verdict() {
        let points = [&start::READY; 3];
        let verdicts = [Ok(()), broken("200", "500"), not_applicable("one process")];
        let text = document(&["server".into()], &points, &verdicts);
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["points"][0]["verdict"], "held");
        assert_eq!(document["points"][1]["found"], "500");
        assert_eq!(document["points"][2]["verdict"], "not_applicable");
        assert_eq!(document["tally"], serde_json::json!({ "passed": 1, "failed": 1, "skipped": 1 }));
    }
}
