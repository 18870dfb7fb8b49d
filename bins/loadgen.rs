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

use acceptlab::load::args::{Format, LoadArgs};
use acceptlab::load::merge::{self, MergeArgs};
use acceptlab::load::run;
use acceptlab::load::text::{self, Heading};
use acceptlab::report::LoadReport;

fn main() -> ExitCode {
    match measure_or_merge() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadgen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure_or_merge() -> Result<(), String> {
    let colour = io::stdout().is_terminal();
    if let Some(args) = MergeArgs::from_command_line() {
        let merged = merge::merge(&args)?;
        return print(args.format, &merged.report, &merged.heading(colour)).and(merged.files);
    }
    let args = LoadArgs::from_command_line();
    let outcome = run::run(&args)?;
    print(args.format, &outcome.report, &args.heading(colour)).and(outcome.files)
}

fn print(format: Format, report: &LoadReport, heading: &Heading) -> Result<(), String> {
    let out = match format {
        Format::Json => serde_json::to_string(report).map_err(|error| error.to_string())? + "\n",
        Format::Text => text::render(report, heading),
    };
    io::stdout().write_all(out.as_bytes()).map_err(|error| format!("write standard output: {error}"))
}
