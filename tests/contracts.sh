#!/usr/bin/env bash
# Checks the contracts in docs/ with validators by others: the JSON Schemas and each sample configuration with Python's
# jsonschema (of tests/brokers/requirements.txt), docs/asyncapi.yaml with AsyncAPI's own parser, which npm installs
# under target/ once. What is published is checked against them in tests/it/contracts.rs.
set -euo pipefail
cd "$(dirname "$0")/.."

"${BRIDGE_TEST_PYTHON:-target/brokers/python/bin/python}" tests/contracts/validate.py --files

if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    echo "tests/contracts.sh: not run: no node and npm here, so docs/asyncapi.yaml is NOT checked" >&2
    exit 0
fi
parser=$PWD/target/contracts
if ! cmp -s tests/contracts/package-lock.json "$parser/installed"; then
    echo "tests/contracts.sh: installing AsyncAPI's parser" >&2
    mkdir -p "$parser"
    cp tests/contracts/package.json tests/contracts/package-lock.json "$parser"
    npm ci --prefix "$parser" --ignore-scripts --no-audit --no-fund --silent >&2
    cp tests/contracts/package-lock.json "$parser/installed" # as the last, for it tells that all is there
fi
cp tests/contracts/asyncapi.mjs "$parser" # modules are found beside the script
node "$parser/asyncapi.mjs" docs/asyncapi.yaml
