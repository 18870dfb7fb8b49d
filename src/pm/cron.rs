//! When an application is next restarted by the clock on the wall: patterns of crontab(5), in local time. That clock may
//! be set, forwards and backwards; nothing else in the process manager reads it to decide.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use chrono::{DateTime, Local};
use croner::Cron;
use croner::parser::{CronParser, Seconds};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// A clock that is set by less than this was corrected: a restart is made up for once, and not repeated. A clock that is
/// set by more was wrong before: the schedule begins anew. (cron(8) of Debian has the same bound.)
const CORRECTION: Duration = Duration::from_secs(3 * 3600);

/// One application's pattern, and when it is due.
#[derive(Debug)]
pub struct CronRestart {
    cron: Cron,
    /// In seconds since 1970; `None`: never again.
    pub due_s: Option<i64>,
    seen_s: i64,
}

impl CronRestart {
    /// From this time on, in seconds since 1970. The pattern: minute, hour, day of the month, month, day of the week; with
    /// seconds in front where it has six fields.
    pub fn new(pattern: &str, now_s: i64) -> Result<CronRestart, String> {
        let cron = CronParser::builder().seconds(Seconds::Optional).build().parse(pattern);
        let cron = cron.map_err(|error| format!("{pattern:?} is not a pattern of crontab(5): {error}"))?;
        Ok(CronRestart { due_s: next_after(&cron, now_s), cron, seen_s: now_s })
    }

    /// Whether it is due at this time of the wall clock. However many times have passed since the last look, it is due
    /// once; afterwards the next time counts.
    pub fn is_due(&mut self, now_s: i64) -> bool {
        let correction_s = CORRECTION.as_secs() as i64;
        let was_set_back = now_s < self.seen_s - correction_s;
        let is_late_by_s = self.due_s.map_or(-1, |due_s| now_s - due_s);
        if was_set_back || is_late_by_s >= 0 {
            self.due_s = next_after(&self.cron, now_s);
            self.seen_s = now_s;
        }
        // Set back a little, the clock shows again what it has shown: the due time stays where it was.
        self.seen_s = self.seen_s.max(now_s);
        !was_set_back && (0..correction_s).contains(&is_late_by_s)
    }
}

fn next_after(cron: &Cron, now_s: i64) -> Option<i64> {
    let now = DateTime::from_timestamp(now_s, 0)?.with_timezone(&Local);
    cron.find_next_occurrence(&now, false).ok().map(|next| next.timestamp())
}

/// Waits for a time of the wall clock: its descriptor is readable when that time has come, and also when the clock was
/// set, as a sleep of so many seconds would not notice that (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).
#[derive(Debug)]
pub struct WallClockTimer {
    timer: TimerFd,
}

impl WallClockTimer {
    pub fn new() -> nix::Result<WallClockTimer> {
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        Ok(WallClockTimer { timer })
    }

    /// For the earliest of these times in seconds since 1970; without one it waits for nothing.
    pub fn set(&self, due_s: impl IntoIterator<Item = i64>) -> nix::Result<()> {
        let Some(earliest) = due_s.into_iter().min() else { return self.timer.unset() };
        // A time of 0 would disarm the timer.
        let at = TimeSpec::new(earliest.max(1), 0);
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        self.timer.set(Expiration::OneShot(at), flags)
    }

    /// Makes the descriptor unreadable again: now look what is due, and set the timer anew.
    pub fn clear(&self) -> nix::Result<()> {
        match self.timer.wait() {
            // ECANCELED: the clock was set.
            Ok(()) | Err(Errno::ECANCELED | Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for WallClockTimer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    const HOUR: i64 = 3600;

    /// Local time may be anything; every time zone has whole minutes.
    fn hourly(now_s: i64) -> CronRestart {
        CronRestart::new("0 * * * *", now_s).unwrap()
    }

    /// The beginning of an hour of local time.
    fn an_hour() -> i64 {
        CronRestart::new("0 * * * *", 1_800_000_000).unwrap().due_s.unwrap()
    }

    #[test]
    fn the_next_time_comes_after_now() {
        let next = |pattern, now_s| CronRestart::new(pattern, now_s).unwrap().due_s;
        assert_eq!(next("* * * * *", 1_800_000_000), Some(1_800_000_060));
        assert_eq!(next("* * * * *", 1_800_000_059), Some(1_800_000_060));
        assert_eq!(next("*/5 * * * * *", 1_800_000_001), Some(1_800_000_005));
        assert_eq!(CronRestart::new("0 0 30 2 *", 0).unwrap().due_s, None, "no February has 30 days");
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for pattern in ["", "* * *", "61 * * * *", "often", "* * * * * * * *"] {
            let why = CronRestart::new(pattern, 0).unwrap_err();
            assert!(why.contains("is not a pattern") && !why.contains('\n'), "{why}");
        }
    }

    #[test]
    fn it_is_due_once_at_its_time() {
        let start = an_hour();
        let mut restart = hourly(start);
        let due = [1, HOUR - 1, HOUR, HOUR, HOUR + 1, 2 * HOUR - 1, 2 * HOUR].map(|s| restart.is_due(start + s));
        assert_eq!(due, [false, false, true, false, false, false, true]);
    }

    #[test]
    fn a_clock_that_is_set_forwards_a_little_makes_it_due_once() {
        let start = an_hour();
        let mut restart = hourly(start);
        assert!(restart.is_due(start + 2 * HOUR + 60));
        assert!(!restart.is_due(start + 2 * HOUR + 61));
        assert_eq!(restart.due_s, Some(start + 3 * HOUR));
    }

    #[test]
    fn a_clock_that_is_set_back_a_little_does_not_repeat_a_restart() {
        let start = an_hour();
        let mut restart = hourly(start - 60);
        assert!(restart.is_due(start));
        assert_eq!([-HOUR, -60, 0, 60].map(|s| restart.is_due(start + s)), [false; 4]);
        assert!(restart.is_due(start + HOUR));
    }

    #[test]
    fn a_clock_that_was_wrong_by_far_begins_anew() {
        let start = an_hour();
        let mut restart = hourly(0);
        assert!(!restart.is_due(start + 60), "the clock stood at 1970 before");
        assert!(restart.is_due(start + HOUR));
        assert!(!restart.is_due(start - 1000 * HOUR + 60), "the clock was ahead before");
        assert!(restart.is_due(start - 999 * HOUR), "and so it is not late by a thousand hours");
    }

    #[test]
    fn the_timer_is_readable_when_the_time_has_come() {
        let timer = WallClockTimer::new().unwrap();
        let is_readable = |within| poll(&mut [PollFd::new(timer.as_fd(), PollFlags::POLLIN)], within).unwrap() == 1;
        timer.set([]).unwrap();
        assert!(!is_readable(PollTimeout::ZERO));
        timer.set([i64::MAX >> 1, 0]).unwrap();
        assert!(is_readable(PollTimeout::from(5000u16)), "a time that has passed is due at once");
        timer.clear().unwrap();
        assert!(!is_readable(PollTimeout::ZERO));
        timer.clear().unwrap();
    }
}
