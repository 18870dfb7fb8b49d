//! What was counted: histograms, tallies, intervals, evenness.

pub mod distributions;
pub mod evenness;
pub mod histogram;
pub mod interval;
pub mod seconds;
pub mod tally;
