#!/usr/bin/env bash
# Takes the operator out of a test cluster, however it came there and whatever state a
# test that was cut off left: by 'make deploy' or the demo, or by OLM, which may no
# longer run. Where nobody is there to take finalizers off, this does: not for a
# cluster whose sandboxes are in use.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${KUBECTL:?}" "${KUBECONFIG:?}"
own=opensandbox-system
sandboxes=(batchsandboxes.sandbox.opensandbox.io pools.sandbox.opensandbox.io)
csvs=clusterserviceversions.operators.coreos.com
timeout=${TIMEOUT:-180}s

# known KIND: the cluster has it. A cluster that does not answer ends the script.
known() {
  local crd
  crd=$("$KUBECTL" get crd "$1" --ignore-not-found --output name) || exit
  [[ -n $crd ]]
}

# release KIND: deletes all objects, takes their finalizers off, and waits until they are
# gone.
release() {
  local namespace name
  "$KUBECTL" delete "$1" --all --all-namespaces --wait=false
  "$KUBECTL" get "$1" --all-namespaces --no-headers \
    --output 'custom-columns=:metadata.namespace,:metadata.name' |
    while read -r namespace name; do
      "$KUBECTL" --namespace "$namespace" patch "$1" "$name" --type=merge \
        --patch '{"metadata":{"finalizers":null}}' || true # it may have gone meanwhile
    done
  "$KUBECTL" delete "$1" --all --all-namespaces --timeout="$timeout"
}

# No namespace can be deleted while an API does not answer that a test has served.
"$KUBECTL" delete apiservices -l opensandbox-test --timeout="$timeout"

# First what OLM would install from again.
for kind in subscriptions.operators.coreos.com installplans.operators.coreos.com; do
  if known "$kind"; then
    "$KUBECTL" --namespace "$own" delete "$kind" --all --timeout="$timeout"
  fi
done

available=$("$KUBECTL" --namespace "$own" get deployment opensandbox-controller-manager \
  --ignore-not-found --output 'jsonpath={.status.availableReplicas}')
if [[ -z $available ]] || ! TIMEOUT=60 hack/delete-sandboxes.sh; then
  for kind in "${sandboxes[@]}"; do
    if known "$kind"; then release "$kind"; fi
  done
fi
if known "$csvs"; then release "$csvs"; fi
hack/render.sh | "$KUBECTL" delete --ignore-not-found --timeout="$timeout" -f -

# What OLM made has names of its own, and belongs to nobody now.
"$KUBECTL" delete -l "olm.owner.namespace=$own" \
  clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations
"$KUBECTL" delete clusterroles -l app.kubernetes.io/name=opensandbox-operator
"$KUBECTL" --namespace kube-system delete rolebinding --ignore-not-found \
  opensandbox-controller-manager-service-auth-reader
if known operators.operators.coreos.com; then
  "$KUBECTL" delete operators.operators.coreos.com --ignore-not-found "opensandbox-operator.$own"
fi
"$KUBECTL" delete namespaces -l opensandbox-test --timeout="$timeout"
