#!/usr/bin/env bash
# Fails when a generated file in the tree differs from the committed one or was not
# committed at all. `make check-generated` generates them before.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

generated=(config/crd/bases config/rbac/role.yaml config/webhook/manifests.yaml config/manifests/bases bundle bundle.Dockerfile docs/reference docs/benchmarks.md docs/scale.md ':(glob)docs/benchmarks/*.svg' ':(glob)**/zz_generated*.go')

# The time of generation is no difference.
different() { git diff --ignore-matching-lines='^ *createdAt: ' "$@" HEAD -- "${generated[@]}"; }

new=$(git ls-files --others --exclude-standard -- "${generated[@]}")
if different --exit-code && [[ -z $new ]]; then
  echo "generated files are current"
  exit 0
fi
{
  echo
  echo "These generated files are not what was committed; commit them as they are now:"
  different --stat
  [[ -z $new ]] || echo "$new"
} >&2
exit 1
