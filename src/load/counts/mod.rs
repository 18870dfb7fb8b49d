//! What was counted: histograms, tallies, the window over time.

pub mod distributions;
pub mod failures;
pub mod histogram;
pub mod interval;
pub mod series;
pub mod tally;
pub mod window;
