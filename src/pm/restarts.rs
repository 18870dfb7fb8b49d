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
    /// So long after its end; zero: at once.
    RestartAfter(Duration),
    /// It has been restarted too often. `why` is a sentence for the log and for `describe`.
    GiveUp { why: String },
    /// The configuration says that it stays ended after this.
    Stopped,
}

/// The restarts of one process of an application, as far as they bound further ones. The state file keeps it, so the
/// next daemon goes on counting. A start by hand begins with a new one: what was before counts no longer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RestartBudget {
    /// Restarts in a row of a process that was up for less than `min_uptime`: `unstable_restarts` in `jlist`.
    pub unstable: u64,
    not_made_up: u64,
    /// The delay before the next restart, where delays grow and have grown.
    grown_delay: Duration,
}

impl RestartBudget {
    /// A process ended by itself after it had been up for so long; nobody had asked it to.
    pub fn exited(&mut self, app: &AppConfig, uptime: Duration, ending: Ending) -> Decision {
        if !app.autorestart || matches!(ending, Ending::Exited(status) if app.stop_exit_codes.contains(&status)) {
            return Decision::Stopped;
        }
        self.unstable = if uptime < app.min_uptime { self.unstable + 1 } else { 0 };
        let made_up = uptime.as_nanos() / made_up_after(app).as_nanos();
        self.not_made_up = self.not_made_up.saturating_sub(u64::try_from(made_up).unwrap_or(u64::MAX));
        if uptime >= GROWN_DELAY_ENDS_AFTER {
            self.grown_delay = Duration::ZERO;
        }
        if self.not_made_up >= app.max_restarts {
            return Decision::GiveUp { why: self.why_given_up(app, ending) };
        }
        self.not_made_up += 1;
        Decision::RestartAfter(self.next_delay(app))
    }

    fn why_given_up(&self, app: &AppConfig, ending: Ending) -> String {
        let restarts = match app.max_restarts {
            0 => return format!("it {ending}, and max_restarts is 0"),
            1 => "1 restart".to_owned(),
            most => format!("{most} restarts"),
        };
        if self.unstable > app.max_restarts {
            let min_uptime = format_duration(app.min_uptime);
            return format!("it {ending} after {restarts} in a row, and was never up for min_uptime, {min_uptime}");
        }
        format!("it {ending} after {restarts}, and was not up for {} in between", format_duration(made_up_after(app)))
    }

    fn next_delay(&mut self, app: &AppConfig) -> Duration {
        let first = app.exp_backoff_restart_delay;
        if first.is_zero() {
            return app.restart_delay;
        }
        let delay = self.grown_delay.max(first);
        self.grown_delay = delay.mul_f64(GROWTH).min(LONGEST_DELAY.max(first));
        delay
    }
}

