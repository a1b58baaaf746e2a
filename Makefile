# Each target makes .venv by itself, from requirements.lock, when it is missing or older than the lock.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
WORK ?= bench-out
SEEDS ?= 20
ROUNDS ?= 1
FILES ?= 2

.PHONY: help demo test lint pytest bench bench-faults bench-stores clean

help:
	@echo "make demo    train, segment and evaluate on synthetic scenes (a few minutes); opens nothing, leaves demo-out/"
	@echo "make test    lint, types, arrows between rooms, and all tests"
	@echo "make lint    ruff and mypy and the arrows only"
	@echo "make bench CAMVID=camvid.parquet [ROUNDS=1] [FILES=2]   speed and memory of labelling beside its peers: about"
	@echo "                       15 minutes for a round; ROUNDS=5 goes on with four more, see tests/benchmarks/RESULTS.md"
	@echo "make bench-faults [SEEDS=20]   32 kinds of faults, a job for each seed: hours; goes on where it was ended"
	@echo "make bench-stores [GCS=fake-gcs-server] [AZURITE=azurite-blob]   gs:// and az:// against emulators of them, which are"
	@echo "                       installed in $(WORK) when no program is given (Linux on amd64; npm)"

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo "fcn_ray needs Python 3.11, 3.12 or 3.13; found $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/fcn-ray demo

test: lint pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

pytest: $(STAMP)
	$(BIN)/pytest -m "not ray" --numprocesses 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/pytest -m ray

bench: $(STAMP)
	@test -n "$(CAMVID)" || { echo "make bench CAMVID=camvid.parquet [WORK=bench-out]: a table with image, mask, name, split"; exit 2; }
	test -d $(WORK)/camvid/images10 || $(BIN)/python tests/benchmarks/camvid.py $(CAMVID) $(WORK)/camvid
	test -d $(WORK)/bundle || $(BIN)/python tests/benchmarks/small_bundle.py $(WORK)/bundle
	$(BIN)/python -m tests.benchmarks.image_codecs $(WORK)/camvid/val.parquet $(WORK)/peers
	$(BIN)/python -m tests.benchmarks.model_alone $(WORK)/bundle $(WORK)/camvid/images $(WORK)/peers
	$(BIN)/python -m tests.benchmarks.beside_peers $(WORK)/bundle $(WORK)/camvid/images $(WORK)/peers \
		--rounds $(ROUNDS) --files $(FILES) --cases network mixed
	$(BIN)/python -m tests.benchmarks.beside_peers $(WORK)/bundle $(WORK)/camvid/images $(WORK)/peers \
		--rounds $(ROUNDS) --files 8 --cases null
	$(BIN)/python -m tests.benchmarks.memory $(WORK)/bundle $(WORK)/memory 1000 10000

bench-faults: $(STAMP)
	test -d $(WORK)/bundle || $(BIN)/python tests/benchmarks/small_bundle.py $(WORK)/bundle
	$(BIN)/python -m tests.benchmarks.faults $(WORK)/bundle $(WORK)/faults --seeds $(SEEDS)

bench-stores: $(STAMP)
	$(BIN)/python -m tests.benchmarks.stores $(WORK)/emulators $(if $(GCS),--gcs $(GCS)) $(if $(AZURITE),--azurite $(AZURITE))

clean:
	rm -rf $(VENV) demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
