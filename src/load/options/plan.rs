//! What one run does, in plain values: made from the command line once, and read by everything behind it.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum, value_parser};

use crate::load::options::background::Background;
use crate::load::options::source::Sources;
use crate::load::options::target::Target;
use crate::load::schedule::{Arrivals, Profile, Rate, Spacing, Think};
use crate::report::{ArrivalsKind, Configuration};
use crate::units::parse_positive_duration;

pub const HOW: &str = "How (connections and requests)";
const ENGINE: &str = "Engine";

#[derive(Debug, Clone)]
pub struct Plan {
    pub target: Target,
    /// Where connections come from; `None` leaves it to the kernel.
    pub sources: Option<Sources>,
    pub method: Method,
    /// `Name: value`.
    pub headers: Vec<String>,
    pub connections: Connections,
    pub threads: Threads,
    pub pacing: Pacing,
    pub window: PlannedWindow,
    pub background: Background,
    /// Workers that the server is said to have; 0 when it is not known.
    pub workers: u32,
    pub show: Show,
    pub files: Vec<(FileFormat, PathBuf)>,
    pub interval: Duration,
    pub progress: Progress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    pub name: &'static str,
    pub body_bytes: u32,
}

impl Method {
    /// Its requests say with Content-Length how much they bring, even if that is nothing (RFC 9110, section 8.6).
    pub fn has_body(self) -> bool {
        matches!(self.name, "POST" | "PUT" | "PATCH")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Close {
    Fin,
    Rst,
}

#[derive(Debug, Clone, Copy, Args)]
pub struct Connections {
    /// Connections that send requests, all threads together
    #[arg(short = 'c', id = "connections", long = "connections", value_name = "N", default_value_t = 64,
          value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub count: u32,

    /// Close a connection after K answers; the K-th request says `Connection: close`, so that the server
    /// closes first and keeps the TIME_WAIT. 0 connects and closes without a request. Without it connections are kept
    #[arg(id = "requests_per_connection", long = "requests-per-connection", value_name = "K", help_heading = HOW)]
    pub requests_each: Option<u64>,

    /// How loadgen closes a connection: fin (normal) or rst (reset; no TIME_WAIT on either side)
    #[arg(long, value_enum, default_value_t = Close::Fin, help_heading = HOW)]
    pub close: Close,

    /// Requests outstanding on one connection at a time (HTTP/1.1 pipelining)
    #[arg(long, value_name = "D", default_value_t = 1, value_parser = value_parser!(u32).range(1..=1024), help_heading = HOW)]
    pub pipeline: u32,

    /// How long to wait for a connection, and for an answer from the moment its request was sent
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = parse_positive_duration, help_heading = HOW)]
    pub timeout: Duration,

    /// Send a request once more when the server had closed its kept connection before any byte of the answer, as HTTP
    /// allows (RFC 9112, section 9.3.1); counted apart, and no error unless the second try fails too
    #[arg(long, help_heading = HOW)]
    pub retry: bool,
}

impl Connections {
    /// Being connected is the answer.
    pub fn connect_only(&self) -> bool {
        self.requests_each == Some(0)
    }
}

#[derive(Debug, Clone, Copy, Args)]
pub struct Threads {
    /// Threads, which divide connections and schedule among them; one saturates most servers
    #[arg(short = 't', id = "threads", long = "threads", value_name = "N", default_value_t = 1,
          value_parser = value_parser!(u32).range(1..=1024))]
    pub count: u32,

    /// What carries the bytes
    #[arg(long, value_enum, default_value_t = EngineName::Epoll, help_heading = ENGINE)]
    pub engine: EngineName,

    /// Never sleep: ask again and again whether something is ready. A CPU for each thread, and requests are less late
    #[arg(long, help_heading = ENGINE)]
    pub busy_poll: bool,

    /// Pin thread i to CPU i of those allowed
    #[arg(long, help_heading = ENGINE)]
    pub pin: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    Epoll,
    IoUring,
}

