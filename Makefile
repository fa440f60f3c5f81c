# Every target does its own set-up: Python 3.11 and make are all that a fresh machine needs.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Test workers take a thread each; two torch pools on the same cores only wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1
SEED ?= 0

.PHONY: env run test notebooks loopback fuzz models check format docs structure bench bench-peers clean

env: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

run: env
	$(BIN)/airpfed run quickstart

test: env
	$(ONE_THREAD) $(BIN)/pytest --numprocesses 2 --dist loadfile

# The tutorials of docs/tutorials, executed.
notebooks: env
	MPLBACKEND=Agg $(BIN)/pytest -m notebook

loopback: env
	$(ONE_THREAD) $(BIN)/pytest -m loopback --numprocesses 2

# Settings, folders, messages and data files by the thousand, and kills at every event of the disk; counts at the end.
FUZZ := PYTHONPATH=tests $(ONE_THREAD) $(BIN)/python
fuzz: env
	$(FUZZ) -m fuzz.settings_tree 2000 $(SEED)
	$(FUZZ) -m fuzz.folders
	$(FUZZ) -m fuzz.messages 2000 $(SEED)
	$(FUZZ) -m fuzz.data_files 1000 $(SEED)
	$(FUZZ) -m fuzz.kills
	$(FUZZ) -m fuzz.kills --processes 20

# Every architecture of transformers against PEFT; writes docs/models.md.
models: env
	$(ONE_THREAD) $(BIN)/python benchmarks/architectures.py --out docs/models.md

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: env
	$(BIN)/python -m airpfed.config.reference > docs/reference.md

# Files, functions, lines, import arrows between folders, names with several meanings, stop-list names.
structure: env
	$(BIN)/python benchmarks/structure.py

bench: env
	$(BIN)/python benchmarks/speed.py

# Other simulators in an environment of their own; pfl's privacy accountant wants an older attrs than we tested with.
bench-peers: .venv-peers/ready
	.venv-peers/bin/python benchmarks/peers/run.py

.venv-peers/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-peers
	grep -v '^attrs==' constraints.txt > .venv-peers/constraints.txt
	.venv-peers/bin/python -m pip install --quiet --constraint .venv-peers/constraints.txt torch
	.venv-peers/bin/python -m pip install --quiet --constraint .venv-peers/constraints.txt --editable . pfl==0.6.0 "flwr[simulation]==1.41.0"
	touch $@

clean:
	rm -rf .venv .venv-peers build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
