//! What is drawn of a server, as values: rates are differences between two looks.

use std::time::Duration;

use ratatui::style::Color;

use crate::lab::watch::sample::{ProcessState, ServerSample, WatchedServer, WorkerSample};
use crate::terminal::Paint;
use crate::units::short;

/// Lines that are not a worker's: three of heading, the columns' names, the total, the keys.
const FRAME_LINES: usize = 6;

/// The four rates, in the order of [`WorkerRates::rates`].
pub const RATES: [(&str, Color); 4] = [
    ("connections/s", Color::Cyan),
    ("requests/s", Color::Green),
    ("wake-ups/s", Color::Yellow),
    ("of them empty/s", Color::Red),
];

/// One picture.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub command: String,
    pub addresses: String,
    pub pid: i32,
    pub uptime_s: f64,
    pub is_running: bool,
    pub interval: Duration,
    pub workers: Vec<WorkerRates>,
    /// The context switches of all workers per second, as the kernel counts them; unknown at the first look.
    pub switches: Option<f64>,
    /// The first worker that is shown; [`View::scroll`] keeps it where it makes sense.
    pub first: usize,
    /// All workers side by side, a column each, instead of a line each.
    pub is_overview: bool,
    /// A message that is shown once.
    pub notice: Option<&'static str>,
    pub paint: Paint,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorkerRates {
    pub id: usize,
    pub state: ProcessState,
    /// Per second of the time between two looks, in the order of the columns; unknown at the first look.
    pub rates: Option<[f64; 4]>,
    /// Absent where the worker has ended: its row holds those it did not close.
    pub active: Option<f64>,
}

impl View {
    /// The picture of a server between two looks.
    pub fn of(server: &WatchedServer, earlier: Option<&ServerSample>, now: &ServerSample, interval: Duration) -> View {
        View {
            command: server.command.clone(),
            addresses: server.addresses.iter().map(|address| format!("{address} · ")).collect(),
            pid: server.pid(),
            uptime_s: now.uptime_s,
            is_running: now.is_running,
            interval,
            workers: workers(earlier, now),
            switches: switches(earlier, now),
            first: 0,
            is_overview: false,
            notice: None,
            paint: Paint { has_colour: true },
        }
    }

    /// How many workers fit on a screen of this height.
    pub fn room(height: u16) -> usize {
        usize::from(height).saturating_sub(FRAME_LINES).max(1)
    }

    /// How many workers a screen shows at a time.
    pub fn page(&self, width: u16, height: u16) -> usize {
        if self.is_overview { usize::from(width).max(1) } else { View::room(height) }
    }

    /// Moves the picture so that it begins with worker `first`, or as far as it goes.
    pub fn scroll(&mut self, first: usize, page: usize) {
        self.first = first.min(self.workers.len().saturating_sub(page));
    }

    /// The largest rate of any worker, also of those that are not shown. Wake-ups and the empty ones among them have
    /// one scale, so that the bars can be compared.
    pub fn most(&self) -> [f64; 4] {
        let mut most = [0.0_f64; 4];
        for rates in self.workers.iter().filter_map(|worker| worker.rates) {
            (0..4).for_each(|i| most[i] = most[i].max(rates[i]));
        }
        most[3] = most[2].max(most[3]);
        most
    }

    /// Connections open at the workers that live: one that has ended has none, whatever its row says.
    pub fn active(&self) -> Option<f64> {
        let known = self.workers.iter().filter_map(|worker| worker.active);
        self.is_running.then(|| known.sum())
    }

    pub fn sums(&self) -> Option<[f64; 4]> {
        let mut sums = [0.0; 4];
        for worker in &self.workers {
            let rates = worker.rates?;
            (0..4).for_each(|i| sums[i] += rates[i]);
        }
        Some(sums)
    }
}

