# make demo   checks the bundled photos, trains on them, predicts, writes a report and a page on the five ideas
# make test   runs every test
# make test-all   the same, and what only repeats tests with other numbers
# make test-older  what computes, with the instructions of a processor of 2008
# make check  format, lint, types, import floors, fast tests: what a commit needs
# make bench  measures everything into benchmarks/records/
# make resolve  asks PyPI whether every extra can be installed, with constraints.txt and without
# make constraints  writes constraints.txt anew: the versions in it stay where they can; UPGRADE=1 takes the newest
# Each sets up .venv first where it is missing or out of date: demo with what users install, the others with more.
# PYTHON chooses another interpreter. TORCH=cpu takes torch and torchvision without CUDA, from PyTorch's own index;
# left empty, it is PyPI's build, or the one that .venv has already.

PYTHON ?= python3
TORCH ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/$(TORCH)
VENV := .venv
BIN := $(VENV)/bin
# What .venv has: a build of torch that TORCH chose, what users install, and what developers install besides.
CHOSEN := $(TORCH:%=$(VENV)/.torch-%)
BASE := $(VENV)/.ready-base
DEV := $(VENV)/.ready-dev
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO := demo
# Workers of one thread each: threads of several processes that spin for the same cores take ten times as long. Three,
# since many tests wait for processes of their own.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest -n 3 --dist worksteal

.PHONY: demo test test-all test-older check static bench resolve constraints clean

demo: $(BASE)
	$(BIN)/cmtvision sample-data $(DEMO)/photos --overwrite
	$(BIN)/cmtvision check-data $(DEMO)/photos --out $(DEMO)/data.html --overwrite
	$(BIN)/cmtvision train $(DEMO)/photos --minutes 3 --out $(DEMO)/run --overwrite
	$(BIN)/cmtvision predict $(DEMO)/run $(DEMO)/photos/val/sandal/*81.png --conformal 0.9
	$(BIN)/cmtvision report $(DEMO)/run $(DEMO)/photos --overwrite
	$(BIN)/cmtvision explain $(DEMO)/run $(DEMO)/photos/val/bag/00053.png --ideas --out $(DEMO)/ideas.html --overwrite
	@echo
	@echo "The data:  $(abspath $(DEMO))/data.html"
	@echo "The model: $(abspath $(DEMO))/run/report.html"
	@echo "The ideas: $(abspath $(DEMO))/ideas.html"

test: $(DEV)
	$(BIN)/python tests/contract/fetch_timm_tests.py
	$(PYTEST) -m "not every_size"

test-all: $(DEV)
	$(BIN)/python tests/contract/fetch_timm_tests.py
	$(PYTEST)

# Nothing may depend on what the processor at hand happens to have. These are read by PyTorch, oneDNN (OpenVINO's too)
# and MKL; the whole suite runs so with the same variables in front of `make test`.
OLDER := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
COMPUTES := tests/golden/test_golden_official.py tests/unit/deploy/test_deploy_fuse.py tests/unit/artefact/test_artefact_runtimes.py

test-older: $(DEV)
	$(OLDER) $(PYTEST) -m "not slow and not every_size" $(COMPUTES)

check: static
	$(PYTEST) -m "not slow and not every_size"

static: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(DEV)
	$(BIN)/python benchmarks/run_all.py

resolve: $(DEV)
	$(BIN)/python tests/resolve_extras.py

constraints: $(DEV)
	$(BIN)/python tests/resolve_extras.py --write $(if $(UPGRADE),--upgrade)

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cmtvision needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module here; on Debian: apt-get install python3-venv"; exit 1; }

# pip writes INSTALLER last but one: a package without it is half there, left by an install that was killed.
define repair
@for info in $(VENV)/lib/python*/site-packages/*.dist-info; do \
	if test -d "$$info" && ! test -f "$$info/INSTALLER"; then echo "repairing $$info"; rm -r "$$info"; fi; done
endef

$(VENV)/.torch-%: constraints.txt | $(BIN)/pip
	$(repair)
	@rm -f $(VENV)/.torch-*
	@echo "$(VENV): torch and torchvision from $(TORCH_INDEX)"
	$(INSTALL) --force-reinstall --no-deps --index-url $(TORCH_INDEX) torch torchvision
	@touch $@

$(BASE): pyproject.toml constraints.txt $(CHOSEN) | $(BIN)/pip
	$(repair)
	@echo "$(VENV): installing cmtvision and what it needs; this takes some minutes where nothing is there yet"
	$(INSTALL) --editable .
	@touch $@

$(DEV): $(BASE)
	$(repair)
	@echo "$(VENV): installing what the tests need besides; this takes some minutes where nothing is there yet"
	$(INSTALL) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
