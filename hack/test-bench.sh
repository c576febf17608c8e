#!/usr/bin/env bash
# Runs the whole benchmark with tiny sizes, and makes its documents of the result: both must
# work, and how fast they are does not matter. The simulated nodes stay in a cluster that
# ran before: no pod goes there that does not ask for it.
set -euo pipefail

: "${TEST_ARTIFACTS:?}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=$TEST_ARTIFACTS/bench
rm -rf "$folder"
BENCH_NODES=2 BENCH_FLAGS=-short BENCH_JSON=$folder/measured/bench.json hack/bench.sh
go run ./tests/bench/document -measured "$folder/measured" -to "$folder/docs"
for chart in batches loads-noop loads-delete loads-restart; do
  grep -q '</svg>' "$folder/docs/benchmarks/$chart.svg"
  grep -qF "(benchmarks/$chart.svg)" "$folder/docs/benchmarks.md"
done
