"""Run gkt_mpi.main with faults planted: python plant.py [FAULT ...] -- [arguments of gkt_mpi.main].

A fault is "RANK,WHERE,CALL,WHAT": on that rank, when it comes to that place for the CALL-th time (from 1; 0: every
time), that happens. See PLACES and the methods of `Faults`. Ranks that stop themselves leave their process number in
the folder PLANT_PIDS, so that another rank can wake them.
"""

import os
import signal
import sys
from pathlib import Path

from mpi4py import MPI

from gkt_mpi.data import shard
from gkt_mpi.engine import checkpoint, client, server, worker
from gkt_mpi.main import main
from gkt_mpi.wire import mpi

PLACES = {
    "server before training": (server.Server, "__init__"),
    "server while receiving": (server.Server, "collect"),
    "server while taking a block in": (server.Bank, "claim"),
    "server while training": (server.Server, "step"),
    "server while predicting": (server.Bank, "all_batches"),
    "server while evaluating": (server, "evaluate"),
    "server while saving": (checkpoint.os, "fsync"),
    "server at the end": (server.Server, "_finish"),
    "worker before training": (worker.Worker, "__post_init__"),
    "worker while loading": (shard.Shard, "load"),
    "worker while training": (client.Client, "step"),
    "worker while uploading": (worker.Worker, "upload"),
    "worker in the middle of a block": (mpi.MpiTransport, "_pieces"),
    "worker while waiting": (mpi.MpiTransport, "_receive_header"),
}


class Faults:
    """What can happen; each is called in place of the method there, and calls it unless it ends the process."""

    @staticmethod
    def fail(where, method, *arguments):
        raise ZeroDivisionError(f"planted in the {where}")

    @staticmethod
    def kill(where, method, *arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def stop(where, method, *arguments):
        (Path(os.environ["PLANT_PIDS"]) / str(MPI.COMM_WORLD.rank)).write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
        return method(*arguments)

    @staticmethod
    def wake(where, method, *arguments):
        for path in Path(os.environ["PLANT_PIDS"]).iterdir():
            os.kill(int(path.read_text()), signal.SIGCONT)
        return method(*arguments)

    @staticmethod
    def term(where, method, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return method(*arguments)

    @staticmethod
    def usr1(where, method, *arguments):
        os.kill(os.getpid(), signal.SIGUSR1)
        return method(*arguments)

    @staticmethod
    def int(where, method, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return method(*arguments)

    @staticmethod
    def nan(where, upload, self, client, round, rows, feature, logit):
        feature = feature.clone()
        feature.view(-1)[0] = float("nan")
        return upload(self, client, round, rows, feature, logit)

    @staticmethod
    def infinity(where, upload, self, client, round, rows, feature, logit):
        logit = logit.clone()
        logit[-1, -1] = float("inf")
        return upload(self, client, round, rows, feature, logit)

    @staticmethod
    def labels(where, upload, self, client, round, rows, feature, logit):
        label = client.shard.label.clone()
        client.shard.label[rows.start] = 99
        upload(self, client, round, rows, feature, logit)
        client.shard.label.copy_(label)

    @staticmethod
    def twice(where, upload, self, client, round, rows, feature, logit):
        upload(self, client, round, rows, feature, logit)
        spans = list(self.timeline._spans)
        upload(self, client, round, rows, feature, logit)
        self.timeline._spans = spans  # a report has as many spans as an honest one


def plant(where, faults):
    """Replace a method by one that counts its calls and has each fault happen when its time has come."""
    owner, name = PLACES[where]
    method = getattr(owner, name)
    calls = 0

    def planted(*arguments, **options):
        nonlocal calls
        calls += 1
        for call, what in faults:
            if call in (0, calls):
                return getattr(Faults, what)(where, method, *arguments, **options)
        return method(*arguments, **options)

    is_static = isinstance(vars(owner).get(name), classmethod | staticmethod)
    setattr(owner, name, staticmethod(planted) if is_static else planted)


def main_with_faults(faults, arguments):
    """Plant what belongs on this rank, and run."""
    mine = {}
    for fault in faults:
        rank, where, call, what = fault.split(",")
        if int(rank) == MPI.COMM_WORLD.rank:
            mine.setdefault(where, []).append((int(call), what))
    for where, found in mine.items():
        plant(where, found)
    return main(arguments)


if __name__ == "__main__":
    middle = sys.argv.index("--")
    sys.exit(main_with_faults(sys.argv[1:middle], sys.argv[middle + 1 :]))
