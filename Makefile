# Two commands do everything on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
JOBS ?= 2
# an exact version, so that an index with a CPU build of it can be told from one with CUDA builds alone
TORCH ?= torch==2.13.0 triton==3.9.0

.PHONY: demo test lint types contracts torch unit local-cpu bench clean

demo: $(VENV)/.base
	$(VENV)/bin/moesim run quickstart --out runs/quickstart --force

test: $(VENV)/.dev lint types contracts torch unit local-cpu

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.dev
	$(VENV)/bin/mypy

contracts: $(VENV)/.dev
	$(VENV)/bin/lint-imports

unit: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n $(JOBS)

# PyTorch is an extra. Where pip would bring a CUDA build (gigabytes), it is left out and its tests are skipped
torch: $(VENV)/.dev
	@if $(VENV)/bin/python -c "import torch" 2>/dev/null; then :; \
	elif $(PIP) --dry-run --report $(VENV)/torch.json $(TORCH) >/dev/null 2>&1 && ! grep -q '"name": "nvidia-' $(VENV)/torch.json; \
	then echo "PyTorch: a CPU build"; $(PIP) $(TORCH); \
	else echo "PyTorch left out: no CPU build of $(TORCH) here; pip install torch to run its tests"; fi

# alone on the machine, after the tests: it times kernels
local-cpu: $(VENV)/.dev
	@if $(VENV)/bin/python -c "import torch" 2>/dev/null; then $(VENV)/bin/moesim validate local-cpu; \
	else echo "local-cpu: skipped, PyTorch is not installed"; fi

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
