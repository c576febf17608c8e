#!/usr/bin/env bash
# Fails when a generated file in the tree differs from the committed one or was not
# committed at all. `make check-generated` generates them before.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

generated=(config/crd/bases config/rbac/role.yaml config/webhook/manifests.yaml ':(glob)**/zz_generated*.go')

new=$(git ls-files --others --exclude-standard -- "${generated[@]}")
if git diff --exit-code HEAD -- "${generated[@]}" && [[ -z $new ]]; then
  echo "generated files are current"
  exit 0
fi
{
  echo
  echo "These generated files are not what was committed; commit them as they are now:"
  git diff --name-only HEAD -- "${generated[@]}"
  [[ -z $new ]] || echo "$new"
} >&2
exit 1
