//! One case after another: start the processes, inject faults, measure, stop.

pub mod all_cases;
pub mod contender;
pub mod contract;
pub mod fault_injector;
pub mod foreign;
pub mod one_case;
pub mod sysctl;
