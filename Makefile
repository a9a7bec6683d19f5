# Two commands matter: `make run` starts a mesh here, `make test` proves it. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install run test faults faults-services lint types bench bench-check containers lock clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed  ## set everything up in .venv

$(VENV)/.installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.12 install")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (once, about a minute)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[local,pari,test]'
	@touch $@

REPLICAS ?= 4
PORT ?= 8000
run: install  ## a mesh on this machine: REPLICAS=4 PORT=8000 REDIS_URL=… (Ctrl-C stops it)
	@exec $(BIN)/mesh up --replicas $(REPLICAS) --port $(PORT)

lint: install  ## style and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install  ## strict on mesh
	$(BIN)/mypy

# What measures time or starts whole meshes has the machine for itself, after all the rest.
UNITS := tests/bench tests/containers tests/deploy tests/mesh tests/quart_app tests/test_house.py tests/test_pages.py
test: lint types  ## everything that must hold, in under 15 minutes
	$(BIN)/pytest -q -m "not faults" -n 2 --dist loadfile $(UNITS)
	$(BIN)/pytest -q -m "not faults or selection" $(addprefix --ignore=,$(UNITS))

faults: install  ## every row of the fault matrix but 25 to 28, in under ten minutes: ROW=row_06 FAULTS_SEED=…
	$(BIN)/pytest -q tests/faults -m faults $(if $(ROW),-k $(ROW))

faults-services: install  ## rows 25 to 28 and the other long proofs of services, in about ten minutes: ROW=row_28
	$(BIN)/pytest -q tests/journeys tests/quart_app -m faults $(if $(ROW),-k $(ROW))

bench: install  ## each claim about speed beside its peers; CLAIMS="request_reply http batch store_scale mesh_scale startup factorise"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[local,pari,test,bench]'
	$(BIN)/python -m bench $(or $(CLAIMS),all)

bench-check: install  ## measure again, compare ratios with the recorded ones, fail beyond their spread
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[local,pari,test,bench]'
	$(BIN)/python -m bench check $(CLAIMS)

containers: install  ## build the image, bring the compose stack up and prove it: needs docker compose, or CONTAINER_CHECK
	tests/containers/check.sh

lock: install  ## renew the versions that the image is made of
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --python-version 3.13 --universal --upgrade --generate-hashes \
		--custom-compile-command "make lock" --output-file deploy/requirements.txt setup.cfg

clean:  ## remove what was built here
	rm -rf $(VENV) .venv-bench-* data .pytest_cache .mypy_cache .ruff_cache .hypothesis
