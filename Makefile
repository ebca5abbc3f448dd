.PHONY: bench-data bench-training help setup pipeline server deploy worker gpu-worker base-model quickstart-data test test-slow faults lint check
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= configs/quickstart.yaml

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup: .venv/.installed  ## .venv with everything, from constraints.txt; does nothing when it is there

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("attune needs Python 3.11 or newer: make PYTHON=…")'
	@echo "installing into .venv; the first time takes some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

pipeline: setup  ## run the pipeline: make pipeline CONFIG=configs/dolly.yaml
	@$(BIN)/attune run $(CONFIG)

server: setup  ## the Prefect server and its UI, on loopback: make server DATABASE=postgresql+asyncpg://…
	@$(BIN)/attune server --database '$(DATABASE)'

deploy: setup  ## register work pools, deployments and automations at the server; again changes nothing
	@$(BIN)/attune deploy

worker: setup  ## a worker that runs pipelines in this folder
	@$(BIN)/attune worker

gpu-worker: setup  ## a worker that trains for pipelines with fine_tune.runs_on=gpu
	@$(BIN)/attune worker --pool gpu

check: setup  ## look at a config and its first rows without running anything
	@$(BIN)/attune check $(CONFIG)

test: setup  ## every essential test
	@$(BIN)/pytest -m 'not slow'

.venv/.installed-slow: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,slow]'
	@command -v chromium chromium-browser google-chrome >/dev/null || $(BIN)/playwright install chromium
	@touch $@

test-slow: .venv/.installed-slow  ## the tests that take minutes: a browser, S3, a Ray cluster, killed runs
	@$(BIN)/pytest -m slow

faults: setup  ## provoke every fault of docs/faults.md, hours: make faults FAULTS='F13 F14 --tries-scale 0.1'
	@PYTHONPATH=.:tests $(BIN)/python -m faults $(FAULTS)

bench-data: setup  ## the data stages beside other libraries: make bench-data PEERS='--python datatrove=PATH'
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python benchmarks/data.py $(PEERS)

bench-training: setup  ## training beside other libraries: make bench-training PEERS='--python trl=PATH'
	@$(BIN)/python benchmarks/training.py $(PEERS)

lint: setup  ## ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

quickstart-data: setup  ## write the quickstart's data again (byte-identical)
	@$(BIN)/python data/quickstart/make_data.py

base-model: setup  ## pre-train the quickstart's base model again (an hour on 2 cores)
	@$(BIN)/python data/quickstart/make_base_model.py
