# kubeloop: `make help` explains every target.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

UV ?= $(shell command -v uv || echo .uv/bin/uv)
BIN := .venv/bin
export UV_COMPILE_BYTECODE := 1
export UV_NO_PROGRESS := 1

.PHONY: help
help: ## Explain every target
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  \033[36m%-13s\033[0m %s\n", $$1, $$2}' Makefile

.PHONY: setup
setup: .venv/ready ## Install uv if it is missing, and the three environments from the lock

.uv/bin/uv:
	@echo "uv is not installed; putting it into .uv/"
	@python3 -m venv .uv 2>/dev/null && .uv/bin/python -m pip install --quiet "uv>=0.8" \
	  || { rm -rf .uv; echo "could not install uv; see https://docs.astral.sh/uv and run make again" >&2; exit 1; }

.venv/ready: pyproject.toml uv.lock $(if $(findstring .uv/,$(UV)),.uv/bin/uv)
	@echo "installing three environments from the lock: about 3 GB, a minute or more the first time"
	@$(UV) sync --quiet --frozen --extra core --group dev --group docs
	@UV_PROJECT_ENVIRONMENT=.venv-runtime $(UV) sync --quiet --frozen --extra runtime
	@UV_PROJECT_ENVIRONMENT=.venv-detector $(UV) sync --quiet --frozen --extra detector
	@touch $@

.PHONY: run
run: setup ## Run the whole loop on the New York flights of 2013 (ARGS=--fast for a small one, ARGS=--fresh from nothing)
	$(BIN)/kubeloop run $(ARGS)

.PHONY: test
test: setup ## Run the tests (ARGS="tests/unit -k gate" for some of them)
	$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),-n 2 --durations 25)

.PHONY: quick
quick: setup ## Run only the tests without processes, servers and sleeps, for use while you work (two minutes)
	$(BIN)/python -m pytest --quick -n 2 $(ARGS)

.PHONY: weigh
weigh: setup ## Run the whole suite and record which tests `make quick` leaves out
	$(BIN)/python -m pytest --weigh -n 2 $(ARGS)

.PHONY: coverage
coverage: setup ## Run the tests and report which lines of kubeloop they reach (build/coverage/index.html)
	$(BIN)/python -m pytest --cov --cov-report term:skip-covered --cov-report html -n 2 $(ARGS)

.PHONY: hostile
hostile: setup ## Run every hostile test, and a soak of three minutes (`make test` runs a sample)
	KUBELOOP_HOSTILE=whole $(BIN)/python -m pytest tests/hostile $(ARGS)

.PHONY: lint
lint: style types generated ## Check style, types, import rules and generated files

.PHONY: style
style: setup ## Check style and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

.PHONY: types
types: setup ## Check types
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

.PHONY: generated
generated: setup ## Check that the files that come from the configuration are what `make schema` writes
	@fresh() { "$${@:2}" | diff -u "$$1" - || { echo "$$1 is stale; make schema" >&2; exit 1; }; }; \
	  fresh docs/loop.schema.json $(BIN)/kubeloop config --json; \
	  fresh charts/kubeloop/values.schema.json $(BIN)/python -m kubeloop.chart schema; \
	  fresh charts/kubeloop/values.yaml $(BIN)/python -m kubeloop.chart values; \
	  fresh manifests/base/loops.yaml $(BIN)/python -m kubeloop.chart loop

.PHONY: format
format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: schema
schema: setup ## Write the files that are generated from the configuration: schemas, the chart's values, the demo's loop for GitOps
	$(BIN)/kubeloop config --json > docs/loop.schema.json
	$(BIN)/python -m kubeloop.chart schema > charts/kubeloop/values.schema.json
	$(BIN)/python -m kubeloop.chart values > charts/kubeloop/values.yaml
	$(BIN)/python -m kubeloop.chart loop > manifests/base/loops.yaml

# The variable turns off the theme's notice about its own end of life.
.PHONY: docs
docs: setup ## Build the documentation site into build/docs, and check its links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "build/docs/index.html"

.PHONY: docs-serve
docs-serve: setup ## Show the documentation site on port 8000 while you write it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve $(ARGS)

.PHONY: compile
compile: setup ## Write every pipeline to build/ as KFP IR YAML
	$(BIN)/python -m pipelines compile

