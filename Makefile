# saeflow: `make demo` on a fresh machine (Python 3.11+, pip, make, git) installs into .venv and runs the demo.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
CORE := .venv/.core
TESTS := .venv/.tests
SWIFT := .venv-swift/.swift
PEERS := .venv-peers/.peers
AUDIT := .venv-audit/.audit

.DEFAULT_GOAL := help
.PHONY: help install demo test check bench peers audit

help:  ## this list
	@echo "make TARGET [PYTHON=python3.12] [ARGS='...']"
	@sed -nE 's/^([a-z]+):.*## (.*)/  \1\t\2/p' Makefile

install: $(CORE)  ## install what the demo needs into .venv (again when the pinned versions change)

demo: $(CORE)  ## text -> labelled sparse autoencoder, on this machine, in minutes; ARGS go to `saeflow run demo`
	@$(BIN)/saeflow run demo $(ARGS)

test: $(TESTS) swift  ## every test; ARGS go to pytest, for example ARGS='-k store -x'
	$(BIN)/python -m pytest $(ARGS)

check: $(TESTS)  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/mypy sae_core tasks flows

bench: $(TESTS)  ## speed against floors measured in the same run; ARGS for example '-k train_step'
	$(if $(wildcard $(PEERS)),.venv-peers/bin,$(BIN))/python -m tests.benchmarks $(ARGS)

peers: $(PEERS)  ## other SAE libraries into .venv-peers: tests compare with them, `make bench` measures them

audit: $(AUDIT)  ## known vulnerabilities of the pinned versions, from osv.dev; ARGS go to pip-audit
	.venv-audit/bin/pip-audit --no-deps --disable-pip --vulnerability-service osv --requirement constraints.txt $(ARGS)

# A stamp is newer than what it was installed from, so a second run neither installs nor asks the network.
$(CORE): pyproject.toml constraints.txt install.py
	@$(PYTHON) install.py .venv constraints.txt -e .
	@touch $@

$(TESTS): $(CORE) pyproject.toml constraints.txt install.py
	@$(PYTHON) install.py .venv constraints.txt -e '.[test]'
	@touch $@

# The S3 server of the tests lives apart: it pins other versions. Without it the S3 tests say so and skip (in CI they fail).
.PHONY: swift
swift:
	@$(MAKE) -s --no-print-directory $(SWIFT) || echo "OpenStack Swift could not be installed: the S3 tests will be skipped."

$(SWIFT): tests/servers/swift-constraints.txt install.py
	@$(PYTHON) install.py .venv-swift tests/servers/swift-constraints.txt swift 'setuptools<80'
	@touch $@

$(AUDIT): constraints.txt install.py
	@$(PYTHON) install.py .venv-audit constraints.txt pip-audit==2.10.1
	@touch $@

# dictionary-learning pulls a torchvision that many indexes build for another torch: transformers cannot be imported then.
$(PEERS): tests/sae_core/formats/peers-constraints.txt install.py
	@$(PYTHON) install.py .venv-peers tests/sae_core/formats/peers-constraints.txt sae-lens eai-sparsify dictionary-learning
	@.venv-peers/bin/python -m pip uninstall --quiet --yes torchvision
	@touch $@
