//! The specification: every test runs the real programs, and its name is the sentence it holds them to.

mod generator;
mod support;
mod terminal;

mod architectures;
mod bad_input;
mod books;
mod check;
mod contract;
mod counting;
mod dispatch;
mod endings;
mod foreign_clients;
mod house;
mod lab;
mod live;
mod loadgen;
mod loadgen_engine;
mod loadgen_models;
mod loadgen_output;
mod loadgen_slow;
mod loadgen_theory;
mod loadgen_trust;
mod locks;
mod merge;
mod order;
mod ordinary_user;
mod passing;
mod ports;
mod proxy;
mod select;
mod stopping;
mod theory;
mod waiting;
mod watch;
mod yardsticks;
