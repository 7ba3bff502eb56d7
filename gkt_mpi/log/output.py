"""Output that never fails on encoding: any name can be printed on any stream."""

import codecs
import io
import sys

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