#[derive(Debug, Clone)]
pub struct Pacing {
    pub arrivals: Arrivals,
    /// The gaps of an open loop, also of one whose rate a search decides.
    pub spacing: Spacing,
    pub replay: Option<PathBuf>,
    pub sessions: bool,
    pub think: Option<Think>,
    pub deadline: Option<Duration>,
    pub seed: u64,
}

impl Pacing {
    pub fn is_open_loop(&self) -> bool {
        self.arrivals != Arrivals::Closed
    }
}

/// A time or a number of requests ends it, and the other is `None`.
#[derive(Debug, Clone, Copy)]
pub struct PlannedWindow {
    pub warmup: Duration,
    pub duration: Option<Duration>,
    pub requests: Option<u64>,
    pub start_at: Option<SystemTime>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Show {
    pub answers: u32,
    pub order: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// On a terminal a line that replaces itself
    Auto,
    /// A picture of the run
    Live,
    /// A line when a phase begins: `phase background`, then warmup, measure, drain
    Phases,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// Has an option of its own.
    #[value(skip)]
    Hlog,
    Ndjson,
    Hgrm,
    Csv,
    Json,
}

impl Plan {
    /// The same load at another rate, or as a closed loop, in which nothing is due.
    pub fn at_rate(&self, rate: Option<Rate>) -> Plan {
        let mut plan = self.clone();
        let Pacing { arrivals, spacing, sessions, deadline, seed, .. } = &mut plan.pacing;
        let open = |rate| Arrivals::Open { profile: Profile::Constant(rate), spacing: *spacing, seed: *seed };
        *arrivals = rate.map_or(Arrivals::Closed, open);
        if rate.is_none() {
            (*sessions, *deadline) = (false, None);
        }
        plan
    }

    /// What decides the result: all of it but the seed, the start, and where the result is written.
    pub fn configuration(&self) -> Configuration {
        let Plan { method, connections, threads, pacing, window, .. } = self;
        let (rate, ramp_to) = match pacing.arrivals {
            Arrivals::Open { profile: Profile::Constant(rate), .. } => (Some(rate), None),
            Arrivals::Open { profile: Profile::Ramp { from, to, .. }, .. } => (Some(from), Some(to)),
            Arrivals::Closed | Arrivals::Replay(_) => (None, None),
        };
        Configuration {
            url: self.target.url(),
            method: method.name.into(),
            headers: self.headers.clone(),
            body_bytes: method.body_bytes,
            connections: connections.count,
            requests_per_connection: connections.requests_each,
            close: if connections.close == Close::Rst { "rst" } else { "fin" }.into(),
            pipeline: connections.pipeline,
            timeout_s: connections.timeout.as_secs_f64(),
            retry: connections.retry,
            sources: self.sources.as_ref().map_or(0, |sources| sources.addresses.len()),
            threads: threads.count,
            engine: if threads.engine == EngineName::IoUring { "io-uring" } else { "epoll" }.into(),
            busy_poll: threads.busy_poll,
            pin: threads.pin,
            arrivals: match (&pacing.arrivals, &pacing.replay, pacing.spacing) {
                (Arrivals::Closed, ..) => ArrivalsKind::Closed,
                (_, Some(file), _) => ArrivalsKind::Replay(file.display().to_string()),
                (.., Spacing::Fixed) => ArrivalsKind::Fixed,
                (.., Spacing::Poisson) => ArrivalsKind::Poisson,
                (.., Spacing::Burst(size)) => ArrivalsKind::Burst(size),
            },
            rate_per_s: rate.map(Rate::per_s),
            ramp_to_per_s: ramp_to.map(Rate::per_s),
            sessions: pacing.sessions,
            think_s: pacing.think.map(|think| think.mean.as_secs_f64()),
            think_is_exponential: pacing.think.is_some_and(|think| think.is_exponential),
            deadline_s: pacing.deadline.map(|deadline| deadline.as_secs_f64()),
            warmup_s: window.warmup.as_secs_f64(),
            duration_s: window.duration.map(|duration| duration.as_secs_f64()),
            requests: window.requests,
            workers: self.workers,
            background: self.background.to_string(),
        }
    }
}
