# Each target does its own set-up in .venv. PYTHON chooses the interpreter that makes it, JOBS how many processes test.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

# Beside torch and triton of other versions, the newest that triton-viz runs with; `older` tests the library with these.
SANITIZE := .venv-sanitize

# Without torch, in seconds.
DOCS := .venv-docs

.PHONY: demo test deep test-thorough lint bench docs sanitize older clean

demo: $(READY)
	$(RUN) -m train demo

test: lint
	$(RUN) -m pytest -n $(JOBS) --dist worksteal --durations 10 -m "not deep and not executed"
	$(RUN) -m pytest -n $(JOBS) --dist worksteal --durations 10 -m "executed and not deep" tests/executed

# What compiles many networks or kernels, apart from `test`, so that this stays within a quarter of an hour.
deep: $(READY)
	$(RUN) -m pytest -n $(JOBS) --dist worksteal -m "deep and not executed"
	$(RUN) -m pytest -n $(JOBS) --dist worksteal -m "executed and deep" tests/executed

# For a night: forty times the examples of `test`, others each time, and how many there were.
test-thorough: $(READY)
	HYPOTHESIS_PROFILE=thorough $(RUN) -m pytest -n $(JOBS) --dist worksteal --timeout=0 -p tests.support.count_examples \
		tests/properties --ignore tests/properties/test_mutants.py \
		tests/library/test_kernels.py tests/library/test_module.py tests/library/test_plain.py $(PYTEST)
	HYPOTHESIS_PROFILE=thorough $(RUN) -m pytest -n $(JOBS) --dist worksteal --timeout=0 -p tests.support.count_examples \
		-m executed tests/executed/test_kernels.py $(PYTEST)
	$(RUN) -m tests.executed.mutants

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: $(READY)
	$(RUN) -m bench ops --out runs/bench/ops.json --plot runs/bench/ops.png

# The site, in runs/site. Warnings are errors: those of links by --strict, those of docstrings as they are printed; and so are a
# method among a command's options and a page that would fetch anything from elsewhere.
docs: $(DOCS)/.ready
	mkdir -p runs
	$(DOCS)/bin/zensical build --config-file mkdocs.yml --clean --strict >runs/site.log 2>&1 || { cat runs/site.log; exit 1; }
	cat runs/site.log
	! grep -E "^(griffe|mkdocstrings|mkdocs_autorefs|WARNING)" runs/site.log
	! grep -E 'class="doc doc-object doc-function"' runs/site/api/command-lines.html
	! grep -rE '<(script|link|img|iframe)[^>]*(src|href)="(https?:)?//' runs/site --include=*.html

sanitize: $(SANITIZE)/.ready
	$(SANITIZE)/bin/python -m pytest -n $(JOBS) --dist worksteal tests/sanitize

# What other versions warn of is no error here. Without torchvision: its wheels are for another build of torch.
older: $(SANITIZE)/.ready
	$(SANITIZE)/bin/python -m pytest -n $(JOBS) --dist worksteal -o filterwarnings=default -m "not deep" \
		tests/library/test_kernels.py tests/library/test_ops.py tests/library/test_opcheck.py

clean:
	rm -rf $(VENV) $(SANITIZE) $(DOCS) .cache runs

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(DOCS)/.ready: requirements-docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --requirement $<
	touch $@

$(SANITIZE)/.ready: tests/sanitize/requirements.txt
	$(PYTHON) -m venv $(SANITIZE)
	$(SANITIZE)/bin/python -m pip install --quiet --requirement $<
	touch $@
