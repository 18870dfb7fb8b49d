//! The command line, read once: `clap` parses it, [`LoadArgs::plan`] turns it into plain values. What contradicts
//! itself is refused here, and no file behind this folder knows an option.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand, value_parser};

use crate::console::Format;
use crate::failure::Failure;
use crate::load::options::background::Background;
use crate::load::options::condition::Condition;
use crate::load::options::plan::{
    Connections, FileFormat, HOW, Method, Pacing, Plan, PlannedWindow, Progress, Show, Threads,
};
use crate::load::options::source::Sources;
use crate::load::options::sweep::Sweep;
use crate::load::options::target::Target;
use crate::load::options::values::{ArrivalsOption, is_host, parse_header, parse_interval, parse_moment, parse_out};
use crate::load::schedule::{Arrivals, Profile, Rate, Spacing, Think, parse_replay};
use crate::units::{format_duration, parse_duration, parse_positive_duration};

const EXAMPLES: &str = "\
Examples:
  loadgen http://127.0.0.1:8080/
      Closed loop: 64 connections, each sends its next request when the last is answered.
      What is the most that this server can do? The server sets the pace, so latency says
      little.

  loadgen --rate 10000 --arrivals poisson --warmup 2s http://127.0.0.1:8080/
      Open loop: requests are due at times of their own, like those of real users.
      How long do they wait? Latency counts from the moment a request was due, so a
      server that stalls cannot hide it.

  loadgen --requests-per-connection 1 --threads 2 http://127.0.0.1:8080/
      A new connection for every request. What does accepting cost, and which worker gets
      them?

  loadgen --rate 200 --sessions --requests-per-connection 5 --think exp:20ms http://127.0.0.1:8080/
      Users arrive by Poisson, ask five times with a pause between, and leave.

  loadgen --find-max 'p99<5ms' http://127.0.0.1:8080/
      The highest rate at which 99 of 100 requests are answered within 5 ms.

  loadgen --connections 2 --requests 6 --show answers:6 http://unix:/run/app.sock:/
      Two clients of a server on a Unix socket, answer by answer.

Exit status: 0 a report was printed, whatever the server did; 1 there is none, or a file
of it could not be written, and standard error says why; 2 wrong flags; 3 a --fail-if
holds ('verdict!=valid' is one). Ctrl-C ends the run early and still prints what was
measured.";

const MERGE_NOTES: &str = "\
Each client machine leaves two files of the same name:
  loadgen --start-at TIME --seed N --format json --hlog host1.hlog … URL > host1.json
and the .hlog is looked for beside each FILE.json. Distributions are added bucket by
bucket, counts number by number; evenness and percentiles are computed from the sums.
Latency per worker, the worst second, the longest silence, the series over time, single answers
and the order of workers cannot be added and are left out.
scripts/many_clients.sh does all of it by ssh.

Refused, unless --force:
  - another configuration, or a window that differs
  - a client that started late, sent late or was interrupted
  - a run that would count twice
  - the same seed where anything is random (--arrivals poisson, --think exp:)

Exit status: 0 merged; 1 refused, and standard error says why; 2 wrong flags.";

const WHEN: &str = "When (load model)";
const OUTPUT: &str = "Output";
const TRUST: &str = "Trust";

/// What makes an open loop with a rate, one run or many: --rate, --find-max, --sweep.
const RATES: &str = "rates";
/// What belongs to one run and cannot be shared by many.
const ONE_RUN: [&str; 6] = ["requests", "start_at", "fail_if", "show", "hlog", "out"];

#[derive(Debug)]
pub enum Command {
    Run(Plan, Vec<Condition>),
    FindMax(Plan, Condition),
    Sweep(Plan, Sweep),
    Explain,
    Other(Other),
}

impl Command {
    /// A command line that makes no sense is explained, and the process exits with status 2.
    pub fn from_command_line() -> Result<(Command, Format), String> {
        let mut load = LoadArgs::parse();
        let format = load.format;
        if let Some(other) = load.subcommand.take() {
            return Ok((Command::Other(other), format));
        }
        if load.explain {
            return Ok((Command::Explain, format));
        }
        if let Some(contradiction) = load.contradiction() {
            LoadArgs::command().error(ErrorKind::ArgumentConflict, contradiction).exit();
        }
        let plan = load.plan()?;
        let command = match (load.find_max, load.sweep) {
            (Some(condition), _) => Command::FindMax(plan, condition),
            (None, Some(sweep)) => Command::Sweep(plan, sweep),
            (None, None) => Command::Run(plan, load.fail_if),
        };
        Ok((command, format))
    }
}

