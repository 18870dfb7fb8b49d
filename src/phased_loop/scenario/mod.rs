//! A scenario says what callbacks do: start timers, queue immediates, read a file, and so on. It is JSON, so that one
//! text can run here and, translated, on Node:
//!
//! ```json
//! {"about": "a tick runs before the loop goes on",
//!  "steps": [{"timer": {"id": "t1", "after": "1ms", "then": [{"nextTick": {"id": "n1"}}]}},
//!            {"immediate": {"id": "i1"}}]}
//! ```
//!
//! The steps are done in order, before the loop starts, as Node does a main module. Each step but `clear`, `again` and
//! `spin` has a callback; when it runs, it is reported as a line of JSON, and the steps in its `then` are done. The
//! names are Node's. In reading order:
//!
//! - [`language`]: what a scenario is, and each kind of step;
//! - [`run`](mod@run): what each kind of step is on the loop.
//!
//! `tests/it/scenarios.rs` holds the order against Node's own.

mod language;
mod run;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::console;
use crate::failure::Failure;
use crate::phased_loop::args::PoolArgs;
use crate::units::parse_positive_duration;

pub use language::*;
pub use run::{CallbackLine, run};

/// A scenario's file, and how it is run.
#[derive(Args, Clone, Debug)]
pub struct ScenarioArgs {
    /// The scenario, in JSON; `readFile` reads this file
    pub file: PathBuf,

    #[command(flatten)]
    pub pool: PoolArgs,

    /// Give a scenario up after so many callbacks: it may never end
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: u64,

    /// Give a scenario up after this time
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = parse_positive_duration)]
    pub time_limit: Duration,
}

/// Runs the scenario in a file and reports each callback as it runs.
///
/// # Errors
/// One line: the file cannot be read, is no scenario, or its scenario was given up.
pub fn run_file(
    args: &ScenarioArgs,
    report: impl FnMut(CallbackLine) -> io::Result<()> + 'static,
) -> Result<(), Failure> {
    let tried = format!("scenario {}", args.file.display());
    let text = std::fs::read(&args.file).map_err(|error| Failure::new(format!("read {tried}"), error))?;
    let scenario = Scenario::parse(&text).map_err(|wrong| Failure::new(&tried, io::Error::other(wrong)))?;
    run(&scenario, args, report).map_err(|wrong| Failure::new(&tried, wrong))
}

/// The same for a program: prints each callback as a line of JSON when it runs, then perhaps what went wrong, and gives
/// the exit status.
pub fn print_file(args: &ScenarioArgs) -> ExitCode {
    let print_line = |line: CallbackLine| {
        let line = serde_json::to_string(&line).map_err(io::Error::other)?;
        console::print(&format!("{line}\n")).map_err(|failure| io::Error::other(String::from(failure)))
    };
    match run_file(args, print_line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            console::log_last(failure);
            ExitCode::FAILURE
        }
    }
}
