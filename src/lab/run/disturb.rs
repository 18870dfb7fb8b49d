//! What a matrix does to a server while the client measures: `disturb = "stop 0; after 300ms; kill 0"`, or
//! `disturb = "every 1s: kill any"`.
//!
//! The acts begin when the client says that it measures, and none is begun after the measured window (what is slowed stays
//! slow to the end). Workers are found by their rows in the scoreboard at the moment of the act, because a master may have
//! replaced them; who is dead then is left alone. Signals and a file are all that is used, so every server that keeps the
//! contract can be disturbed, and by an ordinary user.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use nix::sys::signal::Signal;

use crate::lab::observe::processes::{Process, family};
use crate::scoreboard::{Count, Scoreboard};
use crate::units::{monotonic_ns, parse_positive_duration};

/// A slowed worker runs for its share of each period, and is stopped for the rest.
const PERIOD: Duration = Duration::from_millis(50);

/// One thing that is done, or a pause before the next.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// SIGSTOP: it hangs, and the kernel still holds its sockets open. SIGKILL: it is gone, and its sockets with it.
    /// SIGUSR2: it behaves as if it had met a fatal error, and tells its master.
    Signal(Signal, Whom),
    /// SIGHUP for the server itself: it is to replace its workers.
    Reload,
    /// It runs for one `factor`-th of the time, from now to the end. The last act.
    Slow {
        worker: usize,
        factor: u32,
    },
    /// The file has a new content at once: the time, in nanoseconds of CLOCK_MONOTONIC.
    Write(PathBuf),
    After(Duration),
    /// One of these each time, in turn, to the end. The last act.
    Every(Duration, Vec<Act>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Whom {
    Worker(usize),
    /// One of those who live, drawn anew each time.
    Any,
}

/// Reads `stop 0; after 300ms; kill 0`, `slow 0 50` or `every 1s: kill any, hup`.
pub fn parse(text: &str) -> Result<Vec<Act>, String> {
    let acts: Vec<Act> = text.split(';').map(|act| parse_one(act.trim())).collect::<Result<_, _>>()?;
    match acts.iter().position(Act::goes_on) {
        Some(place) if place + 1 < acts.len() => {
            Err(format!("{text:?}: nothing can follow `slow` and `every`"))
        }
        _ => Ok(acts),
    }
}

/// Whether the acts of this text have numbers of workers in them.
pub fn names_a_worker(text: &str) -> bool {
    parse(text).is_ok_and(|acts| acts.iter().any(|act| act.worker().is_some()))
}

/// Removes the files that these acts have written. After the server has ended: to who watches one, its end is news.
pub fn clean_up(text: &str) {
    for act in parse(text).iter().flatten() {
        // It may never have been written.
        act.files().into_iter().for_each(|path| drop(fs::remove_file(path)));
    }
}

fn parse_one(act: &str) -> Result<Act, String> {
    let words: Vec<&str> = act.split_whitespace().collect();
    let odd = || {
        format!(
            "{act:?} is no act; write `stop W`, `kill W` or `usr2 W` with a number or `any`, `slow W FACTOR`, `hup`, \
             `write PATH`, `after DUR` or `every DUR: ACT, ACT`"
        )
    };
    let number = |word: &str| word.parse().map_err(|_| odd());
    let whom = |word: &str| if word == "any" { Ok(Whom::Any) } else { number(word).map(Whom::Worker) };
    match words[..] {
        ["stop", worker] => Ok(Act::Signal(Signal::SIGSTOP, whom(worker)?)),
        ["kill", worker] => Ok(Act::Signal(Signal::SIGKILL, whom(worker)?)),
        ["usr2", worker] => Ok(Act::Signal(Signal::SIGUSR2, whom(worker)?)),
        ["hup"] => Ok(Act::Reload),
        ["slow", worker, factor] => {
            let factor = factor.parse().ok().filter(|&factor| factor > 1).ok_or_else(odd)?;
            Ok(Act::Slow { worker: number(worker)?, factor })
        }
        ["write", path] => Ok(Act::Write(path.into())),
        ["after", time] => Ok(Act::After(parse_positive_duration(time)?)),
        ["every", ..] => {
            let (time, acts) = act["every".len()..].split_once(':').ok_or_else(odd)?;
            let acts: Vec<Act> =
                acts.split(',').map(|act| parse_one(act.trim())).collect::<Result<_, _>>()?;
            // What takes its time has no place in a beat.
            let is_short = |act: &Act| !act.goes_on() && !matches!(act, Act::After(_));
            if !acts.iter().all(is_short) {
                return Err(odd());
            }
            Ok(Act::Every(parse_positive_duration(time.trim())?, acts))
        }
        _ => Err(odd()),
    }
}

impl Act {
    /// It lasts to the end of the measurement.
    fn goes_on(&self) -> bool {
        matches!(self, Act::Slow { .. } | Act::Every(..))
    }

    fn files(&self) -> Vec<&Path> {
        match self {
            Act::Write(path) => vec![path],
            Act::Every(_, acts) => acts.iter().flat_map(Act::files).collect(),
            _ => Vec::new(),
        }
    }

    /// The largest number of a worker that it names.
    fn worker(&self) -> Option<usize> {
        match self {
            Act::Signal(_, Whom::Worker(worker)) | Act::Slow { worker, .. } => Some(*worker),
            Act::Every(_, acts) => acts.iter().filter_map(Act::worker).max(),
            _ => None,
        }
    }
}

/// The acts as they are done, beside the measurement. Ending it lets every worker it stopped go on.
pub struct Disturbance {
    window_is_over: Arc<AtomicBool>,
    end: Option<Sender<()>>,
    hand: Option<JoinHandle<Result<(), String>>>,
}

impl Disturbance {
    /// Begins at once.
    ///
    /// # Errors
    /// When an act names a worker that the server does not have.
    pub fn begin(acts: &[Act], scoreboard: Scoreboard) -> Result<Disturbance, String> {
        let (named, rows) = (acts.iter().filter_map(Act::worker).max(), scoreboard.rows());
        if let Some(worker) = named.filter(|&worker| worker >= rows) {
            return Err(format!("disturb worker {worker}: the server has {rows} workers"));
        }
        let (end, ended) = bounded(0);
        let acts = acts.to_vec();
        let window_is_over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&window_is_over);
        let hand = std::thread::spawn(move || {
            let mut hand = Hand { scoreboard, window_is_over: is_over, ended, stopped: Vec::new() };
            let done = hand.act_out(&acts);
            // Blocks until the measurement has ended.
            let _ = hand.ended.recv();
            done
        });
        Ok(Disturbance { window_is_over, end: Some(end), hand: Some(hand) })
    }

    /// The client waits for its last answers: nothing more is done, and what is stopped stays stopped.
    pub fn end_window(&self) {
        self.window_is_over.store(true, Relaxed);
    }

    /// Ends with the client.
    ///
    /// # Errors
    /// When something could not be done: one line.
    pub fn finish(mut self) -> Result<(), String> {
        self.join()
    }

    fn join(&mut self) -> Result<(), String> {
        self.end = None;
        self.hand.take().map_or(Ok(()), |hand| hand.join().expect("the acts do not panic"))
    }
}

