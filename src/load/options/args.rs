//! The command line, read once into plain values; what contradicts itself is refused here.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use clap::builder::ArgPredicate;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum, value_parser};

use crate::load::commands::search::Sweep;
use crate::load::options::engine::EngineName;
use crate::load::options::gate::Gate;
use crate::load::options::source::Sources;
use crate::load::options::target::Target;
use crate::load::output::text::Heading;
use crate::load::schedule::{Arrivals, Profile, Rate, parse_replay};
pub use crate::load::schedule::{Spacing, Think};
use crate::units::{format_duration, parse_duration, parse_positive_duration};

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

Exit status: 0 a report was printed, whatever the server did; 1 there is none, or a file
of it could not be written, and standard error says why; 2 wrong flags; 3 a --fail-if
holds ('verdict!=valid' is one). Ctrl-C ends the run early and still prints what was
measured.";

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
#[command(name = "loadgen", version, allow_negative_numbers = true, after_help = EXAMPLES)]
pub struct LoadArgs {
    /// What to ask for: http://HOST:PORT/PATH; an IPv6 address stands in brackets
    #[arg(value_name = "URL", required_unless_present_any = ["explain", "demo_coordinated_omission"])]
    target: Option<Target>,

    /// Connections that send requests, all threads together
    #[arg(short = 'c', long, value_name = "N", default_value_t = 64,
          value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,

