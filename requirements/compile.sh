#!/usr/bin/env bash
# Pin every requirement with its hashes: `make requirements`. Versions that are pinned already stay; add --upgrade to move them.
set -euo pipefail
cd "$(dirname "$0")"
compile() { uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header "$@"; }
compile dev.in -o dev.txt "$@"
for part in operator worker api client build; do
  # The images get what the tests ran with.
  compile "$part.in" -c dev.txt -o "$part.txt" "$@"
done
# The benchmarks run beside what the tests have.
compile bench.in -c dev.txt -o bench.txt "$@"
# What the bootstrap installs where a machine has none.
compile go.in -o go.txt "$@"
compile uv.in -o uv.txt "$@"
