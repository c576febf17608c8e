# `make help` lists the targets. A variable can be set on the command line or in the
# environment, as in `make deploy IMG=registry.example.com/controller:v1`.

# The version of the operator: image tags, and what the programs say of themselves.
VERSION ?= 0.1.0
# The operator's image.
IMG ?= opensandbox.io/controller:v$(VERSION)
# The image of the task executor, which the operator adds to sandboxes that run tasks.
TASK_EXECUTOR_IMG ?= opensandbox.io/task-executor:v$(VERSION)
# The image of the operator's scorecard tests.
SCORECARD_IMG ?= opensandbox.io/scorecard:v$(VERSION)
# The image of the OLM bundle.
BUNDLE_IMG ?= opensandbox.io/bundle:v$(VERSION)
# What builds and pushes images: docker, podman or buildah.
CONTAINER_TOOL ?= docker
# What images are built for; more than one, separated by commas, makes a multi-arch image.
PLATFORMS ?= linux/$(shell go env GOARCH)
# The image that ours start from. `scratch` works too, and needs no registry.
BASE_IMAGE ?= gcr.io/distroless/static:nonroot
# Other arguments for the image build, such as --no-cache.
BUILD_ARGS ?=
# How long undeploy and uninstall wait for sandboxes to be given back, and deploy for
# the operator to be ready, in seconds.
TIMEOUT ?= 180
# The race detector needs a C compiler; empty it where there is none.
RACE ?= -race
# Where the tests keep what they print, and what failing ones leave.
TEST_ARTIFACTS ?= $(CURDIR)/test-artifacts
# The channels of the bundle, and which of them a user gets who names none.
CHANNELS ?= candidate,stable
DEFAULT_CHANNEL ?= stable
# GVISOR=1 lets pods of the hermetic cluster run in gVisor, which is compiled for it.
GVISOR ?=
# `make bench` and `make scale`: how many nodes they simulate, whether etcd of a cluster that
# they start writes through to the disk (BENCH_FSYNC=true), their flags (-rounds=30), and the
# file that what was measured is added to.
BENCH_NODES ?= 10
BENCH_FSYNC ?=
BENCH_FLAGS ?=
BENCH_JSON ?= dist/bench.json

# An older minor version of Kubernetes for the hermetic cluster, one of hack/tools/kubernetes-*.
KUBERNETES ?=

# A state directory of another cluster of the same source tree may be named.
OPENSANDBOX_CLUSTER_STATE ?= $(CURDIR)/.cluster$(addprefix -,$(KUBERNETES))
OPENSANDBOX_CLUSTER_BIN ?= $(OPENSANDBOX_CLUSTER_STATE)/bin
OPENSANDBOX_CLUSTER_KUBERNETES := $(KUBERNETES)
export OPENSANDBOX_CLUSTER_STATE OPENSANDBOX_CLUSTER_BIN OPENSANDBOX_CLUSTER_KUBERNETES

# kubectl: yours, or the one that the hermetic cluster was built with.
KUBECTL ?= $(or $(shell command -v kubectl 2>/dev/null),$(OPENSANDBOX_CLUSTER_BIN)/kubectl)

export IMG TASK_EXECUTOR_IMG SCORECARD_IMG KUBECTL TIMEOUT TEST_ARTIFACTS

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := $(CURDIR)/bin
CLUSTER := $(BIN)/cluster
CONTROLLER_GEN := $(BIN)/controller-gen
CRD_REF_DOCS := $(BIN)/crd-ref-docs
KUSTOMIZE := $(BIN)/kustomize
GOLANGCI_LINT := $(BIN)/golangci-lint
OPERATOR_SDK := $(BIN)/operator-sdk
SCORECARD_TEST := $(BIN)/scorecard-test
OPM := $(BIN)/opm
OLM := $(BIN)/olm
OLM_CATALOG := $(BIN)/olm-catalog

# Static programs that do not depend on where they are built.
GO_BUILD := CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=v$(VERSION)'