impl Drop for Disturbance {
    fn drop(&mut self) {
        // Who drops it has another failure to tell.
        let _ = self.join();
    }
}

struct Hand {
    scoreboard: Scoreboard,
    window_is_over: Arc<AtomicBool>,
    /// Never sent to, only closed.
    ended: Receiver<()>,
    stopped: Vec<Process>,
}

impl Hand {
    fn act_out(&mut self, acts: &[Act]) -> Result<(), String> {
        for act in acts {
            match act {
                Act::After(time) if self.goes_on_after(*time) => {}
                Act::After(_) => break,
                Act::Slow { worker, factor } => self.slow(*worker, *factor),
                Act::Every(time, acts) => {
                    for act in acts.iter().cycle() {
                        if !self.goes_on_after(*time) {
                            break;
                        }
                        self.strike(act)?;
                    }
                }
                act => self.strike(act)?,
            }
        }
        Ok(())
    }

    fn goes_on_after(&self, time: Duration) -> bool {
        self.ended.recv_timeout(time) == Err(RecvTimeoutError::Timeout)
    }

    /// What is done in a moment.
    fn strike(&mut self, act: &Act) -> Result<(), String> {
        if self.window_is_over.load(Relaxed) {
            return Ok(());
        }
        match act {
            Act::Signal(signal, whom) => {
                let Some(process) = self.find(*whom) else { return Ok(()) };
                process.signal(*signal);
                self.stopped.extend((*signal == Signal::SIGSTOP).then_some(process));
            }
            Act::Reload => {
                // A server that has ended is left alone, too.
                Process::find(self.scoreboard.pid()).iter().for_each(|server| server.signal(Signal::SIGHUP));
            }
            Act::Write(path) => write_time(path)?,
            Act::After(_) | Act::Slow { .. } | Act::Every(..) => unreachable!("these take their time"),
        }
        Ok(())
    }