#[derive(Debug, Subcommand)]
pub enum Other {
    /// Measure how much faster than any server this client is, on this machine: against a server that does nothing
    Calibrate {
        /// How long each of the four measurements takes
        #[arg(long, value_name = "DUR", default_value = "1s", value_parser = parse_positive_duration)]
        duration: Duration,

        /// Connections
        #[arg(long, value_name = "N", default_value_t = 64, value_parser = value_parser!(u32).range(1..=10_000))]
        connections: u32,
    },

    /// Show the same one-second stall in a closed and in an open loop, side by side
    Demo,

    /// Add the results of many client machines to one
    #[command(after_help = MERGE_NOTES)]
    Merge {
        /// What `loadgen --format json` printed on each machine
        #[arg(value_name = "FILE.json", required = true)]
        files: Vec<PathBuf>,

        /// Write the sums of the histograms to this file, in the format of the parts
        #[arg(long, value_name = "FILE")]
        hlog: Option<PathBuf>,

        /// Merge what does not belong together, and call the result suspect
        #[arg(long)]
        force: bool,
    },
}

/// The load generator: when to send, how to send, what came back, who answered
#[derive(Debug, Parser)]
#[command(name = "loadgen", version, allow_negative_numbers = true, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, disable_help_subcommand = true)]
struct LoadArgs {
    #[command(subcommand)]
    subcommand: Option<Other>,

