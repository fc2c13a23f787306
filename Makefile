# `make demo` and `make test` take a machine with Python >= 3.11, git and make to a trained demo and to green tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test faults findings lint clean

demo: .venv/installed
	$(BIN)/relora-lab demo

test: lint
	$(BIN)/pytest -n 3 --dist loadfile

# Kills, full disks, damage, forged files, two processes on one folder: every try, and a table of what survived.
faults: .venv/installed
	$(BIN)/pytest -n 3 tests/faults -m 'faults or not faults' --faults-csv docs/measured/faults.csv

# FINDINGS.md again: what is trained already is not trained again.
SWEEP := findings-lr-full findings-lr-low-rank
GRIDS := findings-ingredients findings-combinations findings-methods
findings: .venv/installed
	set -e; for grid in $(SWEEP) $(GRIDS); do $(BIN)/relora-lab grid $$grid; done
	$(BIN)/relora-lab grid table2 --profile bpe
	set -e; for grid in table3 table8; do $(BIN)/relora-lab grid $$grid --profile cpu; done
	$(BIN)/python -m experiments.findings

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
