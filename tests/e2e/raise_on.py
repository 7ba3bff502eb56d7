"""Run gkt_mpi.main with an exception planted: python raise_on.py RANK WHERE [arguments]. Used by test_errors.py."""

import sys

from mpi4py import MPI

from gkt_mpi.data import shard
from gkt_mpi.engine import client, server, worker
from gkt_mpi.main import main

RANK, WHERE = int(sys.argv[1]), sys.argv[2]
PLACES = {
    "server before training": (server.Server, "__init__"),
    "server while training": (server.Server, "step"),
    "server while receiving": (server.Server, "collect"),
    "server while evaluating": (server, "evaluate"),
    "worker before training": (worker.Worker, "__post_init__"),
    "worker while loading": (shard.Shard, "load"),
    "worker while training": (client.Client, "step"),
    "worker while uploading": (worker.Worker, "upload"),
}


def planted(*arguments, **options):
    raise ZeroDivisionError(f"planted in the {WHERE}")


if MPI.COMM_WORLD.rank == RANK:
    setattr(*PLACES[WHERE], planted)
sys.exit(main(sys.argv[3:]))
