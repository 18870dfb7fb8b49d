//! The command line: commands, options, and which applications a command is about.

use clap::error::Error;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, Subcommand};
use serde_json::{Map, Value, json};

use super::protocol::{PmRequest, TARGETS};
use super::startup::StartupArgs;
use crate::console::Format;

#[derive(Subcommand, Debug)]
pub enum PmCommand {
    /// Start programs, the applications of a configuration, or applications that are stopped
    Start(Box<StartArgs>),
    /// Stop applications, and keep them in the list
    Stop(TargetArgs),
    /// Stop applications and start them again; those that are stopped are started
    #[command(alias = "startOrRestart")]
    Restart(TargetArgs),
    /// Replace the workers of a cluster one by one, without losing a request; restart what is not a cluster
    #[command(alias = "startOrReload")]
    Reload(TargetArgs),
    /// Stop applications, and forget them
    #[command(visible_alias = "del")]
    Delete(TargetArgs),
    /// Show all processes in a table
    #[command(visible_aliases = ["ls", "l", "ps", "status"])]
    List {
        /// A table for people, or what `jlist` prints
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Print all processes as one JSON array, with the keys of PM2's
    Jlist,
    /// Show the environment that a process has
    Env {
        #[arg(required = true, value_name = "APPLICATION", help = TARGETS)]
        targets: Vec<String>,
    },
    /// Show what applications have written, and go on with what they write; also those that start later
    #[command(visible_alias = "log")]
    Logs(LogsArgs),
    /// Watch processes and their logs on the whole screen, until q
    #[command(visible_alias = "monitor")]
    Monit,
    #[command(flatten)]
    Ask(PmRequest),
    /// Let systemd start the daemon with the machine: installs the unit as root, otherwise prints it
    Startup(StartupArgs),
    /// Take back what `startup` has installed
    Unstartup(StartupArgs),
    /// Print what happens, an event a line as JSON, until it is interrupted
    Events,
    /// Stop all applications, and the daemon
    Kill,
    /// Be the daemon, in this terminal; other commands start it when there is none
    Daemon,
}

/// Which applications.
#[derive(Args, Debug)]
pub struct TargetArgs {
    /// An id, a name, a namespace, /regex/ over names, or all; or a configuration, and names in it
    #[arg(required = true, value_name = "APPLICATION|CONFIG")]
    pub targets: Vec<String>,

    #[command(flatten)]
    pub of_config: OfConfigArgs,
}

/// What is taken from a configuration.
#[derive(Args, Debug)]
pub struct OfConfigArgs {
    /// Of a configuration only these applications
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub only: Vec<String>,

    /// Of a configuration: the variables of its env_NAME come over those of env
    #[arg(long, value_name = "NAME")]
    pub env: Option<String>,
}

#[derive(Args, Debug)]
pub struct LogsArgs {
    #[arg(value_name = "APPLICATION", default_value = "all", help = TARGETS)]
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
pub struct StartArgs {
    /// A configuration (ecosystem.config.js, *.json, *.yaml, *.toml) and names in it; or programs, scripts, a command
    /// line in quotes; or applications in the list
    #[arg(value_name = "FILE", default_value = "ecosystem.config.js")]
    pub files: Vec<String>,

    #[command(flatten)]
    pub of_config: OfConfigArgs,

    /// Stay in this terminal instead of leaving a daemon behind, and show what the applications write; Ctrl-C stops them
    #[arg(long)]
    pub no_daemon: bool,

    /// Give a name that is there already the new configuration, and restart it
    #[arg(short, long)]
    pub force: bool,

    #[command(flatten)]
    pub keys: KeyArgs,

