"""A picture of a run, or a comparison of several: `python -m gkt_mpi.report RUN...` writes report.html.

For one run the page goes into the run folder; for several, with figures/ and tables/ beside it, into a folder
comparison where the runs are (`comparison.py`); `--out FILE` puts it elsewhere. Curves are SVG inside the page, so it
can be mailed, and printed without loss. How a page is made stands in page.py, which is imported late: that takes a
second or two, in which Ctrl-C ends the program as it does later.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gkt_mpi.errors import DataError, GktError
from gkt_mpi.log.output import never_fail_on_encoding

_INTERRUPTED = 130  # as a shell has it of a program that SIGINT has ended


def _run_folders(paths: Sequence[Path]) -> list[Path]:
    """Return what may be run folders: of several paths, as from runs/*, files and folders of other things are not.

    Raises `DataError` when nothing remains.
    """
    folders = []
    for path in (path.expanduser() for path in paths):
        if len(paths) > 1 and path.exists() and not (path / "config.yaml").exists():
            print(f"passed over, since it is no run: {path}", file=sys.stderr)
        else:
            folders.append(path)
    if not folders:
        raise DataError("none of these is the folder of a run")
    return folders


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report and print where it is; one line and a status that is not 0 when it cannot be made."""
    never_fail_on_encoding()
    parser = argparse.ArgumentParser(
        prog="python -m gkt_mpi.report", allow_abbrev=False, description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", nargs="+", type=Path, help="run folder, such as runs/digits")
    parser.add_argument(
        "--out", type=Path, help="file to write instead; of several runs, figures/ and tables/ beside it"
    )
    options = parser.parse_args(arguments)
    try:
        from gkt_mpi.report.page import write_report

        path = write_report(_run_folders(options.run), options.out, _say)
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
