//! The master's command line, except for what the program decides by itself: who accepts, and which worker is chosen.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Command, FromArgMatches};

use crate::cpu;
use crate::server::args::parse_workers;
use crate::units::{parse_duration, parse_positive_duration};

/// What the master does for its workers.
#[derive(Args, Clone, Debug)]
pub struct MasterArgs {
    /// Worker processes [default: the CPUs this process may use]
    #[arg(long, value_name = "N", default_value_t = cpu::allowed().len(), hide_default_value = true,
          value_parser = parse_workers)]
    pub workers: usize,

    /// The most that `ctl scale` may ask for
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = parse_workers)]
    pub most_workers: usize,

    /// How often to ask a silent worker for a sign of life; one that gives none until the next is reported
    #[arg(long, value_name = "DUR", default_value = "1s", value_parser = parse_positive_duration)]
    pub heartbeat: Duration,

    /// Kill, and so replace, a worker that gives no sign of life for this long [default: never]. A program that serves
    /// one connection at a time gives none meanwhile
    #[arg(long, value_name = "DUR", value_parser = parse_positive_duration)]
    pub hang_timeout: Option<Duration>,

    /// Where `cluster ctl` finds this master: a Unix socket for its own user and root
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,

    /// Add the events to this file as well; a reload and SIGUSR1 open it anew
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,

    /// Add what the workers write to this file instead of standard error; a reload and SIGUSR1 open it anew
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,

    /// Show nothing of what the workers write, only the events (a --log still gets it)
    #[arg(long)]
    pub silent: bool,

    /// The workers write to FILE.N-out and FILE.N-err instead, where N is the worker's number: files or FIFOs that
    /// exist
    #[arg(long, value_name = "FILE")]
    pub worker_output: Option<PathBuf>,

    /// Set a variable in the workers' environment; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = OsStringValueParser::new().try_map(parse_variable))]
    pub env: Vec<(OsString, OsString)>,

    /// Run the workers as this user, by number (`id -u NAME` shows it)
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,

    /// Run the workers in this group, by number
    #[arg(long, value_name = "GID")]
    pub gid: Option<u32>,

    /// Keep the live counters in this file, so that another program can watch them
    #[arg(long, value_name = "PATH")]
    pub scoreboard: Option<PathBuf>,

    /// Watch this file, and send its contents to all workers whenever it changes
    #[arg(long, value_name = "FILE")]
    pub notify: Option<PathBuf>,

    /// Read it this often, instead of waiting for the kernel to report a change
    #[arg(long, value_name = "DUR", requires = "notify", value_parser = parse_positive_duration)]
    pub notify_every: Option<Duration>,

    /// The program and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    pub program: Vec<OsString>,
}

/// How workers are awaited, asked to end, and restarted: what a reload may change.
#[derive(Args, Clone, Debug)]
pub struct SupervisionArgs {
    /// Give up when one more restart than this is needed within --within, or one more start in a row has failed
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub max_restarts: usize,

    /// The time in which --max-restarts are counted
    #[arg(long, value_name = "DUR", default_value = "60s", value_parser = parse_positive_duration)]
    pub within: Duration,

    /// Wait this long before a restart, and twice as long, up to 30 s, before each that follows within that time
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = parse_duration)]
    pub backoff: Duration,

    /// In a reload: kill a new worker that does not listen within this time, and keep the old one. Any other worker may
    /// listen later, or never
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = parse_positive_duration)]
    pub listen_timeout: Duration,

    /// A worker serves when it says so, with process.send('ready'), not when it listens; one that does not say so
    /// within
    /// --listen-timeout is killed
    #[arg(long)]
    pub wait_ready: bool,

    /// A worker that ends by itself has no successor; when the last has ended, so does the cluster
    #[arg(long)]
    pub no_restart: bool,

    /// The same of a worker that ends with one of these statuses
    #[arg(long, value_name = "STATUS,...", value_delimiter = ',')]
    pub stop_codes: Vec<i32>,

    /// Kill a worker that has not left this long after it was asked to, or said that it would
    #[arg(long, value_name = "DUR", default_value = "5s", value_parser = parse_duration)]
    pub kill_timeout: Duration,

    /// A variable in which each worker finds its number, beside WORKER_ID
    #[arg(long, value_name = "NAME")]
    pub instance_var: Option<String>,

    /// Of the workers, in place of the master's own
    #[arg(skip)]
    pub environment: Option<BTreeMap<String, String>>,
}

impl SupervisionArgs {
    /// Out of options as on the command line.
    pub fn parse(options: &[String]) -> Result<SupervisionArgs, String> {
        let command = SupervisionArgs::augment_args(Command::new("reload").no_binary_name(true));
        let parsed = command.try_get_matches_from(options).and_then(|found| SupervisionArgs::from_arg_matches(&found));
        parsed.map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
    }
}

impl MasterArgs {
    /// The most workers there may ever be: rows of the scoreboard.
    pub fn capacity(&self) -> usize {
        self.workers.max(self.most_workers)
    }
}

/// Adds a hint for a user who wrote the program without `--` before it.
pub fn remind_of_dashes(mut error: clap::Error) -> clap::Error {
    let is_ctl = std::env::args_os().any(|word| word == "ctl");
    if is_ctl || error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let misplaced = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word)) if !word.starts_with('-') => word,
        _ => return error,
    };
    let tip = format!("the program and its arguments come after `--`: cluster -- {misplaced}");
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    error
}

/// A value is any bytes without a NUL (environ(7)).
fn parse_variable(text: OsString) -> Result<(OsString, OsString), String> {
    let bytes = text.as_bytes();
    match bytes.iter().position(|&byte| byte == b'=') {
        Some(end @ 1..) if !bytes.contains(&0) => {
            let (name, value) = (&bytes[..end], &bytes[end + 1..]);
            Ok((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())))
        }
        _ => Err("write it like PORT=8080".to_owned()),
    }
}
