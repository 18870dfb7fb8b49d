//! The pause of a user between an answer and the next request.

use std::str::FromStr;
use std::time::Duration;

use fastrand::Rng;

use super::{exponential, rng_of_thread};
use crate::units::parse_positive_duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Think {
    pub mean: Duration,
    /// Whether the pauses are exponential with this mean; otherwise each is the mean.
    pub is_exponential: bool,
}

impl FromStr for Think {
    type Err = String;

    fn from_str(text: &str) -> Result<Think, String> {
        let mean = parse_positive_duration(text.strip_prefix("exp:").unwrap_or(text))?;
        Ok(Think { mean, is_exponential: text.starts_with("exp:") })
    }
}

pub struct Thinker {
    think: Option<Think>,
    rng: Rng,
}

impl Thinker {
    /// Without a `think` all pauses are zero.
    pub fn new(think: Option<Think>, seed: u64, thread: u64) -> Thinker {
        // Another seed than the arrivals have, or long gaps and long pauses would come together.
        Thinker { think, rng: rng_of_thread(!seed, thread) }
    }

    pub fn pause_ns(&mut self) -> u64 {
        match self.think {
            None => 0,
            Some(Think { mean, is_exponential: false }) => mean.as_nanos() as u64,
            Some(Think { mean, .. }) => (exponential(&mut self.rng) * mean.as_nanos() as f64).round() as u64,
        }
    }
}
