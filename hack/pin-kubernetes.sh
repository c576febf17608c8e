#!/usr/bin/env bash
# pin-kubernetes.sh 1.30: pins the newest release of a minor version of Kubernetes in
# hack/tools/kubernetes-1.30, for 'make cluster-up KUBERNETES=1.30'.
set -euo pipefail

minor=${1:?a minor version, such as 1.30}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=hack/tools/kubernetes-$minor
version=$(go list -m -f '{{.Version}}' "k8s.io/kubernetes@v$minor")
requirements=$(go list -m -f '{{.GoMod}}' "k8s.io/kubernetes@$version")

mkdir -p "$folder"
cat >"$folder/go.mod" <<MOD
module github.com/opensandbox/operator/$folder

go $(go list -m -f '{{.GoVersion}}')

tool (
	k8s.io/kubernetes/cmd/kube-apiserver
	k8s.io/kubernetes/cmd/kube-controller-manager
	k8s.io/kubernetes/cmd/kube-proxy
	k8s.io/kubernetes/cmd/kube-scheduler
	k8s.io/kubernetes/cmd/kubectl
	k8s.io/kubernetes/cmd/kubelet
)

require k8s.io/kubernetes $version

// Kubernetes requires its staging modules at v0.0.0; these are the releases
// that belong to $version.
replace (
$(sed -nE "s|^\s*(k8s.io/\S+) v0\.0\.0( //.*)?\$|\t\1 => \1 v0${version#v1}|p" "$requirements")
)
MOD
cd "$folder"
go mod tidy
