//! What happens while a group is steered: a line for each event.

use std::time::Instant;

use serde::Serialize;

use super::choice::Select;
use crate::console::Console;

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event<'a> {
    /// The program is attached. Of each socket, in the order of the group, the process that accepts from it.
    Steering {
        address: String,
        program: String,
        select: Select,
        pids: Vec<Option<i32>>,
        #[serde(flatten)]
        precision: Precision,
    },
    /// Sockets or processes have come or gone, or the choice is less exact than before.
    Changed {
        pids: Vec<Option<i32>>,
        #[serde(flatten)]
        precision: Precision,
    },
    /// A worker gets no connection any more.
    Out {
        number: usize,
        pid: Option<i32>,
        why: &'a str,
    },
    /// It gets connections again.
    Back {
        number: usize,
        pid: Option<i32>,
    },
    /// No worker is left: all get connections, because a queue is better than none.
    AllOut,
    /// The command has no group yet.
    Waiting {
        why: &'a str,
    },
    Ended {
        why: &'a str,
    },
}

/// Whether a choice by loads takes the lowest, and why not. Nothing where loads play no part.
#[derive(Clone, Default, PartialEq, Serialize)]
pub struct Precision {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

pub struct Events {
    begun: Instant,
    is_json: bool,
    console: Console,
}

#[derive(Serialize)]
struct Line<'a> {
    at_s: f64,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

impl Events {
    /// Standard output belongs to the command, where there is one.
    pub fn new(is_json: bool, has_command: bool) -> Events {
        let console = if has_command { Console::default() } else { Console::on_standard_output() };
        Events { begun: Instant::now(), is_json, console }
    }

    pub fn say(&mut self, event: &Event) {
        let at_s = (self.begun.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        let line = match self.is_json {
            true => serde_json::to_string(&Line { at_s, event }).expect("plain structs serialize"),
            false => format!("{at_s:>8.2} s  {}", event.text()),
        };
        self.console.write((line + "\n").as_bytes());
    }
}

impl Event<'_> {
    fn text(&self) -> String {
        match self {
            Event::Steering { address, program, select, pids, precision } => {
                let select = serde_json::to_value(select).expect("it is a word");
                let how = select.as_str().unwrap_or_default().to_string() + &precision.text();
                format!("{program} on {address} is steered by {how}: {}; Ctrl-C gives it back", sockets(pids))
            }
            Event::Changed { pids, precision } => {
                format!("the group has changed: {}{}", sockets(pids), precision.text())
            }
            Event::Out { number, pid, why } => format!("{} gets no new connection: {why}", worker(*number, *pid)),
            Event::Back { number, pid } => format!("{} gets connections again", worker(*number, *pid)),
            Event::AllOut => "no worker accepts: connections go to all of them again".to_string(),
            Event::Waiting { why } => format!("not steered yet: {why}"),
            Event::Ended { why } => why.to_string(),
        }
    }
}

impl Precision {
    fn text(&self) -> String {
        match (self.exact, &self.why) {
            (Some(true), _) => ", exactly".to_string(),
            (Some(false), Some(why)) => format!(", by chance ({why})"),
            _ => String::new(),
        }
    }
}

fn worker(number: usize, pid: Option<i32>) -> String {
    pid.map_or(format!("the worker of socket {number}"), |pid| format!("pid {pid}"))
}

/// More are not named.
const FEW: usize = 8;

fn sockets(pids: &[Option<i32>]) -> String {
    let named = pids.iter().take(FEW).map(|pid| pid.map_or("?".to_string(), |pid| pid.to_string()));
    let more = if pids.len() > FEW { " …" } else { "" };
    format!("{} sockets of pid {}{more}", pids.len(), named.collect::<Vec<_>>().join(", "))
}
