//! `lab check -- COMMAND…`: does this program keep section 1 of the contract, level by level and point by point?
//!
//! The program may be written in any language. It is started with `--listen` and the flags that a point needs, appended
//! to COMMAND; nothing else is known about it. Each point is one entry of a table: a part of the contract, an id, a
//! sentence, and a probe. A level that is broken ends the check, because what is behind it needs what is missing. To
//! see a level broken that needs a parser: `lab check --level 5 -- target/release/null-server`.
//!
//! In reading order: [`server`] (the program as a process), [`client`] (the program as seen from the network), then the
//! tables by level: 1 [`start`], 2 [`answer`], 3 [`measure`] and [`work`], 4 [`http`], 5 [`bad_input`] and
//! [`timeouts`], 6 [`stop`]; [`judge`] tries them, [`output`] shows what came out.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::console;
use crate::lab::program::{Interrupt, Stop, print_until};
use crate::terminal::{Paint, width};

pub mod client;
pub mod server;

mod judge;
mod output;

mod answer;
mod bad_input;
mod http;
mod measure;
mod start;
mod stop;
mod timeouts;
mod work;

pub use judge::judge;
pub use output::line;
use server::{Program, Server};

/// Why a point does not hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum NotHeld {
    Broken {
        expected: String,
        found: String,
        /// What the client had sent on its connection.
        #[serde(flatten)]
        sent: Option<SentRequest>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cause: Option<CommonCause>,
    },
    NotApplicable {
        why: String,
    },
}

/// What a client sent since the last answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SentRequest {
    /// Counted from 1 on its connection.
    pub request: usize,
    /// The first bytes, escaped.
    #[serde(rename = "sent")]
    shown: String,
    #[serde(rename = "sent_bytes")]
    length: usize,
}

/// What makes several points fail at once.
#[derive(Debug, Clone, PartialEq)]
pub enum CommonCause {
    NotReady,
    /// This flag of the contract is a wrong flag to the program.
    Flag(String),
    KeepAlive,
    /// At SIGTERM there is no exit status 0 with a JSON document that can be read.
    Report,
}

/// What a probe returns: the point holds, or why not.
pub type ProbeResult<T = ()> = Result<T, NotHeld>;

/// A broken point.
pub fn broken<T>(expected: impl Into<String>, found: impl Into<String>) -> ProbeResult<T> {
    Err(NotHeld::new(expected, found))
}

fn not_applicable<T>(why: impl Into<String>) -> ProbeResult<T> {
    Err(NotHeld::NotApplicable { why: why.into() })
}

impl NotHeld {
    fn new(expected: impl Into<String>, found: impl Into<String>) -> NotHeld {
        NotHeld::Broken { expected: expected.into(), found: found.into(), sent: None, cause: None }
    }

    fn after(mut self, bytes: &SentRequest) -> NotHeld {
        if let NotHeld::Broken { sent, .. } = &mut self {
            *sent = (bytes.length > 0).then(|| bytes.clone());
        }
        self
    }

    fn because(mut self, known: CommonCause) -> NotHeld {
        if let NotHeld::Broken { cause, .. } = &mut self {
            *cause = Some(known);
        }
        self
    }
}

impl SentRequest {
    /// Adds bytes that were sent; of a long request only the beginning is shown.
    fn add(&mut self, bytes: &[u8]) {
        const MOST: usize = 160;
        let room = MOST.saturating_sub(self.length).min(bytes.len());
        self.shown += &bytes[..room].escape_ascii().to_string();
        self.length += bytes.len();
        if self.length > MOST && room > 0 {
            self.shown += "…";
        }
    }
}

impl fmt::Display for NotHeld {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            NotHeld::Broken { expected, found, .. } => write!(f, "{found}; expected was {expected}"),
            NotHeld::NotApplicable { why } => f.write_str(why),
        }
    }
}

impl fmt::Display for CommonCause {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            CommonCause::NotReady => f.write_str("it does not get ready"),
            CommonCause::Flag(flag) => write!(f, "the flag {flag} is refused"),
            CommonCause::KeepAlive => f.write_str("keep-alive is missing"),
            CommonCause::Report => f.write_str("the report at SIGTERM is missing or incomplete"),
        }
    }
}

impl Serialize for CommonCause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One sentence of the contract and the probe that tries it.
pub struct Point {
    pub id: &'static str,
    /// The contract's sentence, shortened.
    pub says: &'static str,
    /// The heading in CONTRACT.md.
    part: &'static str,
    hint: &'static str,
    probe: Probe,
}

enum Probe {
    /// Asks a server that all of these share. The probe closes its connections before it returns, because a server that
    /// takes one connection at a time would keep the next probe waiting.
    Shared(fn(&Server) -> ProbeResult),
    /// Starts servers of its own.
    Own(fn(&Program) -> ProbeResult),
}

const FLAGS: &str = "Flags";
const START: &str = "Start";
const SERVE: &str = "Serve";
const STOP: &str = "Stop";
const SCOREBOARD: &str = "The scoreboard's layout";

const fn shared(part: &'static str, id: &'static str, says: &'static str, probe: fn(&Server) -> ProbeResult) -> Point {
    Point { id, says, part, hint: "", probe: Probe::Shared(probe) }
}

const fn own(part: &'static str, id: &'static str, says: &'static str, probe: fn(&Program) -> ProbeResult) -> Point {
    Point { id, says, part, hint: "", probe: Probe::Own(probe) }
}

impl Point {
    /// For whoever breaks it: what is usually missing.
    const fn hint(self, hint: &'static str) -> Point {
        Point { hint, ..self }
    }
}

