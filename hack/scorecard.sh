#!/usr/bin/env bash
# Runs the bundle's scorecard tests with operator-sdk: on the hermetic cluster, with the
# operator deployed and all images built here, or on the cluster that
# SCORECARD_KUBECONFIG names, which has the operator that bundle/ describes and can pull
# what its tests name. A hermetic cluster that ran before goes on running; one that was
# started for the tests is stopped after them.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=hack/lib.sh
source hack/lib.sh

: "${SCORECARD_IMG:?}"
namespace=opensandbox-scorecard
timeout=${TIMEOUT:-180}
bundle=bundle
flags=()
copy=
started=no

clean() {
  local status=$?
  [[ -z $copy ]] || rm -rf "$copy"
  "$KUBECTL" delete namespace "$namespace" --ignore-not-found --timeout="${timeout}s" || status=1
  [[ $started == no ]] || bin/cluster down || status=1
  exit "$status"
}

# hermetic deploys what is built here, and makes the bundle name it.
hermetic() {
  local untar=opensandbox.io/scorecard-untar:dev busybox sdk_image
  busybox=$(command -v busybox) || {
    echo "busybox was not found; the scorecard unpacks the bundle with it: apt-get install busybox-static" >&2
    exit 1
  }
  # shellcheck disable=SC2119 # no flags
  use_cluster
  deploy_built
  CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/scorecard ./scorecard
  SCORECARD_IMG=$(give_image scorecard scorecard)
  sdk_image=$(sed -n 's|.*image: \(.*/scorecard-test:.*\)|\1|p' bundle/tests/scorecard/config.yaml | sort -u)
  bin/cluster image --tag "$sdk_image" --binary bin/scorecard-test --entrypoint /usr/local/bin/scorecard-test
  bin/cluster image --tag "$untar" --binary "$busybox" --entrypoint /busybox
  flags+=(--untar-image "$untar")

  copy=$(mktemp -d --tmpdir=bin)
  cp -r bundle "$copy/bundle"
  bundle=$copy/bundle
  sed -i -e "s|opensandbox.io/controller:.*|$IMG|" -e "s|opensandbox.io/task-executor:.*|$TASK_EXECUTOR_IMG|" \
    "$bundle"/manifests/*.clusterserviceversion.yaml
  sed -i "s|opensandbox.io/scorecard:.*|$SCORECARD_IMG|" "$bundle/tests/scorecard/config.yaml"
}

if [[ -n ${SCORECARD_KUBECONFIG:-} ]]; then
  export KUBECONFIG=$SCORECARD_KUBECONFIG
  trap clean EXIT
else
  cluster_runs || started=yes
  trap clean EXIT
  hermetic
fi

"$KUBECTL" create namespace "$namespace" --dry-run=client --output yaml | "$KUBECTL" apply -f -
"$KUBECTL" --namespace "$namespace" apply -f config/scorecard/access.yaml
bin/operator-sdk scorecard "$bundle" --kubeconfig "$KUBECONFIG" --namespace "$namespace" \
  --service-account opensandbox-scorecard --pod-security restricted --wait-time 10m "${flags[@]}"
