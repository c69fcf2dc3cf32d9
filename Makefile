# The commands of this project; `make` alone prints them.
PYTHON ?= python3
BIN := .venv/bin
WORKERS := $(shell $(PYTHON) -c "import os; print(min(8, os.cpu_count()) + 1)")    # tests wait for what they start
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults graphs imagenet-smoke tables figures report bench compatibility campaign docs check clean

help:     ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:    ## virtual environment .venv with the tested versions of everything
setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt uv
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode -c constraints.txt -e '.[dev]'
	touch $@

demo: setup    ## train, prune and fine-tune a small ResNet on embedded data, in about a minute
	$(BIN)/python run.py

test: setup    ## the whole test suite (set DATA_DIR to a folder with CIFAR-10 to include it)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

faults: setup    ## results/faults.md: sweeps killed at random end as if nothing had happened, hostile files as one line
	$(BIN)/python tests/faults.py --report results/faults.md

tables: figures    ## results/*.md from experiments/ and results/runs/, with the figures that there are
	$(BIN)/python -m reprune tables

figures: setup    ## results/figures/*.svg from experiments/ and results/runs/
	$(BIN)/python -m reprune figures

report: setup    ## results/index.html: all results on one page to search, sort and plot
	$(BIN)/python -m reprune report

bench: setup    ## results/bench.md: speed beside that of peers, measured in one run
	$(BIN)/python bench/run.py

compatibility: setup    ## results/compatibility.md: what can be pruned of the nets of torchvision and timm
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet -c constraints.txt -e '.[zoo]'
	$(BIN)/python bench/compatibility/run.py

graphs: setup    ## 500 random nets: silence equals remove, costs are known, files give the same bits
	$(BIN)/python tests/graphs.py 500

imagenet-smoke: setup    ## every row on ImageNet, run from end to end on a few images; WITH="--images FOLDER 'li2017/*'"
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet -c constraints.txt -e '.[zoo]'
	OMP_NUM_THREADS=1 $(BIN)/python tests/imagenet_rows.py $(WITH)

MINUTES ?= 25
campaign: setup    ## rows that have not run, in order of value, for MINUTES=25; WITH="--rows 'li2017/*' --at-once 2"
	$(BIN)/python -m reprune campaign --minutes $(MINUTES) $(WITH)

docs: setup     ## site/: the pages of docs/, with the API
	$(BIN)/zensical build

check: setup    ## style, and which way imports go
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache --no-logo

clean:    ## everything that can be made again (downloaded data stays)
	rm -rf .venv outputs build site src/*.egg-info .pytest_cache .ruff_cache
