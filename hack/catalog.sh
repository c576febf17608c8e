#!/usr/bin/env bash
# catalog.sh DIRECTORY BUNDLE...: writes a file-based catalog of the bundles (directories
# or images), oldest first, to DIRECTORY and validates it. Both channels hold all of them,
# each bundle replacing the one before.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=$1
shift

package=opensandbox-operator
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/catalog"

names=()
for bundle in "$@"; do
  bin/opm render "$bundle" -o yaml >"$work/bundle.yaml"
  name=$(sed -n "s/^name: \($package\.v.*\)$/\1/p" "$work/bundle.yaml")
  names+=("${name:?"$bundle is no bundle of $package"}")
  cat "$work/bundle.yaml" >>"$work/bundles.yaml"
done

{
  bin/opm init "$package" --default-channel=stable -o yaml
  for channel in candidate stable; do
    printf -- '---\nschema: olm.channel\npackage: %s\nname: %s\nentries:\n' "$package" "$channel"
    previous=''
    for name in "${names[@]}"; do
      printf -- '- name: %s\n' "$name"
      [[ -z $previous ]] || printf '  replaces: %s\n' "$previous"
      previous=$name
    done
  done
  cat "$work/bundles.yaml"
} >"$work/catalog/catalog.yaml"
bin/opm validate "$work/catalog"

rm -rf "$target"
mkdir -p "$target"
cp "$work/catalog/catalog.yaml" "$target/"
echo "$target: ${names[*]}"