    /// Threads, which divide connections and schedule among them; one saturates most servers
    #[arg(short = 't', long, value_name = "N", default_value_t = 1,
          value_parser = value_parser!(u32).range(1..=1024))]
    pub threads: u32,

    /// How long to measure, after the warm-up: 250ms, 10s, 2m
    #[arg(short = 'd', long, value_name = "DUR", default_value = "10s", value_parser = parse_positive_duration)]
    pub duration: Duration,

    /// Send exactly this many requests after the warm-up, instead of measuring for a --duration; with --sessions so
    /// many users come, and each sends --requests-per-connection
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "duration",
          value_parser = value_parser!(u64).range(1..u64::MAX))]
    pub requests: Option<u64>,

    /// Send for this long before measuring: caches fill, connections open, threads start
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = parse_duration)]
    pub warmup: Duration,

    /// How many workers the server has, so that those that got nothing count too
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=65_536))]
    pub workers: Option<u32>,

    /// Open loop: this many requests per second are due, whatever the server does; without it, closed loop
    #[arg(short = 'R', long, value_name = "R", group = RATES, help_heading = WHEN)]
    pub rate: Option<Rate>,

    /// Open loop: gaps all equal (fixed), random as if from many independent users (poisson; what --sessions take unless
    /// told otherwise), or N at once (burst:N)
    #[arg(long, value_name = "HOW", default_value = "fixed",
          default_value_if("sessions", ArgPredicate::IsPresent, "poisson"), requires = RATES, help_heading = WHEN)]
    pub arrivals: Spacing,

    /// Open loop: from --rate the rate rises or falls in a straight line to R at the end of the --duration
    #[arg(long, value_name = "R", requires = "rate", conflicts_with = "requests", help_heading = WHEN)]
    pub ramp_to: Option<Rate>,

    /// Open loop: requests are due when this file says; a line each, in seconds from the start of the warm-up (0.25,
    /// 1.5, …), `#` begins a comment. Without a --duration the run ends a mean gap after the last of them
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rate", "requests"], help_heading = WHEN)]
    pub replay: Option<PathBuf>,

    /// What is in it, or why not. Read once: a pipe says nothing a second time.
    #[arg(skip)]
    replayed: OnceLock<Result<Arc<[u64]>, String>>,

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

    /// Begin the warm-up at this moment, on all client machines: seconds since 1970, as `date +%s` prints them, and
    /// not more than a day ahead
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

    /// Send a request once more when the server had closed its kept connection before any byte of the answer, as HTTP
    /// allows (RFC 9112, section 9.3.1); counted apart, and no error unless the second try fails too
    #[arg(long, conflicts_with = "connect_only", help_heading = HOW)]
    pub retry: bool,

    /// The method of the requests
    #[arg(long, value_enum, ignore_case = true, default_value_t = Method::Get, help_heading = HOW)]
    pub method: Method,

    /// One more header of every request: 'Authorization: Bearer abc' (may be given several times)
    #[arg(short = 'H', long, value_name = "NAME: VALUE", value_parser = parse_header, help_heading = HOW)]
    pub header: Vec<String>,

    /// Bytes in the body of each POST, PUT or PATCH
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
    #[arg(long, conflicts_with = "phases", help_heading = OUTPUT)]
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

    /// How long an interval of --ndjson and of the live view is
    #[arg(long, value_name = "DUR", default_value = "100ms", value_parser = parse_interval, help_heading = OUTPUT)]
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Close {
    Fin,
    Rst,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    #[value(name = "GET")]
    Get,
    #[value(name = "HEAD")]
    Head,
    #[value(name = "POST")]
    Post,
    #[value(name = "PUT")]
    Put,
    #[value(name = "PATCH")]
    Patch,
    #[value(name = "DELETE")]
    Delete,
    #[value(name = "OPTIONS")]
    Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

impl LoadArgs {
    /// The command line of this process. Explains and exits with status 2 when it makes no sense.
    pub fn from_command_line() -> LoadArgs {
        let matches = LoadArgs::command().get_matches();
        let mut args = LoadArgs::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        if matches.value_source("duration") != Some(ValueSource::CommandLine) {
            args.end_with_the_replay();
        }
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
        if self.body_bytes > 0 && !self.method.has_body() {
            return Some(
                "--body-bytes needs --method POST, PUT or PATCH: the other methods have no body".into(),
            );
        }
        if let Some(gate) = self.find_max.as_ref().filter(|gate| !gate.bounds_the_load()) {
            return Some(format!(
                "--find-max {gate} does not fail at high rates; write it like 'p99<5ms' or 'errors==0'"
            ));
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
        if self.retry && matches!(self.method, Method::Post | Method::Patch) {
            return Some(
                "--retry needs a method that may be asked twice (RFC 9110, section 9.2.2): not POST or PATCH"
                    .into(),
            );
        }
        if self.retry && self.pipeline > 1 {
            return Some("--retry needs one request at a time: leave out --pipeline".into());
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

    /// When requests are due. An error is a file for --replay that cannot be read or makes no sense.
    pub fn arrivals(&self) -> Result<Arrivals, String> {
        if let Some(path) = &self.replay {
            return self.replayed(path).map(Arrivals::Replay);
        }
        let Some(from) = self.rate else { return Ok(Arrivals::Closed) };
        let profile = match self.ramp_to {
            None => Profile::Constant(from),
            Some(to) => {
                let begin_ns = self.warmup.as_nanos() as u64;
                Profile::Ramp { from, to, begin_ns, end_ns: begin_ns + self.duration.as_nanos() as u64 }
            }
        };
        Ok(Arrivals::Open { profile, spacing: self.arrivals, seed: self.seed })
    }

    /// The measurement ends a mean gap after the last request was due, so that n requests are n gaps long and the last
    /// can be answered in time. A file that cannot be read changes nothing here: whoever asks for the arrivals is told.
    fn end_with_the_replay(&mut self) {
        let due_ns = self.replay.as_deref().and_then(|path| self.replayed(path).ok());
        if let Some((&last, before)) = due_ns.as_deref().and_then(<[u64]>::split_last) {
            let gap_ns = last / (before.len() as u64 + 1);
            self.duration = Duration::from_nanos(last + gap_ns.max(1)) - self.warmup;
        }
    }

    fn replayed(&self, path: &Path) -> Result<Arc<[u64]>, String> {
        self.replayed.get_or_init(|| read_replay(path, self.warmup)).clone()
    }

    /// What decides the result, in a fixed order: equal texts are equal configurations. Neither the seed nor where the
    /// result is written belongs to it.
    pub fn configuration(&self) -> String {
        let target = self.target();
        let per_s = |rate: Option<Rate>| rate.map(Rate::per_s);
        let sources = self.source.as_ref().map(|sources| sources.addresses.len());
        format!(
            "url=http://{}{} unix={:?} method={} headers={:?} body_bytes={} connections={} threads={} rate={:?} ramp_to={:?} \
             arrivals={:?} replay={:?} think={:?} sessions={} connect_only={} idle={} slow={}/{}/{}@{:?} duration={:?} \
             requests={:?} warmup={:?} timeout={:?} deadline={:?} requests_per_connection={:?} close={:?} pipeline={} \
             sources={sources:?} engine={:?} busy_poll={} pin={} retry={}",
            target.authority,
            target.path,
            self.unix,
            self.method.name(),
            self.header,
            self.body_bytes,
            self.connections,
            self.threads,
            per_s(self.rate),
            per_s(self.ramp_to),
            self.arrivals,
            self.replay,
            self.think,
            self.sessions,
            self.connect_only,
            self.idle,
            self.slow_send,
            self.slow_read,
            self.half_open,
            self.slow_gap,
            self.duration,
            self.requests,
            self.warmup,
            self.timeout,
            self.deadline,
            self.requests_per_connection,
            self.close,
            self.pipeline,
            self.engine,
            self.busy_poll,
            self.pin,
            self.retry,
        )
    }

    /// What stands above the text report.
    pub fn heading(&self, colour: bool) -> Heading<'_> {
        Heading {
            url: format!("http://{}{}", self.target().authority, self.target().path),
            load: self.describe(),
            method: self.method.name(),
            path: &self.target().path,
            open_loop: self.is_open_loop(),
            workers: self.workers.unwrap_or(0),
            colour,
        }
    }

    /// The load in words.
    fn describe(&self) -> String {
        let mut parts = vec![self.pace()];
        if let Some(deadline) = self.deadline {
            parts.push(format!("given up {} after they were due", format_duration(deadline)));
        }
        parts.push(counted(self.connections, "connection"));
        if self.pipeline > 1 {
            parts.push(format!("{} requests under way on each", self.pipeline));
        }
        match self.requests_per_connection {
            None if self.connect_only => parts.push("connecting and closing, no request".into()),
            None => {}
            Some(1) if !self.sessions => parts.push("a new connection for every request".into()),
            Some(k) => parts.push(format!("{} per connection", counted(k, "request"))),
        }
        if self.retry {
            parts.push("sent once more where a kept connection had been closed".into());
        }
        if self.close == Close::Rst {
            parts.push("closed with a reset".into());
        }
        let beside = [
            (self.idle, "idle"),
            (self.slow_send, "sending slowly"),
            (self.slow_read, "reading slowly"),
            (self.half_open, "half open"),
        ];
        parts.extend(beside.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} more {what}")));
        if let Some(sources) = &self.source {
            parts.push(format!("from {}", counted(sources.addresses.len(), "source address")));
        }
        if let Some(path) = &self.unix {
            parts.push(format!("by the Unix socket {}", path.display()));
        }
        parts.push(counted(self.threads, "thread"));
        if self.engine == EngineName::IoUring {
            parts.push("io_uring".into());
        }
        if self.busy_poll {
            parts.push("never sleeping".into());
        }
        if !self.warmup.is_zero() {
            parts.push(format!("after {} of warm-up", format_duration(self.warmup)));
        }
        parts.join(", ")
    }

    /// When requests are due, in words.
    fn pace(&self) -> String {
        if let Some(path) = &self.replay {
            return format!("open loop, replay of {}", path.display());
        }
        let think = match self.think {
            None => String::new(),
            Some(Think::Fixed(pause)) => format!(", thinking {}", format_duration(pause)),
            Some(Think::Exponential(mean)) => {
                format!(", thinking {} on average (seed {})", format_duration(mean), self.seed)
            }
        };
        let Some(rate) = self.rate else { return format!("closed loop{think}") };
        let (model, users) = if self.sessions { ("partly open", " users") } else { ("open loop", "") };
        let rates = match self.ramp_to {
            None => format!("{}{users}/s", rate.per_s()),
            Some(to) => format!("{} to {}{users}/s", rate.per_s(), to.per_s()),
        };
        let gaps = match self.arrivals {
            Spacing::Fixed => " at fixed gaps".into(),
            Spacing::Poisson => format!(" by Poisson (seed {})", self.seed),
            Spacing::Burst(size) => format!(", {size} at once"),
        };
        format!("{model}, {rates}{gaps}{think}")
    }
}

/// The due times in a file, of which at least one is to be measured.
fn read_replay(path: &Path, warmup: Duration) -> Result<Arc<[u64]>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let due_ns = parse_replay(&text).map_err(|why| format!("replay {}: {why}", path.display()))?;
    if due_ns.last().is_some_and(|&last| u128::from(last) < warmup.as_nanos()) {
        return Err(format!(
            "replay {}: all of it lies in the warm-up of {}; take a shorter --warmup",
            path.display(),
            format_duration(warmup)
        ));
    }
    Ok(due_ns)
}

/// `1 thread`, `2 threads`, `3 addresses`.
fn counted(count: impl TryInto<u64>, noun: &str) -> String {
    let count = count.try_into().unwrap_or(u64::MAX);
    let ending = match count {
        1 => "",
        _ if noun.ends_with('s') => "es",
        _ => "s",
    };
    format!("{count} {noun}{ending}")
}

impl Method {
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
            Method::Options => "OPTIONS",
        }
    }

    /// Says with Content-Length how much it brings, even if that is nothing (RFC 9110, section 8.6).
    pub fn has_body(self) -> bool {
        matches!(self, Method::Post | Method::Put | Method::Patch)
    }
}

