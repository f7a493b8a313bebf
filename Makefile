# Two commands do everything on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
JOBS ?= 2

.PHONY: demo test lint types contracts unit bench clean

demo: $(VENV)/.base
	$(VENV)/bin/moesim run quickstart --out runs/quickstart --force

test: $(VENV)/.dev lint types contracts unit

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.dev
	$(VENV)/bin/mypy

contracts: $(VENV)/.dev
	$(VENV)/bin/lint-imports

unit: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n $(JOBS)

bench: $(VENV)/.base
	$(VENV)/bin/python tests/bench/bench_speed.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[dev,silicon]'
	touch $(VENV)/.base $@

clean:
	rm -rf $(VENV) build dist runs
