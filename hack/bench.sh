#!/usr/bin/env bash
# bench.sh [scale]
#
# Runs the benchmark, or measures how the operator scales, on the hermetic cluster with
# BENCH_NODES simulated nodes, so that a small machine can hold thousands of pods. A
# cluster that ran before goes on running; one that was started for this is stopped after
# it. BENCH_FSYNC=true makes etcd durable as in production; a cluster that runs must have
# been started so. What was measured is added to BENCH_JSON.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=hack/lib.sh
source hack/lib.sh

: "${BENCH_JSON:?}"
cluster_runs || trap 'bin/cluster down' EXIT
start_cluster --kwok-nodes "${BENCH_NODES:-10}" ${BENCH_FSYNC:+--fsync="$BENCH_FSYNC"}
deploy_built
say "Measuring"
read -rd '' -a flags <<<"${BENCH_FLAGS:-}" || true # to the end, over all lines
mkdir -p "$(dirname "$BENCH_JSON")"
go run ./tests/bench "$@" -json "$BENCH_JSON" "${flags[@]}"
echo
echo "What was measured is in $BENCH_JSON, and 'make benchmark-docs' makes documents of what is in docs/benchmarks"
