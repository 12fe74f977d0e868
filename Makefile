# One definition of each thing that is done to the project. `make help` lists them.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTOS := $(wildcard protos/*.proto)
PROTOC := $(BIN)/python -m grpc_tools.protoc -I.

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-gpu lint format protos lock bench bench-gpu clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## Make .venv with everything, from the package index, every hash checked

$(STAMP): requirements.lock pyproject.toml
	@echo "Setting up $(VENV): torch, ONNX Runtime, OpenVINO and the rest; a minute or two, about 6 GB"
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no $(PYTHON); name a Python 3.11 to 3.13: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: setup ## Train on real digits, export, serve, classify, and print one table
	$(BIN)/python examples/demo.py

test: setup ## Run the tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest

test-all: setup ## Run the tests and the slow ones
	$(BIN)/python -m pytest -m "not gpu"

test-gpu: setup ## Run the tests that need an NVIDIA GPU (about 10 minutes; skipped, saying so, where there is none)
	$(BIN)/python -m pytest -m gpu tests/gpu

lint: setup ## Check style, types, import directions and that generated code is up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@mkdir -p build/protos-check && $(PROTOC) --python_out=build/protos-check --pyi_out=build/protos-check --grpc_python_out=build/protos-check $(PROTOS)
	@for file in build/protos-check/protos/*; do cmp $$file protos/$${file##*/} || { echo "error: protos/$${file##*/} is stale; run make protos" >&2; exit 1; }; done
	@echo "generated protos are up to date"

protos: setup ## Generate the Python code of protos/*.proto
	$(PROTOC) --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

format: setup ## Let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## Measure ResNet-18: eager PyTorch, the bare runtimes and the service, in one run
	$(BIN)/fuseline bench spine

MINUTES ?= 9
bench-gpu: setup ## Measure PyTorch, ONNX Runtime and TensorRT on an NVIDIA GPU; MINUTES=9 bounds it
	$(BIN)/fuseline bench gpu --minutes $(MINUTES)

COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --upgrade pyproject.toml

lock: setup ## Renew the lock files from pyproject.toml: everything, and what the serving container needs
	$(COMPILE) --extra cpu --extra rtx --extra export --extra bench --extra dev -o requirements.lock
	$(COMPILE) --extra cpu --constraint requirements.lock -o requirements-serve.lock

clean: ## Remove everything that was made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
