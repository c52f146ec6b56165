PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One more than cores: some tests mostly wait, for processes that start or die.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)')
# What the benchmarks of vocabularies and speed run on: two folders or hub names.
TOKENIZERS ?= examples/models/ash examples/models/cedar

.PHONY: install demo test test-real test-slow soak lint type bench clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python examples/rag_langchain.py

test: install
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

test-real: install
	$(BIN)/python -m pytest -m "real and not slow"

test-slow: install
	$(BIN)/python -m pytest -m slow

soak: install
	PYTHONPATH=. $(BIN)/python tests/soak.py
	PYTHONPATH=. $(BIN)/python tests/soak_ray.py
	PYTHONPATH=. $(BIN)/python tests/fuzz_server.py
	PYTHONPATH=. $(BIN)/python tests/soak_server.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: install
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks.accuracy
	$(BIN)/python -m benchmarks.vocabulary $(TOKENIZERS)
	$(BIN)/python -m benchmarks.speed $(TOKENIZERS)
	$(BIN)/python -m benchmarks.serving $(TOKENIZERS)
	$(BIN)/python -m benchmarks.grammar $(TOKENIZERS)
	$(BIN)/python -m benchmarks.server

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
