# Caregate. `make run` starts the demo platform, `make test` builds and runs every test; everything lands in .venv/.
# PERF: `policy_rs256` of `make bench`: a distribution's Python is built with a profile, others often are not: 8 % of a request.
USABLE = import ensurepip, os, sys, sysconfig, venv; sys.exit(sys.version_info < (3, 11) or not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))
PYTHON ?= $(shell for p in /usr/bin/python3 python3; do "$$p" -c '$(USABLE)' 2>/dev/null && { echo "$$p"; exit; }; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8080
SECONDS ?= 60
UNITS ?= 500
BENCH_SECONDS ?= $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),5)
FLEET_SECONDS ?= $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),20)
FLEET_UNITS ?= $(if $(filter command line environment,$(origin UNITS)),$(UNITS),5000)
SOAK_SECONDS ?= $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),600)
CHAOS_SECONDS ?= $(SOAK_SECONDS)
RUNS ?= 20
STAMP := $(VENV)/.installed
KERNELS := $(VENV)/.built
DEBUG_BUILT := $(VENV)/.debug-built

.PHONY: python run test lint build audit-search audit-verify bench bench-fastpath profile load fleet soak chaos ledger outage fuzz autobahn annotate debug lock clean
.DELETE_ON_ERROR:

python:
	@echo $(PYTHON)

run: build
	@exec $(BIN)/caregate demo run --port $(PORT)

# Tests mostly wait: two processes take less than two thirds of the time of one, see tests/sharing.py.
test: build
	$(BIN)/python -m pytest --numprocesses 2

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

build: $(KERNELS)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV) || $(PYTHON) -m virtualenv $(VENV) || { rm -rf $(VENV); echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }
	@echo "installing the locked dependencies into $(VENV)/ ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

$(KERNELS): $(STAMP) setup.py pyproject.toml $(wildcard fastpath/*.pyx fastpath/*.pxd fastpath/*.h)
	@echo "compiling the kernels ..."
	@$(BIN)/python setup.py --quiet build_ext --inplace --parallel 4 $(if $(wildcard $(DEBUG_BUILT)),--force) || { echo "a C compiler and Python's headers are needed: apt-get install gcc python3-dev"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@rm -f $(DEBUG_BUILT) && touch $@

bench-fastpath: build
	$(BIN)/python -m loadtests.bench_fastpath

bench: build
	@SECONDS=$(BENCH_SECONDS) $(BIN)/python -m loadtests.bench

profile: build
	@SECONDS=$(BENCH_SECONDS) $(BIN)/python -m loadtests.bench.profile

load: build
	@$(BIN)/python -m loadtests.run --seconds $(SECONDS) --units $(UNITS)

fleet: build
	@$(BIN)/python -m loadtests.fleet_run --units $(FLEET_UNITS) --seconds $(FLEET_SECONDS)

soak: build
	@$(BIN)/python -m loadtests.soak --seconds $(SOAK_SECONDS)

chaos: build
	@$(BIN)/python -m loadtests.chaos --seconds $(CHAOS_SECONDS)

ledger: build
	@$(BIN)/python -m loadtests.ledger --runs $(RUNS)

outage: build
	@$(BIN)/python -m loadtests.ledger.outage --seconds $(SOAK_SECONDS)

fuzz: build
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	@$(BIN)/python tests/fuzz/run.py --seconds $(SECONDS) $(if $(JOBS),--jobs $(JOBS))

autobahn: build
	@$(BIN)/python -m tests.autobahn.run

audit-search: build
	@$(BIN)/python -m loadtests.audit_search --events $(or $(EVENTS),10000000)

audit-verify: build
	@$(BIN)/python -m loadtests.audit_verify --events $(or $(EVENTS),1000000)

annotate: $(STAMP)
	$(BIN)/cython -3 -a fastpath/*.pyx
	@ls fastpath/*.html

debug: $(STAMP)
	CAREGATE_DEBUG_BUILD=1 $(BIN)/python setup.py --quiet build_ext --inplace --force
	@touch $(DEBUG_BUILT) && rm -f $(KERNELS)

# Exact versions of everything, from the lower bounds in pyproject.toml.
lock:
	@rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	@$(VENV)/lock/bin/python -m pip install --quiet --disable-pip-version-check "setuptools>=77" wheel $$($(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(" ".join(repr(d).replace(chr(39), chr(34)) for d in p["dependencies"] + sum(p["optional-dependencies"].values(), [])))' | tr -d '"')
	@{ echo "# Exact versions, made by \`make lock\` from pyproject.toml."; $(VENV)/lock/bin/python -m pip freeze --disable-pip-version-check --all | grep -v '^pip==' ; } > requirements.lock
	@rm -rf $(VENV)/lock

clean:
	rm -rf build dist *.egg-info $(STAMP) $(KERNELS) $(DEBUG_BUILT) fastpath/*.c fastpath/*.so fastpath/*.html .pytest_cache .mypy_cache .ruff_cache .hypothesis
