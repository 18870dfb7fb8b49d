//! `lab watch`: a running server's counters on the terminal, a bar per worker.
//!
//! [`sample`] reads the server's counters, [`rates`] makes rates of two samples, [`view`] and [`overview`] draw them;
//! here are the terminal, the keys and the clock between them. The terminal is given back however this ends: a key, a
//! signal, an error, a panic.

mod overview;
mod rates;
mod sample;
mod view;

use std::io::{self, IsTerminal, Write, stdout};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, select, unbounded};
use serde_json::json;

use crate::failure::Failure;
use crate::keyboard::{Key, Keyboard};
use crate::lab::program::{Interrupt, Stop};
use crate::terminal::{Paint, Screen};
use crate::units::parse_duration;
use rates::View;
pub use rates::is_herd;
use sample::{Look, WatchedServer};

/// A shorter interval shows the eye no more, and costs the terminal CPU time.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(50);

pub fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        interval if interval < SHORTEST_INTERVAL => Err("the shortest interval is 50ms".to_string()),
        interval => Ok(interval),
    }
}

/// Prints the counters as they are now: a line about the server, a line for each worker.
pub fn print_once(path: &Path) -> Result<(), String> {
    let server = WatchedServer::open(path).map_err(|failure| failure.to_string())?;
    let now = server.sample();
    let server = json!({
        "server": server.command,
        "pid": server.pid(),
        "listen": server.addresses,
        "uptime_s": now.uptime_s,
        "workers": now.workers.len(),
        "voluntary_switches": now.switches,
    });
    let mut text = format!("{server}\n");
    for worker in &now.workers {
        text += &(serde_json::to_string(worker).expect("a plain struct serializes") + "\n");
    }
    // A reader that closes the pipe has seen enough.
    let _ = stdout().write_all(text.as_bytes());
    Ok(())
}

/// Shows the counters until a key or a signal ends it.
pub fn run(path: &Path, interval: Duration, interrupt: &Interrupt) -> Result<(), Stop> {
    let failed = |failure: Failure| Stop::Failed(failure.to_string());
    if !stdout().is_terminal() {
        let why = "show the bars: standard output is no terminal; `--once` prints the counters as JSON lines";
        return Err(Stop::Failed(why.to_string()));
    }
    let mut server = WatchedServer::open(path).map_err(failed)?;
    let mut screen = Screen::take(&stdout()).map_err(|error| failed(Failure::new("take over the terminal", error)))?;
    let keys = keys().map_err(|error| failed(Failure::new("open the keyboard", error)))?;
    let (mut earlier, mut now) = (None, server.sample());
    let (mut first, mut notice) = (0, None);
    let mut is_overview = now.workers.len() > View::room(screen.size().1);
    let mut due = Instant::now() + interval;
    loop {
        let (width, height) = screen.size();
        let mut view = View::of(&server, earlier.as_ref(), &now, interval);
        view.notice = notice;
        view.paint = Paint::on(&stdout());
        view.is_overview = is_overview;
        let page = view.page(width, height);
        view.scroll(first, page);
        first = view.first;
        let drawn = screen.draw(|frame| view::draw(frame, &view));
        drawn.map_err(|error| failed(Failure::new("draw on the terminal", error)))?;

        select! {
            recv(interrupt) -> _ => return Err(Stop::Interrupted),
            recv(keys) -> key => match key {
                Err(_) | Ok(Key::Quit) => return Ok(()),
                Ok(Key::Tab) => is_overview = !is_overview,
                Ok(key) => first = key.scroll(first, page),
            },
            recv(after(due.saturating_duration_since(Instant::now()))) -> _ => {
                (earlier, now, notice) = match server.look().map_err(failed)? {
                    Look::Seen(sample) => (Some(now), sample, notice),
                    Look::Replaced(sample) => (None, sample, Some("a new server has taken the scoreboard's name")),
                };
                due = Instant::now() + interval;
            }
        }
    }
}

/// The thread that reads the keys ends with the process, or with the terminal.
pub fn keys() -> io::Result<Receiver<Key>> {
    let mut keyboard = Keyboard::open()?;
    let (sender, receiver) = unbounded();
    thread::spawn(move || {
        while let Ok(keys) = keyboard.read(None) {
            if keys.into_iter().any(|key| sender.send(key).is_err()) {
                return;
            }
        }
    });
    Ok(receiver)
}
