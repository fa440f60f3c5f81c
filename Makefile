# Every target does its own set-up: Python 3.11 and make are all that a fresh machine needs.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Test workers take a thread each; two torch pools on the same cores only wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: env run test loopback check format docs clean

env: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

run: env
	$(BIN)/airpfed run experiments/quickstart.toml

test: env
	$(ONE_THREAD) $(BIN)/pytest --numprocesses 2

loopback: env
	$(ONE_THREAD) $(BIN)/pytest -m loopback

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: env
	$(BIN)/python -m airpfed.reference > docs/reference.md

clean:
	rm -rf .venv build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
