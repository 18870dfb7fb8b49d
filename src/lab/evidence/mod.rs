//! From rows to what a person reads.

pub mod accounting;
pub mod answer;
pub mod claims;
pub mod columns;
pub mod numbers;
pub mod origin;
pub mod report;
pub mod table;
