# The course from the command line: `make help` lists what there is. Any make from 3.81 (macOS) on will do.

PYTHON ?= python3
BIN    := .venv/bin
# FIXES=0 leaves the labels of the real data as they were published.
FIXES  ?= 1
# Seeds of the benchmark's trainings.
SEEDS  ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup lab course site data test coverage test-versions constraints outputs benchmark peers sync clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: .venv/.installed ## make .venv and install the package with everything the course needs

# The stamp is written last, so that an interrupted install is taken up again; it is as old as the pyproject.toml it obeyed.
.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "The course needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)"; \
		echo "Name another one, for example: make setup PYTHON=python3.12"; exit 1; }
	@tools/timed.sh install sh -c '$(PYTHON) -m venv .venv && $(BIN)/python -m pip install --editable ".[notebooks,test]"' || { \
		echo "The install did not finish. Where pip found no tensorflow for your Python, take one that TensorFlow supports,"; \
		echo "for example: rm -rf .venv && make setup PYTHON=python3.12"; exit 1; }
	@touch $@

lab: setup ## open JupyterLab at the first notebook (ARGS=--no-browser and the like are passed on)
	$(BIN)/python -m jupyterlab --ContentsManager.pre_save_hook=tools.setup_cell.keep_version \
		$(firstword $(wildcard notebooks/00_*.ipynb) notebooks) $(ARGS)

course: setup ## execute every notebook; the executed copies go to build/course/
	$(BIN)/python -m tools.course

site: .venv/.site ## build the site from the notebooks as they are, and check its links; pages go to build/site/html/
	$(BIN)/python -m tools.site

.venv/.site: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable ".[notebooks,test,site]"
	@touch $@

data: setup ## fetch the real images (SOURCE=folder or address, DEST=folder, FIXES=0 for the labels as published)
	$(BIN)/python -m nuclei_utils data $(if $(SOURCE),--source "$(SOURCE)") $(if $(DEST),--dest "$(DEST)") \
		$(if $(filter-out 0,$(FIXES)),--fixes)

test: ## everything that must pass: ruff, unit tests, every notebook cell by cell; ends with the time of each stage
	@rm -f build/times.txt
	@$(MAKE) --no-print-directory setup
	@tools/timed.sh ruff sh -c '$(BIN)/ruff check . && $(BIN)/ruff format --check .'
	@tools/timed.sh tests $(BIN)/python -m pytest --numprocesses=auto --nbval tests notebooks nuclei_utils
	@cat build/times.txt

coverage: setup ## run the unit tests and doctests, and report the lines of the package that no test runs
	$(BIN)/python -m pytest --numprocesses=auto --cov=nuclei_utils --cov-report=term-missing:skip-covered tests nuclei_utils

test-versions: ## the same tests with the oldest libraries, Colab's and the newest (SETS="colab oldest", PYTHONS=3.12 or first)
	$(PYTHON) -m tools.versions test $(if $(SETS),--sets $(SETS)) $(if $(PYTHONS),--pythons $(PYTHONS))

constraints: setup ## write tools/constraints/ anew: oldest.txt from pyproject.toml, colab.txt from what Colab has today
	$(BIN)/python -m tools.versions write --colab

outputs: setup ## execute the notebooks on the sample and keep the outputs in place, ready to commit (ARGS=notebooks/03*.ipynb)
	NUCLEI_DATA=sample $(BIN)/python -m tools.course --in-place $(ARGS)
	$(BIN)/python -m tools.picture

benchmark: setup ## train and score the networks of the course on the real data; can be stopped and goes on (SEEDS="0 1 2"; hours)
	NUCLEI_DATA=stage1_fixed NUCLEI_PROFILE=laptop $(BIN)/python -m benchmarks.train_networks --seeds $(SEEDS)
	NUCLEI_DATA=stage1_fixed NUCLEI_PROFILE=laptop $(BIN)/python -m benchmarks.compare_networks
	NUCLEI_DATA=stage1_fixed NUCLEI_PROFILE=laptop $(BIN)/python -m benchmarks.train_with_few_labels --seeds $(SEEDS)
	NUCLEI_DATA=stage1_fixed NUCLEI_PROFILE=laptop $(BIN)/python -m benchmarks.tune_unet
	$(BIN)/python -m benchmarks.write_tables --write

peers: build/peers/.installed ## train StarDist and Cellpose beside our network, in an environment of their own (SEEDS="0 1"; hours)
	$(BIN)/python -m benchmarks.train_on_stardist_subset --seeds $(SEEDS)
	build/peers/bin/python -m benchmarks.train_peers --seeds $(SEEDS)
	build/peers/bin/python -m benchmarks.compare_peer_costs
	build/peers/bin/python -m benchmarks.compare_commands
	$(BIN)/python -m benchmarks.write_tables --write

build/peers/.installed: .venv/.installed
	$(PYTHON) -m venv build/peers && build/peers/bin/python -m pip install --editable . stardist tf_keras "cellpose<4"
	@touch $@

sync: setup ## write the setup cell and the Colab links into every notebook (after a change of address in pyproject.toml)
	$(BIN)/python -m tools.setup_cell

clean: ## remove what runs leave behind; .venv and the data stay
	rm -rf build dist runs notebooks/runs .pytest_cache .ruff_cache .hypothesis
	find nuclei_utils tests tools notebooks -name __pycache__ -type d -prune -exec rm -rf {} +
