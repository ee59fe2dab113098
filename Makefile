# Each target builds .venv by itself, at once when it is there and pyproject.toml and constraints.txt are unchanged.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench golden clean

demo: $(STAMP)
	$(BIN)/kat run demo

test: $(STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy kat

bench: $(STAMP)
	@test -n "$(NANOCHAT)" || { echo "give a checkout of nanochat of October 2025: make bench NANOCHAT=path"; exit 2; }
	$(BIN)/python benchmarks/speed.py --nanochat $(NANOCHAT)

golden: $(STAMP)
	$(BIN)/python golden/renew.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "kat needs Python 3.11 or newer; say make PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info
