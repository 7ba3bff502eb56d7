# Everything a person does with this project, by name. `make` alone lists it.

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
SEEDS ?= 0
RUN ?=

python = "$(VENV)/bin/python"
env = PYTHON="$(PYTHON)" CONSTRAINTS="$(CONSTRAINTS)" sh launch/make_env.sh "$(VENV)"
mpirun = VENV="$(VENV)" MPIRUN="$(MPIRUN)" sh launch/mpirun.sh -np $(NP) $(MPIFLAGS)
program = python -m gkt_mpi.main --config "$(CONFIG)" --out "$(OUT)"
has_config = test -n "$(CONFIG)" || { echo "gkt_mpi: say what to run: CONFIG=launch/configs/paper/cifar10_homo_resnet56.yaml" >&2; exit 2; }
given = $(if $(findstring command,$(origin $(name))),$(name)="$($(name))")
# What a run can be told in one word; its name, and so its folder, says which (but for ROUNDS: a run can be prolonged).
knobs = $(if $(PARTITION),--data.partition $(PARTITION)) $(if $(ALPHA),--data.alpha $(ALPHA)) \
	$(if $(SERVER),--server.model $(SERVER)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED))
folder_name = $(notdir $(basename $(CONFIG)))$(if $(PARTITION),-$(PARTITION))$(if $(ALPHA),-alpha$(ALPHA))$(if \
	$(SERVER),-$(SERVER))$(if $(SEED),-seed$(SEED))

# What is typed on make's command line must be read by somebody, or a typing error would start a long run of something else.
runs = digits cifar10 cifar100 cinic10 cifar10-cpu run
benchmarks = bench-wire bench-waiting bench-bank bench-codec bench-compute bench-round bench-busy bench-clients bench-async ablation
anywhere = VENV PYTHON CONSTRAINTS OUT ARGS MPIRUN MPIFLAGS SHELL MAKEFLAGS
readers_PARTITION = $(runs) check-cluster
readers_ALPHA = $(runs) check-cluster
readers_SERVER = $(runs) check-cluster
readers_SEED = $(runs) check-cluster
readers_ROUNDS = $(runs) check-cluster paper
readers_CONFIG = run check-cluster
readers_NP = $(runs) check-cluster paper bench-wire bench-waiting
readers_SEEDS = paper
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
	gkt_mpi: $(name) means nothing to $(MAKECMDGOALS); it is for $(readers_$(name))))))))

.PHONY: help env digits cifar10 cifar10-cpu cifar100 cinic10 run check-cluster paper compare test test-grid test-all test-slurm soak bench-wire bench-waiting bench-bank bench-codec bench-compute bench-round bench-busy \
	bench-clients bench-async ablation check clean
.DEFAULT_GOAL := help

help:  ## this list
	@echo "make TARGET [VARIABLE=value ...]"
	@echo
	@sed -n 's/^\([a-z0-9%-]*\):.*## /  \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-15s %s\n", $$1, $$2}'
	@echo
	@echo "  VENV=$(VENV)  Python environment; an existing one is used as it is"
	@echo "  NP=5, 17 or 21  ranks: one server, the others are workers"
	@echo "  PARTITION=hetero ALPHA=0.5 SERVER=resnet110 ROUNDS=200 SEED=1  for digits, cifar10, cifar100, cinic10, cifar10-cpu and run"
	@echo "  CONFIG=launch/configs/paper/cifar10_homo_resnet56.yaml  for run and check-cluster"
	@echo "  SEEDS=\"$(SEEDS)\"  RUN=1  for paper: with which seeds; run, and not only print"
	@echo "  OUT=$(OUT)  folder of run folders"
	@echo "  ARGS=\"--client.lr 0.003\"  passed to the program"
	@echo "  JSON=bench.json  also write a benchmark's table here"
	@echo "  MPIRUN=$(MPIRUN)  MPIFLAGS=\"--hostfile hosts\"  the launcher and its flags"
	@echo "  PYTHON=$(PYTHON)  CONSTRAINTS=$(CONSTRAINTS)  how the environment is made"
	@echo
	@echo "make -n TARGET shows the commands and runs nothing."

env:  ## only set up the environment: on a cluster, where jobs may reach no network
	@$(env) mpi

digits: NP ?= 5
digits: CONFIG = launch/configs/digits.yaml
digits: resume = --checkpoint.resume never
digits:  ## set everything up and train on handwritten digits: 4 clients, about a minute

cifar10 cifar100 cinic10: NP ?= 21
cifar10:  ## train on CIFAR-10 as in the paper; the archive lies in data/ (ARGS="--data.download true" fetches it)
cifar100:  ## the same on CIFAR-100
cinic10:  ## the same on CINIC-10, unpacked in data/CINIC-10
cifar10 cifar100 cinic10: CONFIG = launch/configs/$@.yaml
cifar10-cpu: NP ?= $(shell n=$$(nproc); echo $$((n < 16 ? n + 1 : 17)))
cifar10-cpu: CONFIG = launch/configs/cifar10_recipe.yaml
cifar10-cpu:  ## all of CIFAR-10 in 20 passes, for a machine without a GPU: an hour or two, the first minutes say (PARTITION=hetero)
# One rank a client, and never more than the paper's.
run check-cluster: NP ?= $(shell sed -n 's/^clients: //p' "$(CONFIG)" 2>/dev/null | awk '{n = $$1 < 16 ? $$1 : 16} END {print (n ? n : 16) + 1}')
run:  ## run any configuration: CONFIG=FILE
$(runs):
	@$(has_config)
	@$(env) mpi
	@$(mpirun) $(program) --name "$(folder_name)" $(resume) $(knobs) $(ARGS)

