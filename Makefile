# `make` lists what there is to do.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := flows tasks tasks/producers stores stores/archive policies examples public
INSTALLED := .venv/.installed

.PHONY: help
help:
	@echo "make demo   see it work on a Prefect server of its own, apart from yours"
	@echo "make ui     look at the demo in Prefect's own user interface"
	@echo "make test   run the tests (real servers: SQLite and PostgreSQL); minutes"
	@echo "make test-all   run them and the thorough ones: browser, image, wheel, long faults, crashes and races, all combinations"
	@echo "make test-compat   run the flow's tests with the oldest and the newest Prefect, and against an oldest server"
	@echo "make docs   build the documentation as a site, in site/"
	@echo "make bench  measure the speed beside the limits of the API and of the databases, and renew docs/performance.md"
	@echo "make lint   check style, formatting, types and the workflow of CI"
	@echo "make schema renew retention.schema.json, by which editors complete and check retention.toml"
	@echo "make lock   renew the requirements files from pyproject.toml"
	@echo "make clean  remove what these made"

# The pins are complete, so pip has nothing to resolve. The editable install links each file, so it is renewed when files come or go.
$(INSTALLED): pyproject.toml requirements-dev.txt $(PACKAGES)
	@echo "Setting up .venv (a minute or two the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "Python 3.11 or newer is needed"; exit 1)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e . --config-settings editable_mode=strict
	@touch $@

.PHONY: demo
demo: $(INSTALLED)
	@$(BIN)/artifact-retention demo

.PHONY: ui
ui: $(INSTALLED)
	@$(BIN)/artifact-retention demo --ui

PYTEST := $(BIN)/python -m pytest -n 3 --dist worksteal -rfEs

.PHONY: test
test: $(INSTALLED)
	@echo "Running the tests on real Prefect servers of their own ..."
	@$(PYTEST) -m "not thorough and not long and not docker"

.PHONY: test-all
test-all: test test-thorough test-long

# The tests of the image need the Docker engine that DOCKER_HOST names, those of the user interface a Chromium; else they are skipped.
.PHONY: test-thorough
test-thorough: $(INSTALLED)
	@$(PYTEST) --dist loadgroup -m "(thorough or docker) and not long"

# Prints the figures of docs/evidence.md.
.PHONY: test-long
test-long: $(INSTALLED)
	@$(PYTEST) -o faulthandler_timeout=3600 -m long

# Environments of their own, in which the package is installed as its users have it. Only the oldest needs a pin.
COMPAT := tests/integration/test_cleanup.py tests/integration/test_pruning.py tests/integration/test_server_expiry.py tests/integration/test_server_version.py tests/contract
OLDEST := $(shell sed -n 's/^  "prefect>=\([0-9.]*\),.*/\1/p' pyproject.toml)
PREFECT_VERSION := -c 'import prefect; print(prefect.__version__)'

.PHONY: test-compat
test-compat: $(INSTALLED)
	@mkdir -p .compat
	@echo 'prefect==$(OLDEST)' > .compat/oldest.txt
	@: > .compat/newest.txt
	@for each in oldest newest; do \
	  python=.compat/$$each/bin/python; \
	  rm -rf build/lib && { test -x $$python || $(BIN)/uv venv -q -p $(BIN)/python .compat/$$each; } && \
	  $(BIN)/uv pip install -q -U -p $$python -c .compat/$$each.txt --group dev --reinstall-package prefect-artifact-retention '.[server,archive-s3]' && \
	  echo "Client and server: Prefect $$($$python $(PREFECT_VERSION)), the $$each" && \
	  $$python -m pytest -n 2 -rs $(COMPAT) || exit 1; \
	done
	@echo "Client: Prefect $$($(BIN)/python $(PREFECT_VERSION)). Server: $$(.compat/oldest/bin/python $(PREFECT_VERSION))"
	@TEST_SERVER_PYTHON=$(CURDIR)/.compat/oldest/bin/python $(BIN)/python -m pytest -n 2 -rs $(COMPAT)

# The servers of the tests serve the benchmarks.
.PHONY: bench
bench: $(INSTALLED)
	@PYTHONPATH=tests $(BIN)/python -m benchmarks

# Everything anew: only what is built is checked.
.PHONY: docs
docs: $(INSTALLED)
	@$(BIN)/python -m tools
	@$(BIN)/zensical build --strict --clean

.PHONY: lint
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p prefect_artifact_retention -p benchmarks -p tools
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

.PHONY: schema
schema: $(INSTALLED)
	@mkdir -p build && $(BIN)/artifact-retention policies schema > build/retention.schema.json && mv build/retention.schema.json retention.schema.json

.PHONY: lock
lock: $(INSTALLED)
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --extra server pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --extra server --extra archive-s3 --extra archive-gcs --extra archive-azure pyproject.toml -c requirements.txt -o requirements-archive.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --extra server --extra archive-s3 pyproject.toml --group dev -c requirements-archive.txt -o requirements-dev.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --group build -c requirements-dev.txt -o requirements-build.txt

.PHONY: clean
clean:
	rm -rf .venv .compat .demo .cache build dist site *.egg-info
