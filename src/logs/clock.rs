//! The time before a line, in the way that `log_date_format` says: with the letters of moment.js and dayjs (`YYYY-MM-DD
//! HH:mm:ss Z`), in the local time zone. A text is made once a second; between, only the fraction of it is written
//! anew.

use std::fmt::Write;

use chrono::{DateTime, Datelike, FixedOffset, Local, Timelike, Utc};

/// What chrono calls them (its module `format::strftime`), each before those that it begins with. What is none of them
/// stands for itself.
const TOKENS: &[(&str, &str)] = &[
    ("LTS", "%-I:%M:%S %p"),
    ("LT", "%-I:%M %p"),
    ("LLLL", "%A, %B %-d, %Y %-I:%M %p"),
    ("LLL", "%B %-d, %Y %-I:%M %p"),
    ("LL", "%B %-d, %Y"),
    ("L", "%m/%d/%Y"),
    ("YYYY", "%Y"),
    ("YY", "%y"),
    ("GGGG", "%G"),
    ("Q", "%q"),
    ("MMMM", "%B"),
    ("MMM", "%b"),
    ("MM", "%m"),
    ("M", "%-m"),
    ("DDDD", "%j"),
    ("DDD", "%-j"),
    ("DD", "%d"),
    ("Do", "%-d"),
    ("D", "%-d"),
    ("dddd", "%A"),
    ("ddd", "%a"),
    ("dd", "%a"),
    ("d", "%w"),
    ("E", "%u"),
    ("WW", "%V"),
    ("W", "%-V"),
    ("HH", "%H"),
    ("H", "%-H"),
    ("hh", "%I"),
    ("h", "%-I"),
    ("kk", "%H"),
    ("k", "%-H"),
    ("mm", "%M"),
    ("m", "%-M"),
    ("ss", "%S"),
    ("s", "%-S"),
    ("A", "%p"),
    ("a", "%P"),
    ("ZZ", "%z"),
    ("Z", "%:z"),
    ("X", "%s"),
    ("x", "%s"),
];

/// RFC 3339 in UTC, with milliseconds.
const UTC_FORMAT: &str = "YYYY-MM-DDTHH:mm:ss.SSS[Z]";

/// Time stamps of one form.
pub struct Clock {
    parts: Vec<Part>,
    is_utc: bool,
    /// Which second `text` shows.
    second: Option<i64>,
    text: String,
    /// Where the fractions stand in it, and how many digits they have.
    fractions: Vec<(usize, usize)>,
}

enum Part {
    Literal(String),
    Token(&'static str, &'static str),
    /// So many digits of the second's fraction.
    Fraction(usize),
}

impl Clock {
    /// Without a format, or with an empty one, there is no time: an empty text. An object of JSON has always one.
    pub fn new(format: Option<&str>, is_json: bool) -> Clock {
        let format = format.filter(|format| !format.is_empty());
        let is_utc = is_json && format.is_none();
        let parts = parse(if is_utc { UTC_FORMAT } else { format.unwrap_or_default() });
        Clock { parts, is_utc, second: None, text: String::new(), fractions: Vec::new() }
    }

    pub fn now(&mut self) -> &str {
        if self.parts.is_empty() { "" } else { self.at(Utc::now()) }
    }

    fn at(&mut self, time: DateTime<Utc>) -> &str {
        if self.second.replace(time.timestamp()) != Some(time.timestamp()) {
            let local = time.with_timezone(&Local).fixed_offset();
            self.show(if self.is_utc { time.fixed_offset() } else { local });
        }
        let digits = format!("{:09}", time.timestamp_subsec_nanos());
        for &(at, length) in &self.fractions {
            self.text.replace_range(at..at + length, &digits[..length]);
        }
        &self.text
    }

    fn show(&mut self, time: DateTime<FixedOffset>) {
        self.text.clear();
        self.fractions.clear();
        for part in &self.parts {
            let start = self.text.len();
            match part {
                Part::Literal(text) => self.text += text,
                Part::Fraction(length) => {
                    self.fractions.push((start, *length));
                    self.text += &"0".repeat(*length);
                }
                Part::Token(token, format) => {
                    // What is behind these four is not quite what chrono has.
                    let _ = write!(self.text, "{}", time.format(format));
                    match *token {
                        "Do" => self.text += ordinal_ending(time.day()),
                        "dd" => self.text.truncate(start + 2),
                        "k" | "kk" if time.hour() == 0 => self.text.replace_range(start.., "24"),
                        _ => {}
                    }
                }
            }
        }
    }
}

fn parse(format: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = format;
    while let Some(first) = rest.chars().next() {
        let literal = rest.strip_prefix('[').and_then(|inner| inner.split_once(']'));
        let token = TOKENS.iter().find(|(token, _)| rest.starts_with(token));
        let digits = rest.bytes().take_while(|&byte| byte == b'S').count().min(9);
        if let Some((literal, behind)) = literal {
            parts.push(Part::Literal(literal.to_owned()));
            rest = behind;
            continue;
        }
        let length = match token {
            Some((token, format)) => {
                parts.push(Part::Token(token, format));
                // The milliseconds of Unix time.
                parts.extend((*token == "x").then_some(Part::Fraction(3)));
                token.len()
            }
            None if digits > 0 => {
                parts.push(Part::Fraction(digits));
                digits
            }
            None => {
                parts.push(Part::Literal(first.to_string()));
                first.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    parts
}

fn ordinal_ending(number: u32) -> &'static str {
    match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(format: &str, time: &str) -> String {
        let mut clock = Clock::new(Some(format), false);
        clock.show(DateTime::parse_from_rfc3339(time).unwrap());
        clock.text
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
            ("X x", "1793730849 1793730849000"),
            ("LTS | L | LLLL", "3:04:09 PM | 11/03/2026 | Tuesday, November 3, 2026 3:04 PM"),
            ("[YYYY] 年 -> YYYY年", "YYYY 年 -> 2026年"),
            ("[open", "[open"),
            ("", ""),
        ] {
            assert_eq!(shown(format, "2026-11-03T15:04:09-03:30"), expected, "{format}");
        }
        assert_eq!(shown("h hh k kk HH a Z", "2026-11-03T00:04:09+05:45"), "12 12 24 24 00 am +05:45");
    }

    #[test]
    fn weeks_at_the_turn_of_the_year_belong_to_the_year_of_their_thursday() {
        let on = |date: &str| shown("GGGG W", &format!("{date}T12:00:00Z"));
        assert_eq!([on("2027-01-01"), on("2024-12-31")], ["2026 53", "2025 1"]);
        assert_eq!([on("2024-01-01"), on("2023-01-01")], ["2024 1", "2022 52"]);
    }

    #[test]
    fn a_fraction_is_new_for_each_stamp_and_the_rest_once_a_second() {
        let mut clock = Clock::new(Some("ss.SSS S [S] x"), false);
        let mut at = |us| clock.at(DateTime::from_timestamp_micros(us).unwrap()).to_owned();
        assert!(at(59_123_456).ends_with(".123 1 S 59123"));
        assert!(at(59_007_000).ends_with(".007 0 S 59007"));
        assert!(at(60_000_000).ends_with("00.000 0 S 60000"));
    }

    #[test]
    fn an_object_of_json_has_always_a_time() {
        let mut clock = Clock::new(Some(""), true);
        assert_eq!(clock.at(DateTime::from_timestamp_millis(1_793_730_849_123).unwrap()), "2026-11-03T18:34:09.123Z");
        assert_eq!(Clock::new(Some(""), false).now(), "");
    }
}
