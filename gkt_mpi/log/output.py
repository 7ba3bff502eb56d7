"""Output of programs: any name can be printed on any stream, and errors are one line."""

import codecs
import io
import sys
from collections.abc import Callable

from gkt_mpi.errors import GktError

_INTERRUPTED = 130  # as shells report a program ended by SIGINT
ERRORS = "gkt_mpi"  # a stream's `errors` argument


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return the original bytes of a file name unchanged, and other characters as escape sequences."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(ERRORS, _escape)


def never_fail_on_encoding() -> None:
    """Make standard output and standard error accept any text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def status_of(program: Callable[[], None]) -> int:
    """Run a program and return its exit status; an error that a user can meet is printed as one line."""
    try:
        program()
    except GktError as error:
        print(f"gkt_mpi: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return error.exit_status
    except KeyboardInterrupt:
        print("gkt_mpi: interrupted", file=sys.stderr, flush=True)
        return _INTERRUPTED
    return 0
