//! loadgen: the client. It sends requests in a closed or an open loop, measures the answers, and is the only
//! program that sees from outside which worker behind the port took which connection (`X-Worker`).
//!
//! When to send stands in `src/load/schedule.rs`, how to send in `src/load/client.rs`. Try:
//!
//! ```text
//! cargo run --release --bin prefork -- --workers 4 &
//! cargo run --release --bin loadgen -- --requests-per-connection 1 --duration 3s http://127.0.0.1:8080/
//! ```

#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use acceptlab::load::client::engine;
use acceptlab::load::commands::calibrate::{self, CalibrateArgs, Calibration};
use acceptlab::load::commands::demo;
use acceptlab::load::commands::merge::{self, MergeArgs};
use acceptlab::load::commands::search::{self, Curve, Found};
use acceptlab::load::options::args::{Format, LoadArgs};
use acceptlab::load::output::{explain, text};
use acceptlab::load::run;
use serde::Serialize;

/// Measured, and a --fail-if holds.
const GATE_FAILED: u8 = 3;

fn main() -> ExitCode {
    match do_what_is_asked() {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("loadgen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn do_what_is_asked() -> Result<ExitCode, String> {
    let colour = io::stdout().is_terminal();
    if let Some(args) = MergeArgs::from_command_line() {
        let merged = merge::merge(&args)?;
        print(args.format, &merged.report, |report| text::render(report, &merged.heading(colour)))
            .and(merged.files)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(args) = CalibrateArgs::from_command_line() {
        let calibration = calibrate::calibrate(&args)?;
        return print(args.format, &calibration, Calibration::render).map(|()| ExitCode::SUCCESS);
    }
    if let Some(arguments) = calibrate::server_arguments() {
        return calibrate::serve(&arguments).map(|()| ExitCode::SUCCESS);
    }
    let mut args = LoadArgs::from_command_line();
    if args.explain {
        return write(&explain::explain()).map(|()| ExitCode::SUCCESS);
    }
    let (engine, instead) = engine::choose(args.engine);
    instead.iter().for_each(|why| eprintln!("loadgen: {why}"));
    args.engine = engine;
    if args.demo_coordinated_omission {
        return demo::run(&args).and_then(|page| write(&page)).map(|()| ExitCode::SUCCESS);
    }
    if args.find_max.is_some() {
        return find_max(&args);
    }
    if args.sweep.is_some() {
        return sweep(&args);
    }
    measure(&args, colour)
}

/// One run, its report, and what the gates say about it.
fn measure(args: &LoadArgs, colour: bool) -> Result<ExitCode, String> {
    let outcome = run::run(args)?;
    print(args.format, &outcome.report, |report| text::render(report, &args.heading(colour)))?;
    let failed: Vec<String> = args.fail_if.iter().filter_map(|gate| gate.fails(&outcome.report)).collect();
    failed.iter().for_each(|line| eprintln!("loadgen: {line}"));
    outcome.files?;
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(GATE_FAILED) })
}

/// The highest rate that holds, or status 1 when none does.
fn find_max(args: &LoadArgs) -> Result<ExitCode, String> {
    let found = search::find_max(args)?;
    print(args.format, &found, Found::render)?;
    match (found.highest_held_per_s, &found.ended_by) {
        (Some(_), None) => Ok(ExitCode::SUCCESS),
        _ => Err(found.answer()),
    }
}

/// The throughput-latency curve.
fn sweep(args: &LoadArgs) -> Result<ExitCode, String> {
    let curve = search::sweep(args)?;
    print(args.format, &curve, Curve::render)?;
    curve.ended_by.map_or(Ok(ExitCode::SUCCESS), |why| Err(format!("the sweep is not complete: {why}")))
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
    io::stdout().write_all(text.as_bytes()).map_err(|error| format!("write standard output: {error}"))
}
