PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal
VLLM_ENV ?= build/vllm
RAY_ENV ?= build/ray
GUIDELLM_ENV ?= build/guidellm

.PHONY: help setup demo test test-page oldest check planted fuzz compiled targets bench bench-gpu load load-guidellm docs test-vllm bench-vllm test-ray clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## create .venv with the pinned set

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## generate with the bundled pair: plain and Jakiro side by side
	$(BIN)/jakiro demo

test: setup ## the whole CPU suite
	$(PYTEST)

test-page: setup ## the page of the server in a real browser (needs Chromium: apt-get install chromium)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt playwright
	$(BIN)/python -m scripts.page

oldest: setup ## the whole CPU suite on the oldest transformers that is supported
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/oldest transformers==5.19.0
	PYTHONPATH=build/oldest $(PYTEST)

check: setup ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

planted: setup ## every planted bug must be caught by its named oracle
	$(BIN)/python -m tests.planted

compiled: setup ## what is compiled, through the compiler of torch (minutes)
	JAKIRO_COMPILE_BACKEND=inductor $(BIN)/python -m pytest tests/engine/test_compile.py tests/target/test_panels.py tests/cache/test_attention_kernel.py tests/train/test_losses.py

targets: setup ## every class for causal language modelling of transformers against the oracle (minutes)
	$(BIN)/python -m tests.architectures --out docs/benchmarks/targets.json

fuzz: setup ## random requests to the server, made from its own OpenAPI document: none may end in 5xx
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt schemathesis
	$(BIN)/python -m scripts.fuzz

bench: setup ## measure the bundled pair on the shipped prompts
	$(BIN)/jakiro bench --out runs/bench

bench-gpu: setup ## cycles at the sizes of 8B models, and equality of texts, on one GPU (the torch in .venv must have CUDA)
	$(BIN)/python -m scripts.sizes --out docs/benchmarks/gpu.json

load: setup ## 64 streaming clients for two minutes, with drafting and without; nothing may be lost or left
	$(BIN)/python -m scripts.load --out docs/benchmarks/load.json -- --threads 2 --prefix-mb 64

load-guidellm: setup $(GUIDELLM_ENV)/.installed ## guidellm (own environment) on the server: half a minute with drafting, and without
	$(BIN)/python -m scripts.guidellm --guidellm $(GUIDELLM_ENV)/bin/guidellm --out docs/benchmarks/guidellm.json -- --threads 2

$(GUIDELLM_ENV)/.installed: scripts/engines/guidellm.txt
	$(PYTHON) -m venv $(GUIDELLM_ENV)
	$(GUIDELLM_ENV)/bin/pip install --quiet --disable-pip-version-check -r scripts/engines/guidellm.txt
	@touch $@

docs: setup ## regenerate the command reference and the benchmark tables
	$(BIN)/python scripts/docs.py

test-vllm: ## heads in vLLM: equal texts and counts (own environment, 3 GB, CPU)
	scripts/engines/vllm_env.sh $(VLLM_ENV)
	$(VLLM_ENV)/bin/python scripts/engines/vllm_check.py --out docs/benchmarks/vllm-equality.json

bench-vllm: ## vLLM on the CPU and this package, in alternation (own environment)
	scripts/engines/vllm_env.sh $(VLLM_ENV)
	$(VLLM_ENV)/bin/python scripts/engines/vllm_bench.py --out docs/benchmarks/vllm.json

test-ray: $(RAY_ENV)/.installed ## two replicas by Ray Serve, one killed under load (own environment)
	$(RAY_ENV)/bin/python scripts/engines/ray_check.py --out docs/benchmarks/ray.json

$(RAY_ENV)/.installed:
	$(PYTHON) -m venv $(RAY_ENV)
	$(RAY_ENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	@touch $@

clean: ## remove the environment and every cache
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