    /// How to print the result
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, help_heading = OUTPUT)]
    format: Format,

    /// What to ask for: http://HOST:PORT/PATH; an IPv6 address stands in brackets, a Unix socket like
    /// http://unix:/path/to/socket:/PATH
    #[arg(value_name = "URL", required_unless_present = "explain")]
    target: Option<Target>,

    #[command(flatten)]
    connections: Connections,

    #[command(flatten)]
    threads: Threads,

    /// How long to measure, after the warm-up: 250ms, 10s, 2m [default: 10s, or as long as a replay]
    #[arg(short = 'd', long, value_name = "DUR", value_parser = parse_positive_duration)]
    duration: Option<Duration>,

    /// Send exactly this many requests after the warm-up, instead of measuring for a --duration. With --sessions: the
    /// number of users; each sends --requests-per-connection requests
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "duration",
          value_parser = value_parser!(u64).range(1..u64::MAX))]
    requests: Option<u64>,

    /// Send for this long before measuring: caches fill, connections open, threads start
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = parse_duration)]
    warmup: Duration,

    /// How many workers the server has, so that those that got nothing count too
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=65_536))]
    workers: Option<u32>,

    /// Open loop: this many requests per second are due, whatever the server does; A..B rises or falls in a straight
    /// line from A to B at the end of the --duration. Without it, closed loop
    #[arg(short = 'R', long, value_name = "R", group = RATES, value_parser = parse_rates, help_heading = WHEN)]
    rate: Option<(Rate, Rate)>,

    /// Open loop: gaps all equal (fixed), random as if from many independent users (poisson), or N at once (burst:N)
    /// [default: fixed, with --sessions poisson]. replay:FILE (without --rate): each line is the time of one request,
    /// in seconds from the start of the warm-up (0.25, 1.5, …); `#` begins a comment, and the run ends a mean gap after
    /// the last request
    #[arg(long, value_name = "HOW", help_heading = WHEN)]
    arrivals: Option<ArrivalsOption>,

    /// Closed loop and sessions: a user thinks between an answer and the next request; 20ms always, or exp:20ms
    /// on average (exponentially distributed)
    #[arg(long, value_name = "DUR", help_heading = WHEN)]
    think: Option<Think>,

    /// --rate counts users: each comes with a connection of its own, asks --requests-per-connection times, and goes
    /// (partly open: arrivals do not wait for the server, the requests of one user do)
    #[arg(long, requires_all = [RATES, "requests_per_connection"], help_heading = WHEN)]
    sessions: bool,

    /// Open loop: a user gives up this long after the request was due, sent or not
    #[arg(long, value_name = "DUR", value_parser = parse_positive_duration, help_heading = WHEN)]
    deadline: Option<Duration>,

    /// More connections, opened before the warm-up and not measured: idle:1000 send nothing, slow-send:10 send their
    /// request a byte at a time, slow-read:5 read their answer a byte at a time, half-open:3 send half a request and
    /// then nothing; gap:100ms is the pause between two bytes
    #[arg(long, value_name = "KIND:N,…", help_heading = WHEN)]
    background: Option<Background>,

    /// Seed of everything random: the same seed gives the same due times
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = WHEN)]
    seed: u64,

    /// Begin the warm-up at this moment, on all client machines: seconds since 1970, as `date +%s` prints them, and
    /// not more than a day ahead
    #[arg(long, value_name = "TIME", value_parser = parse_moment, help_heading = WHEN)]
    start_at: Option<SystemTime>,

    /// Connect from these addresses in turn: 127.0.0.2,127.0.0.3 or 127.1.0.0/24; each has ports of its own
    #[arg(long, value_name = "ADDRS", help_heading = HOW)]
    source: Option<Sources>,

    /// The method of the requests: GET, HEAD, DELETE, OPTIONS, or with a body of so many bytes POST:1000, PUT:0,
    /// PATCH:5
    #[arg(long, value_name = "METHOD[:BYTES]", default_value = "GET", help_heading = HOW)]
    method: Method,

    /// One more header of every request: 'Authorization: Bearer abc' (may be given several times). 'Host: …' replaces
    /// the header that the URL gives
    #[arg(short = 'H', long, value_name = "NAME: VALUE", value_parser = parse_header, help_heading = HOW)]
    header: Vec<String>,

    /// Leave with status 3 when this holds: p99>5ms, errors>0, qps<1000 (may be given several times)
    #[arg(long, value_name = "EXPR", help_heading = TRUST)]
    fail_if: Vec<Condition>,

    /// Search the highest rate at which this holds: p99<5ms. Each step measures for --duration
    #[arg(long, value_name = "EXPR", group = RATES, conflicts_with_all = ONE_RUN, help_heading = TRUST)]
    find_max: Option<Condition>,

    /// Measure one rate after the other: 1000..20000 (ten steps) or 1000..20000:5
    #[arg(long, value_name = "A..B", group = RATES, conflicts_with_all = ONE_RUN, help_heading = TRUST)]
    sweep: Option<Sweep>,

    /// Show the first answers one by one (answers:20), and which workers took the first connections, in their order
    /// (order:100)
    #[arg(long, value_name = "WHAT:N,…", help_heading = OUTPUT)]
    show: Option<Show>,

    /// What standard error shows while the run goes on
    #[arg(long, value_enum, default_value_t = Progress::Auto, help_heading = OUTPUT)]
    progress: Progress,

    /// How long an interval of a .ndjson file and of the live view is
    #[arg(long, value_name = "DUR", default_value = "100ms", value_parser = parse_interval, help_heading = OUTPUT)]
    interval: Duration,

    /// Write the histograms to this file: HdrHistogram V2 interval log, nanoseconds, tags connect, first_byte, service,
    /// response, send_delay
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    hlog: Option<PathBuf>,

    /// Write a file, in the format that its ending says: .json the report, .csv the same as name,value lines, .hgrm the
    /// percentiles of the response time as the HdrHistogram plotter reads them, .ndjson a line of JSON for every
    /// interval while the run goes on (may be given several times)
    #[arg(long, value_name = "FILE", value_parser = parse_out, help_heading = OUTPUT)]
    out: Vec<(FileFormat, PathBuf)>,

    /// Print what each number of the report means, and its formula
    #[arg(long, help_heading = OUTPUT)]
    explain: bool,
}

