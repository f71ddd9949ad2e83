# make demo | make test | make lint | make bench NAME=takeover | make docs
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DATA ?= ../shared/data
PIP = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint bench docs clean

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) --editable ".[demo]"
	touch $@

$(VENV)/.all: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) --group dev --group docs --editable ".[all]"
	touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/pilotfish demo $(DEMO)

test: lint
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.all
	$(BIN)/python -m benchmarks $(NAME) --data $(DATA) $(ARGS)

docs: $(VENV)/.all
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site dist demo-out .mypy_cache .ruff_cache
