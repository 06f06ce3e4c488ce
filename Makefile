# Everything sets itself up: Python 3.11 or later, make and a C toolchain are all that is needed. No root, no services.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test lint types architecture unit bench lock clean

help:            ## say what there is
	@grep -hE '^[a-z]+: .*## ' $(MAKEFILE_LIST) | sed 's/: .*## /\t/' | expand -t 14

$(READY): requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)   ## start the gateway with the bundled stand-in behind it, send calls, show what happens
	$(BIN)/bcss-gateway demo --config config.example.yaml

test: lint types architecture unit   ## everything that must be green

lint: $(READY)   ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy --strict
	$(BIN)/mypy

architecture: $(READY)  ## who may import what
	$(BIN)/lint-imports

unit: $(READY)   ## tests with branch coverage: policies/ 100 %, all at least 90 %
	$(BIN)/coverage erase
	PYTHONASYNCIODEBUG= $(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --include='policies/*' --fail-under=100
	$(BIN)/coverage report --fail-under=90

bench: $(READY)  ## ratios against the usual aiohttp proxy; writes benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.run

lock:            ## renew the pinned requirements (needs uv; for maintainers)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements.txt pyproject.toml
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra dev -c requirements.txt -o requirements-dev.txt pyproject.toml

clean:           ## remove what was built
	rm -rf $(VENV) .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
