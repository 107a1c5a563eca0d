#!/usr/bin/env bash
# Runs every test: unit and property tests, and the real program over real sockets, files and signals, against
# real Kafka, RabbitMQ and NATS brokers, which the tests start on free loopback ports and stop at the end. Then, unless
# there are arguments, tests a build that sends spans, breaks everything around the program for some minutes
# (tests/torture/main.rs), checks what is in deploy/ (tests/deploy.sh), and plays the Compose stack where a Docker engine
# runs (tests/compose.sh).
# Arguments go to cargo test, as in: tests/run.sh --test it -- crash
# Once it has installed what is missing, `cargo test --test it -- --include-ignored NAME` works as well.
#
# For each broker the tests use the address they are given (BRIDGE_TEST_KAFKA=host:port, BRIDGE_TEST_RABBITMQ=
# amqp://…, BRIDGE_TEST_NATS=nats://…), otherwise Docker Compose if a Docker engine is running, otherwise what
# tests/brokers/install has installed. For a broker whose address is given:
#   BRIDGE_TEST_CONTROL=COMMAND     accepts `kafka stop`, `kill`, `start`, `pause` or `resume`, `rabbitmq ctl …`
#   BRIDGE_TEST_KAFKA_TLS, _KAFKA_MTLS, _KAFKA_SASL, _RABBITMQ_TLS, _NATS_TLS, _NATS_MTLS   addresses with TLS
#   BRIDGE_TEST_CERTS=FOLDER        ca.pem, client.pem, client.key and more: see tests/servers/certificates.rs
# BRIDGE_TEST_WITHOUT="kafka rabbitmq" leaves out the brokers it names: their tests report themselves as
# skipped. BRIDGE_TEST_PYTHON is a Python that has what tests/brokers/requirements.txt names. Where there is no Node.js
# or no Go, the AsyncAPI document is not checked, the Go programs are not run and spans are not tested, and this is said.
#
# Needs cargo. Anything else that is missing is installed with Debian's apt-get: a C and a C++ compiler, make and
# perl to build librdkafka and OpenSSL, python3 for the brokers' other clients, sqlite3 for damaged outboxes, what
# the brokers need, and Chromium for the private listener's page. Needs root, because some tests mount a small tmpfs and
# fill it: without root these fail, and what tests/brokers/install and tests/browser/install name has to be there already.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo >/dev/null || {
    echo "tests/run.sh: there is no cargo: install Rust 1.95 or later (https://rustup.rs)" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || echo "tests/run.sh: not root, so the tests of a full disk will fail" >&2

# The tests that need brokers are marked as ignored; libtest must be told to run them, after cargo's own `--`.
separator=--
include=--include-ignored
for argument in "$@"; do
    case $argument in
    --) separator= ;;
    --ignored | --include-ignored) include= ;; # said already
    esac
done

[ -z "${BRIDGE_TEST_WITHOUT:-}" ] ||
    echo "tests/run.sh: WITHOUT ${BRIDGE_TEST_WITHOUT}: what needs it is NOT tested" >&2
tests/brokers/install
tests/browser/install
tests/collector/install
tests/contracts.sh

failed() {
    status=$?
    echo "tests/run.sh: the brokers' logs are in target/brokers/logs" >&2
    exit "$status"
}
cargo test --locked "$@" ${include:+$separator $include} || failed

# With arguments, somebody wants only those tests.
if [ "$#" = 0 ]; then
    cargo test --locked --features otlp --test it -- --include-ignored spans || failed
    cargo test --locked --test torture -- --minutes 2.5 || failed
    tests/deploy.sh
    tests/compose.sh
fi
