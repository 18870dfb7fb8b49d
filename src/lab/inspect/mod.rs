//! `lab inspect PID|:PORT|ADDR:PORT`: how any running server accepts, what that costs, what is wrong, and which lesson
//! explains it. It reads, and nothing else: the server is not written to and not stopped. With `--exact` tracepoints count.
//!
//! As the data travels: [`look`] reads /proc and the kernel's sockets and writes plain values, [`findings`] is a pure
//! function of these, [`output`] prints what it returns as text or JSON, and [`watch`] draws it again and again.

pub mod findings;
pub mod look;
pub mod output;
pub mod watch;

use std::fs;
use std::io::stdout;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crossbeam_channel::{after, select};

use crate::failure::Failure;
use crate::lab::program::{Interrupt, Stop, print_until};
pub use crate::lab::target::Target;
use crate::terminal::{Paint, width};
use findings::{IDS, diagnose};
pub use look::{Observer, Recording};

pub struct Options {
    pub target: Target,
    pub duration: Duration,
    pub json: bool,
    /// Let the kernel count what each process accepts and how often it is woken.
    pub exact: bool,
    /// Ids of findings.
    pub fail_if: Vec<String>,
    /// Where to write the recording.
    pub save: Option<PathBuf>,
}

/// Between two looks; longer where a look costs much, so that all use a small share of one CPU.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const PAUSE_PER_COST: u32 = 50;
/// Even so there are so many.
const FEWEST_LOOKS: u32 = 4;

/// No wider, so that a report can be mailed.
const MOST_COLUMNS: usize = 80;

/// A finding by its id; `hung` is short for `hung-worker`.
pub fn parse_finding(text: &str) -> Result<String, String> {
    let id = if text == "hung" { "hung-worker" } else { text };
    match IDS.contains(&id) {
        true => Ok(id.to_string()),
        false => Err(format!("no finding has this name; there are {}", IDS.join(", "))),
    }
}

/// Looks, prints, and returns whether none of the findings of `--fail-if` was there.
pub fn run(options: Options, interrupt: &Interrupt) -> Result<bool, Stop> {
    let mut observer = Observer::begin(options.target).map_err(Stop::Failed)?.exactly(options.exact);
    record(&mut observer, options.duration, interrupt)?;
    if let Some(path) = &options.save {
        let recording = serde_json::to_string(&observer.recording).expect("plain structs serialize");
        let failed = |error| Stop::Failed(Failure::new(format!("write {}", path.display()), error).to_string());
        fs::write(path, recording + "\n").map_err(failed)?;
    }
    let diagnosis = diagnose(&observer.recording);
    let text = match options.json {
        true => output::json(&diagnosis),
        false => output::text(&diagnosis, width(&stdout()).min(MOST_COLUMNS), Paint::on(&stdout())),
    };
    print_until(interrupt, &text)?;
    let ids = &options.fail_if;
    let fails = diagnosis.findings.iter().any(|finding| ids.iter().any(|id| id == finding.id));
    // A monitor is not to be told that all is well by one that could not look.
    let is_blind = observer.recording.last().processes.iter().all(|process| process.holds.is_empty());
    if !ids.is_empty() && !fails && is_blind {
        let why = diagnosis.unseen.first().map_or(String::new(), |line| format!(": {line}"));
        return Err(Stop::Failed(format!("--fail-if: no process was seen that accepts{why}")));
    }
    Ok(!fails)
}

/// Looks again and again for so long, at least twice.
fn record(observer: &mut Observer, duration: Duration, interrupt: &Interrupt) -> Result<(), Stop> {
    let mut cost = observer.look().map_err(Stop::Failed)?;
    // From behind the first look to before the last, so that what takes a second can be seen in a second.
    let end = Instant::now() + duration;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let pause = LOOK_EVERY.max(cost * PAUSE_PER_COST).min(duration / FEWEST_LOOKS).min(left);
        select! {
            recv(interrupt) -> _ => return Err(Stop::Interrupted),
            recv(after(pause)) -> _ => {}
        }
        let is_last = Instant::now() >= end;
        cost = observer.look().map_err(Stop::Failed)?;
        if is_last {
            return Ok(());
        }
    }
}
