# Common commands of this project. `make` alone lists them.

VENV ?= .venv
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
OUT ?= runs
ARGS ?=
JSON ?=
MPIRUN ?= mpirun
MPIFLAGS ?=
CONFIG ?=
PARTITION ?=
ALPHA ?=
SERVER ?=
ROUNDS ?=
SEED ?=
SEEDS ?=
RUN ?=

python = "$(VENV)/bin/python"
env = PYTHON="$(PYTHON)" CONSTRAINTS="$(CONSTRAINTS)" sh launch/make_env.sh "$(VENV)" report
mpirun = VENV="$(VENV)" MPIRUN="$(MPIRUN)" sh launch/mpirun.sh -np $(NP) $(MPIFLAGS)
program = python -m gkt_mpi.main --config "$(CONFIG)" --out "$(OUT)"
has_config = test -n "$(CONFIG)" || { echo "gkt_mpi: choose a configuration: CONFIG=launch/configs/paper/cifar10_homo_resnet56.yaml" >&2; exit 2; }
sweep = $(if $(NP),-np $(NP)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(MPIFLAGS),--mpi="$(MPIFLAGS)") $(if $(RUN)$(filter compare,$@),,--list)
# Variables for common settings; they are part of the run's name and folder (except ROUNDS: a run can be extended).
knobs = $(if $(PARTITION),--data.partition $(PARTITION)) $(if $(ALPHA),--data.alpha $(ALPHA)) \
	$(if $(SERVER),--server.model $(SERVER)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED))
folder_name = $(notdir $(basename $(CONFIG)))$(if $(PARTITION),-$(PARTITION))$(if $(ALPHA),-alpha$(ALPHA))$(if \
	$(SERVER),-$(SERVER))$(if $(SEED),-seed$(SEED))

# Refuse variables that no requested target reads: a typing error would otherwise start a long run of something else.
runs = digits cifar10 cifar100 cinic10 cifar10-cpu run
benchmarks = bench-wire bench-waiting bench-bank bench-codec bench-compute bench-round bench-busy bench-clients bench-async ablation
anywhere = VENV PYTHON CONSTRAINTS OUT ARGS MPIRUN MPIFLAGS SHELL MAKEFLAGS
readers_PARTITION = $(runs) check-cluster
readers_ALPHA = $(runs) check-cluster
readers_SERVER = $(runs) check-cluster
readers_SEED = $(runs) check-cluster
readers_ROUNDS = $(runs) check-cluster
readers_CONFIG = run check-cluster
readers_NP = $(runs) check-cluster paper compare bench-wire bench-waiting
readers_SEEDS = paper compare
readers_RUN = paper
readers_JSON = $(benchmarks)
known = $(anywhere) $(patsubst readers_%,%,$(filter readers_%,$(.VARIABLES)))
meant_CLIENTS = ARGS="--clients $(CLIENTS)"
nearest = $(or $(meant_$1),$(shell "$(PYTHON)" -c 'import difflib, sys; name, *known = sys.argv[1:]; \
	print(*difflib.get_close_matches(name.upper(), known, 1))' $1 $(known) 2>/dev/null))
did_you_mean = $(if $1,; did you mean $1?)
$(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(if $(filter $(name),$(known)),,$(error \
	gkt_mpi: make has no variable $(name)$(call did_you_mean,$(call nearest,$(name))) (make help lists them; a field of the program \
	goes into ARGS="--field value"; an environment variable goes before make: $(name)=$(value $(name)) make ...)))))
$(foreach name,$(filter-out $(anywhere),$(known)),$(if $(findstring command,$(origin $(name))),$(if $(strip $($(name))),$(if \
	$(filter-out help,$(MAKECMDGOALS)),$(if $(filter $(MAKECMDGOALS),$(readers_$(name))),,$(error \
	gkt_mpi: $(name) has no effect on $(MAKECMDGOALS); it is for $(readers_$(name))))))))

.PHONY: help env digits cifar10 cifar10-cpu cifar100 cinic10 run check-cluster paper compare docs test test-grid test-all test-slurm soak bench-wire bench-waiting bench-bank bench-codec bench-compute bench-round bench-busy \
	bench-clients bench-async ablation check clean
.DEFAULT_GOAL := help

help:  ## this list
	@echo "make TARGET [VARIABLE=value ...]"
	@echo
	@sed -n 's/^\([a-z0-9%-]*\):.*## /  \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-15s %s\n", $$1, $$2}'
	@echo
	@echo "  VENV=$(VENV)  Python environment; an existing one is used unchanged"
	@echo "  NP=5, 17 or 21  ranks: one server, the others are workers"
	@echo "  PARTITION=hetero ALPHA=0.5 SERVER=resnet110 ROUNDS=200 SEED=1  for digits, cifar10, cifar100, cinic10, cifar10-cpu and run"
	@echo "  CONFIG=launch/configs/paper/cifar10_homo_resnet56.yaml  for run and check-cluster"
	@echo "  SEEDS=3  number of seeds, for paper and compare; RUN=1  for paper: run, not only list"
	@echo "  OUT=$(OUT)  folder of run folders"
	@echo "  ARGS=\"--client.lr 0.003\"  passed to the program"
	@echo "  JSON=bench.json  also write a benchmark's table here"
	@echo "  MPIRUN=$(MPIRUN)  MPIFLAGS=\"--hostfile hosts\"  the launcher and its flags"
	@echo "  PYTHON=$(PYTHON)  CONSTRAINTS=$(CONSTRAINTS)  interpreter and pinned versions of a new environment"
	@echo
	@echo "make -n TARGET shows the commands without running them."

env:  ## only set up the environment, such as on a cluster whose jobs have no network access
	@$(env) mpi

