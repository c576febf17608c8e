#!/usr/bin/env bash
# Runs the whole benchmark with tiny sizes, and how the operator scales without what waits for a
# lease to run out, and makes documents of the results: all must work, and how fast they are does
# not matter. The simulated nodes stay in a cluster that
# ran before: no pod goes there that does not ask for it.
set -euo pipefail

: "${TEST_ARTIFACTS:?}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=$TEST_ARTIFACTS/bench
rm -rf "$folder"
BENCH_NODES=2 BENCH_FLAGS=-short BENCH_JSON=$folder/measured/bench.json hack/bench.sh
BENCH_NODES=2 BENCH_JSON=$folder/measured/scale.json BENCH_FLAGS='-parts=several,growth,cold,churn
  -several-sandboxes=5 -several-bursts=1 -pods=40,60 -pool-size=20 -batch=10 -rounds=1 -tasks=5 -rest=1s
  -starts=1 -churn=10s -rate=2' hack/bench.sh scale
go run ./tests/bench/document -measured "$folder/measured" -to "$folder/docs"
for chart in batches loads-noop loads-delete loads-restart; do
  grep -q '</svg>' "$folder/docs/benchmarks/$chart.svg"
  grep -qF "(benchmarks/$chart.svg)" "$folder/docs/benchmarks.md"
done
for chart in scale-memory scale-rest scale-claims-one scale-claims-batch scale-churn; do
  grep -q '</svg>' "$folder/docs/benchmarks/$chart.svg"
  grep -qF "(benchmarks/$chart.svg)" "$folder/docs/scale.md"
done
