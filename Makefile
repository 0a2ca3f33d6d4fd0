# Four commands do nearly everything on a fresh machine (Python >= 3.10, git, make):
#   make demo    trains the tiny model with the weighted sum and with Marble, prints a table, draws runs/demo/report.png
#   make recipe  dry run of the SD3.5 recipe: its pipeline and its five rewards, small and of random weights, on a CPU
#   make bench   the comparison with other methods, short: minutes; its report is runs/comparison/REPORT.md
#   make test    runs linters, type checker and all tests
#   make soak    200 000 random calls on the optimizer, and hundreds of kills of a training run; takes an hour or so

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
OUTPUT ?= runs/demo

.PHONY: demo recipe bench test soak lint clean

demo: $(VENV)/examples
	$(BIN)/python examples/train.py --model tiny --balance sum marble --output $(OUTPUT) --resume

recipe: $(VENV)/examples
	$(BIN)/python examples/make_pipeline.py sd3 runs/tiny-sd3
	$(BIN)/python examples/make_rewards.py runs/tiny-rewards
	$(BIN)/python examples/train.py --config tiny_sd3 --output runs/recipe --resume

bench: $(VENV)/test
	$(BIN)/python -m benchmarks --quick --jobs 2

test: $(VENV)/test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

soak: $(VENV)/test
	$(BIN)/python tests/fuzz/soak.py --calls 200000
	$(BIN)/python -m pytest -m soak

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/examples: $(VENV)/python setup.py constraints.txt
	$(PIP) --editable '.[examples]'
	touch $@

$(VENV)/test: $(VENV)/examples
	$(PIP) --editable '.[examples,solvers,bench,test,lint]'
	$(PIP) --no-deps qpth==0.0.18
	touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info