digits: NP ?= 5
digits: CONFIG = launch/configs/digits.yaml
digits: resume = --checkpoint.resume never
digits:  ## set everything up and train on handwritten digits: 4 clients, about a minute

cifar10 cifar100 cinic10: NP ?= 21
cifar10:  ## train on CIFAR-10 as in the paper; from the archive in data/ (ARGS="--data.download true" downloads it)
cifar100:  ## the same on CIFAR-100
cinic10:  ## the same on CINIC-10, unpacked in data/CINIC-10
cifar10 cifar100 cinic10: CONFIG = launch/configs/$@.yaml
cifar10-cpu: NP ?= $(shell n=$$(nproc); echo $$((n < 16 ? n + 1 : 17)))
cifar10-cpu: CONFIG = launch/configs/cifar10_recipe.yaml
cifar10-cpu:  ## all of CIFAR-10 in 20 passes, without a GPU: an hour or two, estimated in the first round (PARTITION=hetero)
# One worker per client, and at most the paper's number.
run check-cluster: NP ?= $(shell sed -n 's/^clients: //p' "$(CONFIG)" 2>/dev/null | awk '{n = $$1 < 16 ? $$1 : 16} END {print (n ? n : 16) + 1}')
run:  ## run any configuration: CONFIG=FILE
$(runs):
	@$(has_config)
	@$(env) mpi
	@$(mpirun) $(program) --name "$(folder_name)" $(resume) $(knobs) $(ARGS)

check-cluster:  ## before a long run: check every rank's resources and connection (CONFIG=...)
	@$(has_config)
	@$(env) mpi
	@$(mpirun) $(program) --check $(knobs) $(ARGS)

paper:  ## list the runs of the paper's main table, or with RUN=1 run those that are not complete (SEEDS=3: seeds 0 to 2)
compare:  ## compare FedGKT with FedAvg, split learning, centralized and standalone training: digits, 3 seeds, a quarter of an hour
paper compare:
	@$(env) mpi
	@PATH="$$(cd "$(VENV)" && pwd)/bin:$$PATH" MPIRUN="$(MPIRUN)" python -m gkt_mpi.programs.sweep $@ --out "$(OUT)/$@" $(sweep) $(ARGS)

docs:  ## the documentation site, built into site/ without a network; any broken link is an error
	@$(env) mpi docs
	@NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict
	@echo "site: site/index.html"

test:  ## the test suite, about seven minutes on two cores
test-grid:  ## the combinations that test omits: every fault in every phase, several hosts, 21 ranks, a short soak
# One process more than cores, since tests of several processes sometimes wait. Compiled files are kept, see make_env.sh.
test test-grid: processes = $(shell n=$$(nproc); echo $$((n < 8 ? n + 1 : 8)))
test test-grid:
	@$(env) mpi dev
	@PYTHONDONTWRITEBYTECODE= $(python) -m pytest -n $(processes) --dist worksteal --durations 10 $(if $(filter %-grid,$@),-m grid) $(ARGS)

test-all: test test-grid  ## both

test-slurm:  ## the batch scripts on a real Slurm, started for the tests: needs root, slurm-wlm and munge
	@$(env) mpi dev
	@$(python) -c 'import sys; from tests.slurm.cluster import missing; sys.exit(missing() or 0)'
	@$(python) -m pytest tests/slurm $(ARGS)

soak:  ## inject random faults into small runs and compare with an undisturbed one (eight minutes; ARGS="--seed 1")
	@$(env) mpi dev
	@$(python) -m tests.e2e.soak $(ARGS)

test-mpi-%:  ## the message layer's tests on % ranks
	@$(env) mpi dev
	@VENV="$(VENV)" MPIRUN="$(MPIRUN)" timeout 300 sh launch/mpirun.sh -np $* $(MPIFLAGS) python -m pytest tests/mpi $(ARGS)

bench-wire: NP ?= 6
bench-wire:  ## throughput of uploads, compared with pickle and the limit (JSON=file also writes the table)
bench-waiting: NP ?= 21
bench-waiting:  ## CPU cost of waiting workers
bench-wire bench-waiting:
	@$(env) mpi
	@$(mpirun) python -m mpi4py benchmarks/$(@:bench-%=%).py $(if $(JSON),--json "$(JSON)") $(ARGS)

bench-bank:  ## speed of a feature bank on disk
bench-codec:  ## accuracy by codec (ARGS="--cifar data" adds CIFAR-10)
bench-compute:  ## training speed of the networks, compared with plain PyTorch and the limit (a quarter of an hour)
bench-round:  ## a whole round, compared with its bare computation and the released code's (half an hour)
bench-busy:  ## the server's training on a busy machine (a quarter of an hour)
bench-clients:  ## cost of 1,000 clients on 2 workers (ten minutes)
bench-async:  ## asynchronous and synchronous FedGKT, with one client ten times slower (half an hour, two with ARGS="--cifar data")
bench-bank bench-codec bench-compute bench-round bench-busy bench-clients bench-async:
	@$(env) mpi
	@PATH="$$(cd "$(VENV)" && pwd)/bin:$$PATH" python benchmarks/$(@:bench-%=%).py $(if $(JSON),--json "$(JSON)") $(ARGS)

ablation:  ## effect of each option on a subset of CIFAR-10 in data/ (two to three hours; ARGS="--only 0 4 --seeds 2")
	@$(env) mpi
	@PATH="$$(cd "$(VENV)" && pwd)/bin:$$PATH" python benchmarks/ablation.py --out "$(OUT)/ablation" $(if $(JSON),--json "$(JSON)") $(ARGS)

check:  ## ruff and mypy
	@$(env) mpi dev
	@$(python) -m ruff check .
	@$(python) -m ruff format --check .
	@$(python) -m mypy

clean:  ## remove caches and build products; keeps .venv, data and runs
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
