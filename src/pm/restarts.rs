//! Whether a process that ended starts again: now, after a delay, or never. Nothing here reads a clock: the caller says
//! how long the process was up, measured with CLOCK_MONOTONIC, so a wall clock that jumps changes no restart.
//!
//! One count bounds the restarts: those that are *not made up for yet*. Every restart adds one; each full
//! [`MADE_UP_AFTER`] (`min_uptime`, where that is longer) during which one process was up takes one away. The process
//! that ends when the count is `max_restarts` is given up. Hence the budget, whatever the period of a crash loop is:
//!
//! - processes that each end within a minute are restarted exactly `max_restarts` times;
//! - in any case there are at most `max_restarts` restarts, plus one for each minute of uptime.
//!
//! The time between two processes does not count: a delay makes no program better. A process that was up for less than
//! `min_uptime` is *unstable*; how many of them there were in a row is shown, and is a part of the reason. It does not
//! bound the restarts by itself, because then a program that ends a little later than `min_uptime` would never be given up.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::config::AppConfig;
use crate::sys::process::Ending;
use crate::units::format_duration;

/// How long one process has to be up to make up for one restart.
pub const MADE_UP_AFTER: Duration = Duration::from_secs(60);

/// A delay that grows does so by this factor, up to the bound, and begins anew after a process that was up for so long.
const GROWTH: f64 = 1.5;
const LONGEST_DELAY: Duration = Duration::from_secs(15);
const GROWN_DELAY_ENDS_AFTER: Duration = Duration::from_secs(30);

/// What happens to an application whose process has ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Restart,
    RestartAfter(Duration),
    /// It has been restarted too often. `why` is a sentence for the log and for `describe`.
    GiveUp {
        why: String,
    },
    /// The configuration says that it stays ended after this.
    Stopped,
}

/// The restarts of one process of an application, as far as they bound further ones. The state file keeps it, so the
/// next daemon goes on counting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestartBudget {
    autorestart: bool,
    stop_exit_codes: Vec<i32>,
    max_restarts: u64,
    min_uptime: Duration,
    restart_delay: Duration,
    first_grown_delay: Duration,
    unstable: u64,
    not_made_up: u64,
    /// The delay before the next restart, where delays grow.
    grown_delay: Duration,
}

impl RestartBudget {
    pub fn new(app: &AppConfig) -> RestartBudget {
        RestartBudget {
            autorestart: app.autorestart,
            stop_exit_codes: app.stop_exit_codes.clone(),
            max_restarts: app.max_restarts,
            min_uptime: app.min_uptime,
            restart_delay: app.restart_delay,
            first_grown_delay: app.exp_backoff_restart_delay,
            unstable: 0,
            not_made_up: 0,
            grown_delay: app.exp_backoff_restart_delay,
        }
    }

    /// A process ended by itself after it had been up for so long; nobody had asked it to.
    pub fn exited(&mut self, uptime: Duration, ending: Ending) -> Decision {
        if !self.autorestart || matches!(ending, Ending::Exited(status) if self.stop_exit_codes.contains(&status)) {
            return Decision::Stopped;
        }
        self.make_up(uptime);
        if self.not_made_up >= self.max_restarts {
            return Decision::GiveUp { why: self.why_given_up(ending) };
        }
        self.not_made_up += 1;
        match self.next_delay() {
            Duration::ZERO => Decision::Restart,
            delay => Decision::RestartAfter(delay),
        }
    }

    /// Somebody started, restarted or reloaded the application by hand: what was before counts no longer.
    pub fn reset(&mut self) {
        (self.unstable, self.not_made_up, self.grown_delay) = (0, 0, self.first_grown_delay);
    }

    /// Restarts in a row of a process that was up for less than `min_uptime`: `unstable_restarts` in `jlist`.
    pub fn unstable(&self) -> u64 {
        self.unstable
    }

    fn make_up(&mut self, uptime: Duration) {
        self.unstable = if uptime < self.min_uptime { self.unstable + 1 } else { 0 };
        let restarts = uptime.as_nanos() / self.made_up_after().as_nanos();
        self.not_made_up = self.not_made_up.saturating_sub(u64::try_from(restarts).unwrap_or(u64::MAX));
        if uptime >= GROWN_DELAY_ENDS_AFTER {
            self.grown_delay = self.first_grown_delay;
        }
    }

    fn made_up_after(&self) -> Duration {
        MADE_UP_AFTER.max(self.min_uptime)
    }

    fn why_given_up(&self, ending: Ending) -> String {
        let restarts = match self.max_restarts {
            1 => "1 restart".to_owned(),
            most => format!("{most} restarts"),
        };
        if self.unstable > self.max_restarts {
            let min_uptime = format_duration(self.min_uptime);
            return format!("it {ending} after {restarts} in a row, and was never up for min_uptime, {min_uptime}");
        }
        format!("it {ending} after {restarts}, and was not up for {} in between", format_duration(self.made_up_after()))
    }

    fn next_delay(&mut self) -> Duration {
        if self.first_grown_delay.is_zero() {
            return self.restart_delay;
        }
        let delay = self.grown_delay;
        self.grown_delay = delay.mul_f64(GROWTH).min(LONGEST_DELAY.max(self.first_grown_delay));
        delay
    }
}
