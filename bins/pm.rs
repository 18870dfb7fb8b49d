//! The process manager: starts applications, restarts those that end, and adopts them after its daemon was killed.
//!
//! The way of a command: command line (src/pm/args.rs, commands.rs) → client (client.rs), which starts the daemon when it
//! is not there → daemon (daemon.rs), which waits for clients, processes and times → God (god.rs), which starts
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
use clap::Parser;

const AFTER_HELP: &str = "\
The first command starts a daemon, which keeps the applications alive until `pm kill`. Its files
are in $PM_HOME [default: ~/.pm]: logs/ has what the applications write, pm.log what the daemon
says. A killed daemon takes no application along; the next command starts another one, which
adopts them.

  pm start server.js -i 2 -- --port 80     two processes of one script
  pm start ecosystem.config.js --env production
  pm start ./program --name api --max-memory-restart 300M
  pm list; pm describe api; pm restart api; pm stop all; pm delete /^old-/
  pm save; pm resurrect                    keep the list over a restart of the machine

Any program may ask the daemon: one JSON request a line on $PM_HOME/control.sock, such as
{\"do\":\"list\"} or {\"do\":\"restart\",\"targets\":[\"api\"]}.";

/// The process manager: starts applications, restarts those that end, and adopts them after its daemon was killed
#[derive(Parser)]
#[command(name = "pm", version, after_help = AFTER_HELP)]
struct Args {
    #[command(subcommand)]
    command: PmCommand,
}

fn main() -> ExitCode {
    match commands::run(Args::parse().command, "cluster") {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            console::log_last(failure);
            ExitCode::FAILURE
        }
    }
}
