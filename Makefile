# Everything installs into .venv from the lock; a second call starts at once.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
FLOWS ?= merge distill evolve-merge search transfer
# make run FLOW=merge runs one flow; without it every level runs at its default size.
FLOW ?=
export TRANSFEROPT_DATA ?= $(wildcard ../shared/data)

.PHONY: help install run test test-ui lint serve overhead bench-overhead lock licences clean FORCE

help:
	@echo "make install          create .venv from the lock"
	@echo "make run [FLOW=name]  run every level (or one flow) on real models and data"
	@echo "make test             lint, import contracts, tests"
	@echo "make test-ui          browser tests (chromium, chromium-driver)"
	@echo "make serve            MLflow, Prefect, deployments and a worker on this machine"
	@echo "make overhead         a flow's wall time against the same core calls in a plain loop"
	@echo "make bench-NAME       a benchmark: SIZE=smoke|default|full, VERIFY=5, MINUTES=30, PRUNE=1, CARRY=1"

install: $(VENV)/installed

# torch alone with its own dependencies (a CPU and a CUDA build need different ones), the rest exactly as locked.
$(VENV)/installed: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or set PYTHON="; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m core.merge.kernels
	$(BIN)/python -m tasks.prepared
	@touch $@

run: install
	@for flow in $(or $(FLOW),$(FLOWS)); do $(BIN)/transferopt run $$flow || exit 1; done

# Two processes of one thread each are faster than one of two: tests use tiny models.
test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

test-ui: install
	TEST_UI=1 $(BIN)/python -m pytest tests/ui -m ui

serve: install
	$(BIN)/transferopt serve

bench-%: install FORCE
	$(BIN)/python -m benchmarks.$(subst -,_,$*)

# In a home of its own, whose cache is emptied between runs; assets are those of the user.
bench-overhead: overhead
overhead: install
	home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && \
	TRANSFEROPT_ASSETS=$${TRANSFEROPT_ASSETS:-$${TRANSFEROPT_HOME:-$$HOME/.transferopt}/assets} \
	TRANSFEROPT_HOME=$$home $(BIN)/python -m flows.cli.overhead

# Resolve pyproject anew and pin what came out; only for whoever updates dependencies.
# Lock with an early 3.11 (Debian 12 has 3.11.2): what was resolved by a late one may not install on it.
lock: FORCE
	$(BIN)/python -m pip freeze --exclude-editable | grep -v -e '^torch==' -e '^pip==' -e '^transferopt' > requirements.lock

# Name, version, licence and home of every locked package, into docs/licences.md.
licences: install
	$(BIN)/python deployments/licences.py

clean:
	rm -rf $(VENV)
