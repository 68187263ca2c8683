# The commands of the README. `make demo` and `make test` create the environment by themselves.

PYTHON ?= python3
ENV := .venv
BIN := $(ENV)/bin

.PHONY: demo study keep-results test soak test-all test-slurm lint docs figures locks check-gpu bench-ppo unlock

$(ENV)/.ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(ENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(ENV)/.ready-dev: $(ENV)/.ready requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# A line a stage and one of progress (workflow/logger), or with V=1 all that Snakemake and the jobs say.
V ?=
SNAKEMAKE := $(if $(V),,PYTHONPATH='$(CURDIR)/workflow/logger') $(BIN)/snakemake $(if $(V),,--logger rllr)

# The whole pipeline on a real model and real data, on two CPU cores.
DEMO := sft sft_wrat rllr_mix
demo: $(ENV)/.ready
	@$(SNAKEMAKE) --cores all $(DEMO:%=results/smollm2/%/metrics.json)
	@$(BIN)/python workflow/scripts/show.py results/smollm2 $(DEMO)

# The paper's claim, for or against: every method with several seeds, each in a run folder of its own,
# runs/<data>/seed<n>. Data and base model are shared. Go on after an interruption with the same command; MODEL, DATA
# and SEEDS may be given.
MODEL := smollm2
DATA := study
SEEDS := 1 2 3
RUNS = runs/$(DATA)
STUDIED := sft sft_wrat sft_wrat_all dpo rlhf rllr rllr_mix rllr_mix_rloo rlvr
comma := ,
space := $(subst ,, )
study: $(ENV)/.ready
	set -e; for seed in $(SEEDS); do \
	  $(SNAKEMAKE) --cores all --snakefile '$(CURDIR)/Snakefile' --profile '$(CURDIR)/profiles/default' \
	    --directory $(RUNS)/seed$$seed --config seed=$$seed 'prepared=$(CURDIR)/results' \
	    data=$(DATA) 'models=[$(MODEL)]' \
	    'methods=[$(subst $(space),$(comma),$(STUDIED))]'; \
	done
	$(BIN)/python workflow/scripts/summary.py --results $(SEEDS:%=$(RUNS)/seed%/results) --models $(MODEL) \
	  --methods $(STUDIED) --out $(RUNS)

# What docs/results.md shows of a study.
keep-results:
	mkdir -p docs/results/$(DATA)
	cp $(RUNS)/summary.md $(RUNS)/summary.tsv $(RUNS)/differences.svg docs/results/$(DATA)/
	$(BIN)/python docs/tables.py docs/results.md

# Tests in as many processes as there are cores, four at most.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

test: $(ENV)/.ready-dev
	$(PYTEST) -m "not slow and not slurm"

test-all: $(ENV)/.ready-dev
	$(PYTEST) -m "not slurm"

# On a real one-node SLURM that the tests start as root (apt-get install slurm-wlm munge); writes /etc/slurm/slurm.conf.
test-slurm: $(ENV)/.ready-dev
	RLLR_TEST_SLURM=1 $(BIN)/python -m pytest -m slurm -rs

# Twenty kills at random moments instead of the three of `make test`.
soak: $(ENV)/.ready-dev
	RLLR_KILLS=20 $(BIN)/python -m pytest tests/workflow/test_faults.py -k random -s

lint: $(ENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

# Every dependency of requirements.txt, exactly: with PyTorch's CPU build (and what tests and linters need), and with its
# CUDA build. Versions that are locked stay unless UPGRADE=--upgrade; CPU_BUILD may name a folder of wheels instead.
CPU_INDEX := https://download.pytorch.org/whl/cpu
CPU_BUILD := --torch-backend cpu
UV := $(BIN)/uv pip compile --quiet --no-annotate --no-header --python-version 3.11 \
  --python-platform x86_64-manylinux_2_28 $(UPGRADE)
locks: $(ENV)/.ready-dev
	$(UV) requirements.txt --output-file locks/cuda.txt
	$(UV) requirements-dev.txt $(CPU_BUILD) --output-file locks/cpu.txt
	sed -i '1i --extra-index-url $(CPU_INDEX)' locks/cpu.txt

# The picture of the stages in the README.
figures: $(ENV)/.ready
	$(BIN)/snakemake --rulegraph dot results/report.html results/summary.html results/smollm2/dpo/metrics.json \
	  results/smollm2/rllr_mix/model | $(BIN)/python docs/stages.py

# The pages as a site in site/; a broken link is an error.
docs: $(ENV)/.ready-dev
	rm -rf .site && mkdir .site
	cp --parents $$(git ls-files '*.md' '*.svg' '*.csv' '*.tsv' 'profiles/*' 'locks/*' Dockerfile CITATION.cff LICENSE) .site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Our PPO engine beside the paper's (trl 0.7.2, in an environment of its own).
.venv-peer/.ready: benchmarks/requirements-peer.txt
	$(PYTHON) -m venv .venv-peer
	.venv-peer/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements-peer.txt
	touch $@

# On a machine with a GPU: does everything run there, how fast, is memory as estimated? Writes benchmarks/gpu/.
# INSTALLED=python3: with the packages that this Python has.
INSTALLED ?=
check-gpu: $(if $(INSTALLED),,$(ENV)/.ready)
	$(or $(INSTALLED),$(BIN)/python) benchmarks/check_gpu.py

bench-ppo: $(ENV)/.ready .venv-peer/.ready
	$(BIN)/python benchmarks/ppo.py --peer .venv-peer/bin/python

# After Snakemake itself was killed: removes the lock it left on this folder, or on FOLDER (runs/seed2).
FOLDER := .
unlock: $(ENV)/.ready
	$(BIN)/snakemake --unlock --snakefile '$(CURDIR)/Snakefile' --directory $(FOLDER)
