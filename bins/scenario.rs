//! The order of callbacks: a scenario in JSON, run on the loop of `event-loop`.
//!
//! Each line of the output is a callback: in which phase it ran, and its id. `src/phased_loop/mod.rs` has a function
//! for each phase; `experiments/scenarios.js` runs the same file on Node.
//!
//! See it: `scenario experiments/scenarios/what-runs-first.json`, then `node experiments/scenarios.js` with that file.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use acceptlab::phased_loop::scenario::{ScenarioArgs, print_file};
use clap::Parser;

/// The order of callbacks: a scenario in JSON, run on the loop of `event-loop`
#[derive(Parser)]
#[command(name = "scenario", version)]
struct Args {
    #[command(flatten)]
    scenario: ScenarioArgs,
}

fn main() -> ExitCode {
    print_file(&Args::parse().scenario)
}
