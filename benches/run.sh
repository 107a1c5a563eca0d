#!/usr/bin/env bash
# Builds what the benchmark needs, then measures: benches/run.sh [--quick] [--runs 3] [--dir DIR] …
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked --bin topic-bridge --example floor --example raw --example readable >&2
exec python3 -B benches/run.py "$@"