impl LoadArgs {
    fn contradiction(&self) -> Option<String> {
        let searches = self.find_max.is_some() || self.sweep.is_some();
        let replays = matches!(self.arrivals, Some(ArrivalsOption::Replay(_)));
        let is_open_loop = self.rate.is_some() || replays || searches;
        let is_ramp = self.rate.is_some_and(|(from, to)| from != to);
        let pipelines = self.connections.pipeline > 1;
        let connects_only = self.connections.connect_only();
        let hosts = self.header.iter().filter(|header| is_host(header)).count();
        let connects_to_unix = self.target.as_ref().is_some_and(|target| target.unix.is_some());
        #[rustfmt::skip]
        let found: [(bool, &str); 18] = [
            (self.method.body_bytes > 0 && !self.method.has_body(), "--method: only POST, PUT and PATCH have a body"),
            (hosts > 1, "--header: a request has one Host"),
            (self.source.is_some() && connects_to_unix, "--source: a Unix socket has no address to connect from"),
            (replays && (self.rate.is_some() || searches),
                "--arrivals replay:FILE: it has its own times, and no rate"),
            (replays && self.requests.is_some(), "--arrivals replay:FILE: it has its own number of --requests"),
            (self.arrivals.is_some() && !is_open_loop,
                "--arrivals needs --rate, --find-max or --sweep: in a closed loop nothing is due before it is sent"),
            (searches && self.progress == Progress::Live, "--progress live shows one run, not a search"),
            (is_ramp && self.requests.is_some(), "--rate A..B ends with the --duration, not with --requests"),
            (self.think.is_some() && is_open_loop && !self.sessions,
                "--think is for a closed loop or --sessions: in an open loop no user waits"),
            (self.deadline.is_some() && !is_open_loop,
                "--deadline needs an open loop, like --rate: in a closed loop nothing is due before it is sent"),
            (connects_only && self.sessions, "--requests-per-connection 0: users of --sessions send requests"),
            (connects_only && pipelines, "--requests-per-connection 0: without requests nothing is pipelined"),
            (connects_only && self.show.is_some_and(|show| show.answers > 0),
                "--requests-per-connection 0: without requests there is no answer to show"),
            (connects_only && self.connections.retry,
                "--requests-per-connection 0: without requests there is none to retry"),
            (self.connections.retry && matches!(self.method.name, "POST" | "PATCH"),
                "--retry needs a method that may be asked twice (RFC 9110, section 9.2.2): not POST or PATCH"),
            (self.connections.retry && pipelines, "--retry needs one request at a time: leave out --pipeline"),
            (pipelines && (self.sessions || self.think.is_some()),
                "--pipeline sends before the answer is there: no user thinks like that"),
            (pipelines && self.connections.requests_each.is_some(),
                "--pipeline needs connections that are kept: leave out --requests-per-connection"),
        ];
        let (threads, connections) = (self.threads.count, self.connections.count);
        if threads > connections {
            return Some(format!("{threads} threads cannot share {connections} connections: each needs one"));
        }
        if let Some(Condition { text, .. }) = self.find_max.as_ref().filter(|condition| !condition.bounds_the_load()) {
            return Some(format!(
                "--find-max {text} does not fail at high rates; write it like 'p99<5ms' or 'errors==0'"
            ));
        }
        found.into_iter().find(|(is_found, _)| *is_found).map(|(_, why)| why.into())
    }

