#!/usr/bin/env bash
# go-test.sh SUITE [ARGUMENT...]: go test with these arguments, all tests anew. What it
# prints is kept in TEST_ARTIFACTS/SUITE, and so is what failing tests leave: objects,
# events and logs of their namespaces and of the operator's, and the logs of the hermetic
# cluster where they ran on it. The last lines name the failed tests and that folder.
set -euo pipefail

: "${TEST_ARTIFACTS:?}"
suite=$1
shift
folder=$TEST_ARTIFACTS/$suite
rm -rf "$folder"
mkdir -p "$folder"

status=0
go test -count=1 -artifacts -outputdir "$folder" "$@" 2>&1 | tee "$folder/output.log" || status=$?
if ((status)); then
  if [[ -n ${KUBECONFIG:-} && -d $OPENSANDBOX_CLUSTER_STATE/logs ]]; then
    cp -r "$OPENSANDBOX_CLUSTER_STATE/logs" "$folder/cluster-logs"
  fi
  {
    printf '\nThe suite "%s" failed:\n' "$suite"
    grep -E '^ *--- FAIL|^FAIL|^panic:' "$folder/output.log" || true
    echo "Its output, and what the failed tests left, is in $folder"
  } >&2
fi
exit "$status"
