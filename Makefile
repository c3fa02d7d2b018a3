# Needs python3 (3.11 or newer), make and git; everything else goes into .venv, in the versions of constraints.txt.
#
#   make demo     the whole story on real images (about five minutes on two cores); ARGS="seeds=5" for intervals
#   make check    lint, types, and the tests of what differs from the last commit (under a minute)
#   make test     lint, types and tests: every method, in one process and in two (5 minutes on two free cores)
#   make test-all the long tests, four processes, lowest and latest versions of torch, timm, accelerate (15 minutes; benchmarks/test-all.md)
#   make soak     runs killed at random steps, thousands of steps, ten minutes of fuzzing for each input (an hour; benchmarks/soak.md)
#   make lint     ruff and basedpyright alone
#   make docs     the documentation, build/docs/html/index.html; any warning is an error (a minute)
#   make schema   configs/schema.json anew, after a key, a method or a docstring of one has changed
#   make bench    speed: the input pipeline against its peers, the training step; ARGS="--gate" fails below the floors
#   make bench-gpu    the training step on a GPU, against its ceiling and its peers
#   make bench-solvers  solvers of linear classifiers against one by one, scikit-learn and plain torch; ARGS="--full" for 50,000 images
#   make bench-methods  every method's step against lightly's own examples, on one CPU core
#   make bench-digits  every method on digits-m over three seeds, beside random networks, raw pixels and HOG
#   make bench-cifar10  five methods on a fifth of CIFAR-10 (JPEG), likewise; needs data/cifar10_jpeg.tar.gz
#   make bench-budget  accuracy over 5 to 320 epochs on digits-m, and where it crosses raw pixels and HOG (an hour and a half a seed)
#   make bench-demo   the demo over five seeds, the numbers of benchmarks/demo.md
#   make clean    remove .venv, .venvs and what tools left; runs/ stays

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
ARGS ?=

.PHONY: demo check test test-all soak lint docs schema bench bench-gpu bench-solvers bench-methods bench-digits bench-cifar10 bench-budget bench-demo clean

demo: $(READY)
	@$(PYTHON) -m rootstock demo $(ARGS)

check: $(READY)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PYTHON) -m rootstock.tests.check

# Two workers of one thread each: with more threads, tests on two cores wait for each other. A file stays on one worker, or both workers
# would build what its tests share; the longest files come first (tests/conftest.py). Bytecode is kept, whatever the shell says: it is read
# by hundreds of processes.
test: lint
	@PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-all soak: $(READY)
	@$(PYTHON) -m rootstock.tests.tiers $@

lint: $(READY)
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m basedpyright

# Sphinx with MyST and furo: autodoc reads api.py as it is, a warning is an error, and the pages need no script or font from elsewhere.
docs: $(READY)
	@$(PYTHON) -m rootstock.docs.site.build

schema: $(READY)
	@$(PYTHON) -m rootstock.launch.schema_file

# One thread a process, as in a loader's worker. Both tables are made, also where a gate of the first fails.
bench: $(READY)
	@failed=0; for name in input step; do \
	    OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PYTHON) benchmarks/$$name.py --markdown benchmarks/$$name.md $(ARGS) || failed=1; \
	done; exit $$failed

bench-gpu: $(READY)
	@$(PYTHON) benchmarks/step.py --gpu --markdown benchmarks/step-gpu.md $(ARGS)

bench-solvers: $(READY)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PYTHON) benchmarks/solvers.py --markdown benchmarks/solvers.md $(ARGS)

bench-methods: $(READY)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PYTHON) benchmarks/methods_speed.py --markdown benchmarks/methods_speed.md $(ARGS)

bench-digits: $(READY)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PYTHON) benchmarks/methods.py $(ARGS)

bench-cifar10: $(READY)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PYTHON) benchmarks/methods.py configs/cifar10.yaml $(ARGS)

bench-budget: $(READY)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PYTHON) benchmarks/budget.py configs/budget_digits.yaml $(ARGS)

bench-demo: $(READY)
	@$(PYTHON) benchmarks/demo.py $(ARGS)

clean:
	rm -rf $(VENV) .venvs build dist *.egg-info .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp comes last, so an interrupted set-up starts again. pip is as quiet as it can be while still saying errors.
$(READY): constraints.txt setup.cfg
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python3 is %d.%d; Rootstock needs 3.11 or newer" % sys.version_info[:2])'
	@echo "Setting up $(VENV) (some minutes, about 7 GB) ..."
	@python3 -m venv $(VENV)
	@$(PYTHON) -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@mkdir -p $(VENV)/src
	@ln -sfn ../.. $(VENV)/src/rootstock
	@touch $@
