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

use std::env;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use acceptlab::load::args::{Format, LoadArgs};
use acceptlab::load::calibrate::{self, CalibrateArgs, Calibration};
use acceptlab::load::search::{self, Curve, Found};
use acceptlab::load::{explain, run, text};
use clap::Parser;
use serde::Serialize;

/// Measured, and a --fail-if holds.
const GATE_FAILED: u8 = 3;

fn main() -> ExitCode {
    let arguments: Vec<String> =
        env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let done = match arguments.first().map(String::as_str) {
        Some("calibrate") => calibrate(&CalibrateArgs::parse_from(&arguments)),
        Some(calibrate::NULL_SERVER) => calibrate::serve(&arguments[1..]).map(|()| ExitCode::SUCCESS),
        _ => load(&LoadArgs::from_command_line()),
    };
    match done {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("loadgen: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One run, the many of a search, or none.
fn load(args: &LoadArgs) -> Result<ExitCode, String> {
    if args.explain {
        print(&explain::explain()).map(|()| ExitCode::SUCCESS)
    } else if args.find_max.is_some() {
        find_max(args)
    } else if args.sweep.is_some() {
        sweep(args)
    } else {
        measure(args)
    }
}

/// One run, its report, and what the gates say about it.
fn measure(args: &LoadArgs) -> Result<ExitCode, String> {
    let outcome = run::run(args)?;
    write(args.format, &outcome.report, |report| {
        text::render(report, &args.heading(io::stdout().is_terminal()))
    })?;
    let failed: Vec<String> = args.fail_if.iter().filter_map(|gate| gate.fails(&outcome.report)).collect();
    failed.iter().for_each(|line| eprintln!("loadgen: {line}"));
    outcome.hlog?;
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(GATE_FAILED) })
}

/// The highest rate that holds, or status 1 when none does.
fn find_max(args: &LoadArgs) -> Result<ExitCode, String> {
    let found = search::find_max(args)?;
    write(args.format, &found, Found::render)?;
    match (found.highest_held_per_s, &found.ended_by) {
        (Some(_), None) => Ok(ExitCode::SUCCESS),
        _ => Err(found.answer()),
    }
}

/// The throughput-latency curve.
fn sweep(args: &LoadArgs) -> Result<ExitCode, String> {
    let curve = search::sweep(args)?;
    write(args.format, &curve, Curve::render)?;
    curve.ended_by.map_or(Ok(ExitCode::SUCCESS), |why| Err(format!("the sweep is not complete: {why}")))
}

/// What this client can do on this machine.
fn calibrate(args: &CalibrateArgs) -> Result<ExitCode, String> {
    let calibration = calibrate::calibrate(args)?;
    write(args.format, &calibration, Calibration::render).map(|()| ExitCode::SUCCESS)
}

/// A result in the format that was asked for.
fn write<T: Serialize>(format: Format, result: &T, render: impl Fn(&T) -> String) -> Result<(), String> {
    match format {
        Format::Json => print(&(serde_json::to_string(result).map_err(|error| error.to_string())? + "\n")),
        Format::Text => print(&render(result)),
    }
}

fn print(text: &str) -> Result<(), String> {
    io::stdout().write_all(text.as_bytes()).map_err(|error| format!("write standard output: {error}"))
}
