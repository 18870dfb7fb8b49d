//! Look again before sleeping. A thread that sleeps has to be woken, and the system call that makes something ready
//! pays for that: on loopback it is the client's. A thread that looks again and again is there when something comes,
//! and burns its CPU meanwhile.

use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;

use crate::units::parse_duration;

/// The window that a spin begins anew with, once a sleep was short.
const FIRST_WINDOW: Duration = Duration::from_micros(10);

/// Flags of a server whose event loops can spin.
#[derive(Args, Clone, Copy, Debug)]
pub struct SpinArgs {
    /// Look for events for so long before sleeping; adaptive:DUR does so only while it pays
    #[arg(long = "spin", value_name = "[adaptive:]DUR", default_value = "0us", hide_default_value = true)]
    pub before_sleep: Spin,
}

/// How long one thread looks before it sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spin {
    most: Duration,
    is_adaptive: bool,
    window: Duration,
}

impl FromStr for Spin {
    type Err = String;

    fn from_str(text: &str) -> Result<Spin, String> {
        let adaptive = text.strip_prefix("adaptive:");
        let most = parse_duration(adaptive.unwrap_or(text))?;
        let window = if adaptive.is_some() { Duration::ZERO } else { most };
        Ok(Spin { most, is_adaptive: adaptive.is_some(), window })
    }
}

impl Spin {
    /// Waits with `wait`, which gets a time-out and returns how many events there are: first without sleeping, until
    /// the window is over, then for what is left of `timeout`.
    ///
    /// # Errors
    /// Those of `wait`.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        mut wait: impl FnMut(Option<Duration>) -> nix::Result<usize>,
    ) -> nix::Result<usize> {
        if self.most.is_zero() {
            return wait(timeout);
        }
        let began = Instant::now();
        let window = timeout.map_or(self.window, |timeout| timeout.min(self.window));
        while began.elapsed() < window {
            let events = wait(Some(Duration::ZERO))?;
            if events > 0 {
                return Ok(events);
            }
        }
        let events = wait(timeout.map(|timeout| timeout.saturating_sub(began.elapsed())))?;
        if self.is_adaptive {
            self.adapt(began.elapsed());
        }
        Ok(events)
    }

    /// After a sleep: had the event come within the longest window, a longer spin would have met it; had it not, the
    /// spin was in vain. The rule is that of KVM for an idle guest (Documentation/virt/kvm/halt-polling.rst).
    fn adapt(&mut self, waited: Duration) {
        self.window =
            if waited > self.most { Duration::ZERO } else { (2 * self.window).clamp(FIRST_WINDOW, self.most) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spin(text: &str) -> Spin {
        text.parse().unwrap()
    }

    /// The time-outs that a wait without events is asked for, at most `most` of them.
    fn looks(spin: &mut Spin, timeout: Option<Duration>) -> (usize, Option<Duration>) {
        let (mut looks, mut last) = (0, None);
        let waited = spin.wait(timeout, |timeout| {
            looks += usize::from(timeout == Some(Duration::ZERO));
            last = timeout;
            Ok(0)
        });
        assert_eq!(waited, Ok(0));
        (looks, last)
    }

    #[test]
    fn without_a_window_it_sleeps_at_once_for_the_whole_time() {
        assert_eq!(looks(&mut Spin::default(), None), (0, None));
        assert_eq!(looks(&mut spin("0us"), Some(Duration::from_secs(1))), (0, Some(Duration::from_secs(1))));
    }

    #[test]
    fn it_looks_until_the_window_is_over_and_then_sleeps_for_the_rest() {
        let (looked, slept) = looks(&mut spin("2ms"), Some(Duration::from_secs(1)));
        assert!(looked > 1, "{looked}");
        assert!(slept.is_some_and(|slept| slept <= Duration::from_millis(998)), "{slept:?}");
    }

    #[test]
    fn what_is_found_while_it_looks_ends_the_wait() {
        let mut calls = 0;
        let found = spin("1s").wait(None, |timeout| {
            assert_eq!(timeout, Some(Duration::ZERO));
            calls += 1;
            Ok(usize::from(calls == 3))
        });
        assert_eq!((found, calls), (Ok(1), 3));
    }

    #[test]
    fn an_adaptive_spin_grows_while_sleeps_are_short_and_ends_with_a_long_one() {
        let mut adaptive = spin("adaptive:50us");
        let windows = [1, 30, 40, 49, 51, 20].map(|waited_us| {
            adaptive.adapt(Duration::from_micros(waited_us));
            adaptive.window.as_micros()
        });
        assert_eq!(windows, [10, 20, 40, 50, 0, 10]);
    }

    #[test]
    fn a_spin_is_a_duration() {
        assert!("adaptive".parse::<Spin>().is_err());
        assert!("adaptive:".parse::<Spin>().is_err());
        assert!("fast".parse::<Spin>().is_err());
    }
}
