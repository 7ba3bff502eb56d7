"""Prints the completion of `gkt-mpi` for bash: `eval "$(gkt-mpi completion)"`.

The script contains all verbs, options, fields with their values, and packaged names, so that completing starts no
Python. It is written by shtab (extra `completion`). Where it has no answer, bash completes file names.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module, util

from gkt_mpi.errors import ConfigError
from gkt_mpi.launching import packaged

_WITH_FIELDS = ("run", "check", "prepare")
_ELSE_FILES = "\ncomplete -o default -o filenames -F _shtab_gkt_mpi gkt-mpi"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    return argparse.ArgumentParser(
        prog="gkt-mpi completion",
        description='Print the completion for bash. Add to ~/.bashrc: eval "$(gkt-mpi completion)"',
        allow_abbrev=False,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the script and return the exit status. Raises `ConfigError` without shtab."""
    make_parser().parse_args(arguments)
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error}; install it with: pip install 'gkt_mpi[completion]'") from error
    print(shtab.complete(_whole_parser(), "bash") + _ELSE_FILES)
    return 0


def _whole_parser() -> argparse.ArgumentParser:
    """Return a parser of all verbs, as shtab reads it; the verbs' own parsers do not know the fields."""
    from gkt_mpi.cli import VERBS
    from gkt_mpi.config import RunConfig
    from gkt_mpi.wording import kinds_of, words_of

    whole = argparse.ArgumentParser(prog="gkt-mpi", allow_abbrev=False)
    whole.add_argument("--version", action="store_true")
    verbs = whole.add_subparsers()
    for name, verb in VERBS.items():
        if name in _WITH_FIELDS:
            parser = verbs.add_parser(name, help=verb.what)
            for option in ("-np", "--mpi"):
                parser.add_argument(option)
            parser.add_argument("--list", action="store_true")
            for field, kind in kinds_of(RunConfig).items():
                words = [word for word in words_of(kind) if ":" not in word]
                parser.add_argument(f"--{field}", choices=words or None)
            parser.add_argument("config", choices=list(packaged()))
        elif util.find_spec(verb.module) and hasattr(module := import_module(verb.module), "make_parser"):
            verbs.add_parser(name, help=verb.what, parents=[module.make_parser()], add_help=False)
        else:
            verbs.add_parser(name, help=verb.what)
    return whole


if __name__ == "__main__":
    sys.exit(main())
