# One command each: `make help` lists them. Everything is installed into .venv; nothing outside this folder is touched.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# The first Python of a supported version; `make PYTHON=/path/to/python3.12 ...` chooses another.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.tools
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
EXTRAS ?= test,docs
WORKERS ?= auto
IMAGE ?= shd_bids:latest
DEMO_DIR ?= demo
DOCS_DIR ?= build/docs

.PHONY: help install demo test lint test-unit test-slow test-container docs image sdist clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(INSTALLED)  ## create .venv with the shd_bids command in it

$(INSTALLED): pyproject.toml constraints.txt setup.py
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.13 is needed and was not found; set PYTHON=/path/to/python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e .
	touch $@

# EXTRAS=test,triton also tests the CUDA kernels on machines without a GPU, by Triton's interpreter. The package itself stays
# as it was installed.
$(TOOLS): $(INSTALLED)
	$(PIP_INSTALL) 'shd_bids[$(EXTRAS)]'
	touch $@

demo: $(INSTALLED)  ## write a small data set, run shd_bids on it, print what was found
	$(BIN)/python -m shd_bids.cli.demo $(DEMO_DIR)

test: lint test-unit  ## style, types, layers and all tests that take seconds

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint Dockerfile; fi
	if [ -x $(BIN)/shellcheck ]; then $(BIN)/shellcheck tests/container/*.sh tests/gpu/*.sh .ci/run; fi

test-unit: $(TOOLS)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m 'not slow'

test-slow: $(TOOLS)  ## processes, trainings, comparisons and whole runs
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m slow

test-container:  ## build the images for real and compare the demo in them; skips where no builder is
	tests/container/run_checks.sh

docs: $(INSTALLED)  ## build the documentation in build/docs; warnings are errors
	$(PIP_INSTALL) 'shd_bids[docs]'
	$(BIN)/python -m sphinx -E -W --keep-going -b html docs $(DOCS_DIR)

image:  ## build the container image, named $(IMAGE)
	tests/container/build_image.sh $(IMAGE) .

sdist: $(TOOLS)  ## write the source distribution and the wheel to dist/
	$(BIN)/python -c 'import setuptools.build_meta as b; b.build_sdist("dist"); b.build_wheel("dist")'

clean:  ## remove what was built and written here
	rm -rf $(VENV) build dist *.egg-info $(DEMO_DIR) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find shd_bids workflows tests -name __pycache__ -prune -exec rm -rf {} +
	find shd_bids -name '*.so' -delete
