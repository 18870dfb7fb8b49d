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
use acceptlab::load::text::{self, Heading};
use acceptlab::load::{demo, run};
use acceptlab::report::LoadReport;

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
        print(args.format, &merged.report, &merged.heading(colour)).and(merged.files)?;
        return Ok(ExitCode::SUCCESS);
    }
    let args = LoadArgs::from_command_line();
    if args.demo_coordinated_omission {
        return demo::run(&args).and_then(|page| write(&page)).map(|()| ExitCode::SUCCESS);
    }
    measure(&args, colour)
}

/// One run, its report, and what the gates say about it.
fn measure(args: &LoadArgs, colour: bool) -> Result<ExitCode, String> {
    let outcome = run::run(args)?;
    print(args.format, &outcome.report, &args.heading(colour))?;
    let failed: Vec<String> = args.fail_if.iter().filter_map(|gate| gate.fails(&outcome.report)).collect();
    failed.iter().for_each(|line| eprintln!("loadgen: {line}"));
    outcome.files?;
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(GATE_FAILED) })
}

fn print(format: Format, report: &LoadReport, heading: &Heading) -> Result<(), String> {
    let out = match format {
        Format::Json => serde_json::to_string(report).map_err(|error| error.to_string())? + "\n",
        Format::Text => text::render(report, heading),
    };
    write(&out)
}

fn write(text: &str) -> Result<(), String> {
    io::stdout().write_all(text.as_bytes()).map_err(|error| format!("write standard output: {error}"))
}
