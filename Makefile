# Two commands matter to a newcomer: `make demo` and `make test`.
# Each makes the virtual environment when it is missing.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export WANDB_MODE := disabled

.PHONY: demo test pytest lint types docs bench bench-tests clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch .venv/ready

.venv/bench-ready: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	touch .venv/bench-ready

demo: .venv/ready
	$(BIN)/exhume demo

# Types are checked beside the tests; each is run to its end, and either may fail the whole.
test: .venv/ready lint
	$(MAKE) --no-print-directory --keep-going --jobs 2 types pytest

# Two processes of one thread each: two that share two cores' threads wait for each other.
pytest: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=30

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/ready
	$(BIN)/basedpyright --warnings

# The site in site/, to be opened from disk; a broken link is an error.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

# One suite of benchmarks: make bench SUITE=circuits ARGS="--only known"; its options: ARGS=--help.
# Suites and parts: .venv/bin/python -m benchmarks --list. The held-out part of SUITE=verdict
# takes days; ARGS="--seeds 12 --families llama" is a part of it.
SUITE ?= probes
THREADS ?= 1
bench: .venv/bench-ready
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m benchmarks $(SUITE) $(ARGS)

# "make bench-circuits", as pages name it, is "make bench SUITE=circuits".
bench-%:
	$(MAKE) bench SUITE=$*

bench-tests: .venv/ready
	$(BIN)/pytest -m slow

clean:
	rm -rf .venv build site *.egg-info
