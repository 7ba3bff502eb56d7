"""Reports on run folders; nothing in this package is imported while a run trains.

Its libraries are the extra `report`: pip install 'gkt_mpi[report]'.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from gkt_mpi.errors import GktError

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # an unwritable home folder does not matter here


def load_writer() -> Callable[..., Path]:
    """Return `write_report` of page.py, whose import takes a second or two.

    Raises `GktError` if one of the extra's libraries is missing.
    """
    try:
        from gkt_mpi.report.page import write_report
    except ModuleNotFoundError as error:
        library = (error.name or "a library").partition(".")[0]
        raise GktError(f"{library} is not installed; try: pip install 'gkt_mpi[report]'") from error
    return write_report
