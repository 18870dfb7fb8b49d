//! The command line: commands, options, and which applications a command is about.

use clap::error::Error;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, Subcommand};
use serde_json::{Map, Value, json};

use super::config::{ConfigKey, KEYS, first};
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
    Restart(AgainArgs),
    /// Replace the workers of a cluster one by one, without losing a request; restart what is not a cluster
    #[command(alias = "startOrReload")]
    Reload(AgainArgs),
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
    /// Run the daemon in this terminal; other commands start one if none runs
    Daemon,
}

#[derive(Args, Debug)]
pub struct TargetArgs {
    /// An id, a name, a namespace, /regex/ over names, or all; or a configuration, and names in it
    #[arg(required = true, value_name = "APPLICATION|CONFIG")]
    pub targets: Vec<String>,

    #[command(flatten)]
    pub of_config: OfConfigArgs,
}

#[derive(Args, Debug)]
pub struct AgainArgs {
    #[command(flatten)]
    pub which: TargetArgs,

    /// Replace the environment by that of this command. A variable of the configuration stays only if this command does
    /// not have it
    #[arg(long)]
    pub update_env: bool,
}

#[derive(Args, Debug)]
pub struct OfConfigArgs {
    /// Only these applications of the configuration
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub only: Vec<String>,

    /// Use env_NAME of the configuration; its variables replace those of env
    #[arg(long, value_name = "NAME")]
    pub env: Option<String>,
}

impl OfConfigArgs {
    pub fn is_empty(&self) -> bool {
        self.only.is_empty() && self.env.is_none()
    }
}

#[derive(Args, Debug)]
pub struct LogsArgs {
    #[arg(value_name = "APPLICATION", default_value = "all", help = TARGETS)]
    pub targets: Vec<String>,

    /// First show the last N lines of each file
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

    /// Show the existing lines and exit
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

    /// If an application of this name exists, give it the new configuration and restart it
    #[arg(short, long)]
    pub force: bool,

    #[command(flatten)]
    pub keys: KeyArgs,

    /// Arguments of the program, after `--`
    #[arg(last = true, value_name = "ARGS")]
    pub arguments: Vec<String>,
}

/// The keys of a configuration that options of `pm start` have set.
#[derive(Debug, Default)]
pub struct KeyArgs(pub Map<String, Value>);

fn options() -> impl Iterator<Item = &'static ConfigKey> {
    KEYS.iter().filter(|(.., help)| !help.is_empty())
}

/// Any name of the key is a name of its option.
fn arg(&(names, _, option, help): &'static ConfigKey) -> Arg {
    let (letter, value) = option.split_once(' ').unwrap_or(("", option));
    let mut others = names.split(' ').map(|name| name.replace('_', "-"));
    let name = others.next().unwrap_or_default();
    let no = if value == "no-" { value } else { "" };
    let arg = Arg::new(first(names)).long(format!("{no}{name}")).short(letter.chars().next()).visible_aliases(others);
    let arg = arg.help(help).help_heading("Keys of the configuration");
    match value {
        "" | "no-" => arg.action(ArgAction::SetTrue),
        // -1, and --options of an interpreter.
        "N|max|-N" | "ARGS" => arg.value_name(value).allow_hyphen_values(true),
        _ if value.ends_with("...") => arg.value_name(value).action(ArgAction::Append).value_delimiter(','),
        _ => arg.value_name(value),
    }
}

impl Args for KeyArgs {
    fn augment_args(command: Command) -> Command {
        command.args(options().map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        KeyArgs::augment_args(command)
    }
}

impl FromArgMatches for KeyArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<KeyArgs, Error> {
        let given = options().filter_map(|&(names, _, option, _)| {
            let key = first(names);
            let value = match option {
                "" | "no-" => matches.get_flag(key).then(|| json!(option.is_empty()))?,
                _ if option.ends_with("...") => json!(matches.get_many::<String>(key)?.collect::<Vec<_>>()),
                _ => json!(matches.get_one::<String>(key)?),
            };
            Some((key.to_owned(), value))
        });
        Ok(KeyArgs(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        KeyArgs::from_arg_matches(matches).map(|keys| *self = keys)
    }
}
