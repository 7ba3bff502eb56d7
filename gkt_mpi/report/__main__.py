"""Draws the report of a run, or compares several: `python -m gkt_mpi.report RUN...` writes report.html.

For one run the page is written into the run folder; for several, with figures/ and tables/ beside it, into a folder
comparison beside the runs (`comparison.py`); `--out FILE` writes it elsewhere. Curves are SVG inside the page, so it
can be mailed, and printed without loss. The page is made in page.py, which is imported late: the import takes a second
or two, during which Ctrl-C ends the program as it does later.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gkt_mpi.errors import DataError, GktError
from gkt_mpi.log.output import never_fail_on_encoding
from gkt_mpi.report import load_writer

_INTERRUPTED = 130  # as shells report a program ended by SIGINT


def _run_folders(paths: Sequence[Path]) -> list[Path]:
    """Return possible run folders: of several paths, as from runs/*, other files and folders are skipped.

    Raises `DataError` when none remain.
    """
    folders = []
    for path in (path.expanduser() for path in paths):
        if len(paths) > 1 and path.exists() and not (path / "config.yaml").exists():
            print(f"skipped, not a run folder: {path}", file=sys.stderr)
        else:
            folders.append(path)
    if not folders:
        raise DataError("none of these is a run folder")
    return folders


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report and print its path; when it cannot be written, print one line and return a nonzero status."""
    never_fail_on_encoding()
    parser = argparse.ArgumentParser(
        prog="python -m gkt_mpi.report", allow_abbrev=False, description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", nargs="+", type=Path, help="run folder, such as runs/digits")
    parser.add_argument(
        "--out", type=Path, help="file to write instead; for several runs, figures/ and tables/ are written beside it"
    )
    options = parser.parse_args(arguments)
    try:
        path = load_writer()(_run_folders(options.run), options.out, _say)
    except GktError as error:
        _say(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        _say("interrupted before the report was written")
        return _INTERRUPTED
    print(f"report: {path}")
    return 0


def _say(line: str) -> None:
    print(f"gkt_mpi: {' '.join(line.split())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
