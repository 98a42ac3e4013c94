# Every target makes the environment it needs: .venv in this folder, from pyproject.toml.
PYTHON ?= python3
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
RUN := $(BIN)/python
# A state folder of its own for the demo and the tests, so that nothing of the user's is touched.
BUILD := build
# Much of the suite waits for processes, so that three files run side by side on two cores; `tests/support/lanes.py` orders them.
PYTEST := $(RUN) -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: help demo quick test nightly keras conformance equivalence lab check lint types architecture audit bench soak notebooks docs clean

help:  ## what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

demo: $(VENV)/.ready  ## run the quickstart notebook headless and say where its page is
	$(RUN) -m notebooks.run notebooks/01_quickstart.ipynb --html $(BUILD)/quickstart.html

lab: $(VENV)/.ready  ## open JupyterLab, ready to use
	$(BIN)/jupyter lab --notebook-dir=notebooks

quick: $(VENV)/.ready  ## tests that start no process: the command of daily work, under 90 s
	$(PYTEST) -m "not process and not slow" $(PYTEST_OPTIONS)

test: $(VENV)/.ready  ## what every change must pass: under 12 minutes on two cores
	$(PYTEST) -m "not nightly" $(PYTEST_OPTIONS)

nightly: $(VENV)/.ready equivalence  ## the long rest: whole equivalence, long fuzz, every notebook, soak
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[test,hub,estimators,references]'
	$(PYTEST) -m nightly $(PYTEST_OPTIONS)
	$(RUN) -m benchmarks.soak
	$(RUN) -m tests.nightly.keras_nightly

keras: $(VENV)/.ready  ## a report: what keras-nightly, or AIAAS_KERAS='keras==3.16.*', would break
	$(RUN) -m tests.nightly.keras_nightly

conformance: $(VENV)/.ready  ## clients of other servers, each in an environment of its own, against ours
	$(RUN) -m pytest -q tests/conformance

equivalence: $(VENV)/.ready  ## every model, optimizer, strategy and number of workers beside plain fit; `make test` runs a few
	AIAAS_EQUIVALENCE=all $(RUN) -m pytest -q tests/equivalence

check: lint types architecture test  ## what CI runs

lint: $(VENV)/.ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(VENV)/.ready
	$(RUN) -m mypy

architecture: $(VENV)/.ready
	$(RUN) -m pytest -q tests/architecture

audit: $(VENV)/.ready  ## what is installed, beside the published advisories that we know of
	$(RUN) -m tests.architecture.test_dependencies

notebooks: $(VENV)/.ready  ## execute the notebooks and store their outputs in them
	$(RUN) -m notebooks.run notebooks/*.ipynb --in-place --figures docs/figures

docs: $(VENV)/.ready  ## write the reference pages of docs/ anew, from the code
	$(RUN) -m docs.generate

bench: $(VENV)/.ready  ## measure beside the peers, in one run
	$(RUN) -m benchmarks

soak: $(VENV)/.ready  ## ten minutes of serving at 70 % load: no error, no growth
	$(RUN) -m benchmarks.soak

clean:
	rm -rf $(BUILD) $(VENV) .conformance .keras_nightly .pytest_cache .mypy_cache .ruff_cache
