# Every target is a line of `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
GO ?= go
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/apparate
GOLANGCI_VERSION := v2.15.0
GOLANGCI := $(CACHE)/tools/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint
TESTFLAGS ?=
# The race detector needs a C compiler; without one the tests run all the same.
RACE := $(if $(shell command -v $(or $(CC),gcc) 2>/dev/null),-race)
# As for `make build`, so that the standard library is compiled once.
GO_RUN := CGO_ENABLED=0 $(GO) run -trimpath

.PHONY: help
help: ## show this menu
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/apparate and bin/apparate-operator
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o bin/ ./cmd/...

.PHONY: demo
demo: ## convert two images, start each eagerly and lazily over 200 Mbit/s, compare (root)
	$(GO_RUN) ./test/demo

.PHONY: images
images: ## assemble the demo's images from Debian packages into the cache
	$(GO_RUN) ./test/demo --images-only

.PHONY: test
test: tools unit interop e2e ## everything that must pass, on a bare machine (root)

.PHONY: tools
tools: ## build containerd, a registry, Kubernetes and helm for the tests into the cache (once, about twelve minutes)
	$(GO_RUN) ./test/tools/ensure

.PHONY: unit
unit: ## all packages, with real FUSE and EROFS, under the race detector (root)
	@[ -n "$(RACE)" ] || echo "no C compiler: the tests run WITHOUT the race detector"
	$(GO) test $(RACE) -timeout 15m $(TESTFLAGS) $$($(GO) list ./... | grep -vE '/test/(e2e|control|cluster|matrix|systemd|story|bench/peers)$$|/hack/image')

.PHONY: e2e
e2e: build ## the built programs with real containerd 1.4 to 2.4, runc, registry, API server and kubelet (root)
	$(GO) test -count=1 -p 1 -timeout 25m $(TESTFLAGS) ./test/e2e ./test/control ./test/cluster ./test/matrix ./test/systemd ./test/story ./hack/image/...

.PHONY: scenario
scenario: build ## one test of a whole: make scenario RUN=TestStory (or TestProfile, TestTrouble, TestRollBack, TestKubelet, TestMatrix, ...) (root)
	$(GO) test -count=1 -p 1 -v -timeout 25m -run '^$(or $(RUN),TestStory)$$' ./test/e2e ./test/control ./test/cluster ./test/matrix ./test/systemd ./test/story

.PHONY: cluster-up
cluster-up: ## a real three-node Kubernetes on this machine, in network namespaces; stays until cluster-down (root)
	@mkdir -p bin
	@CGO_ENABLED=0 $(GO) build -trimpath -o bin/cluster ./test/cluster/run
	bin/cluster up

.PHONY: cluster-down
cluster-down: ## end it, and remove what it or a crashed one left
	@mkdir -p bin
	@CGO_ENABLED=0 $(GO) build -trimpath -o bin/cluster ./test/cluster/run
	bin/cluster down

.PHONY: interop
interop: ## stargz-snapshotter's own reader mounts our images
	cd test/interop && $(GO) test -timeout 10m $(TESTFLAGS) ./...

.PHONY: chart
chart: ## out/apparate-VERSION.tgz, the chart as helm installs it
	@mkdir -p out
	@helm="$$($(GO_RUN) ./test/tools/ensure helm)" && "$$helm" package charts/apparate --destination out

.PHONY: image
image: ## out/image, the container image as an OCI layout; PUSH=registry/name:tag pushes it, ARCH=amd64,arm64 makes both
	@$(GO_RUN) ./hack/image --revision "$$(git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null || true)" $(if $(ARCH),--arch $(ARCH)) $(if $(PUSH),--push $(PUSH))

.PHONY: bench
bench: ## cold starts against the limit and against others, into out/ and README.md (root; half an hour); TIER=core for all images
	$(GO_RUN) ./test/bench --tier $(or $(TIER),smoke) --readme README.md $(BENCHFLAGS)

.PHONY: microbench
microbench: build ## benchmarks of conversion, indexing, the read path and the control plane
	$(GO) test -run '^$$' -bench . -benchmem ./snapshotter/... ./converter/... ./controllers/...
	$(GO) test -run '^$$' -bench Notification -benchtime 300x -timeout 20m ./test/control
	$(GO) test -run '^$$' -bench Queue -benchtime 1x -timeout 20m ./test/control

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (default 20s)
	@for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(or $(FUZZTIME),20s) -fuzzminimizetime 5x $$p; done; done

.PHONY: lint
lint: $(GOLANGCI) generated ## golangci-lint at the pinned version, formatting, go.mod, what is generated
	$(GOLANGCI) run --timeout 10m ./...
	@$(GO) mod tidy -diff
	@for m in interop bench/stargz bench/soci; do (cd test/$$m && GOWORK=off $(GO) mod tidy -diff); done
	@for m in tools kube containerd17 helm generate; do (cd hack/$$m && GOWORK=off $(GO) mod tidy -diff); done
	@$(GO) mod verify >/dev/null

$(GOLANGCI):
	@echo "building golangci-lint $(GOLANGCI_VERSION) (some minutes, once)"
	@mkdir -p $(@D)
	GOBIN=$(@D) GOFLAGS= $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

# The generator is compiled once; go run uses its cache.
CONTROLLER_GEN = cd hack/generate && GOWORK=off CGO_ENABLED=0 $(GO) build -trimpath -o $(CURDIR)/bin/controller-gen sigs.k8s.io/controller-tools/cmd/controller-gen

.PHONY: generate
generate: ## CRDs, RBAC and deep copies from the markers in api and controllers; values and README of the chart
	@mkdir -p bin
	@$(CONTROLLER_GEN)
	bin/controller-gen object paths=./api/v1alpha1
	bin/controller-gen crd paths=./api/v1alpha1 output:crd:dir=config/crd
	bin/controller-gen rbac:roleName=apparate-operator paths=./controllers/... output:rbac:dir=config/rbac
	$(GO_RUN) ./hack/chartdoc

.PHONY: generated
generated: generate ## fail where what is generated is not what is committed
	@git diff --exit-code --stat -- config api charts || { echo "run 'make generate' and commit the result"; exit 1; }
	@[ -z "$$(git status --porcelain -- config api charts)" ] || { git status --short -- config api charts; echo "run 'make generate' and commit the result"; exit 1; }

.PHONY: clean
clean: ## remove what the targets wrote here (the cache outside stays)
	rm -rf bin out
