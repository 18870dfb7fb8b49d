//! Carries out the events of a matrix while the client measures.
//!
//! The first event happens when the client says that it measures, and none after the measured window (a slowed worker
//! stays slow to the end). Workers are found at the moment of the event, because a master may have replaced them; a
//! worker that is dead then is left alone.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use nix::sys::signal::Signal;

use crate::lab::observe::processes::{Process, children, family};
use crate::lab::plan::events::{Event, Events, InjectedEvent, WorkerChoice};
use crate::scoreboard::{Count, Scoreboard};
use crate::units::monotonic_ns;

/// A slowed worker runs for its share of each period, and is stopped for the rest.
const PERIOD: Duration = Duration::from_millis(50);

/// Where the workers of a server are found.
#[derive(Clone, Copy)]
pub enum Workers {
    /// They are found by their rows.
    Scoreboard(Scoreboard),
    /// They are the children of this process, in the order in which they were started.
    Children(i32),
}

impl Workers {
    /// The server's first process.
    fn server(&self) -> i32 {
        match self {
            Workers::Scoreboard(scoreboard) => scoreboard.pid(),
            Workers::Children(server) => *server,
        }
    }

    fn count(&self) -> usize {
        match self {
            Workers::Scoreboard(scoreboard) => scoreboard.rows(),
            Workers::Children(server) => children(*server).len(),
        }
    }

    /// Those that live, by number. A worker descends from the server: the number of a dead one may belong to any other
    /// process by now.
    fn living(&self) -> Vec<(usize, Process)> {
        match self {
            Workers::Scoreboard(scoreboard) => {
                let family = family(scoreboard.pid());
                let of_row = |worker: usize| {
                    let pid = scoreboard.row(worker).get(Count::Pid) as i32;
                    Some((worker, family.iter().copied().find(|process| process.pid == pid)?))
                };
                (0..scoreboard.rows()).filter_map(of_row).collect()
            }
            Workers::Children(server) => children(*server).into_iter().enumerate().collect(),
        }
    }
}

/// A thread that carries out events beside the measurement. Ending it lets every worker it stopped go on.
pub struct FaultInjector {
    window_is_over: Arc<AtomicBool>,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<Result<Vec<InjectedEvent>, String>>>,
}

impl FaultInjector {
    /// Begins at once. An event may name a worker that the server does not have; that is the error.
    /// `reload` is the signal that asks the server for one.
    pub fn begin(events: &Events, workers: Workers, reload: Signal) -> Result<FaultInjector, String> {
        let rows = workers.count();
        if let Some(worker) = events.largest_worker().filter(|&worker| worker >= rows) {
            return Err(format!("disturb worker {worker}: the server has {rows} workers"));
        }
        let (end, ended) = bounded(0);
        let list = events.list.clone();
        let window_is_over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&window_is_over);
        let thread = std::thread::spawn(move || {
            let (begin, injected, stopped) = (Instant::now(), Vec::new(), Vec::new());
            let mut injection = Injection { workers, reload, window_is_over: is_over, ended, begin, injected, stopped };
            let result = injection.inject_all(&list);
            // Blocks until the measurement has ended.
            let _ = injection.ended.recv();
            result.map(|()| std::mem::take(&mut injection.injected))
        });
        Ok(FaultInjector { window_is_over, end: Some(end), thread: Some(thread) })
    }

    /// The client waits for its last answers: no event happens from now on, and stopped workers stay stopped.
    pub fn end_window(&self) {
        self.window_is_over.store(true, Relaxed);
    }

    /// Ends with the client; an error is an event that could not be carried out.
    pub fn finish(&mut self) -> Result<Vec<InjectedEvent>, String> {
        self.end = None;
        self.thread.take().map_or(Ok(Vec::new()), |thread| thread.join().expect("the events do not panic"))
    }
}

impl Drop for FaultInjector {
    fn drop(&mut self) {
        // The caller reports another failure.
        let _ = self.finish();
    }
}

struct Injection {
    workers: Workers,
    reload: Signal,
    window_is_over: Arc<AtomicBool>,
    /// Never sent to, only closed.
    ended: Receiver<()>,
    begin: Instant,
    injected: Vec<InjectedEvent>,
    stopped: Vec<Process>,
}

