//! Starts the program for one point after the other, some of them at the same time.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, unbounded};

use super::server::{NotReady, Program, Server};
use super::{CommonCause, Point, Probe, ProbeResult, start};
use crate::lab::observe::processes::{Process, family};
use crate::lab::program::Stop;

/// Points that start servers of their own mostly wait, so a few run at once. More would disturb each other on a machine
/// with two CPUs.
const EXAMINERS: usize = 4;

/// Judges `program` on `points`: a verdict for each, in their order. A program that does not get ready breaks them all,
/// and none is tried.
pub fn judge(program: &Program, points: &[&'static Point]) -> Result<Vec<ProbeResult>, Stop> {
    let first_start = match program.start_on("127.0.0.1:0", &[]) {
        Err(NotReady::NotStarted(why)) => return Err(Stop::Failed(why)),
        Err(NotReady::Interrupted) => return Err(Stop::Interrupted),
        Err(not_ready) => Err(not_ready.into_broken(&[])),
        Ok(server) => start::listens(&server).map_err(|why| why.because(CommonCause::NotReady)),
    };
    let Err(why) = first_start else { return judge_running(program, points) };
    Ok(vec![Err(why); points.len()])
}

/// Hands the points to the examiners and puts their verdicts back into the order of `points`.
fn judge_running(program: &Program, points: &[&'static Point]) -> Result<Vec<ProbeResult>, Stop> {
    let jobs = Mutex::new(jobs(points));
    let mut verdicts: Vec<Option<ProbeResult>> = points.iter().map(|_| None).collect();
    std::thread::scope(|scope| {
        let (sender, receiver) = unbounded();
        for _ in 0..EXAMINERS {
            let (sender, jobs) = (sender.clone(), &jobs);
            scope.spawn(move || examine(program, points, jobs, &sender));
        }
        drop(sender);
        loop {
            match receiver.recv_timeout(INTERRUPT_WITHIN) {
                Err(RecvTimeoutError::Disconnected) => break,
                _ if program.is_interrupted() => kill_descendants(),
                Ok((index, verdict)) => verdicts[index] = Some(verdict),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    });
    verdicts.into_iter().collect::<Option<Vec<ProbeResult>>>().ok_or(Stop::Interrupted)
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
    verdicts: &Sender<(usize, ProbeResult)>,
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

/// Runs a probe on the shared server. After a broken point the server may be dead or stuck, so the next point gets a
/// new one.
fn on_shared(program: &Program, server: &mut Option<Server>, probe: fn(&Server) -> ProbeResult) -> ProbeResult {
    let asked = match server.take() {
        Some(server) => server,
        None => program.start(&[])?,
    };
    probe(&asked).map_err(|why| asked.explain(why))?;
    *server = Some(asked);
    Ok(())
}
