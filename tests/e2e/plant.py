"""Run gkt_mpi.main with faults planted: python plant.py [FAULT ...] -- [arguments of gkt_mpi.main].

A fault is "RANK,WHERE,CALL,WHAT": on that rank, when it comes to that place for the CALL-th time (from 1; 0: every
time), that happens. WHERE is one of PLACES. WHAT is a method of `Faults`, or a real signal: kill, stop, cont, term,
usr1, int, to the process itself or to another (kill-2: rank 2; term-launcher: what the test has started). Process
numbers are found in the folder PLANT_PIDS; what has happened is added to the file "struck" there.
"""

import gc

gc.disable()  # as gkt_mpi/main.py does, for a quick start
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from mpi4py import MPI

from gkt_mpi.data import shard
from gkt_mpi.errors import LostRankError
from gkt_mpi.federation import checkpoint, client, round_end, server, worker
from gkt_mpi.federation.faults import Interrupt
from gkt_mpi.learners import bank, site, teacher
from gkt_mpi.log import run_log
from gkt_mpi.main import main
from gkt_mpi.wire import mpi, mpi_buffers

gc.freeze()
gc.enable()
PIDS = Path(os.environ["PLANT_PIDS"])
PLACES = {
    "server before training": (server.Server, "__init__"),
    "server while receiving": (server.Server, "collect"),
    "server while taking a block in": (bank.Bank, "claim"),
    "server while training": (site.Training, "step"),
    "server while predicting": (bank.Bank, "all_batches"),
    "server while evaluating": (teacher, "evaluate"),
    "server while saving": (checkpoint.os, "fsync"),
    "server while logging": (run_log.RunLog, "append"),
    "server at the end": (round_end.RoundEnd, "finish"),
    "rank before it connects": (mpi.MpiTransport, "__init__"),
    "rank after it has connected": (mpi.MpiTransport, "first_with"),
    "worker while reporting": (worker, "ClientReport"),
    "worker before training": (worker.Worker, "__post_init__"),
    "worker while loading": (shard.Shard, "load"),
    "worker while training": (client.Client, "step"),
    "worker while uploading": (worker.Worker, "upload"),
    "worker in the middle of a block": (mpi_buffers.Buffers, "pieces"),
    "worker while waiting": (mpi.MpiTransport, "receive"),
}


