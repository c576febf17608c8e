# Functions of the scripts that use the hermetic cluster. Sourced, at the root of the
# source tree, with KUBECTL and the cluster's folders in the environment (the Makefile
# sets them).
# shellcheck shell=bash

# say TEXT: a heading, between the outputs of commands; bold on a terminal.
say() {
  if [[ -t 1 ]]; then
    printf '\n\033[1m==> %s\033[0m\n' "$*"
  else
    printf '\n==> %s\n' "$*"
  fi
}

# cluster_runs says whether the hermetic cluster answers.
cluster_runs() {
  local kubeconfig
  kubeconfig=$(bin/cluster kubeconfig)
  [[ -s $kubeconfig ]] &&
    "$KUBECTL" --kubeconfig "$kubeconfig" --request-timeout=5s get --raw=/readyz >/dev/null 2>&1
}

# start_cluster [FLAG...] starts the hermetic cluster if it does not run, and makes it
# the one that kubectl talks to.
start_cluster() {
  bin/cluster up "$@"
  KUBECONFIG=$(bin/cluster kubeconfig)
  export KUBECONFIG
}

# use_cluster [FLAG...] is start_cluster, with the images of the samples on its node.
use_cluster() {
  start_cluster "$@"
  bin/cluster sample-images
}

# deploy_built builds both programs and deploys them to the hermetic cluster as images
# whose tags tell their content: what changed is rolled out, what did not is left alone.
deploy_built() {
  "${MAKE:-make}" --no-print-directory build
  IMG=$(give_image manager controller)
  TASK_EXECUTOR_IMG=$(give_image task-executor task-executor --launcher /launcher)
  export IMG TASK_EXECUTOR_IMG
  "${MAKE:-make}" --no-print-directory deploy \
    KUBECONFIG="$KUBECONFIG" IMG="$IMG" TASK_EXECUTOR_IMG="$TASK_EXECUTOR_IMG"
}

# give_image PROGRAM NAME [FLAG...] gives the cluster an image of bin/PROGRAM and prints its name.
give_image() {
  local program=$1 name=$2 sum image
  shift 2
  sum=$(sha256sum "bin/$program")
  image=opensandbox.io/$name:dev-${sum:0:12}
  bin/cluster image --tag "$image" --binary "bin/$program" "$@" >&2
  echo "$image"
}
