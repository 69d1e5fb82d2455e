# Every target makes its own environment in .venv; only python3 (3.11 or newer, with venv) is needed.
#   make demo     train, measure and report a routed model on a small public data set
#                 (MODEL=folder-or-hub-name: another host; its run goes to runs/demo-NAME)
#   make test     run the tests            make lint    ruff and pyright
#   make docs     build the site           make clean   remove what was built (.venv stays)
# GPU:  rm -rf .venv && make venv TORCH_INDEX=https://download.pytorch.org/whl/cu130

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=

VENV := .venv
PY := $(VENV)/bin/python
# -qq: errors only
PIP := $(PY) -m pip -qq --disable-pip-version-check
CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: venv demo test lint docs clean
.DELETE_ON_ERROR:

venv: $(VENV)/.ready

demo: $(VENV)/.demo
	$(PY) -m turnout.demo $(if $(MODEL),--model "$(MODEL)")

test: $(VENV)/.ready
	$(PY) -m pytest -q -n auto --dist worksteal

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict

clean:
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: what the demo, the developer and the site need. A changed pyproject.toml installs again.
$(VENV)/.demo: extras := demo
$(VENV)/.ready: extras := demo,dev
$(VENV)/.docs: extras := docs
$(VENV)/.demo $(VENV)/.ready $(VENV)/.docs: pyproject.toml $(VENV)/.torch
	@echo "Installing turnout[$(extras)] into $(VENV) (the first time takes some minutes)"
	@$(PIP) install --editable ".[$(extras)]"
	@touch $@

# PyTorch comes first and alone, so that nothing after it chooses a build. It depends on no file:
# the build that was chosen once, CPU or GPU, stays until .venv is removed.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "turnout needs Python 3.11 or newer; name one: make venv PYTHON=python3.12"; exit 1; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH) ($(if $(TORCH_INDEX),from $(TORCH_INDEX),CPU build))"
	@$(install_torch)
	@touch $@

ifneq ($(TORCH_INDEX),)
install_torch = $(PIP) install --upgrade --index-url "$(TORCH_INDEX)" "$(TORCH)"
else ifneq ($(shell uname -s),Linux)
install_torch = $(PIP) install "$(TORCH)"
else
# On Linux the plain wheel of the public index is a CUDA build of gigabytes. The "+cpu" suffix asks for
# the CPU wheel by name. Where no index has it (a mirror), the plain one may serve, but never a CUDA
# build: those need triton, which the constraint forbids.
install_torch = $(PIP) install --no-deps --retries 0 --timeout 20 --index-url $(CPU_INDEX) "$(TORCH)+cpu" || { \
		echo "No $(TORCH)+cpu found; trying the plain package, without CUDA"; \
		echo "triton<0" > $(VENV)/no-cuda.txt; \
		$(PIP) install --retries 0 --timeout 20 --constraint $(VENV)/no-cuda.txt "$(TORCH)" || { \
			echo "No CPU build of $(TORCH) found. Is $(CPU_INDEX) reachable?"; \
			echo "Another index can be named: make venv TORCH_INDEX=..."; exit 1; }; }
endif
