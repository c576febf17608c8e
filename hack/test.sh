#!/usr/bin/env bash
# Runs all suites, two side by side: those that need no node beside those that use the
# hermetic cluster, one after the other on one cluster. A cluster that ran before goes on
# running; one that was started for the tests is stopped after them. A suite that fails
# stops no other one. The last lines say what passed, how long it took and where the
# output is.
set -euo pipefail

: "${TEST_ARTIFACTS:?}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=hack/lib.sh
source hack/lib.sh

make=${MAKE:-make}
without_node=(test-unit test-integration)
on_cluster=(test-e2e test-bench test-install test-olm)

# run_suites TARGET...: runs them in turn, each line of the output headed by the target.
run_suites() {
  local target began result
  for target in "$@"; do
    began=$SECONDS
    result=passed
    "$make" --no-print-directory "$target" 2>&1 | tee "$TEST_ARTIFACTS/$target.log" | sed -u "s/^/[$target] /" || result=FAILED
    printf '%-18s %s after %d s\n' "$target" "$result" $((SECONDS - began)) | tee -a "$TEST_ARTIFACTS/results"
  done
}

# finish leaves nothing of an interrupted run behind.
finish() {
  local status=$? lane
  for lane in "${lanes[@]}"; do kill -- "-$lane" 2>/dev/null || true; done
  [[ $started == no ]] || bin/cluster down
  exit "$status"
}

lanes=() # the process groups of the suites
started=no
trap finish EXIT
rm -rf "$TEST_ARTIFACTS"
mkdir -p "$TEST_ARTIFACTS"
# What is compiled beside the tests makes them slow: first of all.
bin/cluster build --gvisor --kwok
cluster_runs || started=yes
use_cluster --gvisor
began=$SECONDS
set -m # each lane in a process group of its own, for finish
run_suites "${without_node[@]}" &
lanes+=($!)
run_suites "${on_cluster[@]}" &
lanes+=($!)
set +m
wait "${lanes[@]}"
lanes=()

say "Results after $((SECONDS - began)) s"
cat "$TEST_ARTIFACTS/results"
failed=0
while read -r target result _; do
  [[ $result == FAILED ]] || continue
  failed=1
  printf '\n%s, the end of %s:\n' "$target" "$TEST_ARTIFACTS/$target.log"
  # The names of the failed tests, and the folder with what they left, where there are any.
  sed -n '/^The suite "/,$p' "$TEST_ARTIFACTS/$target.log" | grep . || tail -n 30 "$TEST_ARTIFACTS/$target.log"
done <"$TEST_ARTIFACTS/results"
echo "What the tests printed, and what failing ones left, is in $TEST_ARTIFACTS"
((failed == 0))
