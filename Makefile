# Each target does its own set-up in .venv. PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test lint bench clean

demo: $(READY)
	$(RUN) -m train demo

test: lint
	$(RUN) -m pytest

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: $(READY)
	$(RUN) -m bench ops --out runs/bench/ops.json --plot runs/bench/ops.png

clean:
	rm -rf $(VENV) runs

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