    /// What the program gets, after `--`
    #[arg(last = true, value_name = "ARGS")]
    pub arguments: Vec<String>,
}

/// The keys of a configuration that options of `pm start` have set.
#[derive(Debug, Default)]
pub struct KeyArgs(pub Map<String, Value>);

/// Each sets the key of its name: with a value, with several (`...`), or, where there is none, with true; `no-` means
/// false. Beside it its letter, what its value is, and its help.
const KEY_OPTIONS: &[(&str, &str, &str, &str)] = &[
    ("name", "n", "NAME", "What the application is called [default: the file without its extension]"),
    ("instances", "i", "N|max|-N", "Processes: a number, max (one for each CPU), or -1 (all CPUs but one)"),
    ("namespace", "", "NAME", "A name for several applications"),
    ("interpreter", "", "PROGRAM", "What runs the script [default: by its extension: node, python3, ...]; or none"),
    ("interpreter-args", "", "ARGS", "What the interpreter gets before the script"),
    ("node-args", "", "ARGS", "The same, by the name that it has in PM2"),
    ("cwd", "", "FOLDER", "The folder that it runs in [default: this one]"),
    ("watch", "", "", "Restart it when a file below its folder changes"),
    ("ignore-watch", "", "GLOB...", "What --watch does not watch; may be given several times"),
    ("max-memory-restart", "", "SIZE", "Restart it when it uses more memory, such as 300M"),
    ("cron-restart", "c", "PATTERN", "Restart it at these times, written as in crontab(5)"),
    ("max-restarts", "", "N", "Give it up after so many restarts [default: 16]"),
    ("min-uptime", "", "MS", "A process that ends before is unstable [default: 1000]"),
    ("restart-delay", "", "MS", "Wait so long before a restart [default: 0]"),
    ("exp-backoff-restart-delay", "", "MS", "Wait so long before a restart, and longer each time, up to 15 s"),
    ("stop-exit-codes", "", "STATUS,...", "Do not restart it when it ends with one of these statuses"),
    ("no-autorestart", "", "", "Do not restart it when it ends"),
    ("kill-timeout", "", "MS", "From the signal that asks it to end until SIGKILL [default: 1600]"),
    ("wait-ready", "", "", "It says itself when it is ready: process.send('ready')"),
    ("listen-timeout", "", "MS", "With --wait-ready: give it up after so long [default: 3000]"),
    ("no-treekill", "", "", "Leave alone what the process has started when it ends"),
    ("output", "o", "FILE", "Where its output goes [default: $PM_HOME/logs/NAME-out-ID.log]"),
    ("error", "e", "FILE", "Where its standard error goes [default: $PM_HOME/logs/NAME-error-ID.log]"),
    ("log", "l", "FILE", "Where both go that have no file of their own"),
    ("log-date-format", "", "FORMAT", "Put a time before each line, such as 'YYYY-MM-DD HH:mm:ss'"),
    ("time", "", "", "The same, with the time as YYYY-MM-DDTHH:mm:ss"),
    ("log-type", "", "text|json", "Each line as JSON, or as it is"),
    ("merge-logs", "", "", "All its processes write into the same files"),
    ("log-max-size", "", "SIZE", "Rotate a log that is larger, such as 10M: it gets the number 1 behind its name"),
    ("log-retain", "", "N", "So many rotated logs stay [default: 10]"),
];

impl Args for KeyArgs {
    fn augment_args(command: Command) -> Command {
        let options = KEY_OPTIONS.iter().map(|&(name, letter, value, help)| {
            let arg = Arg::new(name).long(name).short(letter.chars().next()).help(help);
            let arg = arg.help_heading("Keys of the configuration");
            match value {
                "" => arg.action(ArgAction::SetTrue),
                // -1, and --options of an interpreter.
                _ if name == "instances" || name.ends_with("-args") => arg.value_name(value).allow_hyphen_values(true),
                _ if value.ends_with("...") => arg.value_name(value).action(ArgAction::Append).value_delimiter(','),
                _ => arg.value_name(value),
            }
        });
        command.args(options)
    }

    fn augment_args_for_update(command: Command) -> Command {
        KeyArgs::augment_args(command)
    }
}

impl FromArgMatches for KeyArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<KeyArgs, Error> {
        let given = KEY_OPTIONS.iter().filter_map(|&(name, _, value, _)| {
            let key = name.replace('-', "_");
            if value.is_empty() {
                let on =
                    || key.strip_prefix("no_").map_or((key.clone(), json!(true)), |key| (key.into(), json!(false)));
                return matches.get_flag(name).then(on);
            }
            let values: Vec<&String> = matches.get_many(name)?.collect();
            Some(if value.ends_with("...") { (key, json!(values)) } else { (key, json!(values[0])) })
        });
        Ok(KeyArgs(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        KeyArgs::from_arg_matches(matches).map(|keys| *self = keys)
    }
}
