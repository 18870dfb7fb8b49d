//! From a lesson's file to the cases that its matrix names, the claims about them and their pictures, and the order of
//! the runs.

pub mod blocks;
pub mod case;
pub mod citation;
pub mod claim;
pub mod command;
pub mod events;
pub mod experiment;
pub mod law;
pub mod manual_values;
pub mod matrix;
pub mod picture;
