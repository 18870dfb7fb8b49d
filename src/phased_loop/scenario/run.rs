//! A scenario on the loop: each kind of step is one or two of the loop's calls.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ScenarioArgs;
use super::language::{CallbackStep, Scenario, ScenarioStep, TimerStep, TimersStep};
use crate::phased_loop::pool::RequestClass;
use crate::phased_loop::{ObservedEvent, Observer, Phase, PhasedLoop, RunMode};
use crate::sys::epoll::Interest;
use crate::units::{monotonic_ns, time};

/// Node's setTimeout takes no less.
const SHORTEST_TIMER: Duration = Duration::from_millis(1);

const LIMIT: &str = "--limit N";
const TIME_LIMIT: &str = "--time-limit DUR";

/// What is printed of one callback.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct CallbackLine {
    pub phase: Phase,
    pub id: String,
    /// The ids that could as well have come on the other side of this one: whether 1 ms has passed when the loop
    /// starts is not determined, so a timer of 0 or 1 ms comes before or after the rest of the first turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub either: Vec<String>,
}

/// Runs it until nothing is left to wait for, and reports each callback as it runs.
///
/// # Errors
/// What stopped it: a limit, a system call, or the report.
pub fn run(
    scenario: &Scenario,
    args: &ScenarioArgs,
    report: impl FnMut(CallbackLine) -> io::Result<()> + 'static,
) -> io::Result<()> {
    let mut events = PhasedLoop::new(args.pool.threads)?;
    let run = ScenarioRun {
        steps: scenario.every_step().into_iter().filter_map(|step| Some((step.id()?.into(), step.clone()))).collect(),
        args: args.clone(),
        report: Box::new(report),
        timers: BTreeMap::new(),
        callbacks: 0,
        last: None,
        started_ns: monotonic_ns(),
        either: scenario.either.clone(),
        first_turn: Some(FirstTurn::default()),
        failure: None,
    };
    let run = Runner(Rc::new(RefCell::new(run)));
    // A scenario that only waits is given up by a timer, which keeps the loop from nothing.
    let late = run.clone();
    let time_limit = events.observe(Phase::Timers, move |events, _| late.give_up(events, TIME_LIMIT));
    events.start_timer(time_limit, args.time_limit, Duration::ZERO);
    events.set_referenced(time_limit, false);
    run.perform_all(&mut events, &scenario.steps);
    events.run(RunMode::UntilDone)?;
    let failure = run.0.borrow_mut().failure.take();
    failure.map_or(Ok(()), Err)
}

/// What is known of a scenario while it runs.
struct ScenarioRun {
    steps: BTreeMap<String, ScenarioStep>,
    args: ScenarioArgs,
    report: Box<dyn FnMut(CallbackLine) -> io::Result<()>>,
    /// The timers by the id of their step; the one started last, as a variable of a program would hold it.
    timers: BTreeMap<String, Observer>,
    callbacks: u64,
    /// The id of the last one.
    last: Option<String>,
    started_ns: u64,
    either: Vec<[String; 2]>,
    /// What was started before the loop, until the loop runs its first callback.
    first_turn: Option<FirstTurn>,
    /// Once it is there, no callback does anything.
    failure: Option<io::Error>,
}

/// What was started before the loop.
#[derive(Default)]
struct FirstTurn {
    /// Timers of which nobody knows whether they are due when the loop starts.
    timers: BTreeSet<String>,
    /// What runs in the first turn in any case.
    others: BTreeSet<String>,
}

#[derive(Clone)]
struct Runner(Rc<RefCell<ScenarioRun>>);

impl Runner {
    fn perform_all(&self, events: &mut PhasedLoop, steps: &[ScenarioStep]) {
        for step in steps {
            if let Err(error) = self.perform(events, step) {
                let id = step.id().unwrap_or_default();
                self.fail(events, io::Error::new(error.kind(), format!("start {id:?}: {error}")));
            }
        }
    }

