//! From a lesson's file to the cases that its matrix names, and the order of their runs.

pub mod blocks;
pub mod case;
pub mod command;
pub mod events;
pub mod experiment;
pub mod law;
pub mod matrix;
