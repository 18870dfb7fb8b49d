//! Durations as people write them (`250us`, `1.8ms`, `3s`), numbers as people read them, dates, and the clock all
//! programs read.

use std::time::Duration;

use chrono::Utc;
use indicatif::HumanCount;
use nix::time::{ClockId, clock_gettime};

/// Reads `250us`, `1.8ms`, `3s`, `2m`, `1h`; also `ns`. A bare number has no unit and is refused.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let odd = || format!("{text:?} is not a duration; write it like 250us, 1.8ms or 3s");
    let unit_at = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let nanoseconds_per_unit = match unit {
        "ns" => 1.0,
        "us" | "µs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 60e9,
        "h" => 3600e9,
        _ => return Err(odd()),
    };
    let value: f64 = number.parse().map_err(|_| odd())?;
    let nanoseconds = (value * nanoseconds_per_unit).round();
    // A century: longer than any experiment, far below what u64 nanoseconds can hold.
    if nanoseconds > 100.0 * 365.25 * 24.0 * 3600e9 {
        return Err(format!("{text:?} is longer than a century"));
    }
    Ok(Duration::from_nanos(nanoseconds as u64))
}

/// The same for a duration that would make no sense if it were zero.
pub fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("it must be longer than nothing".into()),
        duration => Ok(duration),
    }
}

/// Writes a duration with the largest unit that keeps it readable; the inverse of [`parse_duration`] for whole
/// nanoseconds.
pub fn format_duration(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    let (divisor, unit) = match nanoseconds {
        0..1_000 => (1.0, "ns"),
        1_000..1_000_000 => (1e3, "us"),
        1_000_000..1_000_000_000 => (1e6, "ms"),
        _ => (1e9, "s"),
    };
    format!("{}{unit}", nanoseconds as f64 / divisor)
}

/// Whole seconds as a clock shows them: `1:05`, `2:01:05`.
pub fn clock(seconds: f64) -> String {
    let whole = seconds as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// A time in microseconds with three digits and the unit that makes them readable: `30.4ms`.
pub fn time(us: f64) -> String {
    let (value, unit) = match us {
        us if us < 999.5 => (us, "us"),
        us if us < 999.5e3 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    let decimals = match value {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{unit}")
}

/// A number with three digits: `3`, `0.951`, `12.3`, `80311`.
pub fn number(value: f64) -> String {
    if value.fract() == 0.0 || value.abs() >= 1000.0 {
        return format!("{value:.0}");
    }
    let digits_before = if value.abs() < 1.0 { 0 } else { value.abs().log10() as usize + 1 };
    match value.abs() {
        tiny if tiny < 1e-3 => format!("{value:.1e}"),
        _ => format!("{value:.*}", 3usize.saturating_sub(digits_before).max(1)),
    }
}

/// A count with its thousands separated: `1,234,567`.
pub fn grouped(count: u64) -> String {
    HumanCount(count).to_string()
}

/// A number in at most six characters: `12`, `1,000`, `100k`, `12.3M`.
pub fn short(value: f64) -> String {
    match value {
        0.0 => "0".to_string(),
        _ if value < 9.95 => format!("{value:.1}"),
        _ if value < 999.5 => format!("{value:.0}"),
        _ if value < 99_999.5 => {
            let whole = value.round() as u64;
            format!("{},{:03}", whole / 1000, whole % 1000)
        }
        _ if value < 999_500.0 => format!("{:.0}k", value / 1e3),
        _ if value < 99.95e6 => format!("{:.1}M", value / 1e6),
        _ if value < 999.5e6 => format!("{:.0}M", value / 1e6),
        _ => format!("{:.0}G", value / 1e9),
    }
}

/// `amount / of`, and 0 where there is nothing to divide by.
pub fn over(amount: f64, of: f64) -> f64 {
    if of > 0.0 { amount / of } else { 0.0 }
}

pub fn utc_now() -> String {
    Utc::now().format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub fn utc_now_ms() -> String {
    Utc::now().format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// The time of the wall clock, which may jump: to be shown, never to measure.
pub fn wall_ms() -> u64 {
    Utc::now().timestamp_millis().try_into().unwrap_or_default()
}

/// Nanoseconds of CLOCK_MONOTONIC: the same clock in every process of the machine (clock_gettime(2)).
pub fn monotonic_ns() -> u64 {
    clock_ns(ClockId::CLOCK_MONOTONIC)
}

pub fn thread_cpu_ns() -> u64 {
    clock_ns(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

pub fn clock_ns(clock: ClockId) -> u64 {
    let now = clock_gettime(clock).expect("every Linux since 2.6.39 has the clocks we read");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(parse_duration("250us"), Ok(Duration::from_micros(250)));
        assert_eq!(parse_duration("1.8ms"), Ok(Duration::from_micros(1800)));
        assert_eq!(parse_duration("1.823ms"), Ok(Duration::from_nanos(1_823_000)));
        assert_eq!(parse_duration("3s"), Ok(Duration::from_secs(3)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for bad in ["", "3", "s", "-1s", "1.2.3s", "1 s", "1e9s", "9999999999999h", "NaNs"] {
            assert!(parse_duration(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_written_duration_reads_back_the_same() {
        for nanoseconds in [0, 1, 250_000, 1_823_000, 3_000_000_000] {
            let duration = Duration::from_nanos(nanoseconds);
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }

    #[test]
    fn times_have_three_digits_and_the_unit_that_suits_them() {
        for (us, expected) in [
            (0.0, "0.00us"),
            (9.994, "9.99us"),
            (9.996, "10.0us"),
            (99.96, "100us"),
            (999.6, "1.00ms"),
            (30_390.0, "30.4ms"),
            (3_010_000.0, "3.01s"),
            (3_600_000_000.0, "3600s"),
        ] {
            assert_eq!(time(us), expected);
        }
    }

    #[test]
    fn numbers_have_three_digits() {
        for (value, expected) in [
            (3.0, "3"),
            (0.9512, "0.951"),
            (12.345, "12.3"),
            (123.45, "123.5"),
            (0.00012, "1.2e-4"),
            (80_311.2, "80311"),
        ] {
            assert_eq!(number(value), expected);
        }
    }

    #[test]
    fn thousands_are_separated() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn a_short_number_has_at_most_six_characters() {
        for (value, text) in [
            (0.0, "0"),
            (0.4, "0.4"),
            (12.4, "12"),
            (999.6, "1,000"),
            (99_999.4, "99,999"),
            (99_999.6, "100k"),
            (999_600.0, "1.0M"),
            (12_345_678.0, "12.3M"),
            (2e9, "2G"),
        ] {
            assert_eq!(short(value), text);
            assert!(short(value).chars().count() <= 6);
        }
    }
}
