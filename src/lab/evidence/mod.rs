//! From rows to what a person reads: [`table`]s of the rows, the [`claims`] that they confirm or refute, [`pictures`]
//! of them, a [`lesson`] with all three, and the [`pages`].

pub mod accounting;
pub mod answer;
pub mod claims;
pub mod columns;
pub mod completeness;
pub mod html;
pub mod items;
pub mod lesson;
pub mod markdown;
pub mod numbers;
pub mod origin;
pub mod overview;
pub mod pages;
pub mod pictures;
pub mod summary;
pub mod table;
