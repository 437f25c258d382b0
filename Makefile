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
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[36m%-10s\033[0m %s\n", $$1, $$2}' Makefile

.PHONY: setup
setup: .venv/ready ## Install uv if it is missing, and the three environments from the lock

.uv/bin/uv:
	@echo "uv is not installed; putting it into .uv/"
	python3 -m venv .uv 2>/dev/null && .uv/bin/python -m pip install --quiet "uv>=0.8" \
	  || { rm -rf .uv; echo "could not install uv; see https://docs.astral.sh/uv and run make again" >&2; exit 1; }

.venv/ready: pyproject.toml uv.lock $(if $(findstring .uv/,$(UV)),.uv/bin/uv)
	$(UV) sync --quiet --frozen --extra core --group dev
	UV_PROJECT_ENVIRONMENT=.venv-runtime $(UV) sync --quiet --frozen --extra runtime
	UV_PROJECT_ENVIRONMENT=.venv-detector $(UV) sync --quiet --frozen --extra detector
	@touch $@

.PHONY: run
run: setup ## Run the whole loop on the New York flights of 2013 (ARGS=--fast for a small one, ARGS=--fresh from nothing)
	$(BIN)/kubeloop run $(ARGS)

.PHONY: test
test: setup ## Run the tests (ARGS="tests/unit -k gate" for some of them)
	$(BIN)/python -m pytest $(ARGS)

.PHONY: lint
lint: setup ## Check style, types, import rules and generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/kubeloop config --json | diff -u docs/loop.schema.json - \
	  || { echo "docs/loop.schema.json is stale; make schema" >&2; exit 1; }

.PHONY: format
format: setup ## Put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: schema
schema: setup ## Write the JSON schema of loop.yaml, for editors
	$(BIN)/kubeloop config --json > docs/loop.schema.json

.PHONY: compile
compile: setup ## Write every pipeline to build/ as KFP IR YAML
	$(BIN)/python -m pipelines compile

.PHONY: bench
bench: setup ## Measure against peers, side by side; writes build/bench.json
	$(BIN)/python -m benchmarks

.PHONY: report
report: setup ## Write the report anew and open it
	$(BIN)/kubeloop report --open

.PHONY: mlflow
mlflow: setup ## Open the MLflow UI on http://127.0.0.1:5000
	MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui --host 127.0.0.1 --port 5000 --workers 1 \
	  --backend-store-uri sqlite:///$(or $(KUBELOOP_STATE),$(CURDIR)/.kubeloop)/mlflow.db

.PHONY: doctor
doctor: setup ## Say what is missing, wrong or too old
	$(BIN)/kubeloop doctor

.PHONY: clean
clean: ## Delete what runs left; environments stay
	rm -rf .kubeloop build
