//! The part of a command line that is about the helper threads.

use clap::Args;
use clap::builder::RangedU64ValueParser;

/// As many as libuv has.
pub const DEFAULT_THREADS: usize = 4;

#[derive(Args, Clone, Copy, Debug)]
pub struct PoolArgs {
    /// Helper threads for work that blocks
    #[arg(long = "pool", value_name = "N", default_value_t = DEFAULT_THREADS,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub threads: usize,
}
