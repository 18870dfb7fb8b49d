//! Date and time where this process believes to be: the environment's TZ, or /etc/localtime (tzset(3)).

use std::mem::zeroed;

/// As a calendar and a clock show them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTime {
    pub year: i64,
    /// From 1.
    pub month: usize,
    /// From 1.
    pub day: i64,
    pub hour: i64,
    pub minute: i64,
    pub second: i64,
    /// From 0, which is Sunday.
    pub weekday: usize,
    /// From 1.
    pub day_of_year: i64,
    /// What is added to UTC here, in seconds.
    pub offset_s: i64,
}

impl LocalTime {
    /// `unix_s`: seconds since 1970-01-01 UTC.
    pub fn at(unix_s: i64) -> LocalTime {
        // SAFETY: tm is a plain struct of integers and one pointer, for which all zeros is a value.
        let mut tm: libc::tm = unsafe { zeroed() };
        // SAFETY: both point to values that live for the call and are ours alone. A year that does not fit leaves the
        // zeros (localtime_r(3)). The pointer in it, the zone's name, is never read.
        unsafe { libc::localtime_r(&raw const unix_s, &raw mut tm) };
        LocalTime {
            year: i64::from(tm.tm_year) + 1900,
            month: tm.tm_mon as usize + 1,
            day: tm.tm_mday.into(),
            hour: tm.tm_hour.into(),
            minute: tm.tm_min.into(),
            second: tm.tm_sec.into(),
            weekday: tm.tm_wday as usize,
            day_of_year: i64::from(tm.tm_yday) + 1,
            offset_s: tm.tm_gmtoff,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_time_is_its_offset_away_from_utc() {
        let time = LocalTime::at(951_782_400);
        let seconds_of_day = (time.hour * 60 + time.minute) * 60 + time.second;
        assert_eq!((seconds_of_day - time.offset_s).rem_euclid(86_400), 0, "{time:?}");
        assert_eq!((time.year, time.month), (2000, if time.day == 1 { 3 } else { 2 }));
    }
}