/// Whoever means a later moment has written milliseconds.
const FURTHEST_START: Duration = Duration::from_secs(24 * 60 * 60);
/// How late may still be told by the verdict; beyond, it is a slip of the pen.
const LATEST_START: Duration = Duration::from_secs(10);

/// A header line that cannot smuggle in a second one, nor the fields that decide where a request ends.
fn parse_header(text: &str) -> Result<String, String> {
    let (name, value) = text.split_once(':').ok_or("a header looks like 'Name: value'")?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) || value.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(format!(
            "{text:?} is no header: a name of letters, digits and dashes, a colon, one line of value"
        ));
    }
    if ["host", "content-length", "transfer-encoding", "connection"]
        .contains(&name.to_ascii_lowercase().as_str())
    {
        return Err(format!("{name} is written by loadgen itself"));
    }
    Ok(format!("{name}: {}", value.trim()))
}

/// Shorter ones would be more work to tell than to measure.
fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        interval if interval >= Duration::from_millis(1) => Ok(interval),
        _ => Err("an interval has a millisecond at least".into()),
    }
}

/// Seconds since 1970, with a fraction if need be; not more than a day ahead.
fn parse_moment(text: &str) -> Result<SystemTime, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds since 1970"))?;
    let since = Duration::try_from_secs_f64(seconds).map_err(|error| format!("{text}: {error}"))?;
    let now = SystemTime::now();
    let is_soon = |moment: &SystemTime| (now - LATEST_START..=now + FURTHEST_START).contains(moment);
    SystemTime::UNIX_EPOCH.checked_add(since).filter(is_soon).ok_or_else(|| {
        format!("{text} is over, or more than a day ahead; write it in seconds, like $(($(date +%s) + 5))")
    })
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
            ["--interval", "1us"],
            ["--start-at", "1"],
            ["--idle", "-1"],
            ["--workers", "0"],
            // In milliseconds, and beyond what a clock can say.
            ["--start-at", "1700000000000"],
            ["--start-at", "1e300"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_number_below_nought_is_told_its_range() {
        let error = parse(&["--connections", "-1"]).unwrap_err().to_string();
        assert!(error.contains("1..=1000000"), "{error}");
    }

    #[test]
    fn the_short_flags_are_those_of_other_generators() {
        let args = parse(&["-c", "8", "-t", "2", "-d", "3s", "-R", "100", "-H", "Accept:*/*"]).unwrap();
        assert_eq!((args.connections, args.threads, args.duration.as_secs()), (8, 2, 3));
        assert_eq!(args.header, ["Accept: */*"]);
    }

    #[test]
    fn a_header_that_would_be_a_second_one_or_end_the_request_is_refused() {
        for bad in
            ["", "X", ": x", "a b: c", "X: y\r\nZ: z", "Host: b", "content-length: 3", "Connection: close"]
        {
            assert!(parse(&["-H", bad]).is_err(), "{bad:?} was accepted");
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

    #[test]
    fn the_load_is_told_in_words() {
        let told = |flags: &str| {
            let flags: Vec<&str> = flags.split_whitespace().collect();
            parse(&flags).unwrap().describe()
        };
        assert_eq!(told(""), "closed loop, 64 connections, 1 thread");
        assert_eq!(
            told("--think exp:20ms --connections 1 --pipeline 1 --close rst --warmup 2s"),
            "closed loop, thinking 20ms on average (seed 1), 1 connection, closed with a reset, 1 thread, after 2s \
             of warm-up"
        );
        assert_eq!(
            told("--rate 200 --sessions --requests-per-connection 1 --think 5ms"),
            "partly open, 200 users/s by Poisson (seed 1), thinking 5ms, 64 connections, 1 request per connection, \
             1 thread"
        );
        assert_eq!(
            told("--rate 100 --ramp-to 900 --arrivals burst:8 --deadline 50ms --slow-send 3 --half-open 2"),
            "open loop, 100 to 900/s, 8 at once, given up 50ms after they were due, 64 connections, 3 more sending \
             slowly, 2 more half open, 1 thread"
        );
        assert_eq!(
            told("--replay a.txt --source 127.0.0.1,127.0.0.2 --threads 2 --engine io-uring --busy-poll"),
            "open loop, replay of a.txt, 64 connections, from 2 source addresses, 2 threads, io_uring, never \
             sleeping"
        );
        assert_eq!(
            told("--connect-only --unix /tmp/s --idle 9"),
            "closed loop, 64 connections, connecting and closing, no request, 9 more idle, by the Unix socket \
             /tmp/s, 1 thread"
        );
    }

    #[test]
    fn sessions_come_by_poisson_unless_told_otherwise() {
        let sessions = ["--rate", "5", "--sessions", "--requests-per-connection", "3"];
        assert_eq!(parse(&sessions).unwrap().arrivals, Spacing::Poisson);
        let fixed = parse(&[&sessions[..], &["--arrivals", "fixed"]].concat()).unwrap();
        assert_eq!(fixed.arrivals, Spacing::Fixed);
        assert_eq!(parse(&["--rate", "5"]).unwrap().arrivals, Spacing::Fixed);
    }

    #[test]
    fn a_replay_is_read_and_ends_the_run_and_a_bad_one_is_named() {
        let path = std::env::temp_dir().join(format!("acceptlab-replay-{}", std::process::id()));
        let with = |text: &str, more: &[&str]| {
            fs::write(&path, text).unwrap();
            parse(&[&["--replay", path.to_str().unwrap()], more].concat()).unwrap()
        };
        let mut args = with("0.5\n1.5 # the last\n", &["--warmup", "1s"]);
        args.end_with_the_replay();
        assert_eq!(args.duration, Duration::from_millis(500 + 750));
        assert_eq!(args.arrivals(), Ok(Arrivals::Replay([500_000_000, 1_500_000_000].into())));
        let error = with("0.5\n0.4\n", &[]).arrivals().unwrap_err();
        assert!(error.contains("line 2: 0.4 is earlier") && !error.contains('\n'), "{error}");
        let error = with("0.5\n", &["--warmup", "1s"]).arrivals().unwrap_err();
        assert!(error.contains("all of it lies in the warm-up of 1s"), "{error}");
        fs::remove_file(&path).unwrap();
        let error = parse(&["--replay", path.to_str().unwrap()]).unwrap().arrivals().unwrap_err();
        assert!(error.starts_with("read /") && error.contains("No such file"), "{error}");
    }
}
