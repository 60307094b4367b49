# leanear: `make deploy TARGET=cpu` runs the whole job; `make help` lists the rest. Set-up happens by itself, in .venv/.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# What a user passes reaches `leanear deploy` as its environment, never as text of a command: the values may hold anything.
SETTINGS := TARGET MODEL DATA SPARSITY SPEEDUP LATENCY_MS RTF MACS MAX_DROP PRUNE RECOVERY RECIPE OUT SUSTAINED PRECISION WINDOW
DEVICE_SETTINGS := HOST HOSTS DEVICE_PYTHON
# A mistyped name would deploy something else; what other programs read of the environment may be given to make as well.
UNKNOWN := $(filter-out $(SETTINGS) $(DEVICE_SETTINGS) PYTHON VENV SHELL LEANEAR_% HF_% PIP_% OMP_%,$(foreach name,$(.VARIABLES),$(if $(filter command%,$(origin $(name))),$(name))))
$(if $(strip $(UNKNOWN)),$(error $(strip $(UNKNOWN)): no such setting; there are $(SETTINGS) $(DEVICE_SETTINGS) PYTHON))
# Some shells export HOST as the name of this machine; only what is said to make itself names a device.
$(foreach name,$(DEVICE_SETTINGS),$(if $(filter command%,$(origin $(name))),,$(eval override $(name) :=)))
SETTINGS += $(DEVICE_SETTINGS)
# What is said to make itself is no news to whoever typed it: of these variables leanear says nothing.
TYPED := $(foreach name,$(SETTINGS),$(if $(filter command%,$(origin $(name))),LEANEAR_DEPLOY_$(name)))
deploy: export LEANEAR_TYPED := $(TYPED)
$(foreach name,$(SETTINGS),$(eval override $(name) := $$(value $(name))))
$(foreach name,$(SETTINGS),$(if $(value $(name)),$(eval deploy: export LEANEAR_DEPLOY_$(name) := $$($(name)))))
export OUT

.DEFAULT_GOAL := help
.PHONY: help deploy test lint size bench report demo-ast demo-whisper lock clean

help:  ## List what make can do
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  make deploy TARGET=openvino MODEL=path-or-hub-id DATA=folder SPARSITY=0.5 [OUT=folder] [MAX_DROP=points] [RECOVERY=full]"
	@echo "  make deploy TARGET=cpu MODEL=demo-whisper PRECISION=int8"
	@echo "  make deploy TARGET=raspberrypi HOST=user@device [DEVICE_PYTHON=path] [SUSTAINED=600]    over SSH; HOSTS=file for several"
	@echo "  instead of SPARSITY: SPEEDUP=1.3, LATENCY_MS=12, MACS=0.7, or MAX_DROP=0.5 alone; PRUNE=all RECOVERY=lora RECIPE=file.toml"

# The stamp is older than a changed lock or pyproject.toml, which installs again; an interrupted install leaves none.
$(READY): .requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "leanear needs Python 3.11 or later; none was found" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "leanear needs Python 3.11 or later; $(PYTHON) is older (set PYTHON=...)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (a few minutes, once)"
	@$(BIN)/python -m pip install --disable-pip-version-check --constraint .requirements.lock --editable '.[dev]'
	@touch $@

deploy: $(READY)  ## Prune, export, benchmark and report: TARGET=cpu|openvino|raspberrypi|jetson|rtx|file.toml MODEL= DATA= SPARSITY= ...
	@[ "$$LEANEAR_DEPLOY_TARGET" != rtx ] || $(BIN)/python -c 'import tensorrt_rtx' 2>/dev/null || { \
	echo "installing TensorRT-RTX in $(VENV), once"; \
	$(BIN)/python -m pip install --disable-pip-version-check --constraint .requirements.lock --editable '.[rtx]'; }
	@exec $(BIN)/leanear deploy

# Where nothing compiled is kept every process compiles it all again, the tests' asserts too: seconds of each.
test: $(READY)  ## Run the tests
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(READY)  ## Run ruff, mypy and the check of sizes
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@rm -rf build/lint && mkdir -p build/lint/leanear
	@ln -sfn "$(CURDIR)"/toolchain/* "$(CURDIR)"/runtimes "$(CURDIR)"/export "$(CURDIR)"/calibration "$(CURDIR)"/benchmarks build/lint/leanear/
	@MYPYPATH=build/lint $(BIN)/mypy -p leanear
	@$(BIN)/python -m tests.size --check

size:  ## Count lines, files and the largest of them
	@$(PYTHON) -m tests.size

bench: $(READY)  ## Time dense against pruned AST-base-size graphs on every runtime here
	@$(BIN)/python -m leanear.benchmarks.peers.graph_forms

report: $(READY)  ## Write the report of OUT= (a deployment folder) again
	@exec $(BIN)/leanear report -- "$${OUT:?set OUT to a deployment folder}"

demo-ast: $(READY)  ## Make the demo's audio and model again, from nothing (needs espeak-ng)
	@$(BIN)/python -m leanear.studies.demo.make

demo-whisper: $(READY)  ## Make the demo Whisper and its clips again, from nothing (needs espeak-ng)
	@$(BIN)/python -m leanear.studies.demo.make_whisper

lock: $(READY)  ## Write .requirements.lock from what .venv holds
	@$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' | sort -f > .requirements.lock

clean:  ## Delete .venv, caches and deployments
	rm -rf $(VENV) deployments build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
