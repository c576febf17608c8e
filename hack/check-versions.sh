#!/usr/bin/env bash
# Fails when config/manager does not name the images of the version given.
set -euo pipefail

version=$1
cd "$(dirname "${BASH_SOURCE[0]}")/.."

manifest=config/manager/manager.yaml
for image in "opensandbox.io/controller:v$version" "opensandbox.io/task-executor:v$version"; do
  if ! grep -qE "(image|value): $image\$" "$manifest"; then
    echo "$manifest does not name $image, the image of version $version" >&2
    exit 1
  fi
done
