# One command each, from a fresh clone with Python 3.11 or later and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS ?= bench,report,parquet,dask,dev

.PHONY: install test validate check types lint format map bench models ptx triton-versions fuzz sanitize lock clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

# Everything but torch and triton is installed by hash: their wheels differ from index to index (CPU, CUDA), so that no one
# file could hold them; constraints.txt pins their versions. The build then takes its setuptools from the locked ones.
$(STAMP): pyproject.toml constraints.txt requirements-dev.lock $(wildcard kernels/cpu/native/*.cpp kernels/cpu/native/*.h)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

install: $(STAMP) ## .venv with everything

test: $(STAMP) ## lint, types and tests
	$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: lint types

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy --strict over the package as it is imported
	$(BIN)/python scripts/typecheck.py

format: $(STAMP) ## ruff, mending what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

map: $(STAMP) ## write docs/map.md from every file's first sentence
	$(BIN)/python scripts/make_map.py

validate: $(STAMP) ## count, measure, predict, compare and report on this machine
	$(BIN)/moegauge validate

bench: $(STAMP) ## timed comparisons with pytest-benchmark
	$(BIN)/python -m pytest tests/speed --benchmark-only -q

fuzz: $(STAMP) ## the header reader against safetensors: two million mutants, then 60 s of atheris (where it installs)
	$(BIN)/python tests/attacks/mutants.py 2000000 1
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python tests/attacks/fuzz_header.py 60

sanitize: $(STAMP) ## the CPU core's tests under the address, undefined-behaviour and thread sanitizers
	$(BIN)/python scripts/sanitize.py

lock: ## requirements-dev.lock anew from pyproject.toml and constraints.txt (needs uv)
	uv pip compile pyproject.toml --extra report --extra parquet --extra dask --extra dev --universal --python-version 3.11 \
	    -c constraints.txt --generate-hashes --no-header -o requirements-dev.lock

models: $(STAMP) ## regenerate the catalogue from CONFIGS=folder MODELS=table.csv (needs transformers)
	$(BIN)/python scripts/make_models.py $(CONFIGS) $(MODELS)

ptx: $(STAMP) ## compile every Triton kernel for four GPUs; registers, spills, instructions
	$(BIN)/python scripts/ptx.py

triton-versions: $(STAMP) ## kernels compiled for 9.0 and interpreted on four Triton releases (downloads them)
	$(BIN)/python scripts/triton_versions.py

clean: ## remove what was built
	rm -rf build dist *.egg-info $(VENV)
