//! The command line, read once into plain values; what contradicts itself is refused here.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum, value_parser};

use crate::load::gate::Gate;
use crate::load::schedule::{Arrivals, Rate};
use crate::load::search::Sweep;
use crate::load::source::Sources;
use crate::load::target::Target;
use crate::load::text::Heading;
use crate::units::{format_duration, parse_duration};

const EXAMPLES: &str = "\
Examples:
  loadgen http://127.0.0.1:8080/
      Closed loop: 64 connections, each sends its next request when the last is answered.
      What is the most that this server can do? It sets the pace: latency says little.

  loadgen --rate 10000 --arrivals poisson --warmup 2s http://127.0.0.1:8080/
      Open loop: requests are due at moments of their own, like those of real users.
      How long do they wait? Latency counts from the moment a request was due, so a
      server that stalls cannot hide it.

  loadgen --requests-per-connection 1 --threads 2 http://127.0.0.1:8080/
      A new connection for every request. What does accepting cost, and who gets them?

  loadgen --rate 200 --sessions --requests-per-connection 5 --think exp:20ms http://127.0.0.1:8080/
      Users who come by Poisson, ask five times with a pause between, and leave.

  loadgen --find-max 'p99<5ms' http://127.0.0.1:8080/
      The highest rate at which 99 of 100 requests are answered within 5 ms.

  loadgen --connections 2 --requests 6 --trace 6 http://127.0.0.1:8080/
      Two clients, answer by answer.

  loadgen --demo-coordinated-omission
      The same stall as a closed and as an open loop sees it.

Other commands, each with a --help of its own:
  loadgen calibrate      how much faster than any server this client is, on this machine
  loadgen merge FILE…    one result from the results of many client machines

Exit status: 0 measured; 1 nothing could be measured, and standard error says why;
2 wrong flags; 3 measured, and a --fail-if holds. Ctrl-C ends the run early and still
prints what was measured.";

const WHEN: &str = "When (load model)";
const HOW: &str = "How (connections and requests)";
const ENGINE: &str = "Engine";
const OUTPUT: &str = "Output";
const TRUST: &str = "Trust";

/// What makes an open loop with a rate, one run or many: --rate, --find-max, --sweep.
const RATES: &str = "rates";
/// What belongs to one run and cannot be shared by many.
const ONE_RUN: [&str; 12] = [
    "replay",
    "requests",
    "start_at",
    "fail_if",
    "live",
    "trace",
    "order",
    "ndjson",
    "hlog",
    "hgrm",
    "csv",
    "demo_coordinated_omission",
];

/// Sends HTTP requests, measures the answers, and tells how evenly the workers behind the port shared them.
#[derive(Debug, Clone, Parser)]
#[command(name = "loadgen", version, after_help = EXAMPLES)]
pub struct LoadArgs {
    /// What to ask for: http://HOST:PORT/PATH; an IPv6 address stands in brackets
    #[arg(value_name = "URL", required_unless_present_any = ["explain", "demo_coordinated_omission"])]
    target: Option<Target>,

    /// Connections that send requests, all threads together
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,