/// One connection wakes at least half of the workers. With few workers that is what a connection costs by itself: one
/// sleep after the accept, one after the request, one after the close; requests on a connection that stays open are
/// like connections here.
pub fn is_herd(switches: f64, connections: f64, requests: f64, workers: usize) -> bool {
    const OF_ITSELF: f64 = 3.0;
    switches / connections.max(requests) >= (workers as f64 / 2.0).max(OF_ITSELF)
}

/// A worker that has been replaced has begun to count anew.
fn switches(earlier: Option<&ServerSample>, now: &ServerSample) -> Option<f64> {
    let earlier = earlier?;
    let seconds = now.at_ns.saturating_sub(earlier.at_ns) as f64 / 1e9;
    let grown = now.switches?.checked_sub(earlier.switches?)?;
    (seconds > 0.0).then(|| grown as f64 / seconds)
}

/// Rates are differences over the time that has really passed. What has not grown for an ended server is 0.
fn workers(earlier: Option<&ServerSample>, now: &ServerSample) -> Vec<WorkerRates> {
    let seconds = earlier.map(|earlier| now.at_ns.saturating_sub(earlier.at_ns) as f64 / 1e9);
    let seconds = seconds.filter(|&seconds| seconds > 0.0);
    let one = |(i, new): (usize, &WorkerSample)| {
        let old = earlier.and_then(|earlier| earlier.workers.get(i));
        let rates = old.zip(seconds).map(|(old, seconds)| rates(old, new, seconds));
        let active = (new.state != ProcessState::Ended && now.is_running).then_some(new.active as f64);
        WorkerRates { id: new.worker, state: new.state, rates, active }
    };
    now.workers.iter().enumerate().map(one).collect()
}

/// A wake-up that turns out to be the server's end is taken back, so a count may shrink by one.
fn rates(old: &WorkerSample, new: &WorkerSample, seconds: f64) -> [f64; 4] {
    let counts = |worker: &WorkerSample| [worker.accepted, worker.requests, worker.wakeups, worker.empty_wakeups];
    let (old, new) = (counts(old), counts(new));
    std::array::from_fn(|i| new[i].saturating_sub(old[i]) as f64 / seconds)
}

/// A number in at most six characters, or a dash where it is unknown.
pub fn cell(value: Option<f64>) -> String {
    value.map_or("–".to_string(), short)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_ns: u64, is_running: bool, accepted: u64, state: ProcessState) -> ServerSample {
        let worker = WorkerSample { accepted, active: 5, state, ..WorkerSample::default() };
        ServerSample { at_ns, uptime_s: 1.0, is_running, switches: Some(accepted), workers: vec![worker] }
    }

    #[test]
    fn a_rate_is_a_difference_over_the_time_that_has_passed() {
        let (old, new) =
            (sample(0, true, 10, ProcessState::Running), sample(2_000_000_000, true, 40, ProcessState::Running));
        assert_eq!(workers(Some(&old), &new)[0].rates, Some([15.0, 0.0, 0.0, 0.0]));
        assert_eq!(switches(Some(&old), &new), Some(15.0));
        assert_eq!((workers(None, &new)[0].rates, switches(None, &new)), (None, None));
        assert_eq!(workers(Some(&new), &new)[0].rates, None);
    }

    #[test]
    fn a_herd_grows_with_the_workers_and_requests_on_open_connections_are_none() {
        assert!(is_herd(890.0, 100.0, 100.0, 16) && !is_herd(110.0, 100.0, 100.0, 16));
        assert!(!is_herd(250.0, 100.0, 100.0, 2) && !is_herd(10_000.0, 100.0, 10_000.0, 16));
    }

    #[test]
    fn who_has_ended_has_no_rates_and_no_connections() {
        let [old, new] = [1, 2].map(|s| sample(s * 1_000_000_000, false, 40, ProcessState::Ended));
        let worker = workers(Some(&old), &new)[0];
        assert_eq!((worker.rates, worker.active), (Some([0.0; 4]), None));
        let killed = sample(3_000_000_000, true, 40, ProcessState::Ended);
        assert_eq!(workers(Some(&new), &killed)[0].active, None);
    }
}