    fn plan(&self) -> Result<Plan, String> {
        let default_spacing = if self.sessions { Spacing::Poisson } else { Spacing::Fixed };
        let (spacing, replay) = match &self.arrivals {
            None => (default_spacing, None),
            Some(ArrivalsOption::Gaps(spacing)) => (*spacing, None),
            Some(ArrivalsOption::Replay(file)) => (default_spacing, Some(file)),
        };
        let replayed = replay.map(|file| read_replay(file, self.warmup)).transpose()?;
        let duration = match (self.duration, &replayed) {
            (Some(duration), _) => duration,
            (None, Some(due_ns)) => replay_length(due_ns) - self.warmup,
            (None, None) => Duration::from_secs(10),
        };
        let open = |profile| Arrivals::Open { profile, spacing, seed: self.seed };
        let arrivals = match (replayed, self.rate) {
            (Some(due_ns), _) => Arrivals::Replay(due_ns),
            (None, None) => Arrivals::Closed,
            (None, Some((from, to))) if from == to => open(Profile::Constant(from)),
            (None, Some((from, to))) => {
                let begin_ns = self.warmup.as_nanos() as u64;
                open(Profile::Ramp { from, to, begin_ns, end_ns: begin_ns + duration.as_nanos() as u64 })
            }
        };
        let hlog = self.hlog.iter().map(|file| (FileFormat::Hlog, file.clone()));
        Ok(Plan {
            target: self.target.clone().expect("clap requires a URL"),
            sources: self.source.clone(),
            method: self.method,
            headers: self.header.clone(),
            connections: self.connections,
            threads: self.threads,
            pacing: Pacing {
                arrivals,
                spacing,
                replay: replay.cloned(),
                sessions: self.sessions,
                think: self.think,
                deadline: self.deadline,
                seed: self.seed,
            },
            window: PlannedWindow {
                warmup: self.warmup,
                duration: self.requests.is_none().then_some(duration),
                requests: self.requests,
                start_at: self.start_at,
            },
            background: self.background.unwrap_or_default(),
            workers: self.workers.unwrap_or(0),
            show: self.show.unwrap_or_default(),
            files: hlog.chain(self.out.iter().cloned()).collect(),
            interval: self.interval,
            progress: self.progress,
        })
    }
}

/// The rates at the beginning and at the end: `5000`, `100..900`.
fn parse_rates(text: &str) -> Result<(Rate, Rate), String> {
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    Ok((from.parse()?, to.parse()?))
}

fn read_replay(file: &Path, warmup: Duration) -> Result<Arc<[u64]>, String> {
    let name = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::new(format_args!("read {name}"), error).advise("is it a text file that this user may read?")
    })?;
    let due_ns = parse_replay(&text).map_err(|why| format!("replay {name}: {why}"))?;
    if due_ns.last().is_some_and(|&last| u128::from(last) < warmup.as_nanos()) {
        let warmup = format_duration(warmup);
        return Err(format!("replay {name}: all of it lies in the warm-up of {warmup}; take a shorter --warmup"));
    }
    Ok(due_ns)
}

/// Until a mean gap after the last request is due, so that n requests are n gaps long and the last can be answered in
/// time.
fn replay_length(due_ns: &[u64]) -> Duration {
    let last = due_ns.last().copied().unwrap_or_default();
    Duration::from_nanos(last + (last / due_ns.len().max(1) as u64).max(1))
}