check-cluster:  ## before a long run: look at every rank, what it has and whether it is reached (CONFIG=...)
	@$(has_config)
	@$(env) mpi
	@$(mpirun) $(program) --check $(knobs) $(ARGS)

paper:  ## the runs of the paper's main table: printed, or with RUN=1 run one after the other (SEEDS="0 1 2")
	@for config in $(sort $(wildcard $(addprefix launch/configs/paper/,*_homo_*.yaml *_hetero_*.yaml *_centralized_*.yaml))); do for seed in $(SEEDS); do \
	    echo 'make run CONFIG='$$config SEED=$$seed '$(strip $(foreach name,NP OUT VENV ROUNDS ARGS MPIFLAGS,$(given)))'; \
	    $(if $(RUN),$(MAKE) --no-print-directory run CONFIG=$$config SEED=$$seed SEEDS= RUN= || exit;) \
	done; done

compare:  ## FedGKT beside FedAvg, split learning, centralized and edge-only training: digits, 3 seeds, a quarter of an hour
	@$(env) mpi
	@PATH="$$(cd "$(VENV)" && pwd)/bin:$$PATH" python benchmarks/compare.py --out "$(OUT)/compare" $(ARGS)

test:  ## what a change may break, three to five minutes on two cores
test-grid:  ## the combinations that test leaves out: every fault in every phase, several hosts, 21 ranks, a short soak
# One process more than cores, since tests of several processes wait now and then. Compiled files are kept, see make_env.sh.
test test-grid: processes = $(shell n=$$(nproc); echo $$((n < 8 ? n + 1 : 8)))
test test-grid:
	@$(env) mpi dev
	@PYTHONDONTWRITEBYTECODE= $(python) -m pytest -n $(processes) --dist worksteal --durations 10 $(if $(filter %-grid,$@),-m grid) $(ARGS)

test-all: test test-grid  ## both

test-slurm:  ## the batch scripts on a real Slurm, started for the tests: needs root, slurm-wlm and munge
	@$(env) mpi dev
	@$(python) -c 'import sys; from tests.slurm.cluster import missing; sys.exit(missing() or 0)'
	@$(python) -m pytest tests/slurm $(ARGS)

soak:  ## throw random faults at small runs, against the figures of an undisturbed one (eight minutes; ARGS="--seed 1")
	@$(env) mpi dev
	@$(python) -m tests.e2e.soak $(ARGS)

test-mpi-%:  ## the message layer's tests on % ranks
	@$(env) mpi dev
	@VENV="$(VENV)" MPIRUN="$(MPIRUN)" timeout 300 sh launch/mpirun.sh -np $* $(MPIFLAGS) python -m pytest tests/mpi $(ARGS)

bench-wire: NP ?= 6
bench-wire:  ## how fast uploads reach the server, against pickle and the limit (JSON=file writes it, too)
bench-waiting: NP ?= 21
bench-waiting:  ## what waiting workers cost
bench-wire bench-waiting:
	@$(env) mpi
	@$(mpirun) python -m mpi4py benchmarks/$(@:bench-%=%).py $(if $(JSON),--json "$(JSON)") $(ARGS)

bench-bank:  ## what a feature bank on the disk costs
bench-codec:  ## what a codec costs in accuracy (ARGS="--cifar data" adds CIFAR-10)
bench-compute:  ## how fast the networks train, against plain PyTorch and the limit (a quarter of an hour)
bench-round:  ## a whole round beside the bare compute it needs and the released arrangement (half an hour)
bench-busy:  ## what a busy machine does to the server's training (a quarter of an hour)
bench-clients:  ## what 1,000 clients on 2 workers cost (ten minutes)
bench-async:  ## asynchronous beside synchronous FedGKT, one client ten times slower (half an hour, two with ARGS="--cifar data")
bench-bank bench-codec bench-compute bench-round bench-busy bench-clients bench-async:
	@$(env) mpi
	@PATH="$$(cd "$(VENV)" && pwd)/bin:$$PATH" python benchmarks/$(@:bench-%=%).py $(if $(JSON),--json "$(JSON)") $(ARGS)

ablation:  ## what each cause is worth on a piece of CIFAR-10 in data/ (two to three hours; ARGS="--only 0 4 --seeds 2")
	@$(env) mpi
	@PATH="$$(cd "$(VENV)" && pwd)/bin:$$PATH" python benchmarks/ablation.py --out "$(OUT)/ablation" $(if $(JSON),--json "$(JSON)") $(ARGS)

check:  ## ruff and mypy
	@$(env) mpi dev
	@$(python) -m ruff check .
	@$(python) -m ruff format --check .
	@$(python) -m mypy

clean:  ## remove caches and what was built; .venv, data and runs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
