//! The load generator: when to send, how to send, what came back, who answered.
//!
//! It sends requests in a closed or an open loop, measures the answers, and is the only program that sees from outside
//! which worker behind the port took which connection (`X-Worker`).
//!
//! `src/load/options/` turns the command line into a plan, `src/load/schedule/` says when to send, `src/load/client/`
//! how, `src/load/run/` makes one run of it. Try:
//!
//! ```text
//! cargo run --release --bin prefork -- --workers 4 &
//! cargo run --release --bin loadgen -- --requests-per-connection 1 --duration 3s http://127.0.0.1:8080/
//! ```

#![forbid(unsafe_code)]

use std::io;
use std::process::ExitCode;

use acceptlab::console::{self, Format};
use acceptlab::load::client::engine;
use acceptlab::load::commands::calibrate::{self, Calibration};
use acceptlab::load::commands::demo::{self, Demonstration};
use acceptlab::load::commands::search::{self, Curve, SearchResult};
use acceptlab::load::commands::{measure, merge};
use acceptlab::load::options::args::{Command, Other};
use acceptlab::load::options::condition::Condition;
use acceptlab::load::options::plan::Plan;
use acceptlab::load::options::sweep::Sweep;
use acceptlab::load::output::{explain, text};
use acceptlab::report::LoadReport;
use acceptlab::terminal::{Paint, width};
use serde::Serialize;

/// Measured, and a --fail-if holds.
const CONDITION_HOLDS: u8 = 3;

fn main() -> ExitCode {
    match run_command() {
        Ok(exit) => exit,
        Err(error) => {
            console::log_last(format_args!("loadgen: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run_command() -> Result<ExitCode, String> {
    let (command, format) = Command::from_command_line()?;
    match command {
        Command::Run(plan, fail_if) => return one_run(with_engine(plan), &fail_if, format),
        Command::FindMax(plan, condition) => find_max(&with_engine(plan), &condition, format)?,
        Command::Sweep(plan, rates) => sweep(&with_engine(plan), &rates, format)?,
        Command::Explain => write(&explain::explain())?,
        Command::Other(Other::Demo) => print(format, &demo::run()?, Demonstration::render)?,
        Command::Other(Other::Calibrate { duration, connections }) => {
            print(format, &calibrate::calibrate(duration, connections)?, Calibration::render)?;
        }
        Command::Other(Other::Merge { files, hlog, force }) => {
            let merged = merge::merge(&files, hlog.as_deref(), force)?;
            print(format, &merged.report, render).and(merged.files)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The plan with the engine that this kernel has; says so where it is another than was asked for.
fn with_engine(mut plan: Plan) -> Plan {
    let (engine, instead) = engine::choose(plan.threads.engine);
    instead.iter().for_each(|why| console::log(format_args!("loadgen: {why}")));
    plan.threads.engine = engine;
    plan
}

/// One run, its report, and what the conditions say about it.
fn one_run(plan: Plan, fail_if: &[Condition], format: Format) -> Result<ExitCode, String> {
    let measured = measure::measure(&plan)?;
    print(format, &measured.report, render)?;
    let failed: Vec<String> = fail_if.iter().filter_map(|condition| condition.fails(&measured.report)).collect();
    failed.iter().for_each(|line| console::log_last(format_args!("loadgen: {line}")));
    measured.files?;
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(CONDITION_HOLDS) })
}

/// The highest rate that holds, or status 1 when none does.
fn find_max(plan: &Plan, condition: &Condition, format: Format) -> Result<(), String> {
    let found = search::find_max(plan, condition)?;
    print(format, &found, SearchResult::render)?;
    match (found.highest_held_per_s, &found.ended_by) {
        (Some(_), None) => Ok(()),
        _ => Err(found.answer()),
    }
}

/// The throughput-latency curve.
fn sweep(plan: &Plan, rates: &Sweep, format: Format) -> Result<(), String> {
    let curve = search::sweep(plan, rates)?;
    print(format, &curve, Curve::render)?;
    curve.ended_by.map_or(Ok(()), |why| Err(format!("the sweep is not complete: {why}")))
}

fn render(report: &LoadReport) -> String {
    let out = io::stdout();
    text::render(report, Paint::on(&out), width(&out))
}

/// A result in the format that was asked for.
fn print<T: Serialize>(format: Format, result: &T, render: impl Fn(&T) -> String) -> Result<(), String> {
    let out = match format {
        Format::Json => serde_json::to_string(result).map_err(|error| error.to_string())? + "\n",
        Format::Text => render(result),
    };
    write(&out)
}

fn write(text: &str) -> Result<(), String> {
    console::print_last(text).map_err(|failure| failure.to_string())
}
