# install   a virtual environment in .venv with fedms in it     demo   the embedded experiment into runs/demo
# install-flower   the same in .venv-flower with Flower beside it, for a federation of sites
# test      ruff, mypy and all tests                            lint   ruff and mypy alone
# text      the texts and the small pretrained Llama of examples/text.yaml, from the data in DATA: a minute
# docs      the documentation as a site, into site/; a dead link is an error
# clean     caches and build leftovers (to start afresh: rm -rf .venv)
# results   all tables and pictures of docs/results.md, from the data in DATA; takes most of a day on 2 cores
#           and continues if interrupted
#
# PYTHON chooses the interpreter: make install PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: install install-flower install-extras test-flower demo test lint docs results text clean

install: $(VENV)/.installed
	@:

# torch comes first, at its exact version, so that pip takes a CPU build if it finds one (PIP_FIND_LINKS).
# A looser request would choose the newest torch, which on Linux brings gigabytes of CUDA.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	    { echo "fedms needs Python 3.11 or newer and $(PYTHON) is not that; name one: make install PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH) and the rest into $(VENV) (some minutes the first time)"
	@$(PIP) install -c constraints.txt $(TORCH)
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the development tools into $(VENV)"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# Flower wants some packages older than fedms alone has them: so a second environment, with constraints of its own.
install-flower:
	@$(MAKE) --no-print-directory VENV=.venv-flower CONSTRAINTS=constraints-flower.txt EXTRAS='[flower,dev]' install-extras

install-extras:
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "installing fedms$(EXTRAS) into $(VENV) (some minutes the first time)"
	@$(PIP) install -c $(CONSTRAINTS) $(TORCH)
	@$(PIP) install -c $(CONSTRAINTS) -e '.$(EXTRAS)'

test-flower: install-flower
	.venv-flower/bin/python -m pytest tests/flower

# The folder of the last demo is removed first, so that the command can be repeated.
demo: install
	@rm -rf runs/demo
	$(BIN)/fedms run examples/assistant.yaml --out runs/demo

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "installing what builds the documentation into $(VENV)"
	@$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --clean
	@echo "documentation  site/index.html"

results: install
	@test -d "$(DATA)" || { echo "name the folder of the data sets: make results DATA=DIR" >&2; exit 1; }
	$(BIN)/python bench/results.py --data $(DATA)
	$(BIN)/python bench/ablations.py

text: install
	@test -d "$(DATA)" || { echo "name the folder of the data sets: make text DATA=DIR" >&2; exit 1; }
	$(BIN)/python bench/text.py --data $(DATA) --prepare

clean:
	rm -rf build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests bench -type d -name __pycache__ -prune -exec rm -rf {} +