    /// A living worker. Only who descends from the server is one: the number of a dead worker may be anybody's by now.
    fn find(&self, whom: Whom) -> Option<Process> {
        let family = family(self.scoreboard.pid());
        let living = |worker: usize| {
            let pid = self.scoreboard.row(worker).get(Count::Pid) as i32;
            family.iter().copied().find(|process| process.pid == pid)
        };
        match whom {
            Whom::Worker(worker) => living(worker),
            Whom::Any => {
                let living: Vec<Process> = (0..self.scoreboard.rows()).filter_map(living).collect();
                fastrand::choice(living)
            }
        }
    }

    fn slow(&mut self, worker: usize, factor: u32) {
        let Some(process) = self.find(Whom::Worker(worker)) else { return };
        self.stopped.push(process);
        loop {
            process.signal(Signal::SIGSTOP);
            if !self.goes_on_after(PERIOD - PERIOD / factor) {
                break;
            }
            process.signal(Signal::SIGCONT);
            if !self.goes_on_after(PERIOD / factor) {
                break;
            }
        }
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.stopped.iter().for_each(|process| process.signal(Signal::SIGCONT));
    }
}

/// By rename(2), so that nobody ever reads half a value.
fn write_time(path: &Path) -> Result<(), String> {
    let fresh = path.with_extension("fresh");
    let written = fs::write(&fresh, format!("{}\n", monotonic_ns())).and_then(|()| fs::rename(&fresh, path));
    written.map_err(|error| format!("write {}: {error}; name a file in a folder of yours", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acts_are_read_in_order() {
        let acts = parse("stop 0; after 300ms; kill any").unwrap();
        let stop = Act::Signal(Signal::SIGSTOP, Whom::Worker(0));
        let kill = Act::Signal(Signal::SIGKILL, Whom::Any);
        assert_eq!(acts, [stop, Act::After(Duration::from_millis(300)), kill.clone()]);
        assert_eq!(parse("slow 1 50").unwrap(), [Act::Slow { worker: 1, factor: 50 }]);
        let beat = Act::Every(Duration::from_secs(1), vec![kill, Act::Reload]);
        assert_eq!(
            parse("write /tmp/x; every 1s: kill any, hup").unwrap(),
            [Act::Write("/tmp/x".into()), beat]
        );
    }

    #[test]
    fn what_is_no_act_is_refused_with_what_would_be_one() {
        for text in [
            "",
            "stop",
            "stop x",
            "slow 0",
            "slow 0 1",
            "slow any 2",
            "hit 0",
            "stop 0;",
            "hup 0",
            "every 1s",
            "every 1s:",
            "every 1s: slow 0 2",
            "every 1s: after 1s",
        ] {
            assert!(parse(text).unwrap_err().contains("write `stop W`"), "{text}");
        }
        assert!(parse("every 0s: hup").is_err());
        for text in ["slow 0 50; kill 0", "every 1s: hup; kill 0"] {
            assert!(parse(text).unwrap_err().contains("nothing can follow"));
        }
    }

    #[test]
    fn the_largest_number_that_is_named_is_known() {
        let named = |text: &str| parse(text).unwrap().iter().filter_map(Act::worker).max();
        assert_eq!(named("kill 2; every 1s: kill 5, usr2 any"), Some(5));
        assert_eq!(named("kill any; hup"), None);
    }

    #[test]
    fn a_written_file_holds_the_time_until_it_is_removed() {
        let path = std::env::temp_dir().join(format!("acceptlab-write-{}", std::process::id()));
        let before = monotonic_ns();
        write_time(&path).unwrap();
        let written: u64 = fs::read_to_string(&path).unwrap().trim().parse().unwrap();
        clean_up(&format!("after 1s; every 1s: kill any, write {}", path.display()));
        assert!(!path.exists());
        assert!((before..=monotonic_ns()).contains(&written));
        assert!(write_time(Path::new("/nowhere/x")).unwrap_err().contains("/nowhere/x"));
    }
}
