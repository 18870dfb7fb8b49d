#!/bin/sh
# Builds everything, runs all experiments, writes RESULTS.md and experiments/results/.
# scripts/run_all.sh [--quick] [--out DIR] [EXPERIMENT…]: the options are those of `lab run`.
set -e
cd "$(dirname "$0")/.."
cargo build --release --bins
exec target/release/lab run "$@"