    /// Threads, which divide connections and schedule among them; one saturates most servers
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = value_parser!(u32).range(1..=1024))]
    pub threads: u32,

    /// How long to measure, after the warm-up: 250ms, 10s, 2m
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = parse_positive_duration)]
    pub duration: Duration,

    /// Send exactly this many requests after the warm-up, instead of measuring for a --duration
    #[arg(long, value_name = "N", conflicts_with = "duration",
          value_parser = value_parser!(u64).range(1..u64::MAX))]
    pub requests: Option<u64>,

    /// Send for this long before measuring: caches fill, connections open, threads start
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = parse_duration)]
    pub warmup: Duration,

    /// How many workers the server has, so that those that got nothing count too
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=65_536))]
    pub workers: Option<u32>,

    /// Open loop: this many requests per second are due, whatever the server does; without it, closed loop
    #[arg(long, value_name = "R", group = RATES, help_heading = WHEN)]
    pub rate: Option<Rate>,

    /// Open loop: gaps all equal (fixed), random as if from many independent users (poisson), or N at once (burst:N)
    #[arg(long, value_name = "HOW", default_value = "fixed", requires = RATES, help_heading = WHEN)]
    pub arrivals: Spacing,

    /// Open loop: from --rate the rate rises or falls in a straight line to R at the end of the --duration
    #[arg(long, value_name = "R", requires = "rate", conflicts_with = "requests", help_heading = WHEN)]
    pub ramp_to: Option<Rate>,

    /// Open loop: requests are due when this file says; a line each, in seconds from the start (0.25, 1.5, …)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rate", "requests"], help_heading = WHEN)]
    pub replay: Option<PathBuf>,

    /// Closed loop and sessions: a user thinks between an answer and the next request; 20ms always, or exp:20ms
    /// on average (exponentially distributed)
    #[arg(long, value_name = "DUR", help_heading = WHEN)]
    pub think: Option<Think>,

    /// --rate counts users: each comes with a connection of its own, asks --requests-per-connection times, and goes
    /// (partly open: arrivals do not wait for the server, the requests of one user do)
    #[arg(long, requires_all = [RATES, "requests_per_connection"], help_heading = WHEN)]
    pub sessions: bool,

    /// Connect and close, and send nothing: what does a connection alone cost?
    #[arg(long, conflicts_with_all = ["sessions", "requests_per_connection", "pipeline", "trace"], help_heading = WHEN)]
    pub connect_only: bool,

    /// Open loop: a user gives up this long after the request was due, sent or not
    #[arg(long, value_name = "DUR", value_parser = parse_positive_duration, help_heading = WHEN)]
    pub deadline: Option<Duration>,

    /// An idle crowd: this many more connections, opened before the warm-up, that send nothing
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = WHEN,
          value_parser = value_parser!(u32).range(0..=1_000_000))]
    pub idle: u32,

    /// This many more connections that send their request a byte at a time
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = WHEN,
          value_parser = value_parser!(u32).range(0..=1_000_000))]
    pub slow_send: u32,

    /// This many more connections that read their answer a byte at a time
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = WHEN,
          value_parser = value_parser!(u32).range(0..=1_000_000))]
    pub slow_read: u32,

    /// This many more connections that send half a request and are never heard of again
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = WHEN,
          value_parser = value_parser!(u32).range(0..=1_000_000))]
    pub half_open: u32,

    /// What --slow-send and --slow-read wait between two bytes
    #[arg(long, value_name = "DUR", default_value = "100ms", value_parser = parse_positive_duration, help_heading = WHEN)]
    pub slow_gap: Duration,

    /// Seed of everything random: the same seed gives the same due times
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = WHEN)]
    pub seed: u64,

    /// Begin the warm-up at this moment, on all client machines: seconds since 1970, as `date +%s` prints them
    #[arg(long, value_name = "TIME", value_parser = parse_moment, help_heading = WHEN)]
    pub start_at: Option<SystemTime>,

    /// Close a connection after K answers; the K-th request says `Connection: close`, so that the server
    /// closes first and keeps the TIME_WAIT. Without it connections are kept for ever
    #[arg(long, value_name = "K", value_parser = value_parser!(u64).range(1..), help_heading = HOW)]
    pub requests_per_connection: Option<u64>,

    /// How a connection ends that we end: in good order (fin), or with a reset (rst), which leaves no TIME_WAIT anywhere
    #[arg(long, value_enum, default_value_t = Close::Fin, help_heading = HOW)]
    pub close: Close,

    /// Requests under way on one connection at a time (HTTP/1.1 pipelining)
    #[arg(long, value_name = "D", default_value_t = 1, value_parser = value_parser!(u32).range(1..=1024), help_heading = HOW)]
    pub pipeline: u32,

    /// Connect from these addresses in turn: 127.0.0.2,127.0.0.3 or 127.1.0.0/24; each has ports of its own
    #[arg(long, value_name = "ADDRS", help_heading = HOW)]
    pub source: Option<Sources>,

    /// Connect to this Unix socket; the URL still says what to ask for
    #[arg(long, value_name = "PATH", conflicts_with = "source", help_heading = HOW)]
    pub unix: Option<PathBuf>,

    /// How long to wait for a connection, and for an answer from the moment its request was sent
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = parse_positive_duration, help_heading = HOW)]
    pub timeout: Duration,

    /// The method of the requests
    #[arg(long, value_enum, ignore_case = true, default_value_t = Method::Get, help_heading = HOW)]
    pub method: Method,

    /// Bytes in the body of each POST
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = HOW,
          value_parser = value_parser!(u32).range(0..=16_777_216))]
    pub body_bytes: u32,

    /// What carries the bytes
    #[arg(long, value_enum, default_value_t = EngineName::Epoll, help_heading = ENGINE)]
    pub engine: EngineName,

    /// Never sleep: ask again and again whether something is ready. A CPU for each thread, and a smaller slip
    #[arg(long, help_heading = ENGINE)]
    pub busy_poll: bool,

    /// Pin thread i to CPU i of those allowed
    #[arg(long, help_heading = ENGINE)]
    pub pin: bool,

    /// Leave with status 3 when this holds: p99>5ms, errors>0, qps<1000 (may be given several times)
    #[arg(long, value_name = "EXPR", help_heading = TRUST)]
    pub fail_if: Vec<Gate>,

    /// Search the highest rate at which this holds: p99<5ms. Each step measures for --duration
    #[arg(long, value_name = "EXPR", group = RATES, conflicts_with_all = ONE_RUN, help_heading = TRUST)]
    pub find_max: Option<Gate>,

    /// Measure one rate after the other: 1000..20000 (ten steps) or 1000..20000:5
    #[arg(long, value_name = "A..B", group = RATES, conflicts_with_all = ONE_RUN, help_heading = TRUST)]
    pub sweep: Option<Sweep>,

    /// How to print the result
    #[arg(long, value_enum, default_value_t = Format::Text, help_heading = OUTPUT)]
    pub format: Format,

    /// Watch the run in a terminal view
    #[arg(long, help_heading = OUTPUT)]
    pub live: bool,

    /// Show the first N answers one by one, like siege
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = OUTPUT,
          value_parser = value_parser!(u32).range(0..=1_000_000))]
    pub trace: u32,

    /// Show which workers took the first N connections, in that order: 0123 0123
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = OUTPUT,
          value_parser = value_parser!(u32).range(0..=1_000_000))]
    pub order: u32,

    /// Say on standard error when a phase begins: `phase crowd`, then warmup, measure, drain
    #[arg(long, help_heading = OUTPUT)]
    pub phases: bool,

    /// How long an interval of --ndjson, of the live view and of the drift is
    #[arg(long, value_name = "DUR", default_value = "100ms", value_parser = parse_positive_duration, help_heading = OUTPUT)]
    pub interval: Duration,

    /// Write a line of JSON for every interval here while the run goes on
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub ndjson: Option<PathBuf>,

    /// Write the histograms here too: HdrHistogram V2 interval log, nanoseconds, tags connect, first_byte, service,
    /// response, slip
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub hlog: Option<PathBuf>,

    /// Write the percentiles of the response time here, as the HdrHistogram plotter reads them
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub hgrm: Option<PathBuf>,

    /// Write the result here as name,value lines
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub csv: Option<PathBuf>,

    /// Print what each number of the report means, and its formula
    #[arg(long, help_heading = OUTPUT)]
    pub explain: bool,

    /// Show the same one-second stall in closed and in open loop, side by side
    #[arg(long, help_heading = OUTPUT)]
    pub demo_coordinated_omission: bool,
}

