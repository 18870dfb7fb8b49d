//! The process manager: starts applications, restarts those that end, and adopts them after its daemon was killed.
//!
//! The way of a command: command line (src/pm/args.rs, commands.rs) → client (client.rs), which starts the daemon when
//! it is not there → daemon (daemon.rs), which waits for clients, processes and times → God (god/), which starts
//! processes, notices their ends, and decides what happens then.
//!
//! A daemon that is killed takes nobody along: the processes are not its children for life, what they write waits in
//! FIFOs, and the next daemon adopts them (state.json, pidfd_open(2)).
//!
//! See it: `pm start sleep -- 1000`, `pm list`, `kill -9` the sleep and `pm list` again: it has a new pid. Now
//! `kill -9 $(cat ~/.pm/daemon.lock)`, and `pm list`: another daemon, the same sleep. `pm kill` ends both.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::console;
use acceptlab::pm::args::PmCommand;
use acceptlab::pm::commands;
use clap::{CommandFactory, FromArgMatches, Parser};

const AFTER_HELP: &str = "\
The first command starts a daemon, which keeps the applications alive until
`pm kill`. Its files are in $PM_HOME [default: ~/.pm]: logs/ has what the
applications write, pm.log what the daemon says. A killed daemon takes no
application along; the next command starts another one, which adopts them.

  pm start server.js -i 2 -- --port 80     two processes of one script
  pm start ecosystem.config.js --env production
  pm start ./program --name api --max-memory-restart 300M
  pm list; pm describe api; pm restart api; pm stop all; pm delete /^old-/
  pm save; pm resurrect           keep the list over a restart of the machine

`pm help COMMAND` explains a command, with examples. Any program may ask the
daemon: one JSON request a line on $PM_HOME/control.sock, such as
{\"do\":\"list\"} or {\"do\":\"restart\",\"targets\":[\"api\"]}.";

/// Below the help of each command.
const EXAMPLES: &[(&str, &str)] = &[
    (
        "start",
        "\
  pm start server.js                          a script: node runs it
  pm start server.js -i max --name web        a process on each CPU, which share its port
  pm start ./program -- --port 80             any program; behind -- is what it gets
  pm start npm -- run serve                   a program that PATH finds
  pm start 'tail -f a.log | grep error'       a command line, which a shell runs
  pm start job.py --cron-restart '0 3 * * *'  again at three each night
  pm start ecosystem.config.js --only web --env production
  pm start web                                what `pm stop web` has stopped",
    ),
    ("stop", "  pm stop web\n  pm stop 0 3 /^old-/\n  pm stop ecosystem.config.js --only web"),
    (
        "restart",
        "\
  pm restart all
  NODE_ENV=test pm restart web --update-env         with the variables of this command
  pm restart ecosystem.config.js --env production   with the configuration as it is now",
    ),
    (
        "reload",
        "\
  pm reload web                    one worker after another, and no request is lost
  pm reload ecosystem.config.js    the same, with the configuration as it is now",
    ),
    ("delete", "  pm delete web\n  pm delete ecosystem.config.js"),
    ("list", "  pm list\n  pm list --format json"),
    ("jlist", "  pm jlist | jq '.[] | {name, pid, status: .pm2_env.status}'"),
    ("env", "  pm env web\n  pm env 0 | grep NODE_ENV"),
    ("logs", "  pm logs\n  pm logs web --lines 100 --err\n  pm logs web --nostream --json"),
    ("monit", "  pm monit      up and down choose a process; q quits"),
    ("describe", "  pm describe web\n  pm describe 3"),
    ("scale", "  pm scale web 4"),
    ("flush", "  pm flush        all logs\n  pm flush web"),
    ("reload-logs", "  pm reload-logs      as the postrotate script of logrotate"),
    ("signal", "  pm signal SIGUSR2 web"),
    ("reset", "  pm reset web"),
    ("save", "  pm save; pm kill; pm resurrect"),
    ("resurrect", "  pm save; pm kill; pm resurrect"),
    (
        "startup",
        "\
  pm startup                    prints the unit, and the command that installs it
  sudo pm startup --user ann    installs it",
    ),
    ("unstartup", "  sudo pm unstartup --user ann"),
    ("events", "  pm events | jq -c 'select(.event == \"exit\")'"),
    ("ping", "  pm ping && echo it answers"),
    ("kill", "  pm kill"),
    ("daemon", "  PM_HOME=/srv/pm pm daemon      as systemd starts it"),
];

/// The process manager: starts applications, restarts those that end, and adopts them after its daemon was killed
#[derive(Parser)]
#[command(name = "pm", version, after_help = AFTER_HELP)]
struct Args {
    #[command(subcommand)]
    command: PmCommand,
}

fn main() -> ExitCode {
    let command = EXAMPLES.iter().fold(Args::command(), |command, (name, examples)| {
        command.mut_subcommand(name, |command| command.after_help(format!("Examples:\n{examples}")))
    });
    let args = Args::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    match commands::run(args.command, "cluster") {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            console::log_last(failure);
            ExitCode::FAILURE
        }
    }
}