/// Points that need the same of a server.
pub struct Level {
    pub number: usize,
    name: &'static str,
    /// What it is worth: all levels together are worth 100.
    score: usize,
    tables: &'static [&'static [Point]],
    /// What a server that holds them all is good for.
    reached: &'static str,
}

#[rustfmt::skip]
pub const LEVELS: [Level; 6] = [
    Level { number: 1, name: "starts", score: 10, tables: &[start::POINTS], reached: "" },
    Level { number: 2, name: "answers", score: 20, tables: &[answer::POINTS], reached: "" },
    Level {
        number: 3, name: "can be measured", score: 20, tables: &[measure::POINTS, work::POINTS],
        reached: "you may now enter a matrix: experiments/own-server/README.md",
    },
    Level { number: 4, name: "HTTP", score: 20, tables: &[http::POINTS], reached: "" },
    Level { number: 5, name: "robust", score: 20, tables: &[bad_input::POINTS, timeouts::POINTS], reached: "" },
    Level { number: 6, name: "ends well", score: 10, tables: &[stop::POINTS], reached: "" },
];

impl Level {
    fn points(&self) -> impl Iterator<Item = &'static Point> {
        self.tables.iter().copied().flatten()
    }
}

/// All points, level by level.
pub fn points() -> Vec<&'static Point> {
    LEVELS.iter().flat_map(Level::points).collect()
}

/// What of the contract is tried, and how the verdicts are shown.
pub struct Options {
    /// Only the points of this level; all levels when absent.
    pub level: Option<usize>,
    /// These points; all when empty.
    pub only: Vec<String>,
    /// Go on behind a broken level.
    pub all: bool,
    pub json: bool,
}

/// A level and the verdicts on those of its points that were tried.
struct JudgedLevel {
    level: &'static Level,
    /// It was asked for some of its points only.
    is_part: bool,
    verdicts: Vec<(&'static Point, ProbeResult)>,
}

/// Judges `command` level by level, prints the verdicts as they come, and returns whether all that were tried hold.
pub fn run(command: &[String], options: &Options, interrupt: &Interrupt) -> Result<bool, Stop> {
    let is_chosen = |point: &&Point| options.only.is_empty() || options.only.iter().any(|id| id == point.id);
    let (paint, columns) = (Paint::on(&std::io::stdout()), width(&std::io::stdout()));
    let program = Program::new(command).until(interrupt);
    let mut judged: Vec<JudgedLevel> = Vec::new();
    let say_how_far = |stop: &Stop, judged: &[JudgedLevel]| {
        if matches!(stop, Stop::Interrupted) {
            let points: usize = judged.iter().map(|level| level.verdicts.len()).sum();
            console::log(format_args!("interrupted; {points} points were judged before it"));
        }
    };
    for level in LEVELS.iter().filter(|level| options.level.is_none_or(|number| number == level.number)) {
        let points: Vec<&Point> = level.points().filter(is_chosen).collect();
        if points.is_empty() {
            continue;
        }
        let verdicts = judge(&program, &points).inspect_err(|stop| say_how_far(stop, &judged))?;
        let is_part = !options.only.is_empty();
        let one = JudgedLevel { level, is_part, verdicts: std::iter::zip(points, verdicts).collect() };
        let is_broken = one.failed() > 0;
        let text = output::level(&one, command, columns, paint);
        judged.push(one);
        if !options.json {
            print_until(interrupt, &text).inspect_err(|stop| say_how_far(stop, &judged))?;
        }
        if is_broken && !options.all {
            break;
        }
    }
    let end = match options.json {
        true => output::document(command, &judged),
        false => output::last_line(&judged, options.level.is_some() || !options.only.is_empty()),
    };
    print_until(interrupt, &(end + "\n"))?;
    Ok(judged.iter().all(|one| one.failed() == 0))
}

/// The part of the contract that a point is about.
pub fn explain(id: &str) -> Option<String> {
    let point = points().into_iter().find(|point| point.id == id)?;
    let hint = if point.hint.is_empty() { String::new() } else { format!("Hint: {}.\n", point.hint) };
    Some(format!("{}: {}.\n{hint}\nCONTRACT.md, section 1:\n\n{}\n", point.id, point.says, part(point.part)?))
}

/// From a heading of the third order to the next heading.
fn part(heading: &str) -> Option<&'static str> {
    const CONTRACT: &str = include_str!("../../../CONTRACT.md");
    let start = CONTRACT.find(&format!("### {heading}\n"))?;
    let length = CONTRACT[start + 1..].find("\n#").map_or(CONTRACT.len() - start, |end| end + 1);
    Some(CONTRACT[start..start + length].trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_has_an_id_of_its_own_and_a_part_of_the_contract() {
        let mut ids: Vec<_> = points().iter().map(|point| point.id).collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all);
        for point in points() {
            assert!(explain(point.id).is_some_and(|text| text.contains("### ")), "{}", point.id);
        }
    }

    #[test]
    fn the_levels_are_worth_a_hundred_points() {
        assert_eq!(LEVELS.iter().map(|level| level.score).sum::<usize>(), 100);
    }

    #[test]
    fn of_a_long_request_the_beginning_is_shown() {
        let mut sent = SentRequest { request: 1, ..SentRequest::default() };
        sent.add(b"GET /\r\n");
        sent.add(&[b'a'; 1000]);
        sent.add(b"bbb");
        assert!(sent.shown.starts_with("GET /\\r\\naaa") && sent.shown.ends_with("a…"), "{}", sent.shown);
        assert_eq!(sent.length, 1010);
    }
}
