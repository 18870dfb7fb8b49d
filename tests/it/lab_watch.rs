//! `lab watch` in a real terminal.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use acceptlab::lab::check::server::Server;
use acceptlab::lab::observe::processes::poll_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{FOREVER, TempFolder, answer, connect, held, one_after_another, start};
use crate::terminal::Terminal;

const LAB: &str = env!("CARGO_BIN_EXE_lab");

/// A server whose scoreboard has a name.
struct Watched {
    server: Server,
    board: Board,
}

struct Board(TempFolder);

impl Board {
    fn new(name: &str) -> Board {
        Board(TempFolder::new(name))
    }

    fn path(&self) -> String {
        self.0.file("board")
    }

    fn start(&self, flags: &[&str]) -> Server {
        start("shared-accept", &[&["--scoreboard", &self.path()], flags].concat())
    }

    fn watch(&self, flags: &[&str]) -> Output {
        Command::new(LAB).arg("watch").args(flags).arg(self.path()).output().unwrap()
    }
}

impl Watched {
    fn start(name: &str, workers: &str) -> Watched {
        let board = Board::new(name);
        Watched { server: board.start(&["--workers", workers]), board }
    }

    /// Connections one after another, as many as a terminal needs to show something.
    fn load(&self, connections: usize) {
        for _ in 0..connections {
            let mut client = connect(&self.server);
            held(client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
            answer(&mut client);
        }
    }
}

fn watch(terminal: &Terminal, board: &Board, flags: &str) {
    terminal.keys(&[&format!("{LAB} watch {flags} {}; echo status $?", board.path()), "Enter"]);
}

#[test]
fn every_way_out_gives_the_terminal_back() {
    let Some(terminal) = Terminal::open("ways-out") else { return };
    let watched = Watched::start("ways-out", "4");
    for (way_out, status) in [("q", 0), ("Escape", 0), ("C-c", 0), ("TERM", 130), ("HUP", 130), ("INT", 130)] {
        watch(&terminal, &watched.board, "--interval 100ms");
        terminal.shows(|screen| screen.starts_with("shared-accept ") && screen.contains("all 4 workers"));
        match format!("SIG{way_out}").parse::<Signal>() {
            Ok(signal) => terminal.signal(signal),
            Err(_) => terminal.keys(&[way_out]),
        }
        terminal.shows(|screen| screen.contains(&format!("status {status}")));
        terminal.is_given_back();
        terminal.keys(&["clear", "Enter"]);
        terminal.shows(|screen| !screen.contains("status"));
    }
}

#[test]
fn bars_and_rates_come_with_the_load_and_go_with_it() {
    let Some(terminal) = Terminal::open("bars") else { return };
    let watched = Watched::start("bars", "4");
    let address = watched.server.addr.to_string();
    watch(&terminal, &watched.board, "--interval 200ms");
    let idle = terminal.shows(|screen| screen.contains("\nall              0"));
    assert!(idle.contains(&address) && !idle.contains('█'), "{idle}");
    let loaded = poll_until(FOREVER, || {
        watched.load(50);
        Some(terminal.screen()).filter(|screen| screen.contains("███████"))
    });
    assert!(loaded.expect("bars").contains("per connection: "));
    terminal.shows(|screen| screen.contains("\nall              0"));
    terminal.tmux(&["resize-window", "-x", "120", "-y", "30"]);
    terminal.shows(|screen| screen.lines().nth(29).is_some_and(|line| line.starts_with("q quits")));
}

#[test]
fn many_workers_are_shown_side_by_side_or_a_page_at_a_time() {
    let Some(terminal) = Terminal::open("many") else { return };
    let watched = Watched::start("many", "64");
    watch(&terminal, &watched.board, "--interval 100ms");
    terminal.shows(|screen| screen.contains("all 64 workers") && screen.contains("active: "));
    for (key, shown) in [
        ("Tab", "workers 0–17 of"),
        ("PgDn", "workers 18–35 of"),
        ("Down", "workers 19–36 of"),
        ("End", "workers 46–63 of"),
    ] {
        terminal.keys(&[key]);
        terminal.shows(|screen| screen.contains(shown));
    }
}

#[test]
fn a_worker_that_stops_or_ends_is_marked_and_its_last_numbers_are_not_shown_again() {
    let Some(terminal) = Terminal::open("ends") else { return };
    let mut watched = Watched::start("ends", "2");
    let _held = connect(&watched.server);
    watch(&terminal, &watched.board, "--interval 100ms");
    terminal.shows(|screen| screen.contains("all 2 workers"));
    let worker = watched.server.processes()[1];
    kill(Pid::from_raw(worker.pid), Signal::SIGSTOP).unwrap();
    terminal.shows(|screen| screen.lines().any(|line| line.starts_with("  0") && line.ends_with("stopped")));
    worker.kill();
    terminal.shows(|screen| screen.lines().any(|line| line.starts_with("  0") && line.ends_with("– ended")));
    held(watched.server.stop());
    let ended = terminal.shows(|screen| screen.contains(" · ended · ") && screen.contains("\nall              0"));
    assert!(ended.lines().any(|line| line.starts_with("all") && line.ends_with('–')), "{ended}");
}

#[test]
fn a_new_server_under_the_same_name_is_followed() {
    let Some(terminal) = Terminal::open("replaced") else { return };
    let mut watched = Watched::start("replaced", "2");
    watch(&terminal, &watched.board, "--interval 100ms");
    terminal.shows(|screen| screen.contains("all 2 workers"));
    let second = watched.board.start(&["--workers", "3"]);
    let screen = terminal.shows(|screen| screen.contains("all 3 workers"));
    assert!(screen.contains("a new server has taken") && screen.contains(&second.addr.to_string()), "{screen}");
    held(watched.server.stop());
}

#[test]
fn a_scoreboard_that_is_cut_short_is_one_line_and_gives_the_terminal_back() {
    let Some(terminal) = Terminal::open("short") else { return };
    let watched = Watched::start("short", "2");
    watch(&terminal, &watched.board, "--interval 100ms");
    terminal.shows(|screen| screen.contains("all 2 workers"));
    // Nobody connects, so the server does not touch what it has lost.
    fs::OpenOptions::new().write(true).open(watched.board.path()).unwrap().set_len(8).unwrap();
    let screen = terminal.shows(|screen| screen.contains("status 1"));
    // The line is longer than the terminal is wide, and may be broken at any blank.
    let told: String = screen.split_whitespace().collect();
    assert!(told.contains("ithasbeencutshortwhileitwaswatched"), "{screen}");
    terminal.is_given_back();
}

#[test]
fn scripts_get_the_counters_as_json_lines() {
    let watched = Watched::start("once", "3");
    watched.load(5);
    // An answer may arrive a moment before it is counted.
    let lines = poll_until(Duration::from_secs(10), || {
        let output = watched.board.watch(&["--once"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let sum = |name: &str| lines[1..].iter().map(|line| line[name].as_u64().unwrap()).sum::<u64>();
        ((sum("accepted"), sum("requests"), sum("active")) == (5, 5, 0)).then_some(lines)
    });
    let lines = lines.expect("five connections and five requests");
    assert_eq!(lines[0]["workers"], 3);
    assert_eq!(lines[0]["listen"][0], watched.server.addr.to_string());
    assert_eq!((lines.len(), &lines[3]["worker"], &lines[3]["state"]), (4, &2.into(), &"running".into()));
}

/// `voluntary_switches` of the whole server per connection, while connections come one after another to idle workers.
fn switches_per_connection(wait: &str) -> f64 {
    let board = Board::new(wait);
    let watched = Watched { server: board.start(&["--workers", "16", "--wait", wait]), board };
    let switches = || {
        let output = watched.board.watch(&["--once"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let server: Value = serde_json::from_str(text.lines().next().expect("a line about the server")).unwrap();
        server["voluntary_switches"].as_u64().expect("the kernel's count")
    };
    let (before, connections) = (switches(), 100);
    one_after_another(&watched.server, connections);
    (switches() - before) as f64 / connections as f64
}

#[test]
fn the_herd_is_seen_in_the_kernels_switches_and_is_gone_with_epollexclusive() {
    let (herd, exclusive) = (switches_per_connection("epoll"), switches_per_connection("epoll-exclusive"));
    assert!(herd >= 8.0 && exclusive <= 3.0, "{herd} and {exclusive} switches per connection");
}

#[test]
fn what_cannot_be_watched_is_one_line_and_no_screen() {
    let mut watched = Watched::start("refused", "2");
    let tell = |output: Output| {
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count(), output.stdout.len()), (Some(1), 1, 0), "{text}");
        text
    };
    assert!(tell(watched.board.watch(&[])).contains("`--once`"));
    held(watched.server.stop());
    assert!(tell(watched.board.watch(&["--once"])).contains("has ended"));

    let odd = Watched { server: start("sync", &[]), board: Board::new("odd") };
    let whole = fs::read(watched.board.path()).unwrap();
    let mut other_version = whole.clone();
    other_version[8] += 1;
    for (content, told) in [
        (&b""[..], "too short"),
        (b"hello", "too short"),
        (&whole[..whole.len() - 8], "rows missing"),
        (&[7; 4096], "not a scoreboard"),
        (&other_version, "another version"),
    ] {
        fs::write(odd.board.path(), content).unwrap();
        let line = tell(odd.board.watch(&["--once"]));
        assert!(line.contains(told), "{line}");
    }
    fs::remove_file(odd.board.path()).unwrap();
    assert!(tell(odd.board.watch(&["--once"])).contains("no such file"));
    let wrong = Command::new(LAB).args(["watch", "--interval", "1ms", "x"]).stderr(Stdio::null()).status();
    assert_eq!(wrong.unwrap().code(), Some(2));
}
