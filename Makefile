# Every command does its own set-up: a fresh clone needs nothing but Python 3.11 and make.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where pip looks for the CPU build of PyTorch when the configured registry lacks it.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
STAMP := $(VENV)/.foreguard-installed
GPU_PYTHON ?= python3
TORCH := $(shell grep -h '^torch==' requirements/cpu.txt)
# Errors only: a registry's warnings, one a package, would bury what matters.
PIP := $(BIN)/pip install -qq --no-deps --disable-pip-version-check
# Run a command and say in one line how long it took: $(call timed,what,command).
timed = began=$$(date +%s); { $(2); } && echo "   $(1): $$(($$(date +%s) - began)) s"
INTERPRETER := $(VENV)/interpreter/.installed
CLIENTS := $(VENV)/clients

export HF_HUB_OFFLINE ?= 1
# Threads of several processes share the cores here: one that waits must not spin where another would compute.
demo console test test-long: export OMP_WAIT_POLICY := PASSIVE

.PHONY: help setup check test test-long gpu demo console bench soak compatibility lock clean

help: ## Say what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

setup: $(STAMP) ## Make .venv with everything, pinned

$(STAMP): requirements/cpu.txt requirements/dev.txt pyproject.toml
	@echo "== set-up: a virtual environment with a CPU engine (about 3 GB, some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# The registry's other builds of torch pull in CUDA; +cpu names the one that is meant.
	@$(call timed,PyTorch,$(PIP) $(TORCH) || $(PIP) --index-url $(TORCH_CPU_INDEX) $(TORCH))
	@$(call timed,the other packages,$(PIP) -r requirements/cpu.txt -r requirements/dev.txt)
	@$(call timed,foreguard,$(PIP) --no-build-isolation --editable .)
	@touch $@

# Aside: found by vLLM, it would be used for more than it can do here.
$(INTERPRETER): requirements/interpreter.txt $(STAMP)
	@$(call timed,a side interpreter,$(PIP) --upgrade --target $(dir $@) -r $<)
	@touch $@

# Aside: each asks for versions of its own. Where npm is missing, so is the one client that needs it.
$(CLIENTS)/.installed: requirements/clients.txt tests/clients/node/package-lock.json $(STAMP)
	@test -x $(CLIENTS)/bin/pip || $(BIN)/python -m venv $(CLIENTS)
	@$(call timed,the clients,$(CLIENTS)/bin/pip install -qq --no-deps --disable-pip-version-check -r $<)
	@mkdir -p $(CLIENTS)/node && cp tests/clients/node/package*.json $(CLIENTS)/node
	@! command -v npm >/dev/null || npm ci --silent --prefix $(CLIENTS)/node
	@touch $@

check: setup ## Lint, types, and the floors' import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes of one thread each: models this small gain nothing from a second thread.
test test-long: export OMP_NUM_THREADS := 1
test: setup ## The test suite
	$(BIN)/python -m pytest -n 2 --dist loadscope --durations=20

test-long: setup $(INTERPRETER) $(CLIENTS)/.installed ## What `make test` leaves out: every engine, architecture and fault, more than an hour
	$(BIN)/python -m pytest -m long -n 2 --dist loadscope --durations=20

# No set-up: a machine with a GPU has its own vLLM. docs/gpu.md says what else it needs, and how to do a part of this.
gpu: ## On a machine with an NVIDIA GPU: the conformance suite there, then the guard's cost at an 8B shape
	$(GPU_PYTHON) -m pytest -m gpu tests/gpu
	$(GPU_PYTHON) -m benchmarks.gpu --document docs/benchmarks.md

MODEL ?= smollm2
demo: setup ## Calibrate a small chat model, serve it guarded, and watch it decide (MODEL=lab: the lab's, without network)
	$(BIN)/foreguard demo --model $(MODEL)

console: setup ## The demo's server in shadow mode, an hour of made-up traffic through it, and the operators' console open on it
	$(BIN)/foreguard demo --console --model $(MODEL)

bench: setup ## Guarded against unguarded vLLM and alternatives, paired: 80 minutes on two quiet cores; goes on where it stopped
	$(BIN)/python -m benchmarks.cost --document docs/benchmarks.md

compatibility: setup ## Served taps against Transformers for every architecture, about 30 minutes; goes on where it stopped
	$(BIN)/python -m tests.serving.architectures --document docs/compatibility.md

soak: setup ## 52,000 requests at saturation, cut and broken ones among them; books, memory, what is left: some 10 minutes
	$(BIN)/python -m benchmarks.soak --document docs/benchmarks.md

lock: ## Resolve the lock files anew
	$(PYTHON) requirements/resolve.py

clean: ## Remove the virtual environment and what demo and bench left
	rm -rf $(VENV) .demo .bench .compatibility build *.egg-info
