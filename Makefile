# `make demo` and `make test` do all the set-up there is, on a machine with Python 3.11 or later, a C++
# compiler and cmake.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
DEMO := build/demo

.PHONY: demo test test-slow lint pytest bench llama-server clean

demo: $(VENV)/.installed
	$(BIN)/python -m fixtures.demo $(DEMO)

test: lint pytest

lint: $(VENV)/.installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# by files: what the tests of one have made is made once
pytest: $(VENV)/.installed-for-tests
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

test-slow: $(VENV)/.installed-for-tests
	$(BIN)/python -m pytest -n auto --dist loadfile

bench: $(VENV)/.installed-for-tests
	$(BIN)/python -m tests.bench.gguf_bench
	$(BIN)/python -m tests.bench.extension_bench
	$(BIN)/python -m tests.bench.kquant_bench
	$(BIN)/python -m tests.bench.check_bench
	$(BIN)/python -m tests.bench.onnx_bench
	$(BIN)/python -m tests.bench.onnx_large_bench
	$(BIN)/python -m tests.bench.onnx_decode_bench
	$(BIN)/python -m tests.bench.dynamic_step_bench
	$(BIN)/python -m tests.bench.tensorrt_bench

# without it the tests of what is written for llama-server are skipped (5 minutes)
llama-server: | $(BIN)/python
	$(BIN)/python tests/support/llama_cpp_source.py server

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone, or pip may choose a build with gigabytes of CUDA; llama-cpp-python from a wheel
# that is compiled once (4 minutes) and kept in the user's cache directory.
$(VENV)/.installed: pyproject.toml constraints.txt tests/support/llama_cpp_source.py | $(BIN)/python
	$(PIP) torch==2.13.0
	$(PIP) "$$($(BIN)/python tests/support/llama_cpp_source.py)"
	$(PIP) --editable ".[check,llama,onnx]"
	touch $@

$(VENV)/.installed-for-tests: $(VENV)/.installed
	$(PIP) --editable ".[check,llama,onnx,plot,dev]"
	touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis yarnconv.egg-info
