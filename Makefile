# Everything happens in .venv, made on first use. `make demo` and `make test` each start from a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two workers with one thread each: several torch processes that share cores slow each other down.
WORKERS ?= -n 2 --dist loadgroup
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test slow faults test-oldest gpu docs build lint format clean

$(VENV)/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[report]'
	touch $@

$(VENV)/dev: $(VENV)/core
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/core
	$(BIN)/hardneg demo --out demo-run --overwrite
	$(BIN)/hardneg export demo-run/run --format triplet --out demo-run/triplets.jsonl --overwrite
	@echo
	@echo "demo-run/run: negatives.parquet (one row a query), candidates/ (a verdict for each), run.json."
	@echo "demo-run/trained/best: the trained encoder. demo-run/triplets.jsonl: triplets for another trainer."

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tests start many processes: without compiled bytecode (which images of containers often switch off) each compiles all it loads.
PYTEST := PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS)

test: lint
	$(PYTEST)

# The demo, the notebooks, and other tests of minutes.
slow: $(VENV)/dev
	$(PYTEST) -m slow

# Many kills and much damage: what must survive them.
faults: $(VENV)/dev
	$(PYTEST) -m faults

# The suite with the oldest version of every dependency that pyproject.toml allows, in an environment of its own.
# TESTS: some of its files. torch is the exception: give another version as TORCH.
TESTS ?= tests
TORCH ?= 2.13.0
# Those of the command line, without any extra: an extra needs a newer click than hardneg does.
CORE_TESTS ?= tests/test_cli.py tests/test_terminal.py tests/test_mine.py tests/test_samplers.py
test-oldest:
	$(PYTHON) tests/oldest.py --core --folder $(VENV)-oldest-core --torch $(TORCH) $(WORKERS) $(CORE_TESTS)
	$(PYTHON) tests/oldest.py --folder $(VENV)-oldest --torch $(TORCH) $(WORKERS) $(TESTS)

# The pages of docs/ and the reference of the API as a site, in site/. A warning is an error.
docs: $(VENV)/core
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# A wheel and a source archive, in dist/.
build: $(VENV)/dev
	rm -rf dist
	$(BIN)/python -m build

# Everything that needs a GPU, in one folder and in under 10 minutes. GPU_PYTHON: a Python that has a CUDA build of torch.
GPU_PYTHON ?= $(BIN)/python
GPU_OUT ?= gpu-results
gpu:
	$(GPU_PYTHON) benchmarks/gpu.py --out $(GPU_OUT)

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-oldest-core build dist site demo-run gpu-results *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