fn made_up_after(app: &AppConfig) -> Duration {
    MADE_UP_AFTER.max(app.min_uptime)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CRASH: Ending = Ending::Exited(1);
    const AT_ONCE: Decision = Decision::RestartAfter(Duration::ZERO);

    fn app(max_restarts: u64) -> AppConfig {
        AppConfig { max_restarts, ..AppConfig::default() }
    }

    /// How often a program that always ends after so long is restarted, and after which delays; at most `most` times.
    fn delays(app: &AppConfig, uptime: Duration, most: usize) -> Vec<Duration> {
        let mut budget = RestartBudget::default();
        let decisions = std::iter::repeat_with(|| budget.exited(app, uptime, CRASH)).take(most);
        let delays = decisions.map_while(|decision| match decision {
            Decision::RestartAfter(delay) => Some(delay),
            Decision::GiveUp { .. } | Decision::Stopped => None,
        });
        delays.collect()
    }

    #[test]
    fn a_crash_loop_of_any_of_these_periods_ends_after_max_restarts_with_and_without_a_delay() {
        for (period_s, delay_s) in
            [(0.1, 0.0), (1.0, 0.0), (5.0, 0.0), (20.0, 0.0), (0.1, 3.0), (1.0, 3.0), (5.0, 3.0), (20.0, 3.0)]
        {
            for max_restarts in [3, 10, 16] {
                let restart_delay = Duration::from_secs_f64(delay_s);
                let app = AppConfig { restart_delay, ..app(max_restarts) };
                let delays = delays(&app, Duration::from_secs_f64(period_s), 1000);
                assert_eq!(
                    delays,
                    vec![restart_delay; max_restarts as usize],
                    "{period_s} s, {delay_s} s, {max_restarts}"
                );
            }
        }
    }

    #[test]
    fn a_program_that_is_up_for_a_minute_each_time_is_never_given_up() {
        assert_eq!(delays(&app(1), MADE_UP_AFTER, 1000).len(), 1000);
        assert_eq!(delays(&app(1), MADE_UP_AFTER - Duration::from_millis(1), 1000).len(), 1);
    }

    #[test]
    fn a_longer_min_uptime_makes_the_minute_longer() {
        let app = AppConfig { min_uptime: Duration::from_secs(3600), ..app(4) };
        assert_eq!(delays(&app, Duration::from_secs(3599), 1000).len(), 4);
        assert_eq!(delays(&app, Duration::from_secs(3600), 1000).len(), 1000);
    }

    #[test]
    fn an_hour_of_uptime_makes_up_for_sixty_restarts() {
        let (app, mut budget) = (app(100), RestartBudget::default());
        for _ in 0..100 {
            assert_eq!(budget.exited(&app, Duration::ZERO, CRASH), AT_ONCE);
        }
        assert_eq!(budget.exited(&app, Duration::from_secs(3600), CRASH), AT_ONCE);
        let more = (0..100).take_while(|_| budget.exited(&app, Duration::ZERO, CRASH) == AT_ONCE).count();
        assert_eq!(more, 59);
    }

    #[test]
    fn a_process_that_was_up_for_min_uptime_ends_the_row_of_unstable_ones() {
        let mut budget = RestartBudget::default();
        let unstable = [0, 999, 1000, 10, 5000].map(|ms| {
            budget.exited(&app(16), Duration::from_millis(ms), CRASH);
            budget.unstable
        });
        assert_eq!(unstable, [1, 2, 0, 1, 0]);
    }

    #[test]
    fn the_reason_says_how_it_ended_how_often_and_what_it_lacked() {
        let why = |uptime_ms, ending| {
            let mut budget = RestartBudget::default();
            let last = (0..3).map(|_| budget.exited(&app(2), Duration::from_millis(uptime_ms), ending)).last();
            let Some(Decision::GiveUp { why }) = last else { panic!("{last:?}") };
            why
        };
        assert_eq!(
            why(100, CRASH),
            "it ended with status 1 after 2 restarts in a row, and was never up for min_uptime, 1s"
        );
        assert_eq!(
            why(2000, Ending::KilledBy(11)),
            "it was killed by SIGSEGV after 2 restarts, and was not up for 60s in between"
        );
    }

    #[test]
    fn without_restarts_the_first_end_is_the_last() {
        let decision = RestartBudget::default().exited(&app(0), Duration::from_secs(9999), CRASH);
        assert_eq!(decision, Decision::GiveUp { why: "it ended with status 1, and max_restarts is 0".into() });
    }

    #[test]
    fn a_growing_delay_grows_to_fifteen_seconds_and_begins_anew_after_half_a_minute() {
        let app = AppConfig { exp_backoff_restart_delay: Duration::from_millis(100), ..app(100) };
        let grown = delays(&app, Duration::from_millis(50), 15);
        assert_eq!(grown[..3], [100, 150, 225].map(Duration::from_millis));
        assert!(grown.windows(2).all(|pair| pair[1] == pair[0].mul_f64(1.5).min(LONGEST_DELAY)), "{grown:?}");
        assert_eq!(grown[14], LONGEST_DELAY);
        let mut budget = RestartBudget::default();
        let after = [1, 1, 29_999, 30_000, 1].map(|ms| budget.exited(&app, Duration::from_millis(ms), CRASH));
        assert_eq!(
            after,
            [100_000, 150_000, 225_000, 100_000, 150_000].map(|us| Decision::RestartAfter(Duration::from_micros(us)))
        );
    }

    #[test]
    fn a_growing_delay_that_begins_above_the_bound_stays_as_it_is() {
        let app = AppConfig { exp_backoff_restart_delay: Duration::from_secs(20), ..app(3) };
        assert_eq!(delays(&app, Duration::ZERO, 10), vec![Duration::from_secs(20); 3]);
    }

    #[test]
    fn these_statuses_and_autorestart_false_stop_it() {
        let mut budget = RestartBudget::default();
        let with_codes = AppConfig { stop_exit_codes: vec![0, 3], ..app(16) };
        let decisions = [Ending::Exited(1), Ending::KilledBy(3), Ending::Exited(3), Ending::Exited(0)]
            .map(|ending| budget.exited(&with_codes, Duration::ZERO, ending));
        assert_eq!(decisions, [AT_ONCE, AT_ONCE, Decision::Stopped, Decision::Stopped]);
        let once = AppConfig { autorestart: false, ..app(16) };
        assert_eq!(RestartBudget::default().exited(&once, Duration::from_secs(9999), CRASH), Decision::Stopped);
    }

    #[test]
    fn the_next_daemon_goes_on_counting() {
        let (app, mut budget) = (app(2), RestartBudget::default());
        budget.exited(&app, Duration::ZERO, CRASH);
        let mut next: RestartBudget = serde_json::from_str(&serde_json::to_string(&budget).unwrap()).unwrap();
        assert_eq!(next.exited(&app, Duration::ZERO, CRASH), AT_ONCE);
        assert!(matches!(next.exited(&app, Duration::ZERO, CRASH), Decision::GiveUp { .. }));
    }

    proptest! {
        /// The law of the budget, over any part of any life: between two ends there are at most `max_restarts`
        /// restarts, plus one for each whole `made_up_after` in an uptime.
        #[test]
        fn restarts_never_exceed_the_budget(
            max_restarts in 0u64..20,
            min_uptime_s in prop_oneof![Just(1u64), Just(90), Just(600)],
            uptimes_ms in prop::collection::vec(prop_oneof![0u64..2_000, 0u64..130_000, 0u64..2_000_000], 1..120),
        ) {
            let app = AppConfig { min_uptime: Duration::from_secs(min_uptime_s), ..app(max_restarts) };
            let mut budget = RestartBudget::default();
            let made_up_after_ms = 1000 * min_uptime_s.max(60);
            let restarted: Vec<u64> = uptimes_ms
                .iter()
                .take_while(|&&ms| !matches!(budget.exited(&app, Duration::from_millis(ms), CRASH), Decision::GiveUp { .. }))
                .map(|ms| ms / made_up_after_ms)
                .collect();
            for from in 0..restarted.len() {
                for to in from..restarted.len() {
                    let allowed = max_restarts + restarted[from..=to].iter().sum::<u64>();
                    prop_assert!((to - from + 1) as u64 <= allowed, "{from}..={to} of {restarted:?}");
                }
            }
        }

        /// Whatever the period below a minute, and whatever the delays: exactly `max_restarts`.
        #[test]
        fn a_loop_of_any_period_below_a_minute_is_restarted_exactly_max_restarts_times(
            max_restarts in 0u64..50,
            period_ms in 0u64..60_000,
            restart_delay_ms in 0u64..100_000,
            exp_backoff_restart_delay_ms in prop_oneof![Just(0u64), 1u64..20_000],
        ) {
            let app = AppConfig {
                restart_delay: Duration::from_millis(restart_delay_ms),
                exp_backoff_restart_delay: Duration::from_millis(exp_backoff_restart_delay_ms),
                ..app(max_restarts)
            };
            prop_assert_eq!(delays(&app, Duration::from_millis(period_ms), 1000).len() as u64, max_restarts);
        }
    }
}
