//! What the kernel and /proc counted meanwhile.

pub mod cpu_window;
pub mod footprint;
pub mod kernel_counts;
pub mod processes;
pub mod speed;
pub mod timeline;
pub mod tracepoints;
