"""TensorBoard: scalars in RUN/tensorboard."""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gkt_mpi.log.sinks.sink import Sink, SinkRun


class _TensorBoard:
    def __init__(self, run: SinkRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._names = ExitStack()  # an alternative folder name, as long as something is written there
        folder = run.folder / "tensorboard"
        if run.rounds_done == 0:
            shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(self._readable(folder), purge_step=run.rounds_done + 1)

    def _readable(self, folder: Path) -> str:
        """Return the folder under a name that TensorBoard accepts, which it encodes as UTF-8."""
        try:
            str(folder).encode()
        except UnicodeEncodeError:  # the name has bytes that this locale cannot decode
            folder.mkdir(exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
            self._names.callback(os.close, descriptor)
            return f"/proc/self/fd/{descriptor}"
        return str(folder)

    def append(self, round: int, figures: Mapping[str, float]) -> None:
        """Write scalars, and flush them."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, round)
        self._writer.flush()

    def close(self, summary: Mapping[str, Any], artefacts: Sequence[Path]) -> None:
        """Close the file; summary and files are in the run folder already."""
        self._writer.close()
        self._names.close()


TENSORBOARD = Sink("tensorboard", _TensorBoard, is_required=True)
