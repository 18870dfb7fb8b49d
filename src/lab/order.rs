//! `lab order`: connections come one after another to workers that are all idle. Which worker takes each, and by which
//! rule?

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::check::client::served;
use crate::lab::observe::processes::{Process, family};
use crate::lab::program::{Interrupt, Program, Stop};
use crate::report::{LoadReport, ServerReport};

/// A rule is accepted when at least this share of the connections follows it.
const NEARLY_ALL: f64 = 0.95;

/// With at least this share a rule is named although there are exceptions. A loaded die gives its favourite less.
const MOST: f64 = 0.8;

/// As much agreement with the round before makes a rotation that has exceptions: one exception breaks two agreements.
const MOST_AGREEMENTS: f64 = 0.6;

/// More standard deviations than these are not explained by chance: two sides of a normal, one in a thousand.
const Z_LIMIT: f64 = 3.3;

/// With fewer agreements to be expected by chance, the normal approximation does not hold.
const EXPECTED_AGREEMENTS: f64 = 10.0;

/// How often another worker is made the last to fall asleep, to see whether the favourite stays the favourite.
const PROBES: usize = 5;

/// Lines of sixteen rounds that are printed.
const LINES: usize = 8;

/// Starts and stops may take this long; the run itself is known.
const START_STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// The workers that took the connections, in the order in which these came.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    pub takers: Vec<u32>,
    /// Workers of the server, those that took nothing included.
    pub workers: usize,
    /// Where one worker takes nearly all: for each time that another was made the last to fall asleep, whether that
    /// other one took the next connection.
    pub last_to_sleep_took: Vec<bool>,
}

/// The rule behind an order.
#[derive(Debug, Clone, PartialEq)]
pub enum OrderPattern {
    /// Every worker in turn, in this cycle.
    RoundRobin(Vec<u32>),
    /// The same with exceptions: the cycle that is seen most often, and its share.
    MostlyRoundRobin {
        cycle: Vec<u32>,
        share: f64,
    },
    /// Every worker once in each round, in an order that changes.
    ShuffledRounds,
    /// One worker takes everything while it is idle, even after another has fallen asleep later.
    Priority(u32),
    /// The worker that fell asleep last is woken first; while nothing else happens, that is always the same one.
    LastInFirstOut(u32),
    /// One worker takes everything, by an unknown rule: the workers are one process, or the last to fall asleep took
    /// over at some times and not at others.
    Favourite(u32),
    /// One worker takes most, with exceptions.
    Mostly {
        worker: u32,
        share: f64,
    },
    /// Each connection is independent of those before it.
    Random,
    /// Too few connections to know the rule.
    TooFew,
    Unnamed,
}

/// Starts the server, sends it so many connections at this rate, and reads which worker answered each.
pub fn observe(command: &[String], connections: u32, rate: u32, interrupt: &Interrupt) -> Result<Order, Stop> {
    let program = Program::new(command).until(interrupt);
    let mut server = program.launch(&["--listen", "127.0.0.1:0"])?;
    let address = server.await_ready(START_STOP_TIMEOUT).map_err(|why| why.stop(program.name()))?;
    let client = format!(
        "loadgen --connections 1 --requests-per-connection 1 --requests {connections} --rate {rate} \
         --show answers:{connections} --format json http://{address}/"
    );
    let mut client = Program::of(&client).until(interrupt).launch(&[])?;
    let length = Duration::from_secs(u64::from(connections / rate.max(1)));
    let document = client.finish(length + START_STOP_TIMEOUT, |_| ())?;
    let load: LoadReport = client.parse(&document)?;
    if load.errors.total() > 0 {
        return Err(Stop::Failed(format!("{} of {connections} connections failed", load.errors.total())));
    }
    let takers: Option<Vec<u32>> = load.trace.iter().map(|answer| answer.worker).collect();
    let takers = takers.ok_or("the answers do not name their worker (X-Worker)".to_string())?;
    let last_to_sleep_took = match favourite(&takers) {
        Some(_) => wake_the_others(server.pid(), &address)?,
        None => Vec::new(),
    };
    server.signal(Signal::SIGTERM);
    let document = server.finish(START_STOP_TIMEOUT, |_| ())?;
    let report: ServerReport = server.parse(&document)?;
    Ok(Order { takers, workers: report.workers.len(), last_to_sleep_took })
}

