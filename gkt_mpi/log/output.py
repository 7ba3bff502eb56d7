"""Output that never fails: a name is printed on any stream, whatever it contains and whatever the stream encodes."""

import codecs
import io
import sys

ERRORS = "gkt_mpi"  # what to give as `errors` of a stream


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return the bytes that a file's name was made of as they are, and any other character as its escape sequence."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(ERRORS, _escape)


def never_fail_on_encoding() -> None:
    """Have standard output and standard error take any text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)
