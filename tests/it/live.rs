//! `loadgen --progress live`: the run in a real terminal, and what it does where there is none.

use nix::sys::signal::Signal;

use crate::support::{TempFolder, start};
use crate::terminal::Terminal;

const LOADGEN: &str = env!("CARGO_BIN_EXE_loadgen");

fn run(terminal: &Terminal, flags: &str, address: &str) {
    terminal.keys(&[&format!("{LOADGEN} --progress live {flags} http://{address}/; echo status $?"), "Enter"]);
}

fn is_drawn(screen: &str) -> bool {
    screen.starts_with("http://127.0.0.1:") && screen.contains("\nq or Ctrl-C ends the run")
}

/// The shell has printed the exit status.
fn has_ended(screen: &str) -> bool {
    // The line that was typed may be broken in front of its own "status $?".
    let status =
        |line: &str| line.strip_prefix("status ").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    screen.lines().any(status)
}

#[test]
fn every_way_out_gives_the_terminal_back_and_prints_the_report() {
    let Some(terminal) = Terminal::open("live-ways-out") else { return };
    // On a busy machine the report has up to ten lines of reasons not to trust it.
    terminal.tmux(&["resize-window", "-x", "80", "-y", "60"]);
    let server = start("shared-accept", &["--workers", "2"]);
    for way_out in ["q", "Escape", "C-c", "TERM", "INT"] {
        run(&terminal, "--connections 4 --rate 200 --duration 60s", &server.addr.to_string());
        terminal.shows(|screen| is_drawn(screen) && screen.contains("measuring"));
        match format!("SIG{way_out}").parse::<Signal>() {
            Ok(signal) => terminal.signal(signal),
            Err(_) => terminal.keys(&[way_out]),
        }
        let screen = terminal.shows(has_ended);
        assert!(screen.contains("status 0") && screen.contains("errors       none"), "{screen}");
        terminal.is_given_back();
        terminal.keys(&["clear", "Enter"]);
        terminal.shows(|screen| !screen.contains("status"));
    }
}

#[test]
fn rate_percentiles_send_delay_and_workers_are_seen_while_the_run_goes_on() {
    let Some(terminal) = Terminal::open("live-picture") else { return };
    let server = start("shared-accept", &["--workers", "2"]);
    let load = "--connections 8 --rate 300 --requests-per-connection 5 --warmup 300ms --duration 60s --workers 2";
    run(&terminal, load, &server.addr.to_string());
    // Of a tenth of a second: a thread that is 10 ms late to its clock counts a tenth more or fewer.
    let rate_due = |screen: &str| screen.split_once(" due")?.0.rsplit(' ').next()?.parse::<u32>().ok();
    let told = |screen: &str, what: &str| screen.lines().any(|line| line.starts_with(what));
    let screen = terminal.shows(|screen| {
        is_drawn(screen)
            && screen.contains("measuring")
            && !screen.contains('–')
            && screen.contains("send delay p99 ")
            && rate_due(screen).is_some_and(|rate| (270..=330).contains(&rate))
            && screen.matches('█').count() > 10
    });
    for what in ["open loop, 300/s at fixed gaps", "response ", "now ", "0 errors", "worker, connections, requests"] {
        assert!(told(&screen, what), "{what}: {screen}");
    }
    assert!(screen.contains("D of connections"), "{screen}");
    terminal.tmux(&["resize-window", "-x", "120", "-y", "30"]);
    terminal.shows(|screen| screen.lines().nth(29).is_some_and(|line| line.starts_with("q or Ctrl-C")));
    terminal.tmux(&["resize-window", "-x", "30", "-y", "8"]);
    terminal.shows(|screen| screen.lines().nth(7).is_some_and(|line| line.starts_with("q or Ctrl-C")));
}

#[test]
fn a_run_that_ends_by_itself_or_never_begins_leaves_the_shell_as_it_was() {
    let Some(terminal) = Terminal::open("live-ends") else { return };
    let server = start("event-driven", &[]);
    let folder = TempFolder::new("live");
    let file = folder.file("report.json");
    let load = format!("--connections 2 --rate 100 --requests 60 --format json > {file}");
    run(&terminal, &load, &server.addr.to_string());
    // The picture is not in the way of the report.
    let screen = terminal.shows(has_ended);
    assert!(screen.contains("status 0"), "{screen}");
    let report = std::fs::read(&file).unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&report).unwrap()["requests"], 60);
    terminal.is_given_back();
    terminal.keys(&["clear", "Enter"]);
    terminal.shows(|screen| !screen.contains("status"));
    // Nobody listens on port 1.
    run(&terminal, "--duration 60s", "127.0.0.1:1");
    let screen = terminal.shows(has_ended);
    assert!(screen.contains("status 1") && screen.contains("is the server running?"), "{screen}");
    terminal.is_given_back();
}
