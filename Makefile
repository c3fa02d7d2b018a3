# Needs python3 (3.11 or newer), make and git; everything else goes into .venv, in the versions of constraints.txt.
#
#   make demo     the whole story on real images (about five minutes on two cores); ARGS="seeds=5" for intervals
#   make test     lint, type checker and tests
#   make lint     ruff and basedpyright alone
#   make bench    the measurements of benchmarks/
#   make clean    remove .venv and what tools left; runs/ stays

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
ARGS ?=

.PHONY: demo test lint bench clean

demo: $(READY)
	@$(PYTHON) -m rootstock demo $(ARGS)

# Two workers of one thread each: with more threads, tests on two cores wait for each other.
test: lint
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 $(ARGS)

lint: $(READY)
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m basedpyright

bench: $(READY)
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do echo "== $$script"; $(PYTHON) $$script $(ARGS); done

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp comes last, so an interrupted set-up starts again. pip is as quiet as it can be while still saying errors.
$(READY): constraints.txt setup.cfg
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python3 is %d.%d; Rootstock needs 3.11 or newer" % sys.version_info[:2])'
	@echo "Setting up $(VENV) (some minutes, about 6 GB) ..."
	@python3 -m venv $(VENV)
	@$(PYTHON) -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@mkdir -p $(VENV)/src
	@ln -sfn ../.. $(VENV)/src/rootstock
	@touch $@
