"""Starts a run under mpirun: `gkt-mpi run digits -np 5 --rounds 3`, the same as `python -m gkt_mpi.programs.run ...`.

A packaged configuration is known by its name. The process becomes launch/mpirun.sh, so that signals, terminal and exit
status are those of the run.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from gkt_mpi.errors import GktError
from gkt_mpi.launching import (
    command_of,
    environment,
    find_file,
    num_ranks_for,
    packaged,
    read_fields,
    split_options,
)

Task = Literal["run", "check", "prepare"]
_WHAT = {
    "run": "Start a run under mpirun, or resume it.",
    "check": "Check every rank, the data and the memory before a run; train nothing.",
    "prepare": "Create the image file of a configuration; train nothing. Needs no mpirun.",
}
_MORE = """\
Any field of the configuration follows as --field value: --rounds 3 --data.partition hetero.
Help on the fields: python -m gkt_mpi.main --help

exit status: 0 complete, 1 failed, 2 an invalid field or environment, 75 interrupted: start the same command again"""


def make_parser(task: Task = "run") -> argparse.ArgumentParser:
    """Return the parser of the command line; it leaves the configuration's fields to the run."""
    name = "configuration" if task == "run" else f"configuration of the run to {task}"
    parser = argparse.ArgumentParser(
        prog=f"gkt-mpi {task}",
        usage=f"gkt-mpi {task} CONFIG {'' if task == 'prepare' else '[-np N] '}[--field value]...",
        description=_WHAT[task],
        epilog=_MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help=f"{name}: a YAML file, or a packaged one's name")
    if task != "prepare":
        ranks = "number of ranks, server included (default: one per client and the server, limited by the cores)"
        parser.add_argument("-np", "-n", metavar="N", type=int, dest="num_ranks", help=ranks)
        parser.add_argument("--mpi", metavar="OPTIONS", default="", help='for mpirun: --mpi "--hostfile hosts"')
    parser.add_argument("--list", action="store_true", help="list the packaged configurations")
    return parser


def main(arguments: Sequence[str] | None = None, task: Task = "run") -> int:
    """Become the run; return only an exit status of 0 after --list, or 2 with one line on standard error."""
    parser = make_parser(task)
    options, fields = parser.parse_known_args(arguments)
    if options.list:
        print("\n".join(packaged()))
        return 0
    try:
        if options.config is None:
            raise GktError("which configuration? Give a YAML file or a packaged name, such as digits (--list)")
        path = find_file(options.config)
        words = ["--config", str(path), *fields]
        if task == "prepare":
            _become([sys.executable, "-m", "gkt_mpi.main", "--prepare", *words], dict(os.environ))
        ranks = options.num_ranks or num_ranks_for(read_fields(path) | _given(fields, "clients", "algorithm"))
        if ranks < 1:
            raise GktError(f"-np is {ranks}; expected at least 1")
        words = words if task == "run" else ["--check", *words]
        _become(command_of(words, ranks, split_options(options.mpi)), environment())
    except GktError as error:
        print(f"gkt_mpi: {error}", file=sys.stderr)
    return 2


def _given(words: Sequence[str], *names: str) -> dict[str, str]:
    """Return the last values that a command line gives to some fields."""
    values = {}
    for word, following in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        if option.removeprefix("--") in names:
            values[option.removeprefix("--")] = value if equals else following
    return values


def _become(command: list[str], variables: dict[str, str]) -> None:
    """Replace this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(command[0], command, variables)


if __name__ == "__main__":
    sys.exit(main())
