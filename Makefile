# The whole interface to this checkout. `make demo` and `make test` need Python 3.11+, make and git, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-real real-collector real-loki real-telemetrygen real-ofrep-web lint bench coverage matrix soak mutate fuzz clean

demo: $(STAMP)
	$(BIN)/jarvis demo

test: $(STAMP)
	$(BIN)/python -m pytest -q -n auto -m "not real"

# Tests whose peer is not built are skipped, and say what builds it; what a file has started serves all of its tests.
test-real: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m real

# The peers of these tests, built into the user's cache directory by go: Loki takes seven minutes, the Collector three.
real-collector:
	@scripts/build-real otelcol

real-loki:
	@scripts/build-real loki

real-telemetrygen:
	@scripts/build-real telemetrygen

# OpenFeature's OFREP client for browsers, from npm.
real-ofrep-web:
	@scripts/ofrep-web

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# All of it, into docs/performance.md.
bench: $(STAMP)
	$(BIN)/python -m benchmarks --write

# What the tests run of the code, the real peers' too.
coverage: $(STAMP)
	$(BIN)/coverage erase
	-$(BIN)/coverage run -m pytest -q -n auto -m "not real"
	-$(BIN)/coverage run -m pytest -q -n 2 --dist loadfile -m real
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered

# The wheel in empty environments: interpreters, lowest and newest dependencies, extras. Options of the script: MATRIX=--help
matrix: $(STAMP)
	$(BIN)/python scripts/matrix $(MATRIX)

# Everything together for an hour, with kills, full disks and an oracle of what must hold; the disk takes root.
SOAK_MINUTES ?= 60
soak: $(STAMP)
	$(BIN)/python -m tests.soak --minutes $(SOAK_MINUTES)

# Faults that the tests would not see, see docs/mutation.md: some modules with MODULES="evaluate redaction".
MODULES ?=
mutate: $(STAMP)
	$(BIN)/python scripts/mutate $(MODULES)

# Every parser against any bytes, each family of them for so many seconds; atheris is no part of the venv otherwise.
FUZZ_SECONDS ?= 60
FUZZ ?=
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz $(FUZZ) --seconds $(FUZZ_SECONDS)

$(STAMP): pyproject.toml constraints.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "make: $(PYTHON) is not Python 3.11 or newer; install one, or name it: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "make: $(PYTHON) lacks venv/ensurepip; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt -e '.[collector,auto,etcd,query,telegram,web]'
	@touch $@

clean:
	rm -rf $(VENV) .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