# Modules of their own with Go code in them.
NESTED_MODULES := $(patsubst %/go.mod,%,$(wildcard tests/*/go.mod))
SHELL_SCRIPTS := .ci/run $(wildcard hack/*.sh)

##@ General

.PHONY: help
help: ## Show this list.
	@awk 'BEGIN {FS = ":.*##"; print "Usage: make TARGET [VARIABLE=VALUE ...]"} \
		/^[a-zA-Z0-9_-]+:.*?##/ {printf "  \033[36m%-26s\033[0m%s\n", $$1, $$2} \
		/^##@/ {printf "\n\033[1m%s\033[0m\n", substr($$0, 5)}' $(MAKEFILE_LIST)

.PHONY: clean
clean: ## Remove what was built; the hermetic cluster and what it was built from stay (see cluster-down).
	rm -rf bin dist

##@ Development

.PHONY: build
build: ## Build the operator and the task executor for this machine, into bin/.
	$(GO_BUILD) -o bin/manager ./cmd/manager
	$(GO_BUILD) -o bin/task-executor ./cmd/task-executor

.PHONY: manifests
manifests: $(CONTROLLER_GEN) ## Generate the CRDs, the webhooks and the operator's roles from the markers in the Go code.
	$(CONTROLLER_GEN) rbac:roleName=manager-role crd webhook paths=./... output:crd:artifacts:config=config/crd/bases output:webhook:artifacts:config=config/webhook

.PHONY: generate
generate: $(CONTROLLER_GEN) ## Generate the DeepCopy methods of the API types.
	$(CONTROLLER_GEN) object:headerFile=hack/boilerplate.go.txt paths=./api/...

.PHONY: docs
docs: $(CRD_REF_DOCS) benchmark-docs ## Generate docs/reference from the API types, the flags, the conditions, the metrics; and benchmark-docs.
	$(CRD_REF_DOCS) --log-level=ERROR --config=hack/reference/config.yaml --templates-dir=hack/reference \
		--max-depth=20 --renderer=markdown --source-path=api/v1alpha1 --output-path=docs/reference/fields.md
	go test -count=1 ./cmd/manager -run Reference -args -update

.PHONY: benchmark-docs
benchmark-docs: ## Generate docs/benchmarks.md, docs/scale.md and their charts from what was measured, docs/benchmarks/*.json.
	go run ./tests/bench/document

.PHONY: fmt
fmt: $(GOLANGCI_LINT) ## Format all Go code.
	$(GOLANGCI_LINT) fmt
	@for module in $(NESTED_MODULES); do (set -x; gofmt -w "$$module"); done

.PHONY: lint
lint: $(GOLANGCI_LINT) $(KUSTOMIZE) ## Check Go code, shell scripts and that every kustomization renders.
	$(GOLANGCI_LINT) run
	@for module in $(NESTED_MODULES); do \
		unformatted=$$(gofmt -l "$$module"); \
		if [ -n "$$unformatted" ]; then echo "not formatted (make fmt): $$unformatted" >&2; exit 1; fi; \
		(set -x; cd "$$module" && go vet ./...); \
	done
	@for kustomization in config/*/kustomization.yaml; do \
		(set -x; $(KUSTOMIZE) build "$${kustomization%/*}" >/dev/null); \
	done
	@hack/check-versions.sh "$(VERSION)"
	@if command -v shellcheck >/dev/null; then (set -x; shellcheck --external-sources $(SHELL_SCRIPTS)); \
	else echo "shellcheck is not installed: the shell scripts were not checked"; fi

.PHONY: check-generated
check-generated: manifests generate bundle docs ## Fail when generated files are not what the code generates.
	@hack/check-generated.sh

##@ Tests

.PHONY: test
test: $(CLUSTER) $(KUSTOMIZE) $(OPM) $(OLM) $(OLM_CATALOG) ## Run all tests, two suites at a time. Needs Linux and root.
	MAKE='$(MAKE)' hack/test.sh

.PHONY: test-unit
test-unit: ## Run unit and property tests, with the race detector (RACE= without).
	go test $(RACE) $$(go list ./... | grep -v '/operator/tests/') ./tests/bench/...
	@for module in $(NESTED_MODULES); do (set -x; go test -C "$$module" ./...); done

.PHONY: test-integration
test-integration: $(CLUSTER) ## Run tests against a real etcd and kube-apiserver.
	$(CLUSTER) build --control-plane-only
	KUBECONFIG= KUBEBUILDER_ASSETS=$(OPENSANDBOX_CLUSTER_BIN) hack/go-test.sh integration $(RACE) -timeout 30m ./tests/integration/...

.PHONY: test-e2e
test-e2e: $(CLUSTER) $(KUSTOMIZE) ## Run end-to-end tests on the hermetic cluster, started if it is not running.
	hack/e2e.sh

.PHONY: test-bench
test-bench: $(CLUSTER) $(KUSTOMIZE) ## Run short benchmarks, which fail on errors and never on time, on the hermetic cluster.
	hack/test-bench.sh

.PHONY: test-install
test-install: $(CLUSTER) $(KUSTOMIZE) ## Test dist/install.yaml, its installation and its removal, on the hermetic cluster.
	hack/test-install.sh ./tests/install/...

.PHONY: test-olm
test-olm: $(CLUSTER) $(KUSTOMIZE) $(OPM) $(OLM) $(OLM_CATALOG) ## Test installation in each mode, upgrade and removal of bundle/ by OLM, on the hermetic cluster.
	VERSION='$(VERSION)' OPM='$(OPM)' OLM='$(OLM)' OLM_CATALOG='$(OLM_CATALOG)' hack/test-olm.sh

.PHONY: scorecard
scorecard: $(CLUSTER) $(KUSTOMIZE) $(OPERATOR_SDK) $(SCORECARD_TEST) ## Run the bundle's scorecard tests, on the hermetic cluster or on yours, the operator deployed (KUBECONFIG=...).
	@SCORECARD_KUBECONFIG='$(if $(filter command,$(firstword $(origin KUBECONFIG))),$(KUBECONFIG))' \
		MAKE='$(MAKE)' hack/scorecard.sh

.PHONY: bench
bench: $(CLUSTER) $(KUSTOMIZE) ## Measure how long pooled sandboxes and tasks take, on the hermetic cluster with simulated nodes.
	BENCH_NODES='$(BENCH_NODES)' BENCH_FSYNC='$(BENCH_FSYNC)' BENCH_FLAGS='$(BENCH_FLAGS)' BENCH_JSON='$(BENCH_JSON)' hack/bench.sh

.PHONY: scale
scale: $(CLUSTER) $(KUSTOMIZE) ## Measure the operator with many pods, over time and when it is restarted, as bench does.
	BENCH_NODES='$(BENCH_NODES)' BENCH_FSYNC='$(BENCH_FSYNC)' BENCH_FLAGS='$(BENCH_FLAGS)' BENCH_JSON='$(BENCH_JSON)' hack/bench.sh scale

##@ Images

.PHONY: docker-build
docker-build: ## Build the operator's image, IMG, with CONTAINER_TOOL for PLATFORMS.
	$(call image-build,controller,manager,$(IMG))

.PHONY: docker-push
docker-push: ## Push the operator's image.
	$(call image-push,controller,$(IMG))

.PHONY: docker-build-task-executor
docker-build-task-executor: ## Build the task executor's image, TASK_EXECUTOR_IMG.
	$(call image-build,task-executor,task-executor,$(TASK_EXECUTOR_IMG))

.PHONY: docker-push-task-executor
docker-push-task-executor: ## Push the task executor's image.
	$(call image-push,task-executor,$(TASK_EXECUTOR_IMG))

.PHONY: docker-build-scorecard
docker-build-scorecard: ## Build the image of the operator's scorecard tests, SCORECARD_IMG.
	$(call image-build,scorecard,scorecard,$(SCORECARD_IMG))

.PHONY: docker-push-scorecard
docker-push-scorecard: ## Push the image of the operator's scorecard tests.
	$(call image-push,scorecard,$(SCORECARD_IMG))

##@ Bundle and catalog, for OLM

.PHONY: bundle
bundle: manifests $(KUSTOMIZE) $(OPERATOR_SDK) ## Generate the OLM bundle, bundle/ and bundle.Dockerfile, and validate it.
	$(OPERATOR_SDK) generate kustomize manifests -q --interactive=false
	hack/bundle.sh $(VERSION) $(CHANNELS) $(DEFAULT_CHANNEL)
	$(OPERATOR_SDK) bundle validate ./bundle --select-optional suite=operatorframework

.PHONY: bundle-build
bundle-build: ## Build the image of bundle/, BUNDLE_IMG.
	$(CONTAINER_TOOL) build --file bundle.Dockerfile --tag $(BUNDLE_IMG) .

.PHONY: bundle-push
bundle-push: ## Push the image of bundle/.
	$(CONTAINER_TOOL) push $(BUNDLE_IMG)

.PHONY: catalog
catalog: $(OPM) ## Build a file-based catalog of the bundle, dist/catalog, and validate it.
	hack/catalog.sh dist/catalog bundle

##@ Deployment, to the cluster that KUBECONFIG names

.PHONY: install
install: $(KUSTOMIZE) require-kubectl ## Install the CRDs.
	$(KUSTOMIZE) build config/crd | $(KUBECTL) apply -f -
	$(KUBECTL) wait --for=condition=Established --timeout=60s \
		crd/pools.sandbox.opensandbox.io crd/batchsandboxes.sandbox.opensandbox.io

.PHONY: uninstall
uninstall: $(KUSTOMIZE) require-kubectl ## Delete all BatchSandboxes and Pools, then the CRDs.
	hack/delete-sandboxes.sh
	$(KUSTOMIZE) build config/crd | $(KUBECTL) delete --ignore-not-found --timeout=$(TIMEOUT)s -f -

.PHONY: deploy
deploy: $(KUSTOMIZE) require-kubectl ## Deploy the operator with the images IMG and TASK_EXECUTOR_IMG, and wait for it.
	hack/render.sh | $(KUBECTL) apply -f -
	$(KUBECTL) --namespace opensandbox-system rollout status deployment/opensandbox-controller-manager --timeout=$(TIMEOUT)s

.PHONY: dist
dist: $(KUSTOMIZE) ## Write dist/install.yaml, the operator in one file, with the images IMG and TASK_EXECUTOR_IMG.
	@mkdir -p dist
	hack/render.sh > dist/install.yaml

.PHONY: undeploy
undeploy: $(KUSTOMIZE) require-kubectl ## Delete all BatchSandboxes and Pools, then the operator and the CRDs.
	hack/delete-sandboxes.sh
	hack/render.sh | $(KUBECTL) delete --ignore-not-found --timeout=$(TIMEOUT)s -f -

.PHONY: require-kubectl
require-kubectl:
	@command -v '$(KUBECTL)' >/dev/null || { \
		echo "kubectl was not found: install it, name it with KUBECTL=..., or run 'make cluster-up', which builds one" >&2; exit 1; }

##@ Hermetic cluster, a whole Kubernetes on this Linux machine (needs root)

.PHONY: cluster-up
cluster-up: $(CLUSTER) ## Build and start the cluster and the images of the samples; safe to run twice.
	$(CLUSTER) up $(if $(GVISOR),--gvisor)
	$(CLUSTER) sample-images

.PHONY: cluster-down
cluster-down: $(CLUSTER) ## Stop the cluster.
	$(CLUSTER) down

.PHONY: kubeconfig
kubeconfig: $(CLUSTER) ## Print the path of the cluster's kubeconfig: export KUBECONFIG=$(make -s kubeconfig)
	@$(CLUSTER) kubeconfig

.PHONY: demo
demo: $(KUSTOMIZE) ## Show the operator at work, on the hermetic cluster or on yours (KUBECONFIG=...).
	@DEMO_KUBECONFIG='$(if $(filter command,$(firstword $(origin KUBECONFIG))),$(KUBECONFIG))' \
		MAKE='$(MAKE)' hack/demo.sh

# Programs that the targets above use. The cluster program is Go's to keep current;
# the tools are built again when the file that pins them changes.

.PHONY: $(CLUSTER)
$(CLUSTER):
	@test -e $@ || echo "building cluster (once)" >&2
	@cd tests/cluster && CGO_ENABLED=0 go build -trimpath -o $@ .

$(CONTROLLER_GEN): TOOL := sigs.k8s.io/controller-tools/cmd/controller-gen
$(CRD_REF_DOCS): TOOL := github.com/elastic/crd-ref-docs
$(KUSTOMIZE): TOOL := sigs.k8s.io/kustomize/kustomize/v5
$(GOLANGCI_LINT): TOOL := github.com/golangci/golangci-lint/v2/cmd/golangci-lint

$(CONTROLLER_GEN) $(CRD_REF_DOCS) $(KUSTOMIZE) $(GOLANGCI_LINT): $(BIN)/%: hack/tools/%/go.mod hack/tools/%/go.sum
	@echo "building $* (once)" >&2
	@CGO_ENABLED=0 go build -C hack/tools/$* -trimpath -o $@ $(TOOL)
	@touch $@

# operator-sdk says in what it generates which version made it, and validates bundle
# images with a library that wants C code unless this tag is set.
OPERATOR_SDK_VERSION = $(shell cd hack/tools/operator-sdk && go list -m -f '{{.Version}}' github.com/operator-framework/operator-sdk)
operator-sdk-flag = -X github.com/operator-framework/operator-sdk/internal/version.$(1)=$(OPERATOR_SDK_VERSION)

# The program of the image of the scorecard's basic and olm suites is of the same module.
$(OPERATOR_SDK): PACKAGE := cmd/operator-sdk
$(SCORECARD_TEST): PACKAGE := images/scorecard-test

$(OPERATOR_SDK) $(SCORECARD_TEST): hack/tools/operator-sdk/go.mod hack/tools/operator-sdk/go.sum
	@echo "building $(@F) (once)" >&2
	@CGO_ENABLED=0 go build -C hack/tools/operator-sdk -trimpath -tags containers_image_openpgp \
		-ldflags '-s -w $(call operator-sdk-flag,Version) $(call operator-sdk-flag,GitVersion) $(call operator-sdk-flag,ImageVersion)' \
		-o $@ github.com/operator-framework/operator-sdk/$(PACKAGE)
	@touch $@

# opm, and OLM itself for the tests.
$(OPM): PACKAGE := operator-registry/cmd/opm
$(OLM): PACKAGE := operator-lifecycle-manager/cmd/olm
$(OLM_CATALOG): PACKAGE := operator-lifecycle-manager/cmd/catalog

$(OPM) $(OLM) $(OLM_CATALOG): hack/tools/olm/go.mod hack/tools/olm/go.sum
	@echo "building $(@F) (once)" >&2
	@CGO_ENABLED=0 go build -C hack/tools/olm -trimpath -tags json1,containers_image_openpgp -o $@ github.com/operator-framework/$(PACKAGE)
	@touch $@

comma := ,
platform-list := $(subst $(comma), ,$(PLATFORMS))
multi-arch := $(word 2,$(platform-list))
docker := $(filter docker,$(notdir $(firstword $(CONTAINER_TOOL))))

# $(call image-build,TARGET,PROGRAM,IMAGE): the program for each platform, then the
# image. podman and buildah would add to a manifest of the same name: remove it first.
define image-build
	@for platform in $(platform-list); do \
		IFS=/ read -r os arch variant <<<"$$platform"; \
		(set -x; GOOS=$$os GOARCH=$$arch $(GO_BUILD) -o bin/$${os}_$$arch/$(2) ./$(or $(wildcard cmd/$(2)),$(2))); \
	done
	$(if $(docker),,$(if $(multi-arch),@$(CONTAINER_TOOL) manifest rm $(3) >/dev/null 2>&1 || $(CONTAINER_TOOL) rmi $(3) >/dev/null 2>&1 || true))
	$(CONTAINER_TOOL)$(if $(and $(docker),$(multi-arch)), buildx) build --file Dockerfile --target $(1) --platform $(PLATFORMS) \
		--build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg VERSION=v$(VERSION) $(BUILD_ARGS) \
		$(if $(or $(docker),$(if $(multi-arch),,1)),--tag,--manifest) $(3) .
endef

# $(call image-push,TARGET,IMAGE). Docker keeps no multi-arch images, unless its
# containerd store is on: there, the push is another (cached) build.
define image-push
	$(if $(multi-arch),$(if $(docker),\
	$(CONTAINER_TOOL) buildx build --push --file Dockerfile --target $(1) --platform $(PLATFORMS) \
		--build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg VERSION=v$(VERSION) $(BUILD_ARGS) --tag $(2) .,\
	$(CONTAINER_TOOL) manifest push --all $(2) docker://$(2)),\
	$(CONTAINER_TOOL) push $(2))
endef
