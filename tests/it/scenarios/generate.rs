//! Random scenarios whose order is determined, in Node as here. A scenario is a chain of sections. What a section
//! starts is over after at most three turns of the loop, and then at most one thing goes on: a file is read, or timers
//! run out. So nothing is ever compared that only the clock or a helper thread decides:
//!
//! - a file that is read takes four requests to the pool, and so at least three turns and a part: more than the rest;
//! - timers that are started together are due together; others are due at least two units of time before or after;
//! - timers that are due in the same turn as other callbacks are so for certain, because the callback that started them
//!   stays busy until then (but not in a timer's callback: Node then waits for another millisecond, whatever is due);
//! - timer 0 and what else runs in the first turn are left out: `event-loop` calls that "either".

use std::time::Duration;

use acceptlab::phased_loop::scenario::{CallbackStep, ClearStep, Scenario, ScenarioStep, SpinStep, TimerStep};

/// One turn each, see the module.
const DEEPEST: u32 = 3;

/// The scenario of a seed. Its timers' delays are whole numbers of `unit_ms`, its shape is the same for every unit.
pub fn scenario(seed: u64, unit_ms: u64) -> Scenario {
    let mut generator = Generator { random: fastrand::Rng::with_seed(seed), unit_ms, ids: 0 };
    let steps = generator.section(Place::Main, 2);
    Scenario { about: format!("seed {seed}"), steps, either: Vec::new() }
}

/// In which phase the callback runs whose steps are drawn; a tick's and a microtask's is that of what came before.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Main,
    Timers,
    Other,
}

struct Generator {
    random: fastrand::Rng,
    unit_ms: u64,
    ids: u32,
}

impl Generator {
    /// The steps of one callback, and what is waited for after them, at most `waits` times.
    fn section(&mut self, place: Place, waits: u32) -> Vec<ScenarioStep> {
        let mut steps = self.quick(DEEPEST);
        let wait = match self.random.u32(0..5) {
            0 if waits > 0 => vec![self.read_file(waits - 1)],
            1 | 2 if waits > 0 => self.timers(waits - 1),
            3 if place != Place::Timers => self.late_timers(),
            _ => Vec::new(),
        };
        let at = self.random.usize(0..=steps.len());
        let wait = if self.random.bool() || wait.is_empty() { wait } else { vec![self.wrapped(wait)] };
        steps.splice(at..at, wait);
        steps
    }

    /// Callbacks that need no time, at most `depth` within each other.
    fn quick(&mut self, depth: u32) -> Vec<ScenarioStep> {
        if depth == 0 {
            return Vec::new();
        }
        let steps = self.random.u32(0..=[0, 1, 2, 4][depth as usize]);
        (0..steps).map(|_| self.quick_step(depth)).collect()
    }

    fn quick_step(&mut self, depth: u32) -> ScenarioStep {
        let kind = self.random.u32(0..6);
        let mut step = |prefix: &str| {
            let id = self.id(prefix);
            CallbackStep { id, then: self.quick(depth - 1) }
        };
        match kind {
            0 => ScenarioStep::NextTick(step("n")),
            1 => ScenarioStep::Microtask(step("m")),
            2 => ScenarioStep::Socket(step("s")),
            3 => ScenarioStep::Close(step("c")),
            _ => ScenarioStep::Immediate(step("i")),
        }
    }

    /// These steps in the callback of another one.
    fn wrapped(&mut self, steps: Vec<ScenarioStep>) -> ScenarioStep {
        let kind = self.random.u32(0..5);
        let step = |prefix: &str| CallbackStep { id: self.id(prefix), then: steps };
        match kind {
            0 => ScenarioStep::NextTick(step("n")),
            1 => ScenarioStep::Microtask(step("m")),
            2 => ScenarioStep::Socket(step("s")),
            3 => ScenarioStep::Close(step("c")),
            _ => ScenarioStep::Immediate(step("i")),
        }
    }

    fn read_file(&mut self, waits: u32) -> ScenarioStep {
        let id = self.id("f");
        ScenarioStep::ReadFile(CallbackStep { id, then: self.section(Place::Other, waits) })
    }

    /// One to three timers of one delay, then perhaps one of a longer delay. The last one's callback goes on. One of
    /// them may clear a later one, which then never runs.
    fn timers(&mut self, waits: u32) -> Vec<ScenarioStep> {
        let count = self.random.u64(1..=3);
        let delay = self.random.u64(1..=2) * 2;
        let longer = if self.random.bool() { self.random.u64(1..=2) * 2 } else { 0 };
        let mut timers: Vec<TimerStep> = (0..count).map(|_| self.timer(delay * self.unit_ms)).collect();
        if longer > 0 {
            timers.push(self.timer((delay + longer) * self.unit_ms));
        }
        let last = timers.len() - 1;
        if last > 1 && self.random.bool() {
            let clear = ScenarioStep::Clear(ClearStep { timer: timers[last - 1].id.clone() });
            let tick = CallbackStep { id: self.id("n"), then: vec![clear.clone()] };
            let clear = if self.random.bool() { ScenarioStep::NextTick(tick) } else { clear };
            timers[0].then.push(clear);
        }
        timers[last].then = self.section(Place::Timers, waits);
        // The longer one may be started first: it is due later all the same.
        if longer > 0 && self.random.bool() {
            timers.rotate_right(1);
        }
        timers.into_iter().map(ScenarioStep::Timer).collect()
    }

    /// Timers of 1 ms, perhaps one of 3 ms, and a callback that stays busy until all of them are due.
    fn late_timers(&mut self) -> Vec<ScenarioStep> {
        let mut timers: Vec<TimerStep> = (0..self.random.u32(1..=3)).map(|_| self.timer(1)).collect();
        if self.random.bool() {
            let longer = self.timer(3);
            timers.insert(self.random.usize(0..=timers.len()), longer);
        }
        let spin = ScenarioStep::Spin(SpinStep { duration: Duration::from_millis(5) });
        timers.into_iter().map(ScenarioStep::Timer).chain([spin]).collect()
    }

    fn timer(&mut self, after_ms: u64) -> TimerStep {
        let id = self.id("t");
        TimerStep { id, after: Duration::from_millis(after_ms), repeat: false, then: self.quick(2) }
    }

    fn id(&mut self, prefix: &str) -> String {
        self.ids += 1;
        format!("{prefix}{}", self.ids)
    }
}
