//! The time before a line, in the way that `log_date_format` says: with the letters of moment.js and dayjs (`YYYY-MM-DD
//! HH:mm:ss Z`), in the local time zone. A text is made once a second; between, only the fraction of it is written anew.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::sys::local_time::LocalTime;
use crate::units::utc_now_ms;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Each before those that it begins with. What is none of them stands for itself.
const TOKENS: &[&str] = &[
    "YYYY", "YY", "GGGG", "Q", "MMMM", "MMM", "MM", "M", "DDDD", "DDD", "Do", "DD", "D", "dddd", "ddd", "dd", "d", "E",
    "WW", "W", "HH", "H", "hh", "h", "kk", "k", "mm", "m", "ss", "s", "A", "a", "ZZ", "Z", "X",
];

/// Short names of whole formats, in the order in which they are looked for.
const LONG_TOKENS: [(&str, &str); 7] = [
    ("LTS", "h:mm:ss A"),
    ("LT", "h:mm A"),
    ("LLLL", "dddd, MMMM D, YYYY h:mm A"),
    ("LLL", "MMMM D, YYYY h:mm A"),
    ("LL", "MMMM D, YYYY"),
    ("L", "MM/DD/YYYY"),
    ("x", "XSSS"),
];

/// What time stands in a line.
pub enum Clock {
    /// None: an empty text.
    Silent,
    /// RFC 3339 in UTC, with milliseconds.
    Utc(String),
    Local(TimeStamps),
}

impl Clock {
    /// An empty format is none. An object of JSON has always a time.
    pub fn new(format: Option<&str>, is_json: bool) -> Clock {
        match format.filter(|format| !format.is_empty()) {
            Some(format) => Clock::Local(TimeStamps::new(format)),
            None if is_json => Clock::Utc(String::new()),
            None => Clock::Silent,
        }
    }