class Faults:
    """Faults other than signals; each is called in place of the method at the fault's place, and calls it."""

    @staticmethod
    def fail(where, method, *arguments, **options):
        raise ZeroDivisionError(f"planted in the {where}")

    @staticmethod
    def hang(where, method, *arguments):
        """Receive a signal to end, and hang."""
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait()

    @staticmethod
    def lock(where, method, *arguments, **options):
        """Hang while holding Python's lock, so that no other thread and no handler of this process can run."""
        ctypes.PyDLL(None).pause()

    @staticmethod
    def starve(where, method, *arguments, **options):
        """Fail to allocate more memory than any machine has."""
        torch.zeros(2**58)

    @staticmethod
    def vanish(where, append, self, *arguments):
        """Delete the run folder, as a user cleaning up might."""
        shutil.rmtree(self.folder)
        return append(self, *arguments)

    @staticmethod
    def freeze(where, method, *arguments, **options):
        """Suspend the whole job for 8 seconds: launcher, ranks and watchdogs, as a batch system does."""
        job = " ".join(map(str, processes_of_test()))
        subprocess.Popen(["sh", "-c", f"kill -STOP {job}; sleep 8; kill -CONT {job}"], env={"PATH": os.environ["PATH"]})
        return method(*arguments, **options)

    @staticmethod
    def damage(where, append, self, *arguments):
        """Truncate the newest of several checkpoints, and be killed."""
        *others, newest = sorted((self.folder / "checkpoints").glob("*.pt"))
        if others:
            os.truncate(newest, newest.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def scratch(where, append, self, *arguments):
        """Change one byte of each file of the log that has lines already, and be killed."""
        for name in ("metrics.jsonl", "trace.json", "clients.csv"):
            path = self.folder / name
            if path.exists() and (content := bytearray(path.read_bytes())):
                content[len(content) // 3] ^= 0x15
                path.write_bytes(content)
        os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def fill(where, append, self, record, *arguments):
        """Fill the disk, and make the line longer than the rest of the log's last page."""
        with open(self.folder / "much", "wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**16))
                file.flush()
        return append(self, record | {"padding": "." * 2**16}, *arguments)

    @staticmethod
    def nan(where, upload, self, client, round, rows, feature, logit):
        feature = feature.clone()
        feature[0, 0, 0, 0] = float("nan")
        return upload(self, client, round, rows, feature, logit)

    @staticmethod
    def poison(where, make, client, round, metrics, state, spans):
        """Report weights with a NaN."""
        state = state.clone()
        state.view(torch.float32)[7] = float("nan")
        return make(client, round, metrics, state, spans)

    @staticmethod
    def labels(where, upload, self, client, round, rows, feature, logit):
        label = client.shard.label.clone()
        client.shard.label[rows.start] = 99
        upload(self, client, round, rows, feature, logit)
        client.shard.label.copy_(label)

    @staticmethod
    def twice(where, upload, self, client, round, rows, feature, logit):
        upload(self, client, round, rows, feature, logit)
        spans = list(self.timeline.spans)
        upload(self, client, round, rows, feature, logit)
        self.timeline.spans = spans  # a report has as many spans as a valid one


def note(file, what):
    """Append a line with the time to a file of events."""
    with open(PIDS / file, "a") as out:
        out.write(f"{what}\t{time.time()}\n")


def note_what_is_noticed():
    """Record when the server gives a worker up; for faults that end the job, its end is recorded elsewhere."""
    become = LostRankError.__init__

    def notice_loss(self, *arguments):
        become(self, *arguments)
        note("noticed", "a rank")

    LostRankError.__init__ = notice_loss


def processes_of_test():
    """Return the numbers of all processes that this test has started."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if f"PLANT_PIDS={PIDS}".encode() in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                yield name


def send_signal(name, to=None):
    process = os.getpid() if to is None else int((PIDS / to).read_text())
    with contextlib.suppress(ProcessLookupError):  # it has exited already
        os.kill(process, signal.Signals[f"SIG{name.upper()}"])


def wait_to_be_ended(owner):
    """Wait until a signal to the launcher reaches the server, and on a worker until the server's reaction arrives.

    On a busy machine this may take longer than a tiny run.
    """
    deadline = time.monotonic() + 60
    interrupts = [found for found in gc.get_objects() if isinstance(found, Interrupt)]
    while time.monotonic() < deadline and not any(found.name for found in interrupts):
        if isinstance(owner, client.Client):
            owner.on_batch()  # raises when the server stops this worker
        time.sleep(0.01)


def plant(where, faults):
    """Replace a method by one that counts its calls and triggers each fault at its call."""
    owner, name = PLACES[where]
    method = getattr(owner, name)
    calls = 0

    def planted(*arguments, **options):
        nonlocal calls
        calls += 1
        for call, what, fault in faults:
            if call not in (0, calls):
                continue
            note("struck", fault)
            if hasattr(Faults, what):
                return getattr(Faults, what)(where, method, *arguments, **options)
            send_signal(*what.split("-"))
            if what in ("usr1-launcher", "term-launcher", "int-launcher"):
                wait_to_be_ended(arguments[0])
        return method(*arguments, **options)

    is_static = isinstance(vars(owner).get(name), classmethod | staticmethod)
    setattr(owner, name, staticmethod(planted) if is_static else planted)


def main_with_faults(faults, arguments):
    """Install the faults of this rank, and run."""
    (PIDS / str(MPI.COMM_WORLD.rank)).write_text(str(os.getpid()))
    MPI.COMM_WORLD.Barrier()
    if MPI.COMM_WORLD.rank == 0:
        note_what_is_noticed()
    mine = {}
    for fault in faults:
        rank, where, call, what = fault.split(",")
        if int(rank) == MPI.COMM_WORLD.rank:
            mine.setdefault(where, []).append((int(call), what, fault))
    for where, found in mine.items():
        plant(where, found)
    return main(arguments)


if __name__ == "__main__":
    middle = sys.argv.index("--")
    sys.exit(main_with_faults(sys.argv[1:middle], sys.argv[middle + 1 :]))
