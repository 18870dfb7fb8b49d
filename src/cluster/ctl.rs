//! The other end of the control socket: `cluster ctl`.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::{Value, json};

use super::control::ControlRequest;
use crate::console::{self, Format};
use crate::control_socket;
use crate::failure::Failure;

/// A master answers far sooner, except to a reload or a stop.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks a running master to do something, and waits for the answer: after a reload and at a stop until it is done.
#[derive(Args, Clone, Debug)]
pub struct CtlArgs {
    /// The socket that the master was given with --control
    #[arg(long, value_name = "SOCKET", env = "CLUSTER_CONTROL", global = true)]
    control: Option<PathBuf>,

    /// Tables for people, or the lines of JSON as they come
    #[arg(long, value_enum, default_value_t = Format::Text, global = true)]
    format: Format,

    #[command(subcommand)]
    request: ControlRequest,
}

/// Prints what the master answers; with `--format json` a failure is a line of JSON, too, but a wrong option is not.
pub fn order(args: &CtlArgs) -> Result<(), Failure> {
    let answer = ask(args).inspect_err(|failure| {
        if args.format == Format::Json {
            let _ = console::print(&format!("{}\n", json!({"ok": false, "error": failure.to_string()})));
        }
    })?;
    if answer["ok"] == false {
        return Err(Failure::relay(format!("the master answers: {}", text(&answer["error"]))));
    }
    if args.format == Format::Text {
        console::print(&render(&answer))?;
    }
    Ok(())
}

/// The last line of the master's answer. Those before it are steps, printed as they come.
fn ask(args: &CtlArgs) -> Result<Value, Failure> {
    let lost = |error: std::io::Error| {
        let advice = match error.kind() {
            ErrorKind::WouldBlock => "it is there and does not answer; is it stopped?",
            _ => "see why it ended",
        };
        Failure::new("read the master's answer", error).advise(advice)
    };
    let mut stream = connect(args.control.as_deref())?;
    if !matches!(args.request, ControlRequest::Reload { .. } | ControlRequest::Stop) {
        stream.set_read_timeout(Some(REPLY_TIMEOUT)).map_err(lost)?;
    }
    let line = serde_json::to_string(&args.request).expect("its keys are strings");
    // A master that refuses us at once has closed its end already, and its answer is there.
    let written = stream.write_all(format!("{line}\n").as_bytes());
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(lost)?;
        let answer: Value = serde_json::from_str(&line).map_err(|error| lost(error.into()))?;
        if args.format == Format::Json {
            console::print(&format!("{line}\n"))?;
        }
        if answer["ok"].is_boolean() {
            return Ok(answer);
        }
        if args.format == Format::Text {
            console::log(text(&answer["step"]));
        }
    }
    Err(lost(written.err().unwrap_or(ErrorKind::UnexpectedEof.into())))
}

fn connect(path: Option<&Path>) -> Result<UnixStream, Failure> {
    let Some(path) = path else {
        let line = "find the cluster: give the --control SOCKET that its master was given, or set CLUSTER_CONTROL";
        return Err(Failure::relay(line.to_owned()));
    };
    control_socket::connect(path).map_err(|error| {
        Failure::new(format_args!("connect to {}", path.display()), error)
            .advise("is a cluster running with this --control, and are you its user?")
    })
}

/// A status is a table; another answer is what was done.
fn render(answer: &Value) -> String {
    let Some(workers) = answer["workers"].as_array() else {
        return answer["done"].as_str().map_or(String::new(), |done| format!("{done}\n"));
    };
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let columns = ["worker", "unique_id", "pid", "state", "age_s", "accepted", "requests", "active", "rss_kib"];
    table.set_header(columns);
    for worker in workers {
        table.add_row(columns.map(|column| text(&worker[column])));
    }
    let restart_counts = &answer["restart_counts"];
    let counts = ["forks", "deaths", "suicides", "hangs", "reloads", "reloads_failed"];
    let counts = counts.map(|name| format!("{} {}", name.replace('_', " "), text(&restart_counts[name]))).join(", ");
    let head = format!(
        "{} on {}, up {} s; {counts}",
        text(&answer["program"]),
        text(&answer["listen"]),
        text(&answer["uptime_s"])
    );
    let state = match (answer["gave_up"].as_bool(), answer["reloading"].as_bool()) {
        (Some(true), _) => {
            let left = workers.iter().filter(|worker| worker["state"] != "vacant").count();
            format!("GIVEN UP: {left} of {} workers are left\n", text(&answer["wanted"]))
        }
        (_, Some(true)) => "a reload is under way\n".to_owned(),
        _ => String::new(),
    };
    let foot = "accepted, requests, active: of all who were this worker since the start";
    format!("{state}{head}\n{table}\n{foot}\n")
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => format!("{:.1}", number.as_f64().unwrap_or(0.0)),
        Value::Null => "–".to_owned(),
        other => other.to_string(),
    }
}
