# One command each, from a fresh clone with Python 3.11 or later and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS ?= bench,report,parquet,dask,dev

.PHONY: install test validate check types lint format map bench models ptx triton-versions fuzz clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

$(STAMP): pyproject.toml constraints.txt $(wildcard kernels/cpu/native/*.cpp kernels/cpu/native/*.h)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
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

models: $(STAMP) ## regenerate the catalogue from CONFIGS=folder MODELS=table.csv (needs transformers)
	$(BIN)/python scripts/make_models.py $(CONFIGS) $(MODELS)

ptx: $(STAMP) ## compile every Triton kernel for four GPUs; registers, spills, instructions
	$(BIN)/python scripts/ptx.py

triton-versions: $(STAMP) ## kernels compiled for 9.0 and interpreted on four Triton releases (downloads them)
	$(BIN)/python scripts/triton_versions.py

clean: ## remove what was built
	rm -rf build dist *.egg-info $(VENV)
