# `make demo` and `make test` need nothing but Python 3.11 or newer: the environment in .venv is made on the way.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
DEMO := build/demo
READY := .venv/ready

.PHONY: help demo test docs guides zoo exported peers deep kills report ci-recipe bench release clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo    train two networks, fold their BatchNorms, show that nothing else changed; recalibrate and export others'
	@echo 'make test    ruff, mypy and the tests'
	@echo 'make docs    the pages as a site, in build/site; a broken link or anchor is an error'
	@echo 'make guides  the longer examples: the curves of small batches, and transfer learning'
	@echo 'make zoo     fold every architecture of tests/zoo.py'
	@echo 'make exported  the ONNX files of its classifiers, from torch alone and from bntools, a file each in build/exported'
	@echo 'make peers   fold them with other tools, in an environment of their own'
	@echo 'make deep    the laws on 50 000 random graphs'
	@echo 'make kills   200 exports, killed at random moments: what is left is the old file or the new one'
	@echo 'make report  the page of inspect in a real Chromium, and its picture in docs/images'
	@echo 'make ci-recipe  the page about CI from a fresh clone, in environments of its own: workflow, action, hook'
	@echo 'make bench   time and memory, against torch, torch.fx, ONNX Runtime and Typer, in docs/benchmarks.md'
	@echo 'make release  a wheel and a source archive in dist, once they have been installed and used in a new environment'
	@echo 'make clean   remove the environment and all that was built'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

demo: $(READY)
	@for example in digits mlp; do PATH="$(CURDIR)/$(BIN):$$PATH" examples/demo $$example $(DEMO)/$$example || exit; done
	@for example in recalibrate export; do echo; $(BIN)/python examples/$$example.py || exit; done

test: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses auto

.venv/ready-docs: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,docs]'
	@touch $@

docs: .venv/ready-docs
	$(BIN)/python -m tests.reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/pytest tests/test_site.py
	@echo 'the front page is build/site/index.html'

guides: $(READY)
	$(BIN)/python examples/guides/small_batch.py
	$(BIN)/python examples/guides/transfer.py

zoo: $(READY)
	rm -rf build/zoo
	$(BIN)/pytest -m 'zoo or not zoo' tests/findings/test_false_alarms.py --numprocesses auto
	$(BIN)/pytest -m 'zoo or not zoo' tests/test_zoo.py --numprocesses auto
	$(BIN)/pytest -m zoo tests/hostile tests/core tests/verbs tests/cli tests/ci tests/report --numprocesses auto
	$(BIN)/python -m tests.coverage --write
	$(BIN)/python -m tests.coverage

exported: $(READY)
	$(BIN)/python -m tests.exported
	$(BIN)/python -m tests.exported --write

PEERS := .venv-peers

$(PEERS)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(PEERS)/bin/pip install --quiet --constraint constraints.txt aimet-torch==2.42.0 torchao==0.18.0 \
		fvcore==0.1.5.post20221221
	@touch $@

peers: $(PEERS)/ready
	$(PEERS)/bin/python -m tests.peers
	$(PEERS)/bin/python -m tests.peers --table
	$(PEERS)/bin/python -m tests.peers.statistics

deep: $(READY)
	BNTOOLS_GRAPHS=50000 $(BIN)/pytest tests/laws/test_limit.py --numprocesses auto

kills: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.kills 200

report: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,browser]'
	$(BIN)/pytest tests/report/test_html_in_chromium.py
	$(BIN)/python -m tests.report.troubled build/inspect.html docs/images/inspect.png

ci-recipe: $(READY)
	$(BIN)/python -m tests.ci.clean_clone

bench: $(READY)
	$(BIN)/python -m tests.bench; status=$$?; $(BIN)/python -m tests.bench --write && exit $$status

release: $(READY)
	$(BIN)/python -m tests.release

clean:
	rm -rf .venv $(PEERS) build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