/// The worker that took nearly all.
fn favourite(takers: &[u32]) -> Option<u32> {
    let nearly_all = (NEARLY_ALL * takers.len() as f64).ceil() as usize;
    let share = |worker: u32| takers.iter().filter(|&&taker| taker == worker).count();
    takers.iter().copied().find(|&worker| share(worker) >= nearly_all)
}

/// Priority and last-in-first-out look alike while the favourite is always the last to have fallen asleep, because it
/// is the only one that ever wakes. So another worker is stopped and resumed, which takes it out of its wait and puts
/// it back (signal(7)); then the next connection shows the rule. Workers that are one process show nothing.
fn wake_the_others(server: i32, address: &str) -> Result<Vec<bool>, Stop> {
    let failed = |what: String| Stop::Failed(format!("wake a worker of {address}: {what}"));
    let address: SocketAddr = address.parse().map_err(|error| failed(format!("{error}")))?;
    let taker = || -> Result<i32, Stop> {
        let answer = served(address).map_err(|why| failed(why.to_string()))?;
        let (_, pid) = answer.signature().map_err(|why| failed(why.to_string()))?;
        Ok(pid)
    };
    let favourite = taker()?;
    let others: Vec<Process> =
        family(server).into_iter().filter(|process| ![server, favourite].contains(&process.pid)).collect();
    let mut took = Vec::new();
    for other in others.iter().cycle().take(if others.is_empty() { 0 } else { PROBES }) {
        if !(other.stop(START_STOP_TIMEOUT) && other.resume(START_STOP_TIMEOUT)) {
            return Err(failed(format!("pid {} does not stop and resume", other.pid)));
        }
        took.push(taker()? == other.pid);
    }
    Ok(took)
}

