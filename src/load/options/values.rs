//! How single options are written: rates, arrivals, methods, headers, moments, files.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use clap::ValueEnum;

use crate::load::options::background::set_count;
use crate::load::options::plan::{FileFormat, Method, Show};
use crate::load::schedule::Spacing;
use crate::units::parse_duration;

#[derive(Debug, Clone, PartialEq)]
pub enum ArrivalsOption {
    Gaps(Spacing),
    Replay(PathBuf),
}

impl FromStr for ArrivalsOption {
    type Err = String;

    fn from_str(text: &str) -> Result<ArrivalsOption, String> {
        match text.strip_prefix("replay:") {
            Some("") => Err("replay:FILE needs the name of a file".into()),
            Some(file) => Ok(ArrivalsOption::Replay(file.into())),
            None => text.parse().map(ArrivalsOption::Gaps),
        }
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Method, String> {
        const NAMES: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
        const MOST_BYTES: u32 = 16 * 1024 * 1024;
        let (name, bytes) = text.split_once(':').unwrap_or((text, "0"));
        let known = NAMES.into_iter().find(|known| known.eq_ignore_ascii_case(name));
        let no_method = || format!("{name:?} is not a method that loadgen sends; there are {}", NAMES.join(", "));
        let no_bytes = || format!("a body has from 0 to {MOST_BYTES} bytes, like POST:1000");
        let body_bytes = bytes.parse().ok().filter(|&bytes| bytes <= MOST_BYTES).ok_or_else(no_bytes)?;
        Ok(Method { name: known.ok_or_else(no_method)?, body_bytes })
    }
}

impl FromStr for Show {
    type Err = String;

    fn from_str(text: &str) -> Result<Show, String> {
        let mut show = Show::default();
        for part in text.split(',') {
            set_count(part, [("answers", &mut show.answers), ("order", &mut show.order)])?;
        }
        Ok(show)
    }
}

/// A moment further ahead was meant as milliseconds.
const FURTHEST_START: Duration = Duration::from_secs(24 * 60 * 60);
/// A start that is not later than this is judged by the verdict; a later one is a typing error.
const LATEST_START: Duration = Duration::from_secs(10);

/// A header line that cannot smuggle in a second one, nor the fields that decide where a request ends.
pub fn parse_header(text: &str) -> Result<String, String> {
    let (name, value) = text.split_once(':').ok_or("a header looks like 'Name: value'")?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) || value.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(format!(
            "{text:?} is not a header: a name of letters, digits and dashes, a colon, one line of value"
        ));
    }
    if ["content-length", "transfer-encoding", "connection"].contains(&name.to_ascii_lowercase().as_str()) {
        return Err(format!("{name} is written by loadgen itself"));
    }
    Ok(format!("{name}: {}", value.trim()))
}

pub fn is_host(header: &str) -> bool {
    header.split_once(':').is_some_and(|(name, _)| name.eq_ignore_ascii_case("host"))
}

/// A duration of a millisecond or more: to send shorter ones would be more work than to measure.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = Some(parse_duration(text)?).filter(|&interval| interval >= Duration::from_millis(1));
    interval.ok_or("an interval has at least a millisecond".into())
}

pub fn parse_out(text: &str) -> Result<(FileFormat, PathBuf), String> {
    let file = PathBuf::from(text);
    let ending = file.extension().and_then(|ending| ending.to_str());
    let format = ending.and_then(|ending| FileFormat::from_str(ending, false).ok());
    Ok((format.ok_or("its name ends with .json, .csv, .hgrm or .ndjson, which says the format")?, file))
}

/// Seconds since 1970, with a fraction if need be; not more than a day ahead.
pub fn parse_moment(text: &str) -> Result<SystemTime, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds since 1970"))?;
    let since = Duration::try_from_secs_f64(seconds).map_err(|error| format!("{text}: {error}"))?;
    let now = SystemTime::now();
    let is_soon = |moment: &SystemTime| (now - LATEST_START..=now + FURTHEST_START).contains(moment);
    SystemTime::UNIX_EPOCH.checked_add(since).filter(is_soon).ok_or_else(|| {
        format!("{text} is over, or more than a day ahead; write it in seconds, like $(($(date +%s) + 5))")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_would_be_a_second_one_or_end_the_request_is_refused() {
        for bad in ["", "X", ": x", "a b: c", "X: y\r\nZ: z", "content-length: 3", "Connection: close"] {
            assert!(parse_header(bad).is_err(), "{bad:?} was accepted");
        }
        assert_eq!(parse_header("host:b"), Ok("host: b".into()));
    }
}
