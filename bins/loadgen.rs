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
use acceptlab::load::{demo, run, text};
use acceptlab::report::LoadReport;

fn main() -> ExitCode {
    let args = LoadArgs::from_command_line();
    let done = if args.demo_coordinated_omission {
        demo::run(&args).and_then(|page| write(&page))
    } else {
        run::run(&args).and_then(|outcome| print(&args, &outcome.report).and(outcome.hlog))
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadgen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(args: &LoadArgs, report: &LoadReport) -> Result<(), String> {
    let out = match args.format {
        Format::Json => serde_json::to_string(report).map_err(|error| error.to_string())? + "\n",
        Format::Text => text::render(report, &args.heading(io::stdout().is_terminal())),
    };
    write(&out)
}

fn write(text: &str) -> Result<(), String> {
    io::stdout().write_all(text.as_bytes()).map_err(|error| format!("write standard output: {error}"))
}
