//! From rows to what a person reads.

pub mod accounting;
pub mod columns;
pub mod origin;
pub mod report;
pub mod table;
