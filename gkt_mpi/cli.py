"""The command `gkt-mpi`: one verb for each program of the package.

A verb's module is imported only when it is asked for, so that --help and --version answer at once.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib import import_module

from gkt_mpi import __version__
from gkt_mpi.errors import GktError
from gkt_mpi.log.output import never_fail_on_encoding

_INTERRUPTED = 130  # as shells report a program ended by SIGINT


@dataclass(frozen=True)
class Verb:
    """A verb: the module whose `main` it calls, and what it does."""

    module: str
    what: str

    def load(self, name: str) -> Callable[[Sequence[str]], int]:
        """Import the module and return the program."""
        main = import_module(self.module).main
        return partial(main, task=name) if name in ("check", "prepare") else main


VERBS = {
    "run": Verb("gkt_mpi.programs.run", "start a run under mpirun, or resume it: gkt-mpi run digits"),
    "check": Verb("gkt_mpi.programs.run", "check every rank before a run: gkt-mpi check digits -np 5"),
    "prepare": Verb("gkt_mpi.programs.run", "create the image file of a configuration"),
    "sweep": Verb("gkt_mpi.programs.sweep", "run every combination of a grid: gkt-mpi sweep compare"),
    "report": Verb("gkt_mpi.report.__main__", "draw the report of a run, or compare several: gkt-mpi report runs/*"),
    "verify": Verb("gkt_mpi.programs.verify", "repeat the first rounds of a run and compare every figure"),
    "cost": Verb("gkt_mpi.programs.cost", "print the cost of training, in bytes, operations and seconds"),
    "export": Verb("gkt_mpi.programs.export", "write the trained model to files"),
    "predict": Verb("gkt_mpi.programs.predict", "classify image files with a trained model"),
    "completion": Verb("gkt_mpi.programs.completion", "print the completion of this command for bash"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb of a command line and return its exit status; an error is one line."""
    never_fail_on_encoding()
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb in ("-h", "--help"):
        print(_help())
        return 0
    if verb == "--version":
        print(f"gkt_mpi {__version__}")
        return 0
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, 1)
        question = f"; did you mean {near[0]}?" if near else ""
        return _say(f"there is no verb {verb}{question} (see gkt-mpi --help)", 2)
    try:
        return VERBS[verb].load(verb)(rest)
    except GktError as error:
        return _say(str(error), error.exit_status)
    except ModuleNotFoundError as error:
        return _say(f"gkt-mpi {verb}: {error}; install it with pip", 2)
    except KeyboardInterrupt:
        return _say("interrupted", _INTERRUPTED)


def _help() -> str:
    verbs = "\n".join(f"  {name:<11}{verb.what}" for name, verb in VERBS.items())
    return (
        "usage: gkt-mpi VERB ...\n\nFederated learning by group knowledge transfer over MPI.\n\n"
        f"{verbs}\n\ngkt-mpi VERB --help explains a verb. The fields of a run: python -m gkt_mpi.main --help"
    )


def _say(line: str, status: int) -> int:
    print(f"gkt_mpi: {line}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
