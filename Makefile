# make demo   environment, install, then a model trained on two novels (about 3 minutes on 2 cores)
# make test   environment, install with the development extras, lint, types, all tests, transformers' own among them
#
# PYTHON=python3.12 make demo   picks another interpreter (3.11 or newer) for a new environment.
# PIP_ARGS=...                  is handed to every pip install.

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(PIP_ARGS) --constraint constraints.txt
# What pip would do, with all cores. It fails over the few files that packages carry in the syntax of newer Pythons.
COMPILE := @$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true

.PHONY: help demo test lint transformers-suite clean

help:
	@sed -n '/^$$/q; s/^# //p' Makefile

demo: $(VENV)/.installed-demo
	$(BIN)/hybridlm demo

# Two at a time; a module, or a class of tests, stays in one process, with what it sets up. PYTEST_ARGS="-n 0": one by one.
test: lint transformers-suite
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

# transformers' own model tests, from its source archive on the package index; downloads nothing where they are there.
transformers-suite: $(VENV)/.installed-dev
	@$(BIN)/python tests/transformers_suite/fetch.py $(PIP_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/basedpyright

# editable_mode=compat: the plain way, a path entry. With the default one, Python started in the folder above a clone named
# `hybridlm` takes that folder for the package.
EDITABLE := --config-settings editable_mode=compat --editable

# Stamps: a second call installs nothing unless the dependencies changed.
$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (a few minutes the first time)"
	$(INSTALL) $(EDITABLE) '.[plot]'
	$(COMPILE)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) with the development tools (a few minutes the first time)"
	$(INSTALL) $(EDITABLE) '.[dev,plot]'
	$(COMPILE)
	@touch $@ $(VENV)/.installed-demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .transformers-suite