# Kubernetes' own programs, built from the modules pinned in tests/control_plane. KUBEBUILDER_ASSETS follows the
# convention of envtest: `setup-envtest use 1.36.x --bin-dir ...` can fill the folder with etcd, kube-apiserver and kubectl.
GO ?= $(firstword $(shell command -v go) $(wildcard /usr/local/go/bin/go) go)
PINS := tests/control_plane
ASSETS := $(or $(KUBEBUILDER_ASSETS),.control-plane/bin)
KUBERNETES = $(shell sed -En 's|^(require)?[[:space:]]*k8s.io/kubernetes v([0-9.]+).*|\2|p' $(PINS)/kubernetes/go.mod)
NODE_KUBERNETES := $(addprefix $(ASSETS)/,kubelet kube-controller-manager kube-scheduler kube-proxy)
PROGRAMS := $(addprefix $(ASSETS)/,kubectl helm kustomize etcd kube-apiserver actionlint kube-score checkov)
STAMP := -X k8s.io/component-base/version
GO_BUILD = @echo "building $(@F)"; command -v $(GO) > /dev/null \
  || { echo "building $(@F) needs Go 1.26 or newer; see https://go.dev/doc/install" >&2; exit 1; }; mkdir -p $(@D); \
  CGO_ENABLED=0 GOWORK=off $(GO) build -C $(<D) -trimpath -buildvcs=false -o $(abspath $@) -ldflags "-s -w $(LDFLAGS)"

.PHONY: control-plane
control-plane: $(PROGRAMS) .control-plane/flux ## Build an API server and the tools for the cluster tests, once (8 minutes)

$(ASSETS)/kube-apiserver $(ASSETS)/kubectl $(NODE_KUBERNETES): LDFLAGS = $(STAMP).gitVersion=v$(KUBERNETES) $(STAMP).gitTreeState=clean \
  $(STAMP).gitMajor=$(word 1,$(subst ., ,$(KUBERNETES))) $(STAMP).gitMinor=$(word 2,$(subst ., ,$(KUBERNETES)))
$(ASSETS)/kube-apiserver $(ASSETS)/kubectl $(NODE_KUBERNETES): $(ASSETS)/%: $(PINS)/kubernetes/go.mod $(PINS)/kubernetes/go.sum
	$(GO_BUILD) k8s.io/kubernetes/cmd/$*

$(ASSETS)/etcd: $(PINS)/etcd/go.mod $(PINS)/etcd/go.sum
	$(GO_BUILD) go.etcd.io/etcd/server/v3

$(ASSETS)/helm: LDFLAGS = -X helm.sh/helm/v3/internal/version.version=$(shell \
  sed -En 's|.*helm.sh/helm/v3 (v[0-9.]+).*|\1|p' $(PINS)/tools/go.mod)
$(ASSETS)/helm: $(PINS)/tools/go.mod $(PINS)/tools/go.sum
	$(GO_BUILD) helm.sh/helm/v3/cmd/helm

$(ASSETS)/kustomize: $(PINS)/tools/go.mod $(PINS)/tools/go.sum
	$(GO_BUILD) sigs.k8s.io/kustomize/kustomize/v5

$(ASSETS)/actionlint: $(PINS)/tools/go.mod $(PINS)/tools/go.sum
	$(GO_BUILD) github.com/rhysd/actionlint/cmd/actionlint

# A separate module, since it needs an older k8s.io/api than helm.
$(ASSETS)/kube-score: $(PINS)/score/go.mod $(PINS)/score/go.sum
	$(GO_BUILD) github.com/zegl/kube-score/cmd/kube-score

# In a separate environment, since kubeloop needs none of its packages.
$(ASSETS)/checkov: $(PINS)/checkov.txt $(if $(findstring .uv/,$(UV)),.uv/bin/uv)
	@echo "installing checkov"
	UV_TOOL_DIR=$(abspath $(ASSETS)/../tools) UV_TOOL_BIN_DIR=$(abspath $(ASSETS)) \
	  $(UV) tool install --quiet --force --constraints $< checkov
	@touch $@

.control-plane/flux: $(PINS)/flux.sh
	GO=$(GO) $(PINS)/flux.sh $@
	@touch $@

CRDS := $(or $(KUBELOOP_CRDS),.control-plane/crds)

.PHONY: crds
crds: $(CRDS) ## Fetch the CustomResourceDefinitions that the cluster tests need, once

$(CRDS): | $(PINS)/crds.sh
	$(PINS)/crds.sh $@

# The programs of a real node: DNS and the pause container for its pods.
NODE_PROGRAMS := $(NODE_KUBERNETES) $(addprefix $(ASSETS)/,coredns pause)

