//! What a matrix does to a server's workers while the client measures: `disturb = "stop 0; after 300ms; kill 0"`.
//!
//! The acts begin when the client says that it measures. Workers are found by their rows in the scoreboard, and
//! signals are all that is used, so every server that keeps the contract can be disturbed, and by an ordinary user.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use nix::sys::signal::Signal;

use crate::lab::processes::Process;
use crate::scoreboard::{Count, Scoreboard};
use crate::units::parse_duration;

/// A slowed worker runs for its share of each period, and is stopped for the rest.
const PERIOD: Duration = Duration::from_millis(50);

/// One thing that is done to a worker, or a pause before the next.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// SIGSTOP: it hangs, and the kernel still holds its sockets open.
    Stop(usize),
    /// SIGKILL: it is gone, and its sockets with it.
    Kill(usize),
    /// It runs for one `factor`-th of the time, from now to the end. The last act.
    Slow {
        worker: usize,
        factor: u32,
    },
    After(Duration),
}

/// Reads `stop 0; after 300ms; kill 0` or `slow 0 50`.
pub fn parse(text: &str) -> Result<Vec<Act>, String> {
    let acts: Vec<Act> = text.split(';').map(|act| parse_one(act.trim())).collect::<Result<_, _>>()?;
    match acts.iter().position(|act| matches!(act, Act::Slow { .. })) {
        Some(place) if place + 1 < acts.len() => Err(format!("{text:?}: nothing can follow `slow`")),
        _ => Ok(acts),
    }
}

fn parse_one(act: &str) -> Result<Act, String> {
    let words: Vec<&str> = act.split_whitespace().collect();
    let odd = || format!("{act:?} is no act; write `stop W`, `kill W`, `slow W FACTOR` or `after DUR`");
    let number = |word: &str| word.parse().map_err(|_| odd());
    match words[..] {
        ["stop", worker] => Ok(Act::Stop(number(worker)?)),
        ["kill", worker] => Ok(Act::Kill(number(worker)?)),
        ["slow", worker, factor] => {
            let factor = factor.parse().ok().filter(|&factor| factor > 1).ok_or_else(odd)?;
            Ok(Act::Slow { worker: number(worker)?, factor })
        }
        ["after", time] => Ok(Act::After(parse_duration(time)?)),
        _ => Err(odd()),
    }
}

/// The acts as they are done, beside the measurement. Ending it lets every worker it stopped go on.
pub struct Disturbance {
    end: Option<Sender<()>>,
    hand: Option<JoinHandle<()>>,
}

impl Disturbance {
    /// Begins at once.
    ///
    /// # Errors
    /// When an act names a worker that the server does not have.
    pub fn begin(acts: &[Act], scoreboard: Scoreboard) -> Result<Disturbance, String> {
        let process = |worker: usize| {
            if worker >= scoreboard.rows() {
                return Err(format!("disturb worker {worker}: the server has {} workers", scoreboard.rows()));
            }
            let pid = scoreboard.row(worker).get(Count::Pid) as i32;
            Process::find(pid).ok_or(format!("disturb worker {worker}: there is no process {pid}"))
        };
        let steps = acts
            .iter()
            .map(|act| {
                Ok(match *act {
                    Act::Stop(worker) => Step::Signal(process(worker)?, Signal::SIGSTOP),
                    Act::Kill(worker) => Step::Signal(process(worker)?, Signal::SIGKILL),
                    Act::Slow { worker, factor } => Step::Slow(process(worker)?, factor),
                    Act::After(time) => Step::Pause(time),
                })
            })
            .collect::<Result<Vec<Step>, String>>()?;
        let (end, ended) = bounded(0);
        let hand = std::thread::spawn(move || act_out(&steps, &ended));
        Ok(Disturbance { end: Some(end), hand: Some(hand) })
    }
}

impl Drop for Disturbance {
    fn drop(&mut self) {
        self.end = None;
        if let Some(hand) = self.hand.take() {
            let _ = hand.join();
        }
    }
}

enum Step {
    Signal(Process, Signal),
    Slow(Process, u32),
    Pause(Duration),
}

fn act_out(steps: &[Step], ended: &Receiver<()>) {
    // True while the measurement goes on: the channel is never sent to, only closed.
    let goes_on_after = |time: Duration| ended.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
    let mut stopped = Vec::new();
    for step in steps {
        match *step {
            Step::Signal(process, signal) => {
                process.signal(signal);
                stopped.push(process);
            }
            Step::Pause(time) if goes_on_after(time) => {}
            Step::Pause(_) => break,
            Step::Slow(process, factor) => {
                stopped.push(process);
                loop {
                    process.signal(Signal::SIGSTOP);
                    if !goes_on_after(PERIOD - PERIOD / factor) {
                        break;
                    }
                    process.signal(Signal::SIGCONT);
                    if !goes_on_after(PERIOD / factor) {
                        break;
                    }
                }
            }
        }
    }
    // Blocks until the measurement has ended.
    let _ = ended.recv();
    stopped.into_iter().for_each(|process| process.signal(Signal::SIGCONT));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acts_are_read_in_order() {
        let acts = parse("stop 0; after 300ms; kill 0").unwrap();
        assert_eq!(acts, [Act::Stop(0), Act::After(Duration::from_millis(300)), Act::Kill(0)]);
        assert_eq!(parse("slow 1 50").unwrap(), [Act::Slow { worker: 1, factor: 50 }]);
    }

    #[test]
    fn what_is_no_act_is_refused_with_what_would_be_one() {
        for text in ["", "stop", "stop x", "slow 0", "slow 0 1", "hit 0", "stop 0;"] {
            assert!(parse(text).unwrap_err().contains("write `stop W`"), "{text}");
        }
        assert!(parse("slow 0 50; kill 0").unwrap_err().contains("nothing can follow"));
    }
}
