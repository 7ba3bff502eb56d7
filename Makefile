# Everything a person does with this project, by name. `make` alone lists it.

VENV ?= .venv
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
OUT ?= runs
ARGS ?=
JSON ?=
MPIRUN ?= mpirun
MPIFLAGS ?=

python = "$(VENV)/bin/python"
env = PYTHON="$(PYTHON)" CONSTRAINTS="$(CONSTRAINTS)" sh launch/make_env.sh "$(VENV)"
mpirun = VENV="$(VENV)" MPIRUN="$(MPIRUN)" sh launch/mpirun.sh -np $(NP) $(MPIFLAGS)

.PHONY: help digits cifar10 cifar100 cinic10 test soak bench-wire bench-waiting bench-bank bench-codec bench-compute bench-round \
	bench-clients check clean
.DEFAULT_GOAL := help

help:  ## this list
	@echo "make TARGET [VARIABLE=value ...]"
	@echo
	@sed -n 's/^\([a-z0-9%-]*\):.*## /  \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-15s %s\n", $$1, $$2}'
	@echo
	@echo "  VENV=$(VENV)  Python environment; an existing one is used as it is"
	@echo "  NP=5 or 21  ranks: one server, the others are workers"
	@echo "  OUT=$(OUT)  folder of run folders"
	@echo "  ARGS=\"--seed 1 --server.model resnet110\"  passed to the program"
	@echo "  JSON=bench.json  also write a benchmark's table here"
	@echo "  MPIRUN=$(MPIRUN)  MPIFLAGS=\"--hostfile hosts\"  the launcher and its flags"
	@echo "  PYTHON=$(PYTHON)  CONSTRAINTS=$(CONSTRAINTS)  how the environment is made"

digits: NP ?= 5
digits:  ## set everything up and train on handwritten digits: 4 clients, about a minute
	@$(env) mpi
	@$(mpirun) python -m gkt_mpi.main --config launch/configs/digits.yaml --out "$(OUT)" --checkpoint.resume never $(ARGS)

cifar10 cifar100 cinic10: NP ?= 21
cifar10:  ## train on CIFAR-10 as in the paper; the archive lies in data/ (ARGS="--data.download true" fetches it)
cifar100:  ## the same on CIFAR-100
cinic10:  ## the same on CINIC-10, unpacked in data/CINIC-10
cifar10 cifar100 cinic10:
	@$(env) mpi
	@$(mpirun) python -m gkt_mpi.main --config launch/configs/$@.yaml --out "$(OUT)" $(ARGS)

test:  ## all tests, two files at a time
	@$(env) mpi dev
	@$(python) -m pytest -n 2 --dist loadfile $(ARGS)

soak:  ## throw random faults at small runs, against the figures of an undisturbed one (ten minutes; ARGS="--seed 1")
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
bench-compute:  ## how fast the networks train, against plain PyTorch and the limit (ten minutes)
bench-round:  ## a whole round beside the bare compute it needs (ten minutes)
bench-clients:  ## what 1,000 clients on 2 workers cost (ten minutes)
bench-bank bench-codec bench-compute bench-round bench-clients:
	@$(env) mpi
	@PATH="$$(cd "$(VENV)" && pwd)/bin:$$PATH" python benchmarks/$(@:bench-%=%).py $(if $(JSON),--json "$(JSON)") $(ARGS)

check:  ## ruff and mypy
	@$(env) mpi dev
	@$(python) -m ruff check .
	@$(python) -m ruff format --check .
	@$(python) -m mypy

clean:  ## remove caches and what was built; .venv, data and runs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
