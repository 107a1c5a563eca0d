#!/usr/bin/env bash
# Runs every test: unit and property tests, and the real program over real sockets, files and signals.
# Arguments go to cargo test, as in: tests/run.sh --test it -- crash
#
# Needs cargo and a C compiler, which Debian's apt-get is asked for if it is missing, and root, for one
# test mounts a small tmpfs to fill it.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo >/dev/null || {
    echo "tests/run.sh: there is no cargo: install Rust 1.95 or later (https://rustup.rs)" >&2
    exit 1
}
command -v cc >/dev/null || {
    echo "tests/run.sh: installing a C compiler" >&2
    apt-get update -qq && apt-get install -y -qq gcc libc6-dev
}
[ "$(id -u)" = 0 ] || echo "tests/run.sh: not root, so the test of a full disk will fail" >&2

exec cargo test --locked "$@"
