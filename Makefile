# One command per chore. Each makes the environment in .venv first, and again when what it depends on changes.
#
#   PYTHON=python3.12         the interpreter to build the environment with (3.11 or newer)
#   PIP_FIND_LINKS=DIR        a folder of wheels to look in before the package index (UV_FIND_LINKS for uv;
#                             where only the first is set, uv gets it as well)
#
# Written for GNU make 3.81, which macOS ships, and a POSIX shell.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: help demo test test-extras test-quick check bench tables clean

help:
	@echo "make demo    train a small CLIP on bundled images and report before and after"
	@echo "make test    run the tests"
	@echo "make test-extras  the tests that need large extras (Ray, OpenVINO, ONNX, faiss, Lance), those of benchmarks/, and the slowest"
	@echo "make test-quick  the tests without the slow ones, for the inner loop"
	@echo "make check   lint, formatting, types, and the direction of imports"
	@echo "make bench   run the benchmarks in benchmarks/"
	@echo "make tables  write the tables of results into the documents"
	@echo "make clean   remove caches and build products (the runs in outputs/ stay)"

demo: $(READY)
	$(BIN)/domainclip demo --output outputs/demo

# one process per core, each with one thread: most tests are too small to gain from more
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# what needs extras that are too large for everybody (Ray, OpenVINO, ONNX, faiss, Lance: 400 MB), in an environment of its own
SITE := import sysconfig; print(sysconfig.get_path('purelib'))
EXTRAS := .venv-extras
test-extras: $(READY)
	$(PYTHON) -m venv $(EXTRAS)
	$(BIN)/python -c "$(SITE)" > "$$($(EXTRAS)/bin/python -c "$(SITE)")/domainclip.pth"
	$(EXTRAS)/bin/pip install -q -c constraints.txt "ray[data]" openvino nncf onnxruntime onnx faiss-cpu pylance \
	  tensorboard "mlflow-skinny<3.18" sqlalchemy aiohttp huey wandb ipykernel nbclient
	PYTHONPATH=src:tests/helpers OMP_NUM_THREADS=1 DOMAINCLIP_TEST_BENCHMARKS=1 DOMAINCLIP_TEST_SLOWEST=1 \
	  $(EXTRAS)/bin/python -m pytest tests/benchmarks tests/pipelines/test_embed_on_ray.py \
	  tests/inference tests/retrieval tests/cli/test_predict_and_embed.py tests/tracking/exporters tests/tracking/test_notebook.py
	OMP_NUM_THREADS=1 DOMAINCLIP_TEST_SLOWEST=1 $(BIN)/python -m pytest -n auto -m slowest

test-quick: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# every script in benchmarks/ but the helpers (_*.py) and the one that only writes tables
bench: $(READY)
	@ran=; \
	for script in benchmarks/[a-z]*.py; do \
	  if test ! -f "$$script" || test "$$script" = benchmarks/make_tables.py; then continue; fi; \
	  echo "$$script"; $(BIN)/python "$$script" || exit 1; ran=yes; \
	done; \
	if test -z "$$ran"; then echo "benchmarks/ holds no benchmark to run" >&2; exit 1; fi

tables: $(READY)
	$(BIN)/python benchmarks/make_tables.py

# The environment is rebuilt only where its interpreter is gone or too old; otherwise packages are brought up to date.
# The stamp comes last, so an interrupted install is taken up again. One shell throughout: make 3.81 has no .ONESHELL.
$(READY): pyproject.toml constraints.txt
	@set -e; \
	python=; \
	for candidate in "$(PYTHON)" python3.13 python3.12 python3.11; do \
	  if "$$candidate" -c '$(NEW_ENOUGH)' >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if test -z "$$python"; then \
	  found=`"$(PYTHON)" --version 2>&1` || found="no $(PYTHON) that runs"; \
	  echo "domainclip needs Python 3.11 or newer; found: $$found." >&2; \
	  echo "Install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	uv=; if command -v uv >/dev/null 2>&1; then uv=yes; fi; \
	if test -n "$$PIP_FIND_LINKS" && test -z "$$UV_FIND_LINKS"; then \
	  UV_FIND_LINKS=`echo $$PIP_FIND_LINKS | tr ' ' ','`; export UV_FIND_LINKS; \
	fi; \
	if ! $(BIN)/python -c '$(NEW_ENOUGH)' >/dev/null 2>&1; then \
	  echo "Making $(VENV) with `$$python --version`"; \
	  rm -rf $(VENV); \
	  if test -n "$$uv"; then uv venv --python "$$python" $(VENV); else "$$python" -m venv $(VENV); fi; \
	fi; \
	if test -n "$$uv"; then \
	  uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
	  $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip; \
	  $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi; \
	touch $(READY)

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	find src tests benchmarks examples -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	rm -f $(READY)