impl Order {
    /// Connections of each worker.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.workers];
        for &taker in &self.takers {
            if let Some(count) = counts.get_mut(taker as usize) {
                *count += 1;
            }
        }
        counts
    }

    /// The share of connections that went to the same worker as the one `lag` before.
    pub fn agreement(&self, lag: usize) -> f64 {
        let pairs = self.takers.len().saturating_sub(lag);
        let same = self.takers.iter().zip(self.takers.iter().skip(lag)).filter(|(a, b)| a == b).count();
        if pairs == 0 { 0.0 } else { same as f64 / pairs as f64 }
    }

    /// What [`Order::agreement`] would be if connections fell independently, with the workers' own shares: Σ pᵢ².
    pub fn agreement_by_chance(&self) -> f64 {
        let n = self.takers.len().max(1) as f64;
        self.counts().iter().map(|&count| (count as f64 / n).powi(2)).sum()
    }

    /// How many standard deviations the agreement is away from chance (normal approximation of the binomial).
    pub fn z_score(&self, lag: usize) -> f64 {
        let chance = self.agreement_by_chance();
        let pairs = self.takers.len().saturating_sub(lag).max(1) as f64;
        let deviation = (chance * (1.0 - chance) / pairs).sqrt();
        if deviation == 0.0 { 0.0 } else { (self.agreement(lag) - chance) / deviation }
    }

    fn times_the_last_to_sleep_took(&self) -> usize {
        self.last_to_sleep_took.iter().filter(|&&took| took).count()
    }

    pub fn pattern(&self) -> OrderPattern {
        if let Some(worker) = favourite(&self.takers).filter(|_| self.workers > 1) {
            let stacked = self.times_the_last_to_sleep_took();
            return match self.last_to_sleep_took.len() {
                0 => OrderPattern::Favourite(worker),
                probes if stacked + 1 >= probes => OrderPattern::LastInFirstOut(worker),
                _ if stacked <= 1 => OrderPattern::Priority(worker),
                _ => OrderPattern::Favourite(worker),
            };
        }
        if self.agreement(self.workers) >= NEARLY_ALL && self.agreement(1) <= 1.0 - NEARLY_ALL {
            return OrderPattern::RoundRobin(self.takers[self.takers.len() - self.workers..].to_vec());
        }
        if self.served_by_all() >= NEARLY_ALL && self.takers.len() >= 5 * self.workers && self.workers > 1 {
            return match self.agreement(self.workers) >= MOST_AGREEMENTS {
                true => self.mostly_round_robin(),
                false => OrderPattern::ShuffledRounds,
            };
        }
        if self.agreement(self.workers) >= MOST_AGREEMENTS
            && self.z_score(self.workers) >= Z_LIMIT
            && self.agreement(1) < MOST_AGREEMENTS
        {
            return self.mostly_round_robin();
        }
        if let Some((worker, share)) = self.busiest().filter(|&(_, share)| share >= MOST && self.workers > 1) {
            return OrderPattern::Mostly { worker, share };
        }
        if self.agreement_by_chance() * (self.takers.len() as f64) < EXPECTED_AGREEMENTS {
            return OrderPattern::TooFew;
        }
        let independent = [1, self.workers].iter().all(|&lag| self.z_score(lag).abs() < Z_LIMIT);
        if independent { OrderPattern::Random } else { OrderPattern::Unnamed }
    }

    /// The share of rounds that served every worker once. The first connection begins a round.
    fn served_by_all(&self) -> f64 {
        let rounds = self.takers.chunks_exact(self.workers.max(1));
        let is_whole = |round: &&[u32]| is_permutation(round);
        rounds.clone().filter(is_whole).count() as f64 / rounds.len().max(1) as f64
    }

    fn busiest(&self) -> Option<(u32, f64)> {
        let (worker, &count) = self.counts().iter().enumerate().max_by_key(|(_, count)| **count)?;
        Some((worker as u32, count as f64 / self.takers.len().max(1) as f64))
    }

    /// The cycle that most stretches of a round's length follow; it begins as it is first seen.
    fn mostly_round_robin(&self) -> OrderPattern {
        let stretches = self.takers.windows(self.workers);
        let all = stretches.len();
        let mut seen: Vec<(Vec<u32>, &[u32], usize)> = Vec::new();
        for stretch in stretches.filter(|stretch| is_permutation(stretch)) {
            let mut cycle = stretch.to_vec();
            let least = cycle.iter().enumerate().min_by_key(|(_, worker)| **worker).map_or(0, |(at, _)| at);
            cycle.rotate_left(least);
            match seen.iter_mut().find(|(other, ..)| *other == cycle) {
                Some((.., count)) => *count += 1,
                None => seen.push((cycle, stretch, 1)),
            }
        }
        match seen.iter().rev().max_by_key(|(.., count)| *count) {
            Some((_, cycle, count)) => {
                OrderPattern::MostlyRoundRobin { cycle: cycle.to_vec(), share: *count as f64 / all as f64 }
            }
            None => OrderPattern::Unnamed,
        }
    }

    /// As text: the order, the rule, and the numbers behind it.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let separator = if self.workers > 10 { " " } else { "" };
        for line in self.takers.chunks(16 * self.workers.max(1)).take(LINES) {
            let rounds: Vec<String> = line
                .chunks(self.workers.max(1))
                .map(|round| round.iter().map(u32::to_string).collect::<Vec<_>>().join(separator))
                .collect();
            let _ = writeln!(text, "{}", rounds.join(if separator.is_empty() { " " } else { "  " }));
        }
        let unseen = self.takers.len().saturating_sub(LINES * 16 * self.workers.max(1));
        if unseen > 0 {
            let _ = writeln!(text, "and {unseen} more");
        }
        let counts = self.counts();
        let spread = counts.iter().max().unwrap_or(&0) - counts.iter().min().unwrap_or(&0);
        let counts: Vec<String> = counts.iter().map(usize::to_string).collect();
        let _ = writeln!(text, "\npattern      {}", self.pattern().describe());
        let _ = writeln!(text, "connections  {} (max − min {spread})", counts.join(" "));
        if !self.last_to_sleep_took.is_empty() {
            let (took, of) = (self.times_the_last_to_sleep_took(), self.last_to_sleep_took.len());
            let _ = writeln!(
                text,
                "as the last to fall asleep, another worker took the next connection {took} of {of} times"
            );
        }
        for (lag, what) in [(1, "the one before"), (self.workers, "the one a round before")] {
            let _ = writeln!(
                text,
                "same worker as {what}: {:.3} of the connections; by chance {:.3} (z = {:+.1})",
                self.agreement(lag),
                self.agreement_by_chance(),
                self.z_score(lag),
            );
        }
        text
    }
}

