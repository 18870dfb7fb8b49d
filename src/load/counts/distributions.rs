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
    pub slip: Times,
}

impl Distributions {
    /// With their tags in an `.hlog`, in the order of a request's life.
    pub fn tagged(&self) -> [(&'static str, &Times); 5] {
        [
            ("connect", &self.connect),
            ("first_byte", &self.first_byte),
            ("service", &self.service),
            ("response", &self.response),
            ("slip", &self.slip),
        ]
    }

    pub fn by_tag(&mut self, tag: &str) -> Option<&mut Times> {
        match tag {
            "connect" => Some(&mut self.connect),
            "first_byte" => Some(&mut self.first_byte),
            "service" => Some(&mut self.service),
            "response" => Some(&mut self.response),
            "slip" => Some(&mut self.slip),
            _ => None,
        }
    }

    pub fn add(&mut self, other: &Distributions) {
        for (tag, times) in other.tagged() {
            self.by_tag(tag).expect("both have the same tags").add(times);
        }
    }
}

/// When it was measured.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// The run began, by the clock on the wall.
    pub began: SystemTime,
    /// From there to the measured window.
    pub start: Duration,
    /// Of the measured window.
    pub duration: Duration,
}