    pub fn now(&mut self) -> &str {
        match self {
            Clock::Silent => "",
            Clock::Utc(text) => {
                *text = utc_now_ms();
                text
            }
            Clock::Local(stamps) => stamps.now(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Literal(String),
    Token(&'static str),
    /// So many digits of the second's fraction.
    Fraction(usize),
}

/// Time stamps of one form.
pub struct TimeStamps {
    parts: Vec<Part>,
    /// Which second `text` shows.
    second: Option<u64>,
    text: String,
    /// Where the fractions stand in it, and how many digits they have.
    fractions: Vec<(usize, usize)>,
}

impl TimeStamps {
    pub fn new(format: &str) -> TimeStamps {
        let mut parts = Vec::new();
        parse(format, &mut parts);
        TimeStamps { parts, second: None, text: String::new(), fractions: Vec::new() }
    }

    pub fn now(&mut self) -> &str {
        self.at(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// At this time since 1970-01-01 UTC.
    pub fn at(&mut self, time: Duration) -> &str {
        if self.second != Some(time.as_secs()) {
            self.second = Some(time.as_secs());
            self.show(&LocalTime::at(time.as_secs() as i64), time.as_secs());
        }
        let digits = format!("{:09}", time.subsec_nanos());
        for &(at, length) in &self.fractions {
            self.text.replace_range(at..at + length, &digits[..length]);
        }
        &self.text
    }

    fn show(&mut self, time: &LocalTime, unix_s: u64) {
        self.text.clear();
        self.fractions.clear();
        for part in &self.parts {
            match part {
                Part::Literal(text) => self.text += text,
                Part::Token(token) => self.text += &show(token, time, unix_s),
                Part::Fraction(length) => {
                    self.fractions.push((self.text.len(), *length));
                    self.text += &"0".repeat(*length);
                }
            }
        }
    }
}

fn parse(format: &str, parts: &mut Vec<Part>) {
    let mut rest = format;
    while let Some(first) = rest.chars().next() {
        if let Some((literal, behind)) = rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            parts.push(Part::Literal(literal.to_owned()));
            rest = behind;
        } else if let Some((token, format)) = LONG_TOKENS.iter().find(|(token, _)| rest.starts_with(token)) {
            parse(format, parts);
            rest = &rest[token.len()..];
        } else if let Some(token) = TOKENS.iter().find(|token| rest.starts_with(**token)) {
            parts.push(Part::Token(token));
            rest = &rest[token.len()..];
        } else if first == 'S' {
            let length = rest.bytes().take_while(|&byte| byte == b'S').count().min(9);
            parts.push(Part::Fraction(length));
            rest = &rest[length..];
        } else {
            parts.push(Part::Literal(first.to_string()));
            rest = &rest[first.len_utf8()..];
        }
    }
}

fn show(token: &str, time: &LocalTime, unix_s: u64) -> String {
    let month = MONTHS[(time.month - 1).min(11)];
    let day = DAYS[time.weekday.min(6)];
    let hour_of_half = (time.hour + 11) % 12 + 1;
    let hour_from_1 = if time.hour == 0 { 24 } else { time.hour };
    let (week_year, week) = iso_week(time);
    match token {
        "YYYY" => format!("{:04}", time.year),
        "YY" => format!("{:02}", time.year % 100),
        "GGGG" => format!("{week_year:04}"),
        "Q" => ((time.month - 1) / 3 + 1).to_string(),
        "MMMM" => month.to_owned(),
        "MMM" => month[..3].to_owned(),
        "MM" => format!("{:02}", time.month),
        "M" => time.month.to_string(),
        "DDDD" => format!("{:03}", time.day_of_year),
        "DDD" => time.day_of_year.to_string(),
        "Do" => ordinal(time.day),
        "DD" => format!("{:02}", time.day),
        "D" => time.day.to_string(),
        "dddd" => day.to_owned(),
        "ddd" => day[..3].to_owned(),
        "dd" => day[..2].to_owned(),
        "d" => time.weekday.to_string(),
        "E" => (if time.weekday == 0 { 7 } else { time.weekday }).to_string(),
        "WW" => format!("{week:02}"),
        "W" => week.to_string(),
        "HH" => format!("{:02}", time.hour),
        "H" => time.hour.to_string(),
        "hh" => format!("{hour_of_half:02}"),
        "h" => hour_of_half.to_string(),
        "kk" => format!("{hour_from_1:02}"),
        "k" => hour_from_1.to_string(),
        "mm" => format!("{:02}", time.minute),
        "m" => time.minute.to_string(),
        "ss" => format!("{:02}", time.second),
        "s" => time.second.to_string(),
        "A" => (if time.hour < 12 { "AM" } else { "PM" }).to_owned(),
        "a" => (if time.hour < 12 { "am" } else { "pm" }).to_owned(),
        "ZZ" => offset(time.offset_s, ""),
        "Z" => offset(time.offset_s, ":"),
        _ => unix_s.to_string(),
    }
}

fn offset(seconds: i64, between: &str) -> String {
    let sign = if seconds < 0 { '-' } else { '+' };
    let minutes = seconds.abs() / 60;
    format!("{sign}{:02}{between}{:02}", minutes / 60, minutes % 60)
}

fn ordinal(number: i64) -> String {
    let ending = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

/// Year and week of ISO 8601: a week belongs to the year of its Thursday.
fn iso_week(time: &LocalTime) -> (i64, i64) {
    let from_monday = (time.weekday as i64 + 6) % 7;
    let thursday = time.day_of_year - from_monday + 3;
    let days = |year: i64| if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) { 366 } else { 365 };
    match thursday {
        ..=0 => (time.year - 1, (thursday + days(time.year - 1) - 1) / 7 + 1),
        _ if thursday > days(time.year) => (time.year + 1, 1),
        _ => (time.year, (thursday - 1) / 7 + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: LocalTime = LocalTime {
        year: 2026,
        month: 11,
        day: 3,
        hour: 15,
        minute: 4,
        second: 9,
        weekday: 2,
        day_of_year: 307,
        offset_s: -(3 * 3600 + 30 * 60),
    };

    fn shown(format: &str, time: LocalTime) -> String {
        let mut stamps = TimeStamps::new(format);
        stamps.show(&time, 1_793_000_000);
        stamps.text
    }

    #[test]
    fn a_format_means_what_it_means_to_moment() {
        for (format, expected) in [
            ("YYYY-MM-DD HH:mm:ss Z", "2026-11-03 15:04:09 -03:30"),
            ("YYYY-MM-DDTHH:mm:ss", "2026-11-03T15:04:09"),
            ("YYYY-MM-DD HH:mm Z", "2026-11-03 15:04 -03:30"),
            ("DD/MM/YY h:m:s a ZZ", "03/11/26 3:4:9 pm -0330"),
            ("dddd, MMMM Do", "Tuesday, November 3rd"),
            ("ddd dd d E MMM M D", "Tue Tu 2 2 Nov 11 3"),
            ("[Week] W [of] GGGG, DDDD DDD Q", "Week 45 of 2026, 307 307 4"),
            ("k kk H hh A", "15 15 15 03 PM"),
            ("X x", "1793000000 1793000000000"),
            ("LTS | L | LLLL", "3:04:09 PM | 11/03/2026 | Tuesday, November 3, 2026 3:04 PM"),
            ("[YYYY] 年 -> YYYY年", "YYYY 年 -> 2026年"),
            ("[open", "[open"),
            ("", ""),
        ] {
            assert_eq!(shown(format, TIME), expected, "{format}");
        }
        let midnight = LocalTime { hour: 0, offset_s: 5 * 3600 + 45 * 60, ..TIME };
        assert_eq!(shown("h hh k HH a Z", midnight), "12 12 24 00 am +05:45");
    }

    #[test]
    fn weeks_at_the_turn_of_the_year_belong_to_the_year_of_their_thursday() {
        let on = |year, day_of_year, weekday| iso_week(&LocalTime { year, day_of_year, weekday, ..TIME });
        assert_eq!(on(2027, 1, 5), (2026, 53));
        assert_eq!(on(2024, 366, 2), (2025, 1));
        assert_eq!(on(2024, 1, 1), (2024, 1));
        assert_eq!(on(2023, 1, 0), (2022, 52));
    }

    #[test]
    fn a_fraction_is_new_for_each_stamp_and_the_rest_once_a_second() {
        let mut stamps = TimeStamps::new("ss.SSS S [S] x");
        let first = stamps.at(Duration::from_micros(59_123_456)).to_owned();
        assert!(first.ends_with(".123 1 S 59123"), "{first}");
        let next = stamps.at(Duration::from_millis(59_007)).to_owned();
        assert!(next.ends_with(".007 0 S 59007"), "{next}");
        assert!(stamps.at(Duration::from_secs(60)).ends_with("00.000 0 S 60000"));
    }
}
