# `make run` and `make test` need only Python >= 3.11 and make; each adds what it needs to .venv on first use.
PYTHON ?= python3
WORKDIR ?= runs/quickstart
EXTRAS ?= test
BIN := .venv/bin
comma := ,
INSTALLED := .venv/installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: install run test test-slow lint docs clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

run:
	$(MAKE) --no-print-directory install EXTRAS=report
	$(BIN)/python -m deltamask_jax.main --config=configs/quickstart.py --workdir=$(WORKDIR)

test: install
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

test-slow: install
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -n auto --dist worksteal -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check

docs:
	$(MAKE) install EXTRAS=$(EXTRAS)$(if $(filter docs,$(subst $(comma), ,$(EXTRAS))),,$(comma)docs)
	$(BIN)/python -m sphinx -W --keep-going -q -j auto -c docs -d build/doctrees . build/site

clean:
	rm -rf .venv build *.egg-info
