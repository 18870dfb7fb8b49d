//! What a manager writes and says: the logs of applications, its sockets and its list; and what it costs while nothing
//! happens.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid};
use serde_json::{Value, json};

use super::manager::{ExecMode, Manager};
use super::{Measured, Numbers, numbers};
use crate::failure::Failure;
use crate::lab::observe::processes::{Process, family};
use crate::lab::program::{Stop, on_path};
use crate::stats;
use crate::sys::procfs::{resident_kib, voluntary_switches};

const WITHIN: Duration = Duration::from_secs(60);
const MIB: f64 = 1024.0;
/// Processes that are killed, one after another.
const KILLS: usize = 5;
/// The number of the user `nobody`, on Debian and elsewhere.
const NOBODY: u32 = 65534;

/// Processes write lines into one log, which is renamed again and again.
pub fn logs(manager: &Manager, writers: usize, lines_per_minute: u32, duration: Duration, rotations: u32) -> Measured {
    let per_second = f64::from(lines_per_minute) / 60.0 / writers as f64;
    let lines = (per_second * duration.as_secs_f64()).round() as u64;
    let (folder, log) = (manager.folder().to_string_lossy(), manager.path("lines.log"));
    let args = [&*folder, &lines.to_string(), &per_second.to_string()];
    let keys = json!({"exec_mode": ExecMode::Fork, "instances": writers, "merge_logs": true, "out_file": log});
    manager.start(&[manager.app("writer", "write-lines.js", &args, keys)])?;
    let (begin, daemon) = (Instant::now(), manager.daemon()?);
    let is_done = |number: usize| manager.path(&format!("done-{number}")).exists();
    let (mut files, mut sizes) = (Vec::new(), Vec::new());
    while !(0..writers).all(is_done) {
        if begin.elapsed() > duration * 3 + WITHIN {
            return Err(Stop::Failed(format!("the lines were not written within {:?}", begin.elapsed())));
        }
        manager.pause_until(Instant::now() + Duration::from_millis(100))?;
        // Without the first tenth, in which it has started everything.
        if begin.elapsed() > duration / 10 {
            sizes.extend(resident_kib(daemon.pid));
        }
        if (files.len() as u32) < rotations && begin.elapsed() > duration * (files.len() as u32 + 1) / (rotations + 1) {
            files.push(manager.path(&format!("lines.log.{}", files.len() + 1)));
            let renamed = fs::rename(&log, files.last().expect("it was pushed"));
            renamed.map_err(|error| Failure::new(format_args!("rename {}", log.display()), error).to_string())?;
            manager.reopen_logs()?;
        }
    }
    let took = begin.elapsed();
    files.push(log);
    // What was written last is on its way through the manager, until the files no longer grow.
    let length = || files.iter().filter_map(|file| Some(fs::metadata(file).ok()?.len())).sum::<u64>();
    let mut last = (length(), Instant::now());
    manager.await_value(WITHIN, "the last line", || {
        let now = length();
        if now != last.0 {
            last = (now, Instant::now());
        }
        Ok((last.1.elapsed() > Duration::from_secs(1)).then_some(()))
    })?;
    let kept = KeptLines::read(&files, writers)?;
    let unseen = || Stop::Failed("the memory of the daemon was never seen".to_string());
    let (&first, &most) = sizes.first().zip(sizes.iter().max()).ok_or_else(unseen)?;
    let written = lines * writers as u64;
    Ok(numbers([
        ("lines_written", written as f64),
        ("lines_per_minute", 60.0 * written as f64 / took.as_secs_f64()),
        ("lines_lost", written.saturating_sub(kept.whole) as f64),
        ("lines_broken", kept.broken as f64),
        ("lines_out_of_order", kept.out_of_order as f64),
        ("log_rotations", (files.len() - 1) as f64),
        ("daemon_rss_mib", most as f64 / MIB),
        ("daemon_growth_mib", most.saturating_sub(first) as f64 / MIB),
    ]))
}

/// What logs hold of the lines that were written (experiments/watchmen/write-lines.js).
struct KeptLines {
    whole: u64,
    broken: u64,
    out_of_order: u64,
}

impl KeptLines {
    fn read(files: &[PathBuf], writers: usize) -> Result<KeptLines, Stop> {
        let mut kept = KeptLines { whole: 0, broken: 0, out_of_order: 0 };
        let mut next = vec![0; writers];
        for path in files {
            let failed = |error| Failure::new(format_args!("read {}", path.display()), error).to_string();
            let file = fs::File::open(path).map_err(failed)?;
            for line in BufReader::new(file).split(b'\n') {
                kept.take(&line.map_err(failed)?, &mut next);
            }
        }
        Ok(kept)
    }

    fn take(&mut self, line: &[u8], next: &mut [u64]) {
        match parse_line(line).filter(|(writer, _)| *writer < next.len()) {
            None => self.broken += 1,
            Some((writer, number)) => {
                self.whole += 1;
                self.out_of_order += u64::from(number < next[writer]);
                next[writer] = next[writer].max(number + 1);
            }
        }
    }
}

/// The writer and the number of a line, if it is whole.
fn parse_line(line: &[u8]) -> Option<(usize, u64)> {
    let mut parts = std::str::from_utf8(line).ok()?.splitn(3, ' ');
    let (writer, number) = (parts.next()?.parse().ok()?, parts.next()?.parse::<u64>().ok()?);
    let rest = parts.next()?;
    let is_whole = rest.len() as u64 == 10 + 7 * number % 113 && rest.bytes().all(|byte| byte == b'x');
    is_whole.then_some((writer, number))
}

