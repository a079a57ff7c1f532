# Two commands are enough: `make demo` and `make test`. `make help` lists the rest.

PYTHON ?= python3
EXTRA ?=
ARGS ?=
WORKERS ?= 2
BIN := .venv/bin
# (--quiet would make --strict see no warnings.)
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml

.DEFAULT_GOAL := help
.PHONY: help env demo check docs test clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "PYTHON=python3.12 names the interpreter, EXTRA=cpu or EXTRA=gpu overrules the choice made by looking for"
	@echo "a GPU, and ARGS goes to the demo or to pytest: make test ARGS=\"tests/exact -k rloo\"; WORKERS=0 runs the tests one"
	@echo "after the other in one process, for a debugger."

env: ## make .venv, or refresh it if pyproject.toml or constraints/ changed
	@PYTHON="$(PYTHON)" EXTRA="$(EXTRA)" .make/env.sh

demo: env ## a reward and a policy learned from demonstrations, on this machine, in minutes
	@$(BIN)/rayalign demo $(ARGS)

check: env ## style, layers, types, and the documentation's links (part of `make test`)
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy
	@$(SITE)

docs: env ## the documentation, for a browser: build/site/index.html
	@$(SITE)

test: check ## the whole test suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=15 -n $(WORKERS) --dist loadfile $(ARGS)

clean: ## remove the environment and caches; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
