#!/usr/bin/env bash
# Runs tests that install the operator themselves, in the packages given, on the
# hermetic cluster: the images are there, the operator is not. A cluster that ran
# before goes on running, without the operator; one that was started for the tests is
# stopped after them.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=hack/lib.sh
source hack/lib.sh

make=${MAKE:-make}

cluster_runs || trap 'bin/cluster down' EXIT
# shellcheck disable=SC2119 # no flags
use_cluster
hack/clear-cluster.sh
"$make" --no-print-directory build
IMG=$(give_image manager controller)
TASK_EXECUTOR_IMG=$(give_image task-executor task-executor --launcher /launcher)
export IMG TASK_EXECUTOR_IMG
"$make" --no-print-directory dist IMG="$IMG" TASK_EXECUTOR_IMG="$TASK_EXECUTOR_IMG"
hack/go-test.sh install -v -timeout 40m "$@"
