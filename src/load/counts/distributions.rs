//! The five distributions of a run, and when it was.

use std::time::{Duration, SystemTime};

use crate::load::counts::histogram::Times;

/// All that was timed, of the measured window; `connect` of the whole run.
#[derive(Clone, Default)]
pub struct Distributions {
    pub connect: Times,
    pub first_byte: Times,
    pub service: Times,
    pub response: Times,
    pub send_delay: Times,
}

impl Distributions {
    /// Their tags in an `.hlog`, in the order of a request's life.
    pub const TAGS: [&str; 5] = ["connect", "first_byte", "service", "response", "send_delay"];

    pub fn tagged(&self) -> [(&'static str, &Times); 5] {
        let times = [&self.connect, &self.first_byte, &self.service, &self.response, &self.send_delay];
        std::array::from_fn(|i| (Distributions::TAGS[i], times[i]))
    }

    pub fn by_tag(&mut self, tag: &str) -> Option<&mut Times> {
        let times =
            [&mut self.connect, &mut self.first_byte, &mut self.service, &mut self.response, &mut self.send_delay];
        std::iter::zip(Distributions::TAGS, times).find_map(|(known, times)| (known == tag).then_some(times))
    }

    pub fn add(&mut self, other: &Distributions) {
        for (tag, times) in other.tagged() {
            self.by_tag(tag).expect("both have the same tags").add(times);
        }
    }
}

pub struct Span {
    /// The run began, by the clock on the wall.
    pub began: SystemTime,
    /// From there to the measured window, and how long that is.
    pub start: Duration,
    pub duration: Duration,
}
