"""make soak: inject random faults, drawn from a seed, into tiny runs, and compare with the undisturbed run.

    python -m tests.e2e.soak [--seconds 480] [--seed 0] [--runs N]

Each run gets one to three faults of random kinds at random places, all of them real, and is restarted
after those that end it, on another number of ranks, until it is complete. A fault is survived when its run
has exactly the results of the undisturbed one. Prints the faults of each run and a table by kind
(a fault whose place was not reached does not count), with the median and maximum seconds until the
server notices it or the job ends; the exit status is 1 unless all were survived.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.e2e.planted import left_behind, moments, plant, results, struck, undisturbed

ROUNDS, RANKS = 3, 4
ON_WORKERS = {  # how often a worker reaches these places in a whole run
    "worker while training": 9,
    "worker while loading": 3,
    "worker while uploading": 3,
    "worker in the middle of a block": 12,
    "worker while waiting": 4,
}
ON_SERVER = {
    "server while receiving": 3,
    "server while taking a block in": 12,
    "server while training": 15,
    "server while predicting": 3,
    "server while evaluating": 4,
    "server while saving": 6,
    "server while logging": 3,
}
STARTS_AT_MOST = 6  # of one run


def draw(dice: random.Random) -> tuple[str, str]:
    """Return a kind of fault, and a fault of this kind for plant.py."""
    worker = dice.randrange(1, RANKS)
    kind = dice.choice(list(KINDS))
    what, places = KINDS[kind]
    where = dice.choice(list(places))
    call = dice.randint(1, places[where])
    rank = 0 if where.startswith("server") else worker
    return kind, f"{rank},{where},{call},{what.format(worker=worker)}"


KINDS = {
    "worker killed": ("kill", ON_WORKERS),
    "worker killed while the server works": ("kill-{worker}", ON_SERVER),
    "worker hangs": ("stop", ON_WORKERS),
    "client uploads NaN, which stops the run": ("nan", {"worker while uploading": 3}),
    "server killed": ("kill", ON_SERVER),
    "server killed, and its newest checkpoint cut off": ("damage", {"server while logging": 3}),
    "SIGTERM to the server": ("term", ON_SERVER),
    "SIGUSR1 to the server": ("usr1", ON_SERVER),
    "SIGINT to the server": ("int", ON_SERVER),
    "SIGTERM to the launcher": ("term-launcher", ON_WORKERS | ON_SERVER),
    "rank killed while all connect": ("kill", {"rank before it connects": 1, "rank after it has connected": 1}),
    "client reports weights of NaN": ("poison", {"worker while reporting": 4}),
    "worker without memory": ("starve", ON_WORKERS),
    "server without memory": ("starve", {"server while training": 15, "server while evaluating": 4}),
    "server killed, and a byte of each log changed": ("scratch", {"server while logging": 3}),
    "whole job stands still for 8 s": ("freeze", ON_WORKERS | ON_SERVER),
}


UNNOTICED = ("freeze",)  # nothing to notice


def survive(
    path: Path, faults: list[str], dice: random.Random, expected: list[dict], noticed_s: dict[str, float]
) -> str:
    """Run with these faults, then without until complete; return "" or the problem.

    `noticed_s` receives, by fault, the seconds until it was noticed.
    """
    starts = 0
    while starts < STARTS_AT_MOST:
        try:
            ranks = RANKS if faults else dice.choice([2, 3, 5])
            done = plant(ranks, faults, path, rounds=ROUNDS, faults__timeout_s=3)
        except AssertionError as error:  # a hang
            return str(error)
        starts += 1
        ended = time.time()
        for fault, at in moments(path, "struck"):
            later = [when for _, when in moments(path, "noticed") if when >= at]
            if not fault.endswith(UNNOTICED):
                noticed_s.setdefault(fault, min([*later, ended]) - at)
        if left_behind(path):
            return "processes are left behind"
        if done.status == 0:
            return "" if results(path) == expected else "other figures"
        if "Traceback" in done.err:
            return done.err
        faults = [fault for fault in faults if fault not in struck(path)]
    return f"not complete after {starts} starts"


def soak(seed: int, seconds: float, runs: int, say: Console) -> bool:
    """Inject faults for this many seconds or runs; return whether all were survived."""
    dice, until = random.Random(seed), time.monotonic() + seconds
    thrown, survived = Counter(), Counter()
    seconds_of = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="soak ") as folder:
        expected = undisturbed(Path(folder), rounds=ROUNDS)
        for number in range(runs):
            if time.monotonic() > until:
                break
            path = Path(folder) / str(number)
            path.mkdir()
            drawn = [draw(dice) for _ in range(dice.randint(1, 3))]
            noticed_s: dict[str, float] = {}
            wrong = survive(path, [fault for _, fault in drawn], dice, expected, noticed_s)
            hit = [(kind, fault) for kind, fault in drawn if fault in struck(path)]
            kinds = Counter(kind for kind, _ in hit)
            for kind, fault in hit:
                seconds_of[kind] += [noticed_s[fault]] if fault in noticed_s else []
            thrown += kinds
            survived += Counter() if wrong else kinds
            text = "; ".join(fault for _, fault in hit) or "nothing has struck"
            say.print(f"run {number + 1}: {text}: {wrong or 'survived'}", highlight=False, soft_wrap=True)
    table = Table(title=f"seed {seed}: every run against the figures of the undisturbed one", title_justify="left")
    for column in ("kind of fault", "thrown", "survived", "noticed after, median", "worst"):
        table.add_column(column, justify="left" if column == "kind of fault" else "right")
    for kind in KINDS:
        found = seconds_of[kind]
        times = (f"{seconds:.1f} s" for seconds in (statistics.median(found), max(found))) if found else ("", "")
        table.add_row(kind, str(thrown[kind]), str(survived[kind]), *times)
    table.add_row("all", str(thrown.total()), str(survived.total()))
    say.print(table)
    return thrown.total() > 0 and thrown == survived


if __name__ == "__main__":
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--runs", type=int, default=10**6)
    options = parser.parse_args()
    sys.exit(0 if soak(options.seed, options.seconds, options.runs, Console(width=100)) else 1)