    fn perform(&self, events: &mut PhasedLoop, step: &ScenarioStep) -> io::Result<()> {
        if self.0.borrow().failure.is_some() {
            return Ok(());
        }
        self.note_first_turn(step);
        match step {
            ScenarioStep::Timer(timer) => self.start_timer(events, timer),
            ScenarioStep::Timers(timers) => self.start_timers(events, timers),
            ScenarioStep::Immediate(step) => events.queue(Phase::Check, self.callback(step)),
            ScenarioStep::NextTick(step) => events.queue(Phase::NextTick, self.callback(step)),
            ScenarioStep::Microtask(step) => events.queue(Phase::Microtask, self.callback(step)),
            ScenarioStep::Pending(step) => events.queue(Phase::Pending, self.callback(step)),
            ScenarioStep::ReadFile(step) => self.read_file(events, step),
            ScenarioStep::Socket(step) => self.send_to_socket(events, step)?,
            ScenarioStep::Close(step) => {
                let handle = events.observe(Phase::Timers, |_, _| {});
                events.close(handle, self.callback(step));
            }
            ScenarioStep::Idle(step) => {
                let observer = events.observe(Phase::Idle, self.once(step));
                events.start(observer);
            }
            ScenarioStep::Prepare(step) => {
                let observer = events.observe(Phase::Prepare, self.once(step));
                events.start(observer);
            }
            ScenarioStep::Clear(clear) => {
                if let Some(timer) = self.0.borrow_mut().timers.remove(&clear.timer) {
                    events.close(timer, |_| {});
                }
            }
            ScenarioStep::Again(again) => {
                let step = self.0.borrow().steps[&again.step].clone();
                self.perform(events, &step)?;
            }
            ScenarioStep::Spin(spin) => {
                let given_up_ns = self.0.borrow().given_up_ns();
                let until_ns = given_up_ns.min(monotonic_ns() + spin.duration.as_nanos() as u64);
                while monotonic_ns() < until_ns {
                    std::hint::spin_loop();
                }
                // Node reads the clock when a timer starts; our loop would count from before this.
                events.update_time();
            }
        }
        Ok(())
    }

    /// A step that is done before the loop's first callback.
    fn note_first_turn(&self, step: &ScenarioStep) {
        let mut run = self.0.borrow_mut();
        let Some(first_turn) = &mut run.first_turn else { return };
        match step {
            ScenarioStep::Timer(timer) if timer.after <= SHORTEST_TIMER => {
                first_turn.timers.insert(timer.id.clone());
            }
            ScenarioStep::Timers(timers) if timers.within <= SHORTEST_TIMER => {
                first_turn.timers.insert(timers.id.clone());
            }
            ScenarioStep::Clear(clear) => {
                first_turn.timers.remove(&clear.timer);
            }
            // Now they are due for certain.
            ScenarioStep::Spin(spin) if spin.duration >= SHORTEST_TIMER => first_turn.timers.clear(),
            ScenarioStep::Immediate(step)
            | ScenarioStep::Socket(step)
            | ScenarioStep::Close(step)
            | ScenarioStep::Pending(step)
            | ScenarioStep::Idle(step)
            | ScenarioStep::Prepare(step) => {
                first_turn.others.insert(step.id.clone());
            }
            _ => {}
        }
    }

