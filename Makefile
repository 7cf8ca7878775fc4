# The commands of this project, for people, hooks and CI alike. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# Folders may have any letters, spaces among them, so no path is a target or goes through $(abspath): the shell makes
# paths whole, and programs are started as `python -m`, since a script of .venv names the folder that it was made in.
quote = '$(subst ','\'',$(1))'
HOME_DIR := $(or $(value EVERGREEN_HOME),.evergreen)
HOME_PATH := $(shell home=$(call quote,$(HOME_DIR)); [[ $$home = /* ]] || home=$$PWD/$$home; printf %s "$$home")
IN_HOME := home=$(call quote,$(HOME_PATH))

# Nothing phones home, and a client that gets no answer says so within seconds.
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DVC_NO_ANALYTICS := 1
export MLFLOW_HTTP_REQUEST_MAX_RETRIES := 2
export PREFECT_HOME := $(HOME_PATH)/prefect
export MPLBACKEND := Agg
# Nothing on this machine is asked by way of a proxy; tasks/__init__.py does the same for programs without make.
ifneq ($(strip $(HTTP_PROXY)$(http_proxy)$(HTTPS_PROXY)$(https_proxy)$(ALL_PROXY)$(all_proxy)),)
comma := ,
NOT_BY_PROXY := 127.0.0.1,localhost,::1$(if $(NO_PROXY),$(comma)$(NO_PROXY))$(if $(no_proxy),$(comma)$(no_proxy))
export NO_PROXY := $(NOT_BY_PROXY)
export no_proxy := $(NOT_BY_PROXY)
endif
# A virtual environment that happens to be active is none of ours.
unexport VIRTUAL_ENV
unexport PYTHONPATH
unexport PYTHONHOME

.PHONY: help setup key up deploy demo repro test test-slow test-faults test-team check check-cloud bench lock ui-mlflow ui-prefect gc clean

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: .venv/.ready .venv/bin/evergreen key  ## make .venv from the lock, and a key for pseudonyms
	@(. $(BIN)/activate && [[ $$VIRTUAL_ENV -ef .venv ]]) || echo "this checkout was moved or copied: make works, but the \
	scripts of .venv (activate, dvc, prefect) belong to the old place. rm -rf .venv && make setup makes them anew." >&2

.venv/.ready: requirements-dev.lock
	@echo "setting up .venv (once; a minute or so)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@UV=$$(command -v uv || true); \
	if [ -z "$$UV" ]; then test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; UV=$(BIN)/uv; fi; \
	"$$UV" pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements-dev.lock
	@touch $@

.venv/bin/evergreen: infra/evergreen.sh | .venv/.ready
	@install -m 755 $< $@

key:
	@$(IN_HOME); test -e "$$home/pii.key" || { mkdir -p "$$home/prefect" && (umask 077 && \
	  $(PYTHON) -c "import secrets; print(secrets.token_hex(32))" > "$$home/pii.key.new") && mv "$$home/pii.key.new" "$$home/pii.key"; }

demo: setup  ## live through months of real flights: a first model, drift, a retrain, a fresher model
	@$(BIN)/python -m flows.cli demo

up: setup  ## Prefect, MLflow, Evidently and a worker on 127.0.0.1, until Ctrl-C; PROFILE=team: on PostgreSQL and S3; PORTS="--prefect-port 4300 ..." moves them
	@exec $(BIN)/python -m flows.cli up $(if $(PROFILE),--profile $(PROFILE)) $(PORTS)

repro: setup  ## the pipeline by hand: dvc repro in this checkout
	@PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python -m dvc repro

# Two workers have a core each: threads of their own for linear algebra would only wait for each other.
test test-slow test-faults: export OMP_NUM_THREADS = 1
test test-slow test-faults: export OPENBLAS_NUM_THREADS = 1

test: setup  ## the fast tests, about a quarter of an hour on 2 cores
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not faults and not slow"

test-slow: setup  ## simulations: error rates over hundreds of made histories; kills in all places of the engine
	@$(BIN)/python -m pytest -q -n 2 --dist load -m slow

test-faults: setup  ## kills, locks, full disks, the loop on real servers: under 15 minutes on 2 cores
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "faults and not team"

test-team: setup  ## machines that share PostgreSQL and S3, one lost in mid-run: 4 minutes on 2 cores
	@$(BIN)/python -m pytest -q -m team

check: setup  ## format, lint, types, the import contract
	@$(BIN)/python -m ruff format --check -q . && $(BIN)/python -m ruff check -q . && $(BIN)/python -m mypy && \
	$(BIN)/python -c "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"

check-cloud: .venv-cloud/.ready  ## the templates of AWS by checkov, those of pools by Prefect's workers and Kubernetes' schema
	@.venv-cloud/bin/python -m checkov.main --directory infra/aws --framework cloudformation --compact --quiet --skip-download && \
	.venv-cloud/bin/python tests/infra/check_pools.py

.venv-cloud/.ready: infra/cloud.lock
	@test -x .venv-cloud/bin/python || $(PYTHON) -m venv .venv-cloud
	@UV=$$(command -v uv || true); \
	if [ -z "$$UV" ]; then test -x .venv-cloud/bin/uv || .venv-cloud/bin/python -m pip install --quiet --disable-pip-version-check uv; UV=.venv-cloud/bin/uv; fi; \
	"$$UV" pip install --quiet --python .venv-cloud/bin/python --require-hashes -r infra/cloud.lock
	@touch $@

bench: setup  ## every bar, measured side by side → reports/bench.json
	@$(BIN)/python -m tests.benchmarks

lock: setup  ## pin pyproject.toml anew (no index address gets into the files)
	@UV=$$(command -v uv || echo $(BIN)/uv); \
	"$$UV" pip compile -q --universal --generate-hashes --no-emit-index-url --python-version 3.11 pyproject.toml -o requirements.lock && \
	"$$UV" pip compile -q --universal --generate-hashes --no-emit-index-url --python-version 3.11 pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock

deploy: setup  ## put prefect.yaml's deployments on the server at PREFECT_API_URL; SCHEDULES=1: its schedules too; CODE=store: workers pull the commit
	@$(BIN)/python -m flows.cli deploy $(if $(SCHEDULES),--schedules) $(if $(CODE),--code $(CODE))

ui-mlflow: setup  ## the MLflow UI on http://127.0.0.1:5000
	@exec $(BIN)/python -m infra.servers

ui-prefect: setup  ## the Prefect UI on http://127.0.0.1:4200
	@exec $(BIN)/python -m prefect server start --host 127.0.0.1 --port 4200

gc: setup  ## what could be freed; DO=1 frees it; where it refuses and that is meant: NO_VERSIONS=1, SHARED_CACHE=1
	@$(BIN)/python -m flows.cli gc $(if $(DO),--do) $(if $(NO_VERSIONS),--no-versions) $(if $(SHARED_CACHE),--shared-cache)

clean:  ## remove what runs made here; .venv and .evergreen stay
	@rm -rf data models reports .mypy_cache .ruff_cache .import_linter_cache .hypothesis
