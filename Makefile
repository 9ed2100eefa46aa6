# make demo   trains on the bundled photos, evaluates, predicts, writes a report
# make test   runs every test
# make test-all   the same, and what only repeats tests on larger networks
# make check  format, lint, types, import floors, fast tests: what a commit needs
# make bench  measures everything into benchmarks/records/
# Each sets up .venv first where it is missing or out of date; PYTHON chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo
# Two workers of one thread each: threads of several processes that spin for the same cores take ten times as long.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest -n 2

.PHONY: demo test test-all check static bench clean

demo: $(READY)
	$(BIN)/cmtvision sample-data $(DEMO)/photos --overwrite
	$(BIN)/cmtvision train $(DEMO)/photos --recipe demo --out $(DEMO)/run --overwrite
	$(BIN)/cmtvision eval $(DEMO)/run $(DEMO)/photos
	$(BIN)/cmtvision predict $(DEMO)/run $(DEMO)/photos/val/sandal/*81.png --top 3
	@echo
	@echo "Report: $(CURDIR)/$(DEMO)/run/report.html"

test: $(READY)
	$(BIN)/python tests/contract/fetch_timm_tests.py
	$(PYTEST) -m "not every_size"

test-all: $(READY)
	$(BIN)/python tests/contract/fetch_timm_tests.py
	$(PYTEST)

check: static
	$(PYTEST) -m "not slow"

static: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python benchmarks/run_all.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cmtvision needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
		{ echo "no venv module here; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
