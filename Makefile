# Needs make and Python 3.11 or newer; everything else is installed into .venv under constraints.txt.

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
ROOMS := common client server conf simulations

# A Python that runs (a version manager's stub may not), is new enough and can make environments.
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3 python,\
            $(shell $(p) -c '$(USABLE)' >/dev/null 2>&1 && echo $(p))))

# More arguments for pytest: make test PYTEST_ARGS='-k ledger'
PYTEST_ARGS ?=

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test lint docs-test campaigns mutants bench wheel constraints clean distclean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv and install Fedward with every dependency, pinned

$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -c '$(USABLE)' >/dev/null 2>&1; then \
	    py='$(PYTHON)'; \
	    if [ -z "$$py" ] || ! $$py -c '$(USABLE)'; then \
	        echo "make: no usable Python: Fedward needs 3.11 or newer with venv and ensurepip." \
	             "Name one: make install PYTHON=/path/to/python3.11" >&2; \
	        exit 1; \
	    fi; \
	    echo "Making $(VENV) with $$($$py --version)"; \
	    $$py -m venv --clear $(VENV); \
	fi
	@echo "Installing under constraints.txt (the first time takes some minutes)"
	@$(BIN)/python -m pip install --quiet --no-input -e '.[all,dev]' -c constraints.txt
	@touch $@

demo: install ## Train one model over four simulated hospitals and show the result
	$(BIN)/fedward simulate

test: install ## Run the tests, without the slow ones and the campaigns
	$(BIN)/pytest -n auto --dist loadfile $(PYTEST_ARGS)

lint: install ## Check style, types and the borders between the rooms
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs-test: install ## Run the commands that README.md and the guides show
	$(BIN)/pytest -m docs tests/docs $(PYTEST_ARGS)

campaigns: install ## Run the campaigns (kills, hostile messages, the last release) in their reduced forms
	$(BIN)/pytest -m reduced tests $(PYTEST_ARGS)

mutants: install ## Plant defects of differential privacy in a copy of the sources: each must turn tests red
	$(BIN)/pytest -m mutants tests/attacks/test_privacy_mutants.py $(PYTEST_ARGS)

bench: install ## Time a simulation beside Flower's own
	$(BIN)/python -m fedward_simulations.bench.simulation_speed

# The builder is the pinned one and the times are the commit's: the same commit gives the same bytes.
wheel: install ## Build dist/fedward-VERSION-py3-none-any.whl, the same bytes for the same commit
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation \
	    --no-cache-dir --wheel-dir dist .
	@cd dist && sha256sum fedward-*.whl

# After a dependency was added or raised: `make install constraints`. From nothing: `make distclean`, empty
# constraints.txt, `make install constraints`. The local tag (torch+cpu) goes, so that any build of the version will do.
constraints: ## Pin what is installed in constraints.txt
	@$(BIN)/python -m pip freeze --all --exclude-editable --exclude fedward --exclude pip > $(VENV)/freeze.txt
	@{ echo "# Every version that Fedward is built and tested with. Written by 'make constraints'; not edited by hand."; \
	   sed -E 's/\+[A-Za-z0-9.]+$$//' $(VENV)/freeze.txt | LC_ALL=C sort -f; } > $(VENV)/constraints.txt
	@if grep -n ' @ ' $(VENV)/constraints.txt; then \
	    echo "make: these come from a file or an address and cannot be pinned" >&2; exit 1; fi
	@cat $(VENV)/constraints.txt > constraints.txt
	@touch $(STAMP)

clean: ## Remove caches and build outputs; runs/ and .venv stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* htmlcov
	find $(ROOMS) tests -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## Remove .venv too
	rm -rf $(VENV)
