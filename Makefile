# One target a job. Every target creates .venv by itself, from constraints.txt, and does so again when that changes.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# An index with PyTorch's CPU-only wheels, for a machine without a GPU; empty installs the CUDA build.
TORCH_INDEX ?=
# The size of `make train`, and where it goes; empty takes tiny, or small on a GPU, and runs/PRESET.
PRESET ?=
OUT ?=
# Processes that `make test` runs at once. Each computes in one thread: more would fight for the same cores.
WORKERS ?= 2
# For `make translate`: a folder of sentence pairs, and the model to begin with.
DATA ?=
INIT ?=
# The run that `make serve` serves.
MODEL ?=
# Further flags for what the target runs, such as ARGS="--resume --seed 1".
ARGS ?=

PIP = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# Empty stamp files: newer than what they depend on when the packages for running, or for developing, are in place.
FOR_USE = $(VENV)/.installed-for-use
FOR_WORK = $(VENV)/.installed-for-work

.NOTPARALLEL:
.PHONY: help setup train rlhf smollm2 translate serve test test-all lint kernels bench gpu notebooks docs
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'variables: PRESET=tiny OUT=runs/tiny ARGS="--seed 1" PYTHON=python3.12 TORCH_INDEX=URL WORKERS=2'

setup: $(FOR_WORK) ## create .venv with everything, developers' tools included (TORCH_INDEX=URL: PyTorch's CPU wheels)

train: $(FOR_USE) ## train and measure tokenizer, base and tuned model (PRESET=tiny, or small on a GPU)
	@preset='$(PRESET)'; \
	test -n "$$preset" || preset=$$($(BIN)/python -c \
		'import torch; print("small" if torch.cuda.is_available() else "tiny")') && \
	out='$(OUT)'; \
	$(BIN)/python train.py pipeline --preset "$$preset" --out "$${out:-runs/$$preset}" $(ARGS)

rlhf: $(FOR_USE) ## align a model: SFT on flawed demonstrations, reward model, DPO, PPO, GRPO, ledger (from `make train`'s base, if there)
	@base='runs/$(or $(PRESET),tiny)/pretrain'; test -e "$$base/eval.json" || base=; \
	$(BIN)/python train.py rlhf --out "$(or $(OUT),runs/rlhf)" $(if $(PRESET),--preset $(PRESET)) $${base:+--base "$$base"} $(ARGS)

smollm2: $(FOR_USE) ## a model that others trained: download SmolLM2-135M-Instruct (93 MB), import it, ask it three questions
	@out='$(or $(OUT),runs/smollm2)'; \
	test -e "$$out/config.json" || $(BIN)/python -m instructgpt import --from smollm2 --out "$$out" && \
	for question in 'What is the capital of France?' 'Translate to French: The cat sits on the mat.' 'What is 12 + 30?'; do \
		printf '\n> %s\n' "$$question" && $(BIN)/python -m instructgpt generate --model "$$out" --temperature 0 \
			--max-new-tokens 60 --prompt "$$question" $(ARGS) || exit; \
	done

translate: $(FOR_USE) ## the worked example: a model learns to translate, scored before and after (DATA=FOLDER of multi30k, INIT=RUN)
	@test -n "$(INIT)" || test -e runs/smollm2/config.json || \
		$(BIN)/python -m instructgpt import --from smollm2 --out runs/smollm2
	$(BIN)/python train.py translate --init "$(or $(INIT),runs/smollm2)" --data "$(or $(DATA),world)" \
		--out "$(or $(OUT),runs/translate)" $(ARGS)

serve: $(FOR_USE) ## a model as a service, with a page to chat on at http://127.0.0.1:8000 (MODEL=runs/smollm2 if it is there, else runs/tiny/sft)
	@model='$(or $(MODEL),$(if $(wildcard runs/smollm2/config.json),runs/smollm2,runs/tiny/sft))'; \
	test -e "$$model/config.json" || { \
		echo "error: $$model holds no model; \`make smollm2\` or \`make train\` makes one" >&2; exit 2; }; \
	$(BIN)/python -m instructgpt serve --model "$$model" $(ARGS)

test: $(FOR_WORK) ## the tests, quick profile
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m 'not slow' $(ARGS)

test-all: $(FOR_WORK) ## the tests, slow ones and eight times as many generated examples included
	HYPOTHESIS_PROFILE=thorough OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

lint: $(FOR_WORK) ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

kernels: $(FOR_WORK) ## are the kernels right, and do they compile for A100, H100 and B200? Needs no GPU
	$(BIN)/python -m kernels.lab check all
	$(BIN)/python -m kernels.lab compile all --arch 80 90 100

bench: $(FOR_WORK) ## training steps, the ladder of tricks, decoding and memory on this device; on a CUDA device the kernels too
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.ladder
	$(BIN)/python -m benchmarks.decode
	$(BIN)/python -m benchmarks.head_memory
	$(BIN)/python -m kernels.lab bench all $(ARGS)

# Without set-up: it takes the Python, torch and triton that are there, and downloads nothing.
gpu: ## what to run first on a GPU, within 10 minutes: tests, speed of everything, `make train` (ARGS="--minutes 15")
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu $(ARGS)

notebooks: $(FOR_WORK) ## run the notebooks and check what they say (ARGS="-k 01_tokens": one of them)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -vv \
		tests/notebooks/test_notebooks.py::test_gives_what_is_stored $(ARGS)

docs: $(FOR_USE) ## write the tables and pictures of README and docs/ anew from benchmarks/results
	$(BIN)/python -m benchmarks.documents $(ARGS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo 'error: $(PYTHON) is missing or older than 3.10; name another one with PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The build tool first and without isolation, so that it too is the version that constraints.txt names.
$(FOR_USE): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) setuptools
	$(PIP) --no-build-isolation -e '.[plot,eval,pretrained,serve]'
	@touch $@

$(FOR_WORK): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) setuptools
	$(PIP) --no-build-isolation -e '.[plot,eval,pretrained,serve,ray,dev]'
	@touch $(FOR_USE) $@
