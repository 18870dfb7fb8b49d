//! What was counted: histograms, tallies, the window over time, evenness.

pub mod distributions;
pub mod evenness;
pub mod failures;
pub mod histogram;
pub mod interval;
pub mod series;
pub mod tally;
pub mod window;
