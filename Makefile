# Every target does its own set-up: `make test` and `make demo` work in a fresh clone.
#
#   make             the environment, with the package built and installed in it
#   make test        build, install, run the tests (minutes)
#   make demo        train three small models on generated photos and draw what they do: runs/demo/
#   make lint        formatting, lint and types, Python and C++
#   make format      lets ruff and clang-format mend what they can
#   make test-long   what is too slow for every change
#   make coverage    which lines and branches of the Python the quick tests run: build/coverage/summary.txt
#   make browser     Chromium for the web page's tests, which are skipped without it (Debian, as root)
#   make screenshots the pictures of docs/web.md
#   make bench       benchmarks/kernel_speed.py
#   make docs        the documentation site: site/index.html
#   make dist        wheel and sdist: dist/
#   make gpu-check   builds and checks the CUDA kernels where there is a GPU
#   make clean       removes what was built, the environment too
#   make help        this text
#
# PYTHON  which interpreter makes the environment (default python3)
# VENV    where the environment lies (default .venv)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The build's own tools first: cmake and ninja of the environment, not older ones of the system.
export PATH := $(abspath $(BIN)):$(PATH)

# CUDA kernels, where nvcc is found: for the GPU that is here, else for one architecture, to keep the build short.
export CUDAARCHS ?= $(if $(wildcard /dev/nvidia0),native,90)

SOURCES := $(shell find csrc cmake fewseg_ext -type f -not -name '*.pyc') CMakeLists.txt pyproject.toml

TIDY_FILES := $(shell find csrc/ops csrc/cpu -name '*.cpp')
COMPILE_COMMANDS = $(patsubst %/,%,$(dir $(firstword $(wildcard build/*/compile_commands.json))))

.PHONY: test test-long coverage browser screenshots demo lint format bench docs dist gpu-check setup clean help

setup: $(VENV)/installed

# The comment at the top of this file.
help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# torch is in the environment, so the build need not fetch its own: --no-build-isolation.
$(VENV)/tools: requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=24"
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

$(VENV)/installed: $(VENV)/tools $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --no-deps -C cmake.define.FEWSEG_BUILD_TESTS=ON .
	touch $@

# `pytest` and not `python -m pytest`: the latter would test the source folder instead of the installed package.
# Two processes, each with one thread of torch's: shorter than one process with two threads. In the order of the files,
# in which the longest come early: xdist's own order leaves them to the end, where one process waits for the other.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder --durations=12 -r s

test-long: setup
	$(BIN)/pytest -m slow --durations=10

# Piece by piece, which takes no more memory than the largest and can be looked at meanwhile. What tests start counts too.
# Left out: what looks at C++, CUDA, builds and benchmarks, and the operators once more with other instruction sets.
COVERAGE_LEFT_OUT := $(patsubst %,python_tests/%/,__pycache__ benchmarks cpu cuda emulator) python_tests/test_build.py
COVERAGE_PARTS ?= $(filter-out $(COVERAGE_LEFT_OUT),$(wildcard python_tests/*/ python_tests/test_*.py))
coverage: setup
	rm -rf build/coverage
	mkdir -p build/coverage
	for part in $(COVERAGE_PARTS); do \
	  OMP_NUM_THREADS=1 $(BIN)/coverage run $(BIN)/pytest -q -m "not slow" --ignore=python_tests/ops/test_instruction_sets.py \
	    $$part || echo "$$part: pytest ended with $$?"; \
	done
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report > build/coverage/summary.txt
	grep TOTAL build/coverage/summary.txt

browser:
	apt-get install --yes --no-install-recommends chromium chromium-driver

# The pictures of docs/web.md, of the demo's model.
screenshots: setup
	test -f runs/demo/biopt.ckpt || $(MAKE) demo
	FEWSEG_SCREENSHOTS=docs/images FEWSEG_SCREENSHOTS_CHECKPOINT=runs/demo/biopt.ckpt \
	  $(BIN)/pytest python_tests/web/test_web_browser.py -k laptop

demo: setup
	$(BIN)/fewseg demo --out runs/demo

# For a machine with a GPU and no network: uses the interpreter's own torch and tools, no environment of its own.
STAGE ?= all
gpu-check:
	$(PYTHON) python_tests/gpu_check.py --stage $(STAGE) $(if $(OUT),--out $(OUT)/gpu_check.json)

bench: setup
	$(BIN)/python benchmarks/kernel_speed.py

# What warns is an error: a link that leads nowhere, a page that is not in the navigation.
docs: $(VENV)/tools
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The wheel is built from the sdist, so a file that the sdist lacks is noticed. All architectures that cmake/cuda.cmake
# knows, unless `make dist CUDAARCHS=90` says otherwise, where there is an nvcc: that takes long. auditwheel gives
# the platform tag (manylinux, by the oldest glibc that will do) and leaves torch's libraries where they are.
RELEASE_CUDAARCHS := 75-real;80-real;86-real;90-real;100-real;120
dist: CUDAARCHS = $(RELEASE_CUDAARCHS)
dist: $(VENV)/tools
	rm -rf dist build/dist
	$(BIN)/python -m build --no-isolation --outdir build/dist .
	$(BIN)/auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' --wheel-dir dist build/dist/*.whl
	mv build/dist/*.tar.gz dist
	$(BIN)/python .ci/check_dist.py dist

PYTHON_FILES := .ci docs examples fewseg_ext python_tests benchmarks
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')

lint: setup
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	printf '%s\n' $(TIDY_FILES) | xargs -P 2 -I{} $(BIN)/clang-tidy --quiet -p $(COMPILE_COMMANDS) {}

# Written by the build of `make setup`; for clangd too.
compile_commands.json: setup
	ln -sf $(COMPILE_COMMANDS)/compile_commands.json $@

format: $(VENV)/tools
	$(BIN)/ruff check --fix-only --quiet $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist site $(VENV)
