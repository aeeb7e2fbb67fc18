# Everything that a person does with this repository. Needs Linux, make and Python 3.11 or later.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PORT ?= 8000
MODEL ?= models/kubediffusion-emoji
BIN := .venv/bin
SOURCES := resources/src operator/src worker/src api/src client/src deploy/local/src benchmarks/src tests
# How images are named and what they stand on; deploy/images/build says more.
export REGISTRY TAG BASE_IMAGE BUILDER
# Options for pytest, as in `make integration PYTEST="-k zombie"`; with "-n 0" it runs in one process, as --pdb needs.
PYTEST ?=
# Tests run in so many processes, each of which starts a cluster if it needs one: together they use two processors, as
# two of them mostly wait for clusters.
TESTS := OMP_NUM_THREADS=1 $(BIN)/pytest -n 3
# Suites and options of the benchmarks, as in `make bench BENCH="latency throughput --runs 5"`.
BENCH ?=
# The tests of the modules that decide and do nothing else; pyproject.toml names those modules.
CORES := tests/unit/operator tests/unit/resources $(wildcard tests/unit/worker/test_*_laws.py) \
	$(addprefix tests/unit/worker/test_,assignments.py acceleration.py continuous_engine.py waits_in_the_engine.py)
# What decides jobs and faults of `make chaos`, and how many jobs.
SEED ?= 1
JOBS ?= 2000

# A network may have a certificate authority of its own, which the machine knows and uv's built-in list does not.
export UV_SYSTEM_CERTS ?= $(if $(wildcard /etc/ssl/certs/ca-certificates.crt),true,false)

# Threads that wait for each other sleep instead of spinning: what else runs here needs the processors.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help
help: ## Say what can be made
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: bootstrap ## Generate one image by the whole path and show how; starts and stops everything
	@$(BIN)/python -m kubediffusion.local demo --port $(PORT) --model $(MODEL)

.PHONY: up
up: bootstrap ## Serve on http://localhost:8000 until Ctrl-C (PORT=, MODEL= a diffusers folder)
	@$(BIN)/python -m kubediffusion.local up --port $(PORT) --model $(MODEL)

.PHONY: test
test: verify binaries ## Run every check, and every test that needs no root
	$(TESTS) tests/unit tests/conformance tests/integration $(PYTEST)

.PHONY: verify
verify: bootstrap ## Run every check that is no test
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint types imports generated

.PHONY: lint
lint: bootstrap ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: bootstrap ## Check types
	$(BIN)/mypy $(SOURCES)

.PHONY: imports
imports: bootstrap ## Check that imports go one way
	$(BIN)/lint-imports

.PHONY: generated
generated: bootstrap ## Check that generated files are up to date
	$(BIN)/kubediffusion-crds --check
	$(BIN)/python deploy/release/release.py places

.PHONY: coverage
coverage: bootstrap ## Report how much of the modules that decide, and do nothing else, the unit tests run: 95 % at least
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n 0 -q $(CORES)
	$(BIN)/coverage report

.PHONY: unit
unit: bootstrap ## Run the tests that need no cluster
	$(TESTS) tests/unit $(PYTEST)

.PHONY: conformance
conformance: binaries ## Run the tests of POST /generate and its results, as clients rely on them
	$(TESTS) tests/conformance $(PYTEST)

.PHONY: integration
integration: binaries ## Run the tests against a real control plane
	$(TESTS) tests/integration $(PYTEST)

.PHONY: bench
bench: binaries ## Measure the control path and its peers (BENCH= suites and options, --help among them)
	@./deploy/local/bootstrap bench
	@$(BIN)/python -m kubediffusion.benchmarks $(BENCH)

.PHONY: chaos
chaos: binaries ## Strike 2,000 jobs with every fault, and judge what survived (SEED=, JOBS=; writes docs/reliability.md)
	@PYTHONPATH=tests $(BIN)/python -m chaos --seed $(SEED) --jobs $(JOBS) --write docs/reliability.md

.PHONY: models
models: bootstrap ## Run a tiny model of every text-to-image pipeline, and write docs/models.md
	@OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m census

.PHONY: site
site: bootstrap ## Build the documentation site into dist/docs, with its links checked
	@$(BIN)/python deploy/site/site.py

.PHONY: format
format: bootstrap ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: generate
generate: bootstrap ## Generate CRDs and admission policies from the typed models
	$(BIN)/kubediffusion-crds

.PHONY: requirements
requirements: ## Pin every requirement with its hashes (UPGRADE=--upgrade moves what is pinned); needs uv
	bash requirements/compile.sh $(UPGRADE)

.PHONY: bootstrap
bootstrap: ## Make .venv, if it is not there and up to date
	@./deploy/local/bootstrap

.PHONY: binaries
binaries: bootstrap ## Build the control plane, the S3 server and Helm, if they are not in the cache
	@$(BIN)/python -m kubediffusion.local build tests

.PHONY: images
images: ## Build the container images with docker or buildah (REGISTRY=, TAG=, BASE_IMAGE=, BUILDER=)
	@./deploy/images/build

.PHONY: sbom
sbom: ## List what the images hold, as CycloneDX, in dist/sbom
	@./deploy/images/sbom

.PHONY: e2e
e2e: bootstrap ## Run the end-to-end tests on a real kubelet (root, Debian 12; PYTEST= options)
	@./tests/e2e/run $(PYTEST)

.PHONY: version
version: ## Write a version into every place that names it (TO=1.2.3)
	@python3 deploy/release/release.py set $(TO)

.PHONY: release-check
release-check: ## Say what keeps this commit from being released (TAGGED=1: the tag is on it already)
	@python3 deploy/release/release.py check $(if $(TAGGED),--tagged)

.PHONY: release
release: release-check binaries images sbom ## Make what a release consists of in dist: chart, bills of materials, notes; and the images
	@helm=$$($(BIN)/python -m kubediffusion.local path helm) && "$$helm" package charts/kubediffusion --destination dist
	@python3 deploy/release/release.py notes >dist/notes.md

.PHONY: clean
clean: ## Remove what was made in this checkout; the cache of binaries is shared and stays
	rm -rf .venv .cache demo dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
