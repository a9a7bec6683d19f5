# The two main commands: `make run` starts a mesh on this machine, `make test` runs every check. `make help` lists all.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install run test faults faults-services lint types bench bench-check mutants containers lock pages site dist clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed  ## install everything into .venv

$(VENV)/.installed: setup.cfg pyproject.toml requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.12 install")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (once, about a minute)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# `mesh up` reads REPLICAS, PORT and the other settings from the environment, to which make adds its own variables.
run: install  ## start a mesh on this machine: REPLICAS=4 PORT=8000 REDIS_URL=… (Ctrl-C stops it)
	@exec $(BIN)/mesh up

lint: install  ## check style and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install  ## check types
	$(BIN)/mypy

# These tests run four at a time, because they wait more than they compute; files that take long begin first. Tests that
# measure time run afterwards, one at a time.
PATIENT := $(addprefix tests/journeys/test_,$(addsuffix .py,live_page messages live_page_life up document landing movements \
	overwritten pictures docs upgrade grades tracing isolation addresses library migrate_page readme start_user \
	testing_page full caddy_answers))
TOGETHER := $(PATIENT) tests/test_site.py tests/faults/test_linearizability.py tests/faults/test_mutations.py tests/deploy \
	tests/mutants tests/mesh tests/quart_app tests/bench tests/containers examples tests/test_house.py tests/test_pages.py \
	tests/test_pytest_mesh.py
# They start some hundred processes, which would compile all modules each time where this variable is set.
test: export PYTHONDONTWRITEBYTECODE :=
test: lint types  ## run every check, in under 20 minutes
	$(BIN)/pytest -q -m "not faults" -n 4 --dist loadfile --no-loadscope-reorder $(TOGETHER)
	$(BIN)/pytest -q -m "not faults or selection" tests $(addprefix --ignore=,$(TOGETHER))

faults: install  ## run the fault matrix without rows 25 to 28, in about 25 minutes: ROW=row_06 FAULTS_SEED=…
	$(BIN)/pytest -q tests/faults -m faults $(if $(ROW),-k $(ROW))

faults-services: install  ## run rows 25 to 28 and other long tests of services, in 15 minutes or more: ROW=row_28
	$(BIN)/pytest -q tests/journeys tests/quart_app -m faults $(if $(ROW),-k $(ROW))

bench: install  ## measure speed beside peers, all of docs/benchmarks.md or CLAIMS="request_reply http end_to_end …"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[api,local,pari,test,bench]'
	$(BIN)/python -m bench $(or $(CLAIMS),all)

bench-check: install  ## measure again, and fail when a ratio became worse than the recorded one beyond the spread
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[api,local,pari,test,bench]'
	$(BIN)/python -m bench check $(CLAIMS)

mutants: install  ## change the core at random and see whether tests notice: N=20 SEED=… ONLY=mesh/requests SECONDS=60
	$(BIN)/python -m tests.support.mutants --number $(or $(N),20) $(if $(SEED),--seed $(SEED)) \
		$(if $(ONLY),--only $(ONLY)) $(if $(SECONDS),--seconds $(SECONDS))

containers: install  ## build the image, start the compose stack and test it; needs docker compose, or CONTAINER_CHECK
	tests/containers/check.sh

LOCK := $(BIN)/uv pip compile --quiet --universal --upgrade --generate-hashes --custom-compile-command "make lock"
lock: install  ## renew the pinned versions of the image and of development
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(LOCK) --python-version 3.13 --extra api --output-file deploy/requirements.txt setup.cfg
	$(LOCK) --python-version 3.11 --extra api --extra local --extra pari --extra test --extra docs --extra mutants \
		--output-file requirements-dev.txt setup.cfg

pages: install  ## write the pages that are made of code: settings, commands, errors
	$(BIN)/python -m docs.pages

site: install  ## build the documentation into site/
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs site

dist: install  ## build the sdist and the wheel into dist/
	$(BIN)/python -m build --no-isolation

clean:  ## remove everything that was built here
	rm -rf $(VENV) .venv-bench-* data build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