/// The plan of a run that loadgen makes of itself, from the options that a person would write; panics on others.
pub fn plan_of(options: &str, url: &str) -> Plan {
    let words = ["loadgen"].into_iter().chain(options.split_whitespace()).chain([url]);
    let load = LoadArgs::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
    load.plan().unwrap_or_else(|error| panic!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn parse_for(options: &str, url: &str) -> Result<LoadArgs, clap::Error> {
        let words = ["loadgen"].into_iter().chain(options.split_whitespace()).chain([url]);
        LoadArgs::try_parse_from(words)
    }

    fn parse(options: &str) -> Result<LoadArgs, clap::Error> {
        parse_for(options, "http://127.0.0.1:8080/")
    }

    #[test]
    fn there_are_at_most_36_options() {
        let command = LoadArgs::command();
        let options = command.get_arguments().filter(|argument| !argument.is_positional());
        assert!(options.count() <= 36);
    }

    #[test]
    fn numbers_that_are_zero_negative_or_too_large_are_refused() {
        for bad in [
            "--connections 0",
            "--connections -1",
            "--connections 99999999999",
            "--threads 0",
            "--duration 0s",
            "--duration 10",
            "--requests 0",
            "--requests 18446744073709551615",
            "--rate 0",
            "--rate=-5",
            "--rate 5..0",
            "--rate ..5",
            "--arrivals replay:",
            "--timeout 0s",
            "--requests-per-connection -1",
            "--interval 1us",
            "--start-at 1",
            "--background idle:-1",
            "--workers 0",
            "--method POST:-1",
            "--method POST:99999999",
            "--method FETCH",
            "--show answers",
            "--show answers:x",
            "--show nothing:3",
            "--out result.txt",
            "--out json",
            // In milliseconds, and beyond what a clock can say.
            "--start-at 1700000000000",
            "--start-at 1e300",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_number_below_nought_is_told_its_range() {
        let error = parse("--connections -1").unwrap_err().to_string();
        assert!(error.contains("1..=1000000"), "{error}");
    }

    #[test]
    fn the_short_flags_are_those_of_other_generators() {
        let plan = parse("-c 8 -t 2 -d 3s -R 100 -H Accept:*/*").unwrap().plan().unwrap();
        assert_eq!((plan.connections.count, plan.threads.count), (8, 2));
        assert_eq!(plan.window.duration, Some(Duration::from_secs(3)));
        assert_eq!(plan.headers, ["Accept: */*"]);
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        for bad in [
            "--duration 1s --requests 5",
            "--rate 5 --sweep 1..5",
            "--find-max p99<1ms --sweep 1..5",
            "--find-max p99<1ms --hlog x",
            "--find-max p99<1ms --out x.csv",
            "--sessions --rate 5",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was accepted");
        }
        for bad in [
            "--threads 3 --connections 2",
            "--arrivals poisson",
            "--arrivals replay:x --rate 5",
            "--arrivals replay:x --requests 5",
            "--rate 1..5 --requests 5",
            "--method GET:3",
            "-H Host:a -H host:b",
            "--find-max qps<5",
            "--find-max p99<5ms --progress live",
            "--think 1ms --rate 5",
            "--deadline 1ms",
            "--retry --method POST",
            "--retry --pipeline 2",
            "--pipeline 2 --requests-per-connection 3",
            "--requests-per-connection 0 --show answers:3",
            "--requests-per-connection 0 --pipeline 2",
        ] {
            assert!(parse(bad).unwrap().contradiction().is_some(), "{bad:?} was accepted");
        }
        for good in [
            "",
            "--arrivals poisson --sweep 1..5",
            "--arrivals replay:x",
            "--method post:3",
            "--requests 5",
            "--deadline 1ms --rate 5",
            "--requests-per-connection 0 --show order:3",
        ] {
            assert_eq!(parse(good).unwrap().contradiction(), None, "{good:?}");
        }
        let unix = parse_for("--source 127.0.0.1", "http://unix:/tmp/a:/").unwrap();
        assert!(unix.contradiction().unwrap().contains("Unix"));
    }

    #[test]
    fn a_file_has_the_format_that_its_ending_says() {
        let plan = parse("--out a.csv --hlog b --out c.ndjson").unwrap().plan().unwrap();
        let formats: Vec<FileFormat> = plan.files.iter().map(|(format, _)| *format).collect();
        assert_eq!(formats, [FileFormat::Hlog, FileFormat::Csv, FileFormat::Ndjson]);
    }

    #[test]
    fn sessions_come_by_poisson_unless_told_otherwise() {
        let spacing = |options: &str| parse(options).unwrap().plan().unwrap().pacing.spacing;
        let sessions = "--rate 5 --sessions --requests-per-connection 3";
        assert_eq!(spacing(sessions), Spacing::Poisson);
        assert_eq!(spacing(&format!("{sessions} --arrivals fixed")), Spacing::Fixed);
        assert_eq!(spacing("--rate 5"), Spacing::Fixed);
    }

    #[test]
    fn a_replay_is_read_and_ends_the_run_and_a_bad_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("times");
        let plan = |text: &str, more: &str| {
            std::fs::write(&file, text).unwrap();
            parse(&format!("--arrivals replay:{} {more}", file.display())).unwrap().plan()
        };
        let good = plan("0.5\n1.5 # the last\n", "--warmup 1s").unwrap();
        assert_eq!(good.window.duration, Some(Duration::from_millis(500 + 750)));
        assert_eq!(good.pacing.arrivals, Arrivals::Replay([500_000_000, 1_500_000_000].into()));
        let error = plan("0.5\n0.4\n", "").unwrap_err();
        assert!(error.contains("line 2: 0.4 is earlier") && !error.contains('\n'), "{error}");
        let error = plan("0.5\n", "--warmup 1s").unwrap_err();
        assert!(error.contains("all of it lies in the warm-up of 1s"), "{error}");
        std::fs::remove_file(&file).unwrap();
        let error = parse(&format!("--arrivals replay:{}", file.display())).unwrap().plan().unwrap_err();
        assert!(error.contains(": no such file or directory; is it "), "{error}");
    }
}
