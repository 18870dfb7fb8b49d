//! From rows to what a person reads.

pub mod books;
pub mod columns;
pub mod report;
pub mod table;
