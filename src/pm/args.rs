//! The command line: commands, options, and which applications a command is about.

use clap::{Args, Subcommand};
use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};

use super::startup::StartupArgs;
use crate::console::Format;

#[derive(Subcommand, Debug)]
pub enum PmCommand {
    /// Start a program, the applications of a configuration, or an application that is stopped
    Start(Box<StartArgs>),
    /// Stop applications, and keep them in the list
    Stop(Targets),
    /// Stop applications and start them again; those that are stopped are started
    Restart(AgainArgs),
    /// Replace the workers of a cluster one by one, without losing a request; restart an application that is none
    Reload(AgainArgs),
    /// Stop applications, and forget them
    #[command(visible_alias = "del")]
    Delete(Targets),
    /// From now on so many processes of an application
    Scale {
        name: String,
        #[arg(value_name = "N", value_parser = parse_instances, allow_hyphen_values = true)]
        instances: u16,
    },
    /// Show all processes in a table
    #[command(visible_aliases = ["ls", "status"])]
    List {
        /// A table for people, or what `jlist` prints
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Print all processes as one JSON array, with the keys of PM2's
    Jlist,
    /// Show all that is known about a process
    #[command(visible_alias = "show")]
    Describe(Targets),
    /// Watch what all processes use, on the whole screen, until q
    Monit,
    /// Show the environment that an application is started with
    Env(Targets),
    /// Show what applications have written, and go on with what they write
    Logs(LogsArgs),
    /// Empty the logs of applications
    Flush(Targets),
    /// Open the logs anew, after logrotate(8) has renamed them; so does SIGUSR2 to the daemon
    ReloadLogs,
    /// Send a signal to applications
    Signal {
        /// Such as SIGUSR2, or its number
        #[arg(value_parser = parse_signal)]
        signal: Signal,
        #[command(flatten)]
        targets: Targets,
    },
    /// Set the count of restarts to 0
    Reset(Targets),
    /// Keep the list of applications in a file, for `resurrect`
    #[command(visible_alias = "dump")]
    Save,
    /// Start the applications that `save` has kept
    Resurrect,
    /// Print the systemd unit that starts the daemon with the machine
    Startup(StartupArgs),
    /// Print what happens, an event a line as JSON, until it is interrupted
    Events,
    /// Say whether the daemon answers, and start it if there is none
    Ping,
    /// Stop all applications, and the daemon
    Kill,
    /// Be the daemon, in this terminal; other commands start it when there is none
    Daemon,
}

/// Which applications.
#[derive(Args, Debug)]
pub struct Targets {
    /// An id, a name, a namespace, /regex/ over names, or all
    #[arg(required = true, value_name = "APPLICATION")]
    pub targets: Vec<String>,
}

#[derive(Args, Debug)]
pub struct LogsArgs {
    /// An id, a name, a namespace, /regex/ over names, or all
    #[arg(value_name = "APPLICATION", default_value = "all")]
    pub targets: Vec<String>,

    /// Begin with so many lines of each file that are there
    #[arg(long, value_name = "N", default_value_t = 15)]
    pub lines: usize,

    /// Each line as JSON
    #[arg(long, conflicts_with = "raw")]
    pub json: bool,

    /// Each line as it was written
    #[arg(long)]
    pub raw: bool,

    /// Only standard output
    #[arg(long, conflicts_with = "err")]
    pub out: bool,

    /// Only standard error
    #[arg(long)]
    pub err: bool,

    /// End when the lines that are there are shown
    #[arg(long)]
    pub nostream: bool,

    /// Show when a new line was read, such as 'HH:mm:ss'
    #[arg(long, value_name = "FORMAT")]
    pub timestamp: Option<String>,
}

#[derive(Args, Debug)]
pub struct AgainArgs {
    /// An id, a name, a namespace, /regex/ over names, or all; or a configuration, which is read anew
    #[arg(required = true, value_name = "APPLICATION|CONFIG")]
    pub targets: Vec<String>,

    /// Of a configuration: the variables of its env_NAME come over those of env
    #[arg(long, value_name = "NAME")]
    pub env: Option<String>,
}

#[derive(Args, Debug)]
pub struct StartArgs {
    /// A configuration (ecosystem.config.js, *.json, *.yaml, *.toml), a program or script, or an application in the list
    #[arg(value_name = "FILE")]
    pub file: String,

    /// Of a configuration only these applications
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,

    /// Stay in this terminal instead of leaving a daemon behind; Ctrl-C stops the applications
    #[arg(long)]
    pub no_daemon: bool,

    /// Of a configuration: the variables of its env_NAME come over those of env
    #[arg(long, value_name = "NAME")]
    pub env: Option<String>,

    /// Give a name that is there already the new configuration, and restart it
    #[arg(short, long)]
    pub force: bool,

    #[command(flatten)]
    pub keys: KeyArgs,

    /// What the program gets, after `--`
    #[arg(last = true, value_name = "ARGS")]
    pub arguments: Vec<String>,
}

/// Keys of the configuration, which these options set. See `pm start --help` for their defaults.
#[derive(Args, Debug)]
#[command(next_help_heading = "Keys of the configuration")]
pub struct KeyArgs {
    /// What the application is called [default: the file without its extension]
    #[arg(short, long)]
    name: Option<String>,

    /// Processes: a number, max (one for each CPU), or -1 (all CPUs but one)
    #[arg(short, long, value_name = "N|max|-N", allow_hyphen_values = true)]
    instances: Option<String>,

    /// A name for several applications
    #[arg(long)]
    namespace: Option<String>,

    /// What runs the script [default: by its extension: node, python3, bash, ...]; none: it is a program
    #[arg(long, value_name = "PROGRAM")]
    interpreter: Option<String>,

