#!/usr/bin/env bash
# Runs the test of OLM on the hermetic cluster, with the images of this version and of
# one before, made of the same code with another version number. A cluster that ran
# before goes on running, without the operator; one that was started for the test is
# stopped after it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=hack/lib.sh
source hack/lib.sh

: "${VERSION:?}"
make=${MAKE:-make}

cluster_runs || trap 'bin/cluster down' EXIT
# shellcheck disable=SC2119 # no flags
use_cluster
hack/clear-cluster.sh

"$make" --no-print-directory build VERSION=0.0.9
OLD_IMG=$(give_image manager controller)
OLD_TASK_EXECUTOR_IMG=$(give_image task-executor task-executor --launcher /launcher)
"$make" --no-print-directory build VERSION="$VERSION"
IMG=$(give_image manager controller)
TASK_EXECUTOR_IMG=$(give_image task-executor task-executor --launcher /launcher)
OLM_CRDS=$(cd hack/tools/olm && go list -m -f '{{.Dir}}' github.com/operator-framework/api)/crds
export OLD_IMG OLD_TASK_EXECUTOR_IMG IMG TASK_EXECUTOR_IMG OLM_CRDS
hack/go-test.sh olm -v -timeout 40m ./tests/olm/...
