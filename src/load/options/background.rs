//! The connections of `--background`: beside those that are measured, only there or slow on purpose.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::units::{format_duration, parse_positive_duration};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Background {
    pub idle: u32,
    pub slow_send: u32,
    pub slow_read: u32,
    pub half_open: u32,
    /// The pause between two bytes of the slow ones.
    pub gap: Duration,
}

const MOST: u32 = 1_000_000;
const DEFAULT_GAP: Duration = Duration::from_millis(100);

impl Background {
    fn kinds(&mut self) -> [(&'static str, &mut u32); 4] {
        [
            ("idle", &mut self.idle),
            ("slow-send", &mut self.slow_send),
            ("slow-read", &mut self.slow_read),
            ("half-open", &mut self.half_open),
        ]
    }

    pub fn total(mut self) -> u64 {
        self.kinds().into_iter().map(|(_, count)| u64::from(*count)).sum()
    }
}

impl Default for Background {
    fn default() -> Background {
        Background { idle: 0, slow_send: 0, slow_read: 0, half_open: 0, gap: DEFAULT_GAP }
    }
}

impl FromStr for Background {
    type Err = String;

    fn from_str(text: &str) -> Result<Background, String> {
        let mut background = Background::default();
        for part in text.split(',') {
            match part.strip_prefix("gap:") {
                Some(gap) => background.gap = parse_positive_duration(gap).map_err(|why| format!("gap: {why}"))?,
                None => set_count(part, background.kinds()).map_err(|why| format!("{why}; gap:DUR is a pause"))?,
            }
        }
        Ok(background)
    }
}

/// Reads `KIND:N` into the place of its kind.
pub fn set_count<const N: usize>(part: &str, kinds: [(&'static str, &mut u32); N]) -> Result<(), String> {
    let names = kinds.each_ref().map(|(name, _)| *name).join(", ");
    let (kind, count) = part.split_once(':').unwrap_or((part, ""));
    let place = kinds.into_iter().find_map(|(name, place)| (name == kind).then_some(place));
    let place = place.ok_or_else(|| format!("{part:?} is not KIND:N; kinds are {names}"))?;
    let number = count.parse().ok().filter(|&number| number <= MOST);
    *place = number.ok_or_else(|| format!("{kind}: {count:?} is not a number from 0 to {MOST}"))?;
    Ok(())
}

/// As it is written on the command line; empty when there are no such connections.
impl fmt::Display for Background {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let mut copy = *self;
        let some = copy.kinds().into_iter().filter(|(_, count)| **count > 0);
        let mut parts: Vec<String> = some.map(|(kind, count)| format!("{kind}:{count}")).collect();
        if self.slow_send + self.slow_read > 0 {
            parts.push(format!("gap:{}", format_duration(self.gap)));
        }
        formatter.write_str(&parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_number_and_what_is_written_reads_back_the_same() {
        let text = "idle:1000,slow-send:10,slow-read:5,half-open:3,gap:250ms";
        let background: Background = text.parse().unwrap();
        let gap = Duration::from_millis(250);
        assert_eq!(background, Background { idle: 1000, slow_send: 10, slow_read: 5, half_open: 3, gap });
        assert_eq!((background.total(), background.to_string().as_str()), (1018, text));
        let idle: Background = "idle:7".parse().unwrap();
        assert_eq!((idle.gap, idle.to_string().as_str()), (DEFAULT_GAP, "idle:7"));
    }

    #[test]
    fn an_unknown_kind_and_a_number_out_of_range_are_refused() {
        for bad in ["", "5", "idle", "idle:", "idle:-1", "idle:1000001", "busy:3", "gap:0s", "idle:3,", "gap:5"] {
            assert!(bad.parse::<Background>().is_err(), "{bad:?} was accepted");
        }
    }
}
