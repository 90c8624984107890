# make demo   what a real model attends to            make test   every test
# make lint   ruff and mypy, as CI runs them          make docs   docs/_build/html, warnings are errors
# make setup  only builds .venv (the others call it)
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-js lint format docs clean
setup: .venv/installed

# One stamp: the second run only compares dates. constraints.txt says which versions were tested.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "regard needs Python 3.10 or newer; set PYTHON=...")'
	@echo "regard: building .venv (PyTorch and transformers are large: a few minutes the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev]'
	@touch $@

demo: setup
	$(BIN)/regard view "The animal didn't cross the street because it was too tired." \
	                   "The animal didn't cross the street because it was too wide." --token it

# The modules first: the browser tests use what npm installs for them.
test: setup test-js
	$(BIN)/python -m pytest --numprocesses=auto

test-js:
	@if command -v node >/dev/null && command -v npm >/dev/null; then $(MAKE) --no-print-directory node_modules/.package-lock.json && \
	  node --test tests/js/*.test.js && node_modules/.bin/tsc --project tsconfig.json; \
	else echo "regard: node and npm are not here, so the modules of the page are not tested by themselves"; fi

node_modules/.package-lock.json: package.json package-lock.json
	npm ci --no-audit --no-fund

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# From scratch each time, so that a warning is there as long as its cause is. Offline.
docs: setup
	$(BIN)/sphinx-build -E -W --keep-going -q -b html docs docs/_build/html

clean:
	rm -rf .venv node_modules docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis
