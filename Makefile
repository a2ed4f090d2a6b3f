# Four main commands: serve, test, check, bench. Each installs what it needs; later runs are fast.

PYTHON ?= python3.11
comma := ,
BIN := .venv/bin
# gunicorn-h1c is compiled at installation: without a compiler the service runs without the fast path, and says so
LANE := $(if $(shell command -v cc),$(comma)lane)
ALONE := tests/e2e/test_responsive.py
PIP := $(BIN)/python -m pip --disable-pip-version-check
# the tests start hundreds of processes, which share their compiled bytecode
unexport PYTHONDONTWRITEBYTECODE

.PHONY: serve test test-training test-learning test-e2e test-client test-service test-serving test-alone check format test-compose bench bench-training clean

serve: .venv/core
	$(BIN)/onward serve

test: .venv/dev
	$(BIN)/python -m pytest $(ARGS)

# The suite in five parts that run side by side, and one part that measures time and needs the machine to itself.
test-training: .venv/dev
	$(BIN)/python -m pytest tests/training -m "not slow"

test-learning: .venv/dev
	$(BIN)/python -m pytest tests/training -m slow

test-e2e: .venv/dev
	$(BIN)/python -m pytest tests/e2e --ignore $(ALONE)

test-client: .venv/dev
	$(BIN)/python -m pytest tests/client

test-service: .venv/dev
	$(BIN)/python -m pytest --ignore tests/training --ignore tests/e2e --ignore tests/client

# the service without torch: an environment that has neither the train extra nor what only training imports
test-serving: .venv-serving/ready
	! .venv-serving/bin/python -c 'import torch' 2>/dev/null
	.venv-serving/bin/python -m pytest tests/service tests/contracts/test_stores.py -m 'not train' $(ARGS)

test-alone: .venv/dev
	$(BIN)/python -m pytest $(ALONE)

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/dev
	$(BIN)/python -m bench $(ARGS)

bench-training: .venv/dev
	$(BIN)/python -m bench.training

test-compose:
	bash tests/compose/run.sh

clean:
	rm -rf .venv .venv-serving build *.egg-info

.venv/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; set PYTHON to a Python 3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --constraint constraints.txt pip
	@touch $@

.venv/core: pyproject.toml constraints.txt | .venv/python
	PYTHONWARNINGS=ignore $(PIP) install --quiet --constraint constraints.txt --editable '.[client$(LANE)]'
	@touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/python
	PYTHONWARNINGS=ignore $(PIP) install --quiet --no-compile --constraint constraints.txt --editable '.[train,tune,lane,redis,client,dev]'
	@touch $@ .venv/core

.venv-serving/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-serving
	PYTHONWARNINGS=ignore .venv-serving/bin/python -m pip --disable-pip-version-check install --quiet --no-compile \
		--constraint constraints.txt --editable '.[lane,redis,client,dev]'
	@touch $@