impl OrderPattern {
    fn describe(&self) -> String {
        match self {
            OrderPattern::RoundRobin(cycle) => format!("round robin: {}", arrows(cycle)),
            OrderPattern::MostlyRoundRobin { cycle, share } => format!(
                "mostly round robin {}, with exceptions: {:.0} % of the connections stand in this cycle",
                arrows(cycle),
                100.0 * share
            ),
            OrderPattern::ShuffledRounds => {
                "shuffled per round: each round serves every worker once, in an order that changes".to_string()
            }
            OrderPattern::Mostly { worker, share } => {
                format!("mostly worker {worker}, with exceptions: it took {:.0} % of the connections", 100.0 * share)
            }
            OrderPattern::Priority(worker) => format!(
                "priority: worker {worker} takes all while it is idle, however long the others have slept (at a \
                 shared socket: the one that registered first)"
            ),
            OrderPattern::LastInFirstOut(worker) => {
                format!("last in, first out: worker {worker} was always the last to fall asleep")
            }
            OrderPattern::Favourite(worker) => format!("one favourite: worker {worker}, by an unknown rule"),
            OrderPattern::Random => "random: no connection depends on the one before or a round before".to_string(),
            OrderPattern::TooFew => "too few connections to find the rule; raise --connections".to_string(),
            OrderPattern::Unnamed => "unknown: not random, and no simple rule".to_string(),
        }
    }
}

fn is_permutation(round: &[u32]) -> bool {
    round.iter().enumerate().all(|(i, worker)| !round[..i].contains(worker))
}

fn arrows(cycle: &[u32]) -> String {
    cycle.iter().map(u32::to_string).collect::<Vec<_>>().join(" → ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(takers: impl IntoIterator<Item = u32>) -> Order {
        Order { takers: takers.into_iter().collect(), workers: 4, last_to_sleep_took: Vec::new() }
    }

    #[test]
    fn a_rotation_is_round_robin_whichever_way_it_turns() {
        let down = order((0..400).map(|i| 3 - i % 4));
        assert_eq!(down.pattern(), OrderPattern::RoundRobin(vec![3, 2, 1, 0]));
        assert_eq!((down.agreement(4), down.agreement(1)), (1.0, 0.0));
    }

    #[test]
    fn one_taker_is_a_priority_if_it_stays_one_and_a_stack_if_the_last_to_sleep_takes_over() {
        let after = |took: &[bool]| Order { last_to_sleep_took: took.to_vec(), ..order([3; 200]) }.pattern();
        assert_eq!(after(&[false; 5]), OrderPattern::Priority(3));
        assert_eq!(after(&[true; 5]), OrderPattern::LastInFirstOut(3));
        assert_eq!(after(&[true, false, true, false, false]), OrderPattern::Favourite(3));
        assert_eq!(after(&[]), OrderPattern::Favourite(3));
    }

    fn digits(text: &str) -> Order {
        order(text.chars().filter_map(|digit| digit.to_digit(10)))
    }

    #[test]
    fn a_rotation_with_exceptions_is_named_by_the_cycle_that_is_seen_most() {
        let OrderPattern::MostlyRoundRobin { cycle, share } = digits("1302 1302 1302 1321 0321").pattern() else {
            panic!("{:?}", digits("1302 1302 1302 1321 0321").pattern())
        };
        assert_eq!((cycle, (100.0 * share).round()), (vec![1, 3, 0, 2], 65.0));
        let text = digits(&"1302 1302 1302 1302 1320 ".repeat(20)).render();
        assert!(text.contains("mostly round robin 1 → 3 → 0 → 2, with exceptions"), "{text}");
    }

    #[test]
    fn rounds_in_another_order_each_are_shuffled_and_a_worker_with_nearly_all_is_named() {
        let mut dice = fastrand::Rng::with_seed(7);
        let round = |_| {
            let mut round = [0, 1, 2, 3];
            dice.shuffle(&mut round);
            round
        };
        assert_eq!(order((0..100).flat_map(round)).pattern(), OrderPattern::ShuffledRounds);
        let mostly = order((0..200).map(|i| if i % 8 == 5 { i / 8 % 3 } else { 3 }));
        assert_eq!(mostly.pattern(), OrderPattern::Mostly { worker: 3, share: 0.875 });
        assert_eq!(order([2; 200]).pattern(), OrderPattern::Favourite(2));
    }

    #[test]
    fn dice_are_random_and_loaded_dice_too_but_runs_are_not() {
        let mut dice = fastrand::Rng::with_seed(7);
        assert_eq!(order((0..1000).map(|_| dice.u32(0..4))).pattern(), OrderPattern::Random);
        assert_eq!(order((0..1000).map(|_| dice.u32(0..8).saturating_sub(4))).pattern(), OrderPattern::Random);
        assert_eq!(order((0..1000).map(|i| i / 10 % 4)).pattern(), OrderPattern::Unnamed);
        assert_eq!(order((0..20).map(|_| dice.u32(0..4))).pattern(), OrderPattern::TooFew);
    }
}
