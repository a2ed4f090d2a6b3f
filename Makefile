# Few commands: serve, test, check, bench. Each makes what it needs; the second time it is fast.

PYTHON ?= python3.11
comma := ,
BIN := .venv/bin
# gunicorn-h1c comes as C: without a compiler the service runs without the step lane, and says so
LANE := $(if $(shell command -v cc),$(comma)lane)
ALONE := tests/e2e/test_responsive.py
LEARNING := $(addprefix tests/training/,fit/test_optimal_predictions.py fit/test_optimal_forecasts.py \
	test_examples.py fit/test_resume.py fit/test_distributed.py)
PIP := $(BIN)/python -m pip --disable-pip-version-check
# tests start hundreds of processes: none compiles again what another has compiled
unexport PYTHONDONTWRITEBYTECODE

.PHONY: serve test test-training test-learning test-e2e test-client test-service test-alone check format test-compose bench bench-training clean

serve: .venv/core
	$(BIN)/onward serve

test: .venv/dev
	$(BIN)/python -m pytest $(ARGS)

# the same in five parts, so that they can run side by side, and one that is held to a clock, and cannot
test-training: .venv/dev
	$(BIN)/python -m pytest tests/training $(addprefix --ignore ,$(LEARNING))

test-learning: .venv/dev
	$(BIN)/python -m pytest $(LEARNING)

test-e2e: .venv/dev
	$(BIN)/python -m pytest tests/e2e --ignore $(ALONE)

test-client: .venv/dev
	$(BIN)/python -m pytest tests/client

test-service: .venv/dev
	$(BIN)/python -m pytest --ignore tests/training --ignore tests/e2e --ignore tests/client

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
	rm -rf .venv build *.egg-info

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
