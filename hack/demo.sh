#!/usr/bin/env bash
# Shows the operator at work: deployed as a pod under its real permissions, a pool, a
# batch from the pool and one from a template, a request that a sandbox answers, and
# another task in each sandbox of a batch.
# On the hermetic cluster, or on the one that DEMO_KUBECONFIG names, which must be able
# to pull IMG and TASK_EXECUTOR_IMG. Everything goes on running afterwards, and a
# second run changes nothing that is there.
set -euo pipefail
shopt -s extglob

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=hack/lib.sh
source hack/lib.sh

timeout=${TIMEOUT:-180}
make=${MAKE:-make}

# run COMMAND...: shows the command as the reader would type it, and its output.
run() {
  printf '\n$ %s\n' "${*/#$KUBECTL/kubectl}"
  "$@"
}

# namespaced COMMAND...: kubectl, in the namespace that NAMESPACE names if any.
namespaced() { "$KUBECTL" ${NAMESPACE:+--namespace "$NAMESPACE"} "$@"; }

field() { namespaced get "$1" --output "jsonpath=$2"; }

# ageless TABLE: without what changes every second and tells nothing here.
ageless() { printf '%s' "${1//+([0-9])[smh]/}"; }

# follow "KINDS [FLAG...]" CONDITION...: prints the table of KINDS whenever it has
# changed, until the command CONDITION succeeds.
follow() {
  local kinds table header='' last='' deadline=$((SECONDS + timeout))
  read -ra kinds <<<"$1"
  shift
  printf '\n$ kubectl %sget %s   (again whenever it changes)\n' "${NAMESPACE:+--namespace $NAMESPACE }" "${kinds[*]}"
  while true; do
    local finished=no
    "$@" && finished=yes
    table=$(namespaced get "${kinds[@]}")
    if [[ $(ageless "$table") != "$last" ]]; then
      last=$(ageless "$table")
      # The header once, as long as the columns stay where they are.
      if [[ ${table%%$'\n'*} == "$header" ]]; then
        table=${table#*$'\n'}
      else
        header=${table%%$'\n'*}
      fi
      printf '%s\n' "$table"
    fi
    if [[ $finished == yes ]]; then return; fi
    if ((SECONDS >= deadline)); then
      {
        echo "Not there after ${timeout}s. What the cluster says:"
        namespaced describe "${kinds[0]}"
        namespaced get pods
        "$KUBECTL" --namespace opensandbox-system logs deployment/opensandbox-controller-manager --tail=20
      } >&2
      exit 1
    fi
    sleep 0.5
  done
}

# pool_filled NAME LEAST: every pod of the pool is ready or held, and there are LEAST of
# them at least.
pool_filled() {
  local total allocated available
  read -r total allocated available <<<"$(field "pool/$1" '{.status.total} {.status.allocated} {.status.available}')"
  ((${total:-0} >= $2 && ${allocated:-0} + ${available:-0} == total))
}

# batch_ready NAME
batch_ready() { [[ $(field "batchsandbox/$1" '{.status.phase}') == Succeed ]]; }

# tasks_completed NAME
tasks_completed() {
  [[ $(field "batchsandbox/$1" '{.status.conditions[?(@.type=="TasksCompleted")].status}') == True ]]
}

# held_pods NAME prints the pods of a pooled batch, one in a line.
held_pods() {
  local list
  list=$(field "batchsandbox/$1" '{.metadata.annotations.sandbox\.opensandbox\.io/alloc-status}')
  list=${list#'{"pods":["'}
  list=${list%%'"]'*}
  printf '%s\n' "${list//'","'/$'\n'}"
}

endpoints() {
  field "batchsandbox/$1" '{.metadata.annotations.sandbox\.opensandbox\.io/endpoints}'
}

# answer_lines of what a sandbox answers are printed: up to the page's title.
answer_lines=14

# http_get ADDRESS prints the beginning of http://ADDRESS/; bash alone can do it.
http_get() {
  # shellcheck disable=SC2016 # for the inner shell
  timeout 10 bash -c '
    exec 3<>"/dev/tcp/$1/80" || exit
    printf "GET / HTTP/1.0\r\nHost: %s\r\n\r\n" "$1" >&3
    head -c 2000 <&3 | tr -d "\r"' - "$1"
}

ask_sandbox() {
  local list=$1 address answer pod
  address=${list#'["'}
  address=${address%%'"'*}
  if answer=$(http_get "$address" 2>/dev/null) && [[ -n $answer ]]; then
    printf '\n$ curl -i http://%s/ | head -n %d\n' "$address" "$answer_lines"
    head -n "$answer_lines" <<<"$answer"
    return
  fi
  echo "(pods of this cluster cannot be reached from here: asking through its API server)"
  pod=$(held_pods pooled-batch-sandbox | head -n 1)
  run "$KUBECTL" get --raw "/api/v1/namespaces/$(namespace)/pods/$pod:80/proxy/"
}

namespace() {
  local name
  name=$("$KUBECTL" config view --minify --output 'jsonpath={..namespace}')
  echo "${name:-default}"
}

main() {
  if [[ -n ${DEMO_KUBECONFIG:-} ]]; then
    export KUBECONFIG=$DEMO_KUBECONFIG
    say "Deploying $IMG to the cluster of $KUBECONFIG"
    "$make" --no-print-directory deploy IMG="$IMG" TASK_EXECUTOR_IMG="$TASK_EXECUTOR_IMG"
  else
    say "Starting Kubernetes on this machine (the first time it is compiled: some ten minutes)"
    "$make" --no-print-directory "$(pwd -P)/bin/cluster"
    # shellcheck disable=SC2119 # no flags
    use_cluster
    say "Building the operator and deploying it"
    deploy_built
  fi
  run "$KUBECTL" --namespace opensandbox-system get pods

  say "A pool of warm pods"
  run "$KUBECTL" apply --filename config/samples/pool.yaml
  follow 'pools example-pool' pool_filled example-pool 5

  say "Three sandboxes from the pool: its pods run already"
  run "$KUBECTL" apply --filename config/samples/batchsandbox_pooled.yaml
  follow batchsandboxes batch_ready pooled-batch-sandbox
  run "$KUBECTL" get pools

  say "Two sandboxes from a template: their pods have to start first"
  run "$KUBECTL" apply --filename config/samples/batchsandbox_basic.yaml
  follow batchsandboxes batch_ready basic-batch-sandbox

  say "Where they are: the annotation sandbox.opensandbox.io/endpoints"
  local name
  for name in pooled-batch-sandbox basic-batch-sandbox; do
    printf '%s: %s\n' "$name" "$(endpoints "$name")"
  done
  ask_sandbox "$(endpoints pooled-batch-sandbox)"

  say "Another task in each sandbox, in a namespace that enforces the restricted Pod Security Standard"
  "$KUBECTL" get namespace sandboxes >/dev/null 2>&1 || run "$KUBECTL" create namespace sandboxes
  run "$KUBECTL" label namespace sandboxes --overwrite pod-security.kubernetes.io/enforce=restricted
  local NAMESPACE=sandboxes
  run "$KUBECTL" --namespace sandboxes apply --filename config/samples/pool_tasks.yaml
  follow 'pools task-example-pool' pool_filled task-example-pool 2
  run "$KUBECTL" --namespace sandboxes apply --filename config/samples/batchsandbox_tasks.yaml
  follow 'batchsandboxes task-batch-sandbox --output wide' tasks_completed task-batch-sandbox
  for name in $(held_pods task-batch-sandbox); do
    run "$KUBECTL" --namespace sandboxes logs "$name" --container task-executor
  done

  say "It goes on running"
  farewell
}

farewell() {
  local prefix='' stop='make undeploy' older=${OPENSANDBOX_CLUSTER_KUBERNETES:-}
  if [[ -n ${DEMO_KUBECONFIG:-} ]]; then
    prefix="export KUBECONFIG=$DEMO_KUBECONFIG"
  else
    # For the reader's shell.
    prefix="eval \"\$(bin/cluster env${older:+ --state .cluster-$older})\"     # KUBECONFIG, and kubectl on the PATH"
    stop="make cluster-down${older:+ KUBERNETES=$older}"
  fi
  cat <<TEXT
To look around:
  $prefix
  kubectl get pools,batchsandboxes,pods
  kubectl describe pool example-pool
  kubectl patch batchsandbox pooled-batch-sandbox --type=merge --patch '{"spec":{"replicas":6}}'
  kubectl delete batchsandbox pooled-batch-sandbox     # the pool replaces what comes back by clean pods
To stop:
  $stop
TEXT
}

main
