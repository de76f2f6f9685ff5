PYTHON ?= python3
BIN := .venv/bin
PAGES ?= smoke
NOTEBOOKS ?= notebooks
PIP := $(BIN)/python -I book/builder/install.py
.PHONY: book preview test lab chapter new lint format serve clean lock set-repository

book: .venv/ready            ## execute what is stale, render _build/html
	@$(BIN)/python -m book.builder

preview: .venv/ready         ## the whole book at scale smoke, in minutes: _build/preview/html
	@MLBOOK_SCALE=smoke $(BIN)/python -m book.builder

chapter: .venv/ready         ## one chapter alone: make chapter NAME=flow-matching
	@$(BIN)/python -m book.builder $(NAME)

new: .venv/ready             ## a chapter to begin with: make new NAME=my-chapter
	@$(BIN)/python -m book.builder.new $(NAME)

test: .venv/ready            ## everything that is tested; PAGES=cpu: the browser opens the book that `make book` made
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal --pages=$(PAGES) \
		--nbmake --nbmake-timeout=300 $(PYTEST_OPTIONS) tests $(NOTEBOOKS)

lab: .venv/ready             ## JupyterLab on the chapters
	$(BIN)/jupyter lab --notebook-dir=notebooks

serve:                       ## the pages at http://localhost:8000
	$(PYTHON) -m http.server 8000 --bind 127.0.0.1 --directory _build/html

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python -m book.builder.kinds --check

format: .venv/ready
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/python -m book.builder.kinds

clean:                       ## forget what was built; the environment stays
	rm -rf _build build dist *.egg-info

.venv/ready: $(wildcard requirements*.txt) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...")'
	@$(PYTHON) -c 'import ensurepip' || { echo "This Python cannot make environments. Debian, Ubuntu, WSL: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps -r requirements-nodeps.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

lock: .venv/ready            ## requirements.txt from pyproject.toml: what is pinned stays where it can. torch pins its own CUDA packages
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --group book --no-annotate --no-header \
		--output-file requirements.txt pyproject.toml
	sed -i.bak -E '/^(nvidia-|cuda-)/d' requirements.txt && rm requirements.txt.bak

set-repository: .venv/ready  ## make set-repository URL=https://github.com/you/your-fork
	@$(BIN)/python -m book.builder.repository $(URL)
