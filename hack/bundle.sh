#!/usr/bin/env bash
# bundle.sh VERSION CHANNELS DEFAULT_CHANNEL: generates bundle/ and bundle.Dockerfile,
# with the images that IMG and TASK_EXECUTOR_IMG name, and SCORECARD_IMG for the
# operator's scorecard tests.
set -euo pipefail

: "${IMG:?}" "${TASK_EXECUTOR_IMG:?}" "${SCORECARD_IMG:?}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mkdir -p bin
overlay=$(mktemp -d --tmpdir=bin)
trap 'rm -rf "$overlay"' EXIT

cat >"$overlay/kustomization.yaml" <<YAML
resources:
- ../../config/manifests
patches:
- target:
    kind: Deployment
    name: opensandbox-controller-manager
  patch: |-
    apiVersion: apps/v1
    kind: Deployment
    metadata:
      name: opensandbox-controller-manager
    spec:
      template:
        spec:
          containers:
          - name: manager
            image: "$IMG"
            env:
            - name: RELATED_IMAGE_TASK_EXECUTOR
              value: "$TASK_EXECUTOR_IMG"
            # Mirrors copy what RELATED_IMAGE_* names; the operator does not read this one.
            - name: RELATED_IMAGE_CONTROLLER
              value: "$IMG"
- target:
    kind: ClusterServiceVersion
  patch: |-
    - op: replace
      path: /metadata/annotations/containerImage
      value: "$IMG"
YAML
rm -rf bundle
bin/kustomize build "$overlay" | bin/operator-sdk generate bundle -q --overwrite \
  --version "$1" --channels="$2" --default-channel="$3"
sed -i "s|image: opensandbox.io/scorecard:.*|image: $SCORECARD_IMG|" bundle/tests/scorecard/config.yaml
# OLM makes a Service of its own for the webhooks.
rm bundle/manifests/opensandbox-webhook-service_v1_service.yaml

# The time of generation alone is no change.
csv=bundle/manifests/opensandbox-operator.clusterserviceversion.yaml
if git diff --quiet --ignore-matching-lines='^ *createdAt: ' HEAD -- "$csv" 2>/dev/null; then
  git checkout -q HEAD -- "$csv"
fi
