#!/usr/bin/env bash
# Runs the benchmarks on the hermetic cluster with BENCH_NODES simulated nodes, so that
# a small machine can hold thousands of pods. A cluster that ran before goes on
# running; one that was started for this is stopped after it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=hack/lib.sh
source hack/lib.sh

cluster_runs || trap 'bin/cluster down' EXIT
use_cluster --kwok-nodes "${BENCH_NODES:-10}"
deploy_built
go test -count=1 -timeout 60m -v ./tests/bench/...
