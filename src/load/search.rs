//! Many runs for one answer: the highest rate that holds, and the throughput-latency curve.

use std::str::FromStr;

use crate::load::schedule::Rate;

/// Rates from `from` to `to`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sweep {
    pub from: Rate,
    pub to: Rate,
    pub steps: u32,
}

impl FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Sweep, String> {
        Err(format!("{text}: a sweep is 1000..20000 or 1000..20000:5"))
    }
}
