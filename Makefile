# Two commands matter to a newcomer: `make demo` and `make test`.
# Each makes the virtual environment when it is missing.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export WANDB_MODE := disabled

.PHONY: demo test lint types docs bench bench-erasers bench-verdict bench-known-pairs bench-pga bench-vision bench-circuits bench-restoration bench-bad-inputs bench-tests clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch .venv/ready

.venv/bench-ready: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	touch .venv/bench-ready

demo: .venv/ready
	$(BIN)/exhume demo

# Two processes of one thread each: two that share two cores' threads wait for each other.
test: .venv/ready lint types
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

bench: .venv/bench-ready
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.suites.probes

bench-erasers: .venv/bench-ready
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.suites.erasers

# The whole held-out part takes days; ARGS="--seeds 12 --families llama" is a part of it.
bench-verdict: .venv/bench-ready
	$(BIN)/python -m benchmarks.suites.verdict.suite $(ARGS)

bench-known-pairs: .venv/ready
	$(BIN)/python -m benchmarks.suites.verdict.known_pairs

bench-pga: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.pga.suite

bench-vision: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.suites.vision.suite

# The peer's and bitsandbytes' rows need their packages; see the modules' first lines.
bench-circuits: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.suites.circuits.suite

bench-restoration: .venv/bench-ready
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.suites.restoration.suite --make

bench-bad-inputs: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.suites.bad_inputs

bench-tests: .venv/ready
	$(BIN)/pytest -m slow

clean:
	rm -rf .venv build site *.egg-info
