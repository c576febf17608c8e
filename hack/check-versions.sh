#!/usr/bin/env bash
# Fails when config/manager or config/scorecard does not name the images of the version given.
set -euo pipefail

version=$1
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# names FILE IMAGE: the file names the image.
names() {
  if ! grep -qE "(image|value): $2\$" "$1"; then
    echo "$1 does not name $2, the image of version $version" >&2
    exit 1
  fi
}

names config/manager/manager.yaml "opensandbox.io/controller:v$version"
names config/manager/manager.yaml "opensandbox.io/task-executor:v$version"
names config/scorecard/patches/opensandbox.config.yaml "opensandbox.io/scorecard:v$version"