    /// What the loop is to call for a step.
    fn callback(&self, step: &CallbackStep) -> impl FnOnce(&mut PhasedLoop) + 'static {
        let (run, step) = (self.clone(), step.clone());
        move |events| run.call(events, &step.id, &step.then)
    }

    /// The same for an observer that is closed when it has been called.
    fn once(&self, step: &CallbackStep) -> impl FnMut(&mut PhasedLoop, ObservedEvent) + 'static {
        let (run, step) = (self.clone(), step.clone());
        move |events, event| {
            events.close(event.observer, |_| {});
            run.call(events, &step.id, &step.then);
        }
    }

    /// A callback: reports itself, and does what the scenario says.
    fn call(&self, events: &mut PhasedLoop, id: &str, then: &[ScenarioStep]) {
        if self.0.borrow().failure.is_some() {
            return;
        }
        let too_much = self.0.borrow().limit_reached();
        if let Some(option) = too_much {
            return self.give_up(events, option);
        }
        let reported = self.0.borrow_mut().report(events.phase, id);
        match reported {
            Ok(()) => self.perform_all(events, then),
            Err(error) => self.fail(events, error),
        }
    }

    /// `option` is the one that would allow more.
    fn give_up(&self, events: &mut PhasedLoop, option: &str) {
        let run = self.0.borrow();
        let after = time((monotonic_ns() - run.started_ns) as f64 / 1e3);
        let last = run.last.as_ref().map_or("none".into(), |id| format!("the last {id:?}"));
        let line = format!("it has not ended after {after} and {} callbacks, {last}", run.callbacks);
        drop(run);
        let advice = format!("end it with clear, or without again; or allow more with {option}");
        self.fail(events, io::Error::other(format!("{line}; {advice}")));
    }

    fn fail(&self, events: &mut PhasedLoop, error: io::Error) {
        self.0.borrow_mut().failure.get_or_insert(error);
        events.stop();
    }

    fn start_timer(&self, events: &mut PhasedLoop, step: &TimerStep) {
        let (run, callback) = (self.clone(), step.clone());
        let timer = events.observe(Phase::Timers, move |events, event| {
            if !callback.repeat {
                events.close(event.observer, |_| {});
                run.0.borrow_mut().timers.remove(&callback.id);
            }
            run.call(events, &callback.id, &callback.then);
        });
        let after = step.after.max(SHORTEST_TIMER);
        events.start_timer(timer, after, if step.repeat { after } else { Duration::ZERO });
        self.0.borrow_mut().timers.insert(step.id.clone(), timer);
    }

    fn start_timers(&self, events: &mut PhasedLoop, step: &TimersStep) {
        let (left, id) = (Rc::new(Cell::new(step.count.get())), Rc::<str>::from(&*step.id));
        for number in 0..u64::from(step.count.get()) {
            let (run, left, id) = (self.clone(), left.clone(), id.clone());
            let timer = events.observe(Phase::Timers, move |events, event| {
                events.close(event.observer, |_| {});
                left.set(left.get() - 1);
                if left.get() == 0 {
                    run.call(events, &id, &[]);
                }
            });
            // 7919 is a prime number: neighbours are not due one after another.
            let after_ms = 1 + number * 7919 % (step.within.as_millis() as u64).max(1);
            events.start_timer(timer, Duration::from_millis(after_ms), Duration::ZERO);
        }
    }

    fn send_to_socket(&self, events: &mut PhasedLoop, step: &CallbackStep) -> io::Result<()> {
        let sockets = Rc::new(UnixStream::pair()?);
        let (run, step, pair) = (self.clone(), step.clone(), sockets.clone());
        let observer = events.observe(Phase::Poll, move |events, event| {
            // Nothing else is registered with this descriptor, and nothing but the byte is there to be read.
            let _ = events.stop_io(event.observer, &pair.1);
            events.close(event.observer, |_| {});
            run.call(events, &step.id, &step.then);
        });
        let (sender, receiver) = &*sockets;
        events.start_io(observer, receiver, Interest::EPOLLIN)?;
        (&*sender).write_all(b"x")
    }

    /// Work for the pool.
    fn request<T: Send + 'static>(
        &self,
        events: &mut PhasedLoop,
        work: impl FnOnce() -> T + Send + 'static,
        done: impl FnOnce(&mut PhasedLoop, T) + 'static,
    ) {
        let done = |events: &mut PhasedLoop, result: Result<T, _>| {
            done(events, result.expect("nobody cancels it, and it does not panic"));
        };
        if let Err(error) = events.submit(RequestClass::Fast, work, done) {
            self.fail(events, io::Error::new(error.kind(), format!("start a helper thread: {error}")));
        }
    }

    fn read_file(&self, events: &mut PhasedLoop, step: &CallbackStep) {
        let file = self.0.borrow().args.file.clone();
        let (run, step) = (self.clone(), step.clone());
        // A pipe that nobody writes to must not hold up a thread of the pool.
        let open = move || OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file);
        self.request(events, open, move |events, opened| {
            let size = move || opened.and_then(|file: File| Ok((file.metadata()?.len(), file)));
            run.clone().request(events, size, move |events, known| {
                let read = move || known.and_then(|(size, mut file)| read_up_to(&mut file, size).map(|()| file));
                run.clone().request(events, read, move |events, was_read| {
                    let close = move || was_read.map(drop);
                    run.clone().request(events, close, move |events, closed| match closed {
                        Ok(()) => run.call(events, &step.id, &step.then),
                        Err(error) => run.fail(events, io::Error::new(error.kind(), format!("readFile: {error}"))),
                    });
                });
            });
        });
    }
}

impl ScenarioRun {
    fn given_up_ns(&self) -> u64 {
        self.started_ns + self.args.time_limit.as_nanos() as u64
    }

    /// The option that would allow one callback more.
    fn limit_reached(&self) -> Option<&'static str> {
        let is_late = monotonic_ns() > self.given_up_ns();
        if self.callbacks == self.args.limit { Some(LIMIT) } else { is_late.then_some(TIME_LIMIT) }
    }

    fn report(&mut self, phase: Phase, id: &str) -> io::Result<()> {
        if !matches!(phase, Phase::NextTick | Phase::Microtask)
            && let Some(FirstTurn { timers, others }) = self.first_turn.take()
        {
            let pairs = timers.iter().flat_map(|timer| others.iter().map(|other| [timer.clone(), other.clone()]));
            self.either.extend(pairs);
        }
        let others = self.either.iter().filter_map(|[one, other]| match id {
            _ if id == one => Some(other.clone()),
            _ if id == other => Some(one.clone()),
            _ => None,
        });
        self.callbacks += 1;
        self.last = Some(id.into());
        let either = others.collect();
        (self.report)(CallbackLine { phase, id: id.into(), either })
    }
}

/// As much as it had when it was asked for its size, and no more where it has grown since.
fn read_up_to(file: &mut File, size: u64) -> io::Result<()> {
    file.take(size).read_to_end(&mut Vec::new()).map(drop)
}