$(ASSETS)/coredns $(ASSETS)/pause: $(ASSETS)/%: tests/node/programs/go.mod tests/node/programs/go.sum \
    tests/node/programs/%/main.go
	$(GO_BUILD) ./$*

.PHONY: node
node: control-plane image-tools $(NODE_PROGRAMS) ## Build the programs of a real node and install containerd (Debian and Ubuntu; needs root)
	@missing=; for tool in conntrack containerd iptables runc; do command -v $$tool > /dev/null || missing+=" $$tool"; done; \
	  compgen -G "/usr/lib/cni/bridge" > /dev/null || missing+=" containernetworking-plugins"; $(INSTALL)

.PHONY: e2e-node
e2e-node: setup node backends ## Build the images and install the chart on a real node of this machine (needs root)
	KUBELOOP_NODE=1 $(BIN)/python -m pytest tests/node/test_images.py
	KUBELOOP_NODE=1 unshare --net --mount --pid --fork --mount-proc --kill-child \
	  $(BIN)/python -m pytest tests/node/test_node.py $(ARGS)

# A real cluster: every command of docs/install.md, one round of the loop, and typical failures.
.PHONY: e2e
e2e: setup ## Install on the cluster of KUBECONFIG as docs/install.md says, and test everything on it (an hour; PARTS="install loop")
	KUBELOOP_E2E=1 $(BIN)/python -m pytest $(if $(PARTS),$(PARTS:%=tests/e2e_cluster/test_%.py),tests/e2e_cluster) $(ARGS)

.PHONY: alerts
alerts: setup backends ## Break real parts under a real Prometheus, at a fifth of the speed of the tests (three minutes)
	KUBELOOP_ALERTS_FACTOR=24 $(BIN)/python -m pytest tests/alerts $(ARGS)

.PHONY: kind-up
kind-up: setup ## Create a kind cluster with everything that `make e2e` needs (docker or podman)
	tests/kind/up.sh $(ARGS)

.PHONY: images
images: setup ## Build the images with docker, podman or buildah (ARGS="core --tag 1.2.3 --registry host/folder --push")
	$(BIN)/python images/build.py $(ARGS)

.PHONY: backends
backends: ## Install PostgreSQL, Redis, Prometheus and Chromium for the tests (Debian and Ubuntu; needs root)
	@missing=; compgen -G "/usr/lib/postgresql/*/bin/postgres" > /dev/null || missing=postgresql; \
	  command -v redis-server > /dev/null || missing+=" redis-server"; \
  command -v chromium > /dev/null || missing+=" chromium"; \
  command -v promtool > /dev/null || missing+=" prometheus"; \
  command -v prometheus-alertmanager > /dev/null || missing+=" prometheus-alertmanager"; \
  command -v /usr/bin/python3 > /dev/null || missing+=" python3-minimal"; $(INSTALL)

# In a separate folder: only tests/spark needs it, and it is half a gigabyte. Spark 4 needs Java 17 or newer.
.PHONY: spark
spark: .spark/ready ## Install PySpark into .spark/, and Java, for the tests (Debian and Ubuntu; needs root)
	@missing=; command -v java > /dev/null || missing=default-jre-headless; $(INSTALL)
	@echo "PySpark is in .spark/, Java is $$(command -v java)"

.spark/ready: $(if $(findstring .uv/,$(UV)),.uv/bin/uv) | .venv/ready
	@echo "installing PySpark into .spark/"
	@rm -rf .spark
	UV_COMPILE_BYTECODE=0 $(UV) pip install --quiet --python $(BIN)/python --target .spark "pyspark>=4,<4.1"
	@touch $@

.PHONY: image-tools
image-tools: ## Install what the tests build images with (Debian and Ubuntu; needs root)
	@missing=; for tool in buildah debootstrap docker-registry; do \
	  command -v $$tool > /dev/null || missing+=" $$tool"; done; $(INSTALL)

INSTALL = if [ -n "$$missing" ]; then export DEBIAN_FRONTEND=noninteractive; \
  apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing > /dev/null; fi

.PHONY: bench
bench: setup ## Measure against peers, side by side; writes build/bench.json (ARGS="chart postgres" for a cluster's)
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: report
report: setup ## Write the report and open it
	$(BIN)/kubeloop report --open

.PHONY: mlflow
mlflow: setup ## Start the MLflow UI on port 5000 and print its link
	$(BIN)/kubeloop mlflow

.PHONY: doctor
doctor: setup ## Find what is missing, wrong or too old
	$(BIN)/kubeloop doctor

.PHONY: clean
clean: ## Delete the state of runs; keep the environments
	rm -rf .kubeloop build