/// The gaps of an open loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    Fixed,
    Poisson,
    /// So many at once.
    Burst(u32),
}

impl FromStr for Spacing {
    type Err = String;

    fn from_str(text: &str) -> Result<Spacing, String> {
        match (text, text.strip_prefix("burst:").map(str::parse)) {
            ("fixed", _) => Ok(Spacing::Fixed),
            ("poisson", _) => Ok(Spacing::Poisson),
            (_, Some(Ok(size @ 1..))) => Ok(Spacing::Burst(size)),
            _ => Err("arrivals are fixed, poisson, or burst:N with N at least 1".into()),
        }
    }
}

/// The pause of a user between an answer and the next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Think {
    Fixed(Duration),
    /// With this mean.
    Exponential(Duration),
}

impl FromStr for Think {
    type Err = String;

    fn from_str(text: &str) -> Result<Think, String> {
        match text.strip_prefix("exp:") {
            Some(mean) => Ok(Think::Exponential(parse_positive_duration(mean)?)),
            None => Ok(Think::Fixed(parse_positive_duration(text)?)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Close {
    Fin,
    Rst,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    Epoll,
    IoUring,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    #[value(name = "GET")]
    Get,
    #[value(name = "HEAD")]
    Head,
    #[value(name = "POST")]
    Post,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

impl LoadArgs {
    /// The command line of this process. Explains and exits with status 2 when it makes no sense.
    pub fn from_command_line() -> LoadArgs {
        let args = LoadArgs::parse();
        if let Some(contradiction) = args.contradiction() {
            LoadArgs::command().error(ErrorKind::ArgumentConflict, contradiction).exit();
        }
        args
    }

    /// What no single flag can know.
    fn contradiction(&self) -> Option<String> {
        if self.threads > self.connections {
            return Some(format!(
                "{} threads cannot share {} connections: each needs one",
                self.threads, self.connections
            ));
        }
        if self.body_bytes > 0 && self.method != Method::Post {
            return Some("--body-bytes needs --method POST: the other methods have no body".into());
        }
        let open_loop = self.is_open_loop() || self.find_max.is_some() || self.sweep.is_some();
        if self.think.is_some() && open_loop && !self.sessions {
            return Some("--think is for a closed loop or --sessions: in an open loop nobody waits".into());
        }
        if self.deadline.is_some() && !open_loop {
            return Some(
                "--deadline needs --rate or --replay: in a closed loop nothing is due before it is sent"
                    .into(),
            );
        }
        if self.pipeline > 1 && (self.sessions || self.think.is_some()) {
            return Some("--pipeline sends before the answer is there: no user thinks like that".into());
        }
        if self.pipeline > 1 && self.requests_per_connection.is_some() {
            return Some(
                "--pipeline needs connections that are kept: leave out --requests-per-connection".into(),
            );
        }
        None
    }

    /// The URL; only `--explain` and the demonstration go without.
    pub fn target(&self) -> &Target {
        self.target.as_ref().expect("clap requires a URL")
    }

    /// The same load at another rate, or as a closed loop (in which nothing is due), as one run.
    pub fn with_rate(&self, rate: Option<Rate>) -> LoadArgs {
        let deadline = self.deadline.filter(|_| rate.is_some());
        let sessions = self.sessions && rate.is_some();
        LoadArgs { rate, deadline, sessions, find_max: None, sweep: None, ..self.clone() }
    }

    /// Due times come from a schedule of their own, not from the answers.
    pub fn is_open_loop(&self) -> bool {
        self.rate.is_some() || self.replay.is_some()
    }

    pub fn arrivals(&self) -> Arrivals {
        match (self.rate, self.arrivals) {
            (None, _) => Arrivals::Closed,
            (Some(rate), Spacing::Fixed | Spacing::Burst(_)) => Arrivals::Fixed(rate),
            (Some(rate), Spacing::Poisson) => Arrivals::Poisson(rate, self.seed),
        }
    }

    /// What stands above the text report.
    pub fn heading(&self, colour: bool) -> Heading<'_> {
        Heading {
            url: format!("http://{}{}", self.target().authority, self.target().path),
            load: self.describe(),
            method: self.method.name(),
            path: &self.target().path,
            open_loop: self.is_open_loop(),
            colour,
        }
    }

    /// The load in words.
    fn describe(&self) -> String {
        let pace = match (self.rate, self.arrivals) {
            (None, _) => "closed loop".into(),
            (Some(rate), Spacing::Fixed) => format!("open loop, {}/s at fixed gaps", rate.per_s()),
            (Some(rate), Spacing::Poisson) => {
                format!("open loop, {}/s by Poisson (seed {})", rate.per_s(), self.seed)
            }
            (Some(rate), Spacing::Burst(size)) => {
                format!("open loop, {}/s, {size} at once", rate.per_s())
            }
        };
        let churn = match self.requests_per_connection {
            None => String::new(),
            Some(1) => ", a new connection for every request".into(),
            Some(k) => format!(", {k} requests per connection"),
        };
        let crowd = if self.idle > 0 { format!(", {} more idle", self.idle) } else { String::new() };
        let warmup = match self.warmup {
            Duration::ZERO => String::new(),
            warmup => format!(", after {} of warm-up", format_duration(warmup)),
        };
        format!(
            "{pace}, {}{crowd}{churn}, {}{warmup}",
            counted(self.connections, "connection"),
            counted(self.threads, "thread")
        )
    }
}

/// `1 thread`, `2 threads`.
fn counted(count: u32, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

impl Method {
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
        }
    }
}

/// Seconds since 1970, with a fraction if need be.
fn parse_moment(text: &str) -> Result<SystemTime, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds since 1970"))?;
    let since = Duration::try_from_secs_f64(seconds).map_err(|error| format!("{text}: {error}"))?;
    SystemTime::UNIX_EPOCH.checked_add(since).ok_or_else(|| format!("{text}: too far in the future"))
}

/// A duration that is not zero.
pub(crate) fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("it must be longer than nothing".into()),
        duration => Ok(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<LoadArgs, clap::Error> {
        LoadArgs::try_parse_from([&["loadgen"], arguments, &["http://127.0.0.1:8080/"]].concat())
    }

    #[test]
    fn numbers_that_are_zero_negative_or_too_large_are_refused() {
        for bad in [
            ["--connections", "0"],
            ["--connections", "-1"],
            ["--connections", "99999999999"],
            ["--threads", "0"],
            ["--duration", "0s"],
            ["--duration", "10"],
            ["--requests", "0"],
            ["--requests", "18446744073709551615"],
            ["--rate", "0"],
            ["--rate=-5", "--phases"],
            ["--timeout", "0s"],
            ["--requests-per-connection", "0"],
            ["--idle", "-1"],
            ["--workers", "0"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        assert!(parse(&["--duration", "1s", "--requests", "5"]).is_err());
        assert!(parse(&["--arrivals", "poisson"]).is_err());
        assert!(parse(&["--arrivals", "poisson", "--sweep", "1..5"]).is_ok());
        assert!(parse(&["--rate", "5", "--sweep", "1..5"]).is_err());
        assert!(parse(&["--find-max", "p99<1ms", "--sweep", "1..5"]).is_err());
        assert!(parse(&["--find-max", "p99<1ms", "--hlog", "x"]).is_err());
        assert!(parse(&["--threads", "3", "--connections", "2"]).unwrap().contradiction().is_some());
        assert!(parse(&["--body-bytes", "3"]).unwrap().contradiction().is_some());
        assert!(parse(&["--body-bytes", "3", "--method", "post"]).unwrap().contradiction().is_none());
        assert!(parse(&["--requests", "5"]).unwrap().contradiction().is_none());
    }
}
