"""The image file of a run, made or opened with messages and progress; `--prepare` makes it without a run."""

import logging
from typing import TYPE_CHECKING

from gkt_mpi.config import RunConfig
from gkt_mpi.data.datasets import ImageFile, file_path, prepare
from gkt_mpi.log.logger import logging_to
from gkt_mpi.log.progress import make_console

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)


def prepare_data(config: RunConfig) -> int:
    """Create the image file, print its path, and return the exit status. Raises `ConfigError`."""
    console = make_console()
    with logging_to(config.log, 0, console):
        file = open_data(config, console)
        numbers = " and ".join(f"{len(file.labels(split)):,} {split}ing images" for split in ("train", "test"))
        logger.info(f"{file.path}: {numbers}")
    return 0


def open_data(config: RunConfig, console: "Console") -> ImageFile:
    """Create or open the data set's HDF5 file, with a message and, on a terminal, a progress bar.

    Also logs notes about its images. Raises `ConfigError`.
    """
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("decoding", total=None, visible=False)

        def report(done: int, total: int) -> None:
            """Log a message at the first image; update the progress bar."""
            if done == 0:
                logger.info(f"decoding {total:,} images of {config.data.name} into {file_path(config.data)}")
            bar.update(task, completed=done, total=total, visible=True)

        file = prepare(config.data, report)
    for note in file.notes:
        logger.info(f"note: {note}")
    return file
