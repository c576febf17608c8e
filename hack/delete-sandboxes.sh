#!/usr/bin/env bash
# Deletes all BatchSandboxes, then all Pools, in all namespaces, and waits for the
# operator to let go of them, so that no finalizer is left behind when it is gone.
# KUBECTL is the kubectl to use, TIMEOUT the seconds to wait for each kind.
set -euo pipefail

kubectl=${KUBECTL:-kubectl}
timeout=${TIMEOUT:-180}

# remaining KIND: NAMESPACE/NAME and finalizers of what is left, one a line.
remaining() {
  "$kubectl" get "$1" --all-namespaces --output \
    go-template='{{range .items}}{{.metadata.namespace}}/{{.metadata.name}} {{.metadata.finalizers}}{{"\n"}}{{end}}'
}

delete_all() {
  local kind=$1 crd left deadline
  # "|| exit" because a cluster that cannot be reached must not pass for an empty one.
  crd=$("$kubectl" get crd "$kind" --ignore-not-found --output name) || exit
  if [[ -z $crd ]]; then
    echo "no $kind: the CRD is not installed"
    return
  fi
  echo "deleting all $kind and waiting up to ${timeout}s"
  "$kubectl" delete "$kind" --all --all-namespaces --wait=false
  deadline=$((SECONDS + timeout))
  while left=$(remaining "$kind") || exit; [[ -n $left ]]; do
    if ((SECONDS >= deadline)); then
      cat >&2 <<TEXT
These $kind are still there after ${timeout}s, with these finalizers:
$left
Nothing else was deleted. The operator takes its finalizers off when the sandboxes
are given back: see that it runs (kubectl --namespace opensandbox-system get pods)
and what it says (kubectl describe $kind), then run this again. If the operator is
gone for good, take a finalizer off by hand:
  kubectl --namespace NAMESPACE patch $kind NAME --type=merge --patch '{"metadata":{"finalizers":null}}'
TEXT
      exit 1
    fi
    sleep 1
  done
}

delete_all batchsandboxes.sandbox.opensandbox.io
delete_all pools.sandbox.opensandbox.io
