# One command each: `make help` lists them. Everything is installed into .venv; nothing outside this folder is touched.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# The first Python of a supported version; `make PYTHON=/path/to/python3.12 ...` chooses another.
PYTHON ?= $(shell for p in python3 python3.11 python3.12; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= auto
IMAGE ?= shd_bids:latest
DEMO_DIR ?= demo

.PHONY: help install demo test lint test-unit test-slow test-container image clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(STAMP)  ## create .venv with the shd_bids command in it

$(STAMP): pyproject.toml constraints.txt $(wildcard setup.py)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed and was not found; set PYTHON=/path/to/python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

demo: $(STAMP)  ## write a small data set, run shd_bids on it, print what was found
	$(BIN)/python -m shd_bids.cli.demo $(DEMO_DIR)

test: lint test-unit  ## style, types, layers and all tests that take seconds

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-unit: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m 'not slow'

test-slow: $(STAMP)  ## whole runs and comparisons, minutes each
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m slow

test-container:  ## build the images for real and compare the demo in them; skips where no builder is
	tests/container/run_checks.sh

image:  ## build the container image, named $(IMAGE)
	tests/container/build_image.sh $(IMAGE) .

clean:  ## remove what was built and written here
	rm -rf $(VENV) build dist *.egg-info $(DEMO_DIR) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find shd_bids workflows tests -name __pycache__ -prune -exec rm -rf {} +
	find shd_bids -name '*.so' -delete
