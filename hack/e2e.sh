#!/usr/bin/env bash
# Runs the end-to-end tests on the hermetic cluster, with the operator deployed in it
# under its real permissions. A cluster that ran before goes on running; one that was
# started for the tests is stopped after them.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=hack/lib.sh
source hack/lib.sh

cluster_runs || trap 'bin/cluster down' EXIT
use_cluster --gvisor
hack/clear-cluster.sh
deploy_built
# More at a time than there are processors: they wait for pods most of the time.
hack/go-test.sh e2e -v -timeout 45m -parallel 4 ./tests/e2e/...