/// Whom the sockets of the manager let in.
pub fn sockets(manager: &Manager) -> Measured {
    let apps = [manager.app(
        "web",
        "server.js",
        &[],
        json!({"exec_mode": ExecMode::Cluster, "instances": 1, "env": {"PORT": 0}}),
    )];
    manager.start(&apps)?;
    let sockets = manager.sockets();
    let is_open = |path: &&PathBuf| fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o077 != 0);
    let open = sockets.iter().filter(is_open).count();
    let mut found = numbers([("sockets", sockets.len() as f64), ("sockets_open", open as f64)]);
    // Only root may become somebody else.
    if Uid::effective().is_root() && on_path("setpriv").is_some() {
        let connect = manager.program_file("connect.js");
        let group = Gid::effective();
        let stranger = format!("setpriv --reuid {NOBODY} --regid {group} --clear-groups node");
        let paths = sockets.iter().map(|path| path.to_string_lossy());
        let words: Vec<String> = [connect.to_string_lossy()].into_iter().chain(paths).map(String::from).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let text = manager.launch_other(&stranger, &words)?.finish(WITHIN, |_| ())?;
        found.extend([("strangers_admitted".to_string(), number_in(&text, "admitted")?)]);
    }
    Ok(found)
}

/// A program that reads PM2's list reads this one.
pub fn jlist(manager: &Manager) -> Measured {
    let server = |name: &str, mode: ExecMode| {
        let keys = json!({"exec_mode": mode, "instances": 1, "env": {"PORT": 0}});
        manager.app(name, "server.js", &[], keys)
    };
    manager.start(&[server("alone", ExecMode::Fork), server("shared", ExecMode::Cluster)])?;
    manager.await_value(WITHIN, "both online", || Ok((manager.count("online")? == 2).then_some(())))?;
    let file = manager.path("jlist.json");
    manager.write(&file, &manager.jlist()?)?;
    let reader = format!("node {}", manager.program_file("read-jlist.js").display());
    let text = manager.launch_other(&reader, &[&file.to_string_lossy()])?.finish(WITHIN, |_| ())?;
    Ok(numbers([("keys_read", number_in(&text, "keys_read")?), ("keys_wrong", number_in(&text, "keys_wrong")?)]))
}

fn number_in(text: &str, key: &str) -> Result<f64, Stop> {
    let value: Option<Value> = serde_json::from_str(text).ok();
    value.and_then(|value| value[key].as_f64()).ok_or_else(|| Stop::Failed(format!("there is no {key:?} in {text:?}")))
}

/// With so many applications that sleep: what the daemon costs meanwhile, and how long commands take.
pub fn idle(manager: &Manager, applications: usize, duration: Duration) -> Measured {
    let sleeper = |number: usize| json!({"name": format!("sleep-{number}"), "script": "sleep", "args": "1000", "interpreter": "none", "exec_mode": ExecMode::Fork});
    let begin = Instant::now();
    manager.start(&(0..applications).map(sleeper).collect::<Vec<Value>>())?;
    let started = begin.elapsed();
    let mut lists = Vec::new();
    for _ in 0..5 {
        let begin = Instant::now();
        manager.output(&["list"])?;
        lists.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    let daemon = manager.daemon()?;
    let unseen = || Stop::Failed("the daemon has ended while nothing happened".to_string());
    let switches = || voluntary_switches(daemon.pid).map(|switches| switches as f64).ok_or_else(unseen);
    let before = switches()?;
    manager.pause_until(Instant::now() + duration)?;
    let wakeups: Numbers = numbers([("daemon_wakeups", (switches()? - before) / duration.as_secs_f64())]);
    let rss = resident_kib(daemon.pid).ok_or_else(unseen)? as f64 / MIB;
    let begin = Instant::now();
    manager.start(&[sleeper(applications)])?;
    let one = begin.elapsed().as_secs_f64() * 1e3;
    let killed = manager.list()?.iter().take(KILLS).filter_map(|entry| Process::find(entry.pid)).collect::<Vec<_>>();
    let restarts = killed.iter().map(|process| restart_ms(manager, &daemon, process)).collect::<Result<Vec<_>, _>>()?;
    Ok(wakeups
        .into_iter()
        .chain(numbers([
            ("daemon_rss_mib", rss),
            ("list_ms", stats::median(&lists).unwrap_or(0.0)),
            ("restart_ms", stats::median(&restarts).ok_or_else(unseen)?),
            ("start_ms", one),
            ("start_all_ms", started.as_secs_f64() * 1e3),
        ]))
        .collect())
}

/// Kills a process of the daemon's, and waits until it has another one.
fn restart_ms(manager: &Manager, daemon: &Process, process: &Process) -> Result<f64, Stop> {
    let before = family(daemon.pid);
    let begin = Instant::now();
    process.kill();
    let is_back = || family(daemon.pid).iter().any(|process| !before.contains(process));
    manager.await_value(WITHIN, "the next process", || Ok(is_back().then(|| begin.elapsed().as_secs_f64() * 1e3)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_whole_broken_or_out_of_order() {
        let line = |writer: usize, number: u64| {
            let length = 10 + 7 * number as usize % 113;
            format!("{writer} {number} {}", "x".repeat(length)).into_bytes()
        };
        let mut kept = KeptLines { whole: 0, broken: 0, out_of_order: 0 };
        let mut next = [0, 0];
        let half = line(0, 1)[..5].to_vec();
        for line in [line(0, 0), line(1, 0), half, line(0, 2), line(0, 1), line(7, 0), b"\xff".to_vec()] {
            kept.take(&line, &mut next);
        }
        assert_eq!((kept.whole, kept.broken, kept.out_of_order, next), (4, 3, 1, [3, 1]));
    }
}
