//! From a lesson's file to the cases that its matrix names.

pub mod case;
pub mod experiment;
pub mod laws;
