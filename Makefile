# Everything a developer runs. Each target makes its own environment in .venv first.
#
#   make demo        optimise a small model and show what changed
#   make test        the test suite without its slow part
#   make slow        the slow part (installs the `models` extra as well)
#   make lint        ruff: rules and layout
#   make typecheck   mypy
#   make notebooks   run every notebook from top to bottom
#   make benchmarks  the table of real models (needs the `models` extra, minutes)
#   make clean       remove the environment, caches and build folders

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

# Nothing leaves the machine: third-party telemetry and model hubs are off.
export DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export HF_HUB_OFFLINE := 1
export OTEL_SDK_DISABLED := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export JUPYTER_PLATFORM_DIRS := 1
# Kernel times measured by tests and demos stay in this checkout.
export XRLFLOW_CACHE ?= $(CURDIR)/.build/cache

.PHONY: demo test slow lint format typecheck notebooks benchmarks clean

demo: $(VENV)/.run
	$(BIN)/python benchmarks/demo.py

test: $(VENV)/.dev
	$(PYTEST) -m "not slow" -n 2 --dist loadfile

slow: $(VENV)/.dev $(VENV)/.models
	$(PYTEST) -m slow --timeout 1800 -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(VENV)/.dev .build/typing/xrlflow
	cd .build/typing && $(CURDIR)/$(BIN)/mypy --config-file ../../pyproject.toml

notebooks: $(VENV)/.notebooks
	$(PYTEST) --nbmake --nbmake-timeout 900 --timeout 1800 notebooks

benchmarks: $(VENV)/.models
	$(BIN)/python benchmarks/real_models.py

clean:
	rm -rf $(VENV) .build build dist xrlflow.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# mypy finds a package by its folder's name, and a checkout may be called anything. It runs beside the link, for in the
# root it would take the package's __main__.py for Python's own __main__.
.build/typing/xrlflow:
	mkdir -p .build/typing
	ln -sfn ../.. $@

# One stamp for each set of extras; they are made again when the dependencies change.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.run

$(VENV)/.notebooks: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev,notebooks]"
	touch $@ $(VENV)/.dev $(VENV)/.run

$(VENV)/.models: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[models]"
	touch $@ $(VENV)/.run