impl Injection {
    fn inject_all(&mut self, events: &[Event]) -> Result<(), String> {
        for event in events {
            match event {
                Event::After(time) if self.has_time_left_after(*time) => {}
                Event::After(_) => break,
                Event::Slow { worker, factor } => self.slow(*worker, *factor),
                Event::Every(time, events) => {
                    for event in events.iter().cycle() {
                        if !self.has_time_left_after(*time) {
                            break;
                        }
                        self.inject(event)?;
                    }
                }
                event => self.inject(event)?,
            }
        }
        Ok(())
    }

    /// Waits for so long; false when the measurement ended meanwhile.
    fn has_time_left_after(&self, time: Duration) -> bool {
        self.ended.recv_timeout(time) == Err(RecvTimeoutError::Timeout)
    }

    /// An event that takes no time.
    fn inject(&mut self, event: &Event) -> Result<(), String> {
        if self.window_is_over.load(Relaxed) {
            return Ok(());
        }
        let what = match event {
            Event::Signal(signal, target) => {
                let Some(process) = self.find(*target) else { return Ok(()) };
                process.signal(*signal);
                self.stopped.extend((*signal == Signal::SIGSTOP).then_some(process));
                match signal {
                    Signal::SIGKILL => "kill",
                    Signal::SIGUSR2 => "suicide",
                    _ => "stop",
                }
            }
            Event::Reload => {
                // A server that has ended is left alone, too.
                Process::find(self.workers.server()).iter().for_each(|server| server.signal(self.reload));
                "reload"
            }
            Event::Write(path) => {
                write_time(path)?;
                "write"
            }
            Event::After(_) | Event::Slow { .. } | Event::Every(..) => unreachable!("these take time"),
        };
        let at_ms = self.begin.elapsed().as_millis() as u64;
        self.injected.push(InjectedEvent { at_ms, what: what.to_string() });
        Ok(())
    }

    fn find(&self, target: WorkerChoice) -> Option<Process> {
        let mut living = self.workers.living().into_iter();
        let (_, process) = match target {
            WorkerChoice::Number(wanted) => living.find(|(worker, _)| *worker == wanted),
            WorkerChoice::Any => fastrand::choice(living),
        }?;
        Some(process)
    }

    fn slow(&mut self, worker: usize, factor: u32) {
        let Some(process) = self.find(WorkerChoice::Number(worker)) else { return };
        self.stopped.push(process);
        loop {
            process.signal(Signal::SIGSTOP);
            if !self.has_time_left_after(PERIOD - PERIOD / factor) {
                break;
            }
            process.signal(Signal::SIGCONT);
            if !self.has_time_left_after(PERIOD / factor) {
                break;
            }
        }
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        self.stopped.iter().for_each(|process| process.signal(Signal::SIGCONT));
    }
}

/// Removes the files that these events have written, or may have written. After the server has ended, because to a
/// server that watches the file its end is an event, too.
pub fn remove_files(events: &Events) {
    events.files().for_each(|path| drop(fs::remove_file(path)));
}

/// Writes the time into a file, by rename(2), so that a reader never sees half a value.
fn write_time(path: &Path) -> Result<(), String> {
    let fresh = path.with_extension("fresh");
    let written = fs::write(&fresh, format!("{}\n", monotonic_ns())).and_then(|()| fs::rename(&fresh, path));
    written.map_err(|error| format!("write {}: {error}; name a file in a folder of yours", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan::events::parse;

    #[test]
    fn a_written_file_holds_the_time_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("time");
        let before = monotonic_ns();
        write_time(&path).unwrap();
        let written: u64 = fs::read_to_string(&path).unwrap().trim().parse().unwrap();
        remove_files(&parse(format!("after 1s; every 1s: kill any, write {}", path.display())).unwrap());
        assert!(!path.exists());
        assert!((before..=monotonic_ns()).contains(&written));
        assert!(write_time(Path::new("/nowhere/x")).unwrap_err().contains("/nowhere/x"));
    }
}
