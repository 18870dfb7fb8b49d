#!/bin/sh
# Builds everything, runs all experiments and ends with the tables, on the terminal and in RESULTS.md.
# scripts/run_all.sh [--quick] [--out DIR] [EXPERIMENT…]: whatever `lab run` takes.
set -e
cd "$(dirname "$0")/.."
cargo build --release --bins
exec target/release/lab run "$@"