    /// The folder that it runs in [default: this one]
    #[arg(long, value_name = "FOLDER")]
    cwd: Option<String>,

    /// Restart it when a file below its folder changes
    #[arg(long)]
    watch: bool,

    /// Globs of what --watch does not watch
    #[arg(long, value_name = "GLOB")]
    ignore_watch: Vec<String>,

    /// Restart it when it uses more memory, such as 300M
    #[arg(long, value_name = "SIZE")]
    max_memory_restart: Option<String>,

    /// Restart it at these times, written as in crontab(5)
    #[arg(short, long = "cron-restart", value_name = "PATTERN")]
    cron_restart: Option<String>,

    /// Give it up after so many restarts [default: 16]
    #[arg(long, value_name = "N")]
    max_restarts: Option<u32>,

    /// A process that ends before is unstable [default: 1000, in ms]
    #[arg(long, value_name = "MS")]
    min_uptime: Option<String>,

    /// Wait so long before a restart [default: 0]
    #[arg(long, value_name = "MS")]
    restart_delay: Option<String>,

    /// Wait so long before the first restart, and 1.5 times as long, up to 15 s, before each that follows
    #[arg(long, value_name = "MS")]
    exp_backoff_restart_delay: Option<String>,

    /// Do not restart it when it ends with one of these statuses
    #[arg(long, value_name = "STATUS", value_delimiter = ',')]
    stop_exit_codes: Vec<u8>,

    /// Do not restart it when it ends
    #[arg(long)]
    no_autorestart: bool,

    /// From the signal that asks it to end until SIGKILL [default: 1600]
    #[arg(long, value_name = "MS")]
    kill_timeout: Option<String>,

    /// It says itself when it is ready: process.send('ready')
    #[arg(long)]
    wait_ready: bool,

    /// With --wait-ready: give it up after so long [default: 3000]
    #[arg(long, value_name = "MS")]
    listen_timeout: Option<String>,

    /// Leave alone what the process has started when it ends
    #[arg(long)]
    no_treekill: bool,

    /// Where its standard output goes [default: $PM_HOME/logs/NAME-out-ID.log]
    #[arg(short, long, value_name = "FILE")]
    output: Option<String>,

    /// Where its standard error goes [default: $PM_HOME/logs/NAME-error-ID.log]
    #[arg(short, long, value_name = "FILE")]
    error: Option<String>,

    /// Put a time before each line, such as 'YYYY-MM-DD HH:mm:ss'
    #[arg(long, value_name = "FORMAT")]
    log_date_format: Option<String>,

    /// Each line as JSON, or as it is
    #[arg(long, value_name = "text|json")]
    log_type: Option<String>,

    /// All its processes write into the same files
    #[arg(long)]
    merge_logs: bool,

    /// Rotate a log that is larger, such as 10M: it gets the number 1 behind its name
    #[arg(long, value_name = "SIZE")]
    log_max_size: Option<String>,

    /// So many rotated logs stay [default: 10]
    #[arg(long, value_name = "N")]
    log_retain: Option<String>,
}

impl KeyArgs {
    /// Those that were given, as a configuration has them.
    pub fn to_keys(&self) -> Map<String, Value> {
        let texts = [
            ("name", &self.name),
            ("instances", &self.instances),
            ("namespace", &self.namespace),
            ("interpreter", &self.interpreter),
            ("cwd", &self.cwd),
            ("max_memory_restart", &self.max_memory_restart),
            ("cron_restart", &self.cron_restart),
            ("min_uptime", &self.min_uptime),
            ("restart_delay", &self.restart_delay),
            ("exp_backoff_restart_delay", &self.exp_backoff_restart_delay),
            ("kill_timeout", &self.kill_timeout),
            ("listen_timeout", &self.listen_timeout),
            ("out_file", &self.output),
            ("error_file", &self.error),
            ("log_date_format", &self.log_date_format),
            ("log_type", &self.log_type),
            ("log_max_size", &self.log_max_size),
            ("log_retain", &self.log_retain),
        ];
        let texts = texts.into_iter().filter_map(|(key, text)| Some((key, json!(text.as_ref()?))));
        let switches = [
            ("watch", self.watch, true),
            ("wait_ready", self.wait_ready, true),
            ("merge_logs", self.merge_logs, true),
            ("autorestart", self.no_autorestart, false),
            ("treekill", self.no_treekill, false),
        ];
        let switches = switches.into_iter().filter(|(_, is_given, _)| *is_given).map(|(key, _, on)| (key, json!(on)));
        let restarts = self.max_restarts.map(|most| ("max_restarts", json!(most)));
        let ignored = Some(("ignore_watch", json!(self.ignore_watch))).filter(|_| !self.ignore_watch.is_empty());
        let codes = Some(("stop_exit_codes", json!(self.stop_exit_codes))).filter(|_| !self.stop_exit_codes.is_empty());
        let all = texts.chain(switches).chain(restarts).chain(ignored).chain(codes);
        all.map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// A name with or without SIG, or a number.
fn parse_signal(text: &str) -> Result<Signal, String> {
    let named = format!("SIG{}", text.to_uppercase().trim_start_matches("SIG"));
    let numbered = || text.parse::<i32>().ok().and_then(|number| Signal::try_from(number).ok());
    let odd = || format!("{text:?} is no signal; write it like SIGUSR2 or 12");
    named.parse().ok().or_else(numbered).ok_or_else(odd)
}

/// How many there shall be. A sign would mean a difference, and is refused: `+1` must not end all but one.
fn parse_instances(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|number| (1..=10_000).contains(number) && !text.starts_with('+'));
    number.ok_or_else(|| "write how many there shall be, 1 to 10000, without a sign".to_string())
}
