#!/usr/bin/env bash
# Prints config/default with the images that IMG and TASK_EXECUTOR_IMG name. It
# writes below bin/ only, so the source tree stays clean.
set -euo pipefail

: "${IMG:?}" "${TASK_EXECUTOR_IMG:?}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mkdir -p bin
overlay=$(mktemp -d --tmpdir=bin)
trap 'rm -rf "$overlay"' EXIT

cat >"$overlay/kustomization.yaml" <<YAML
resources:
- ../../config/default
patches:
- patch: |-
    apiVersion: apps/v1
    kind: Deployment
    metadata:
      name: opensandbox-controller-manager
      namespace: opensandbox-system
    spec:
      template:
        spec:
          containers:
          - name: manager
            image: "$IMG"
            env:
            - name: RELATED_IMAGE_TASK_EXECUTOR
              value: "$TASK_EXECUTOR_IMG"
YAML
bin/kustomize build "$overlay"
