"""Storage of the bank's features: in memory, and beyond `bank.memory_mib` in an HDF5 file.

The file holds one contiguous data set, `feature` uint8 (rows, row_bytes), whose disk space is reserved at creation, and
is mapped into memory: blocks are received into it as into memory, and random batches are read at the speed of the page
cache or the disk. Neither needs HDF5 itself.
"""

import contextlib
import hashlib
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import torch
from torch import Tensor

from gkt_mpi.data.hdf5 import plan
from gkt_mpi.errors import ConfigError, expand, require


@dataclass(frozen=True)
class BankConfig:
    """The feature bank."""

    memory_mib: float | None = None
    """Features kept in memory, in MiB, rounded to whole clients; the others are in a file. null: all; 0: none."""
    spill_dir: str | None = None
    """Folder of that file, preferably a fast local disk (ext4, xfs or tmpfs). Deleted at the end; null: the run
    folder."""
    absent: Literal["keep", "drop"] = "keep"
    """Clients absent from a round (participation). keep: train on their last upload. drop: train without them."""

    def __post_init__(self) -> None:
        require(self.memory_mib is None or self.memory_mib >= 0, "bank.memory_mib", self.memory_mib, "0 or more")


class FeatureRows:
    """Rows uint8 (N, row_bytes), in client order, the first ones in memory, the others in a mapped file."""

    def __init__(self, clients_end: list[int], row_bytes: int, config: BankConfig, folder: Path) -> None:
        """Allocate; `clients_end[k]` is the row after client k's last one; `folder` is the run folder.

        Raises `ConfigError` when the disk cannot hold the file, naming it and the bytes needed.
        """
        num_rows = clients_end[-1]
        limit = num_rows if config.memory_mib is None else int(config.memory_mib * 2**20) // row_bytes
        self.num_in_memory = max((end for end in clients_end if end <= limit), default=0)
        self.path: Path | None = None
        self._file: BinaryIO | None = None
        self._prefetcher = ThreadPoolExecutor(1, "prefetch")
        self._near = torch.empty(self.num_in_memory, row_bytes, dtype=torch.uint8)
        self._far = torch.empty(0, row_bytes, dtype=torch.uint8)
        if self.num_in_memory < num_rows:
            self.path = _file_path(config.spill_dir, folder)
            num_far = num_rows - self.num_in_memory
            self._file, self._map, self._first_byte = _make_file(self.path, num_far, row_bytes)
            values = torch.frombuffer(self._map, dtype=torch.uint8, count=num_far * row_bytes, offset=self._first_byte)
            self._far = values.view(num_far, row_bytes)

    def slice(self, rows: slice) -> Tensor:
        """Return rows of one client, uint8 (n, row_bytes), as a view of their memory."""
        if rows.start < self.num_in_memory:
            return self._near[rows]
        return self._far[rows.start - self.num_in_memory : rows.stop - self.num_in_memory]

    def gather(self, row: Tensor) -> Tensor:
        """Return a copy of the rows numbered `row`, int64 (B,), in that order: uint8 (B, row_bytes)."""
        is_near = row < self.num_in_memory
        near, far = self._near.index_select(0, row[is_near]), row[~is_near] - self.num_in_memory
        if len(far) == 0:
            return near
        if len(near) == 0:
            return self._far.index_select(0, far)
        place = torch.cat([is_near.nonzero(), (~is_near).nonzero()]).flatten().argsort()
        return torch.cat([near, self._far.index_select(0, far)]).index_select(0, place)

    def prefetch(self, row: Tensor) -> None:
        """Read the rows numbered `row`, int64 (B,), from disk in the background."""
        if self._file is not None:
            self._prefetcher.submit(self._read_ahead, (row[row >= self.num_in_memory] - self.num_in_memory).tolist())

    def _read_ahead(self, numbers: list[int]) -> None:
        assert self._file is not None
        size = self._far.shape[1]
        for number in numbers:  # returns after issuing the requests, which takes a while on a busy disk
            os.posix_fadvise(self._file.fileno(), self._first_byte + number * size, size, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Delete the file, if there is one. Rows must not be used afterwards."""
        self._prefetcher.shutdown(cancel_futures=True)
        if self._file is not None and self.path is not None:
            self._file.close()
            self.path.unlink(missing_ok=True)


def _file_path(spill_dir: str | None, folder: Path) -> Path:
    """Return the path of a run's file, with a name unique to the run in a folder shared by several."""
    if spill_dir is None:
        return folder / "feature_bank.h5"
    run = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:8]
    return expand(spill_dir, "bank.spill_dir") / f"feature_bank-{folder.name}-{run}.h5"


def _make_file(path: Path, num_rows: int, row_bytes: int) -> tuple[BinaryIO, mmap.mmap, int]:
    """Create the file and return it open and mapped, with the byte offset of the data set."""
    size = num_rows * row_bytes
    opened = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # left by a killed run; a living one keeps its own, unlinked
        planned = plan({"feature": ((num_rows, row_bytes), "|u1")}, alignment=mmap.PAGESIZE)
        opened = open(path, "w+b")  # noqa: SIM115 - stays open as long as the rows are used
        # The disk may fill up later: writing to a mapped page without disk space would kill the process.
        planned.reserve(opened)
        planned.write_metadata(opened)
        opened.flush()
        return opened, mmap.mmap(opened.fileno(), 0), planned.offsets["feature"]
    except OSError as error:
        with contextlib.suppress(OSError):
            if opened is not None:
                path.unlink()
                opened.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(
            f"the feature bank needs {size:,} bytes in {path}, but: {reason.lower()}; make room, set bank.spill_dir to "
            "another disk, raise bank.memory_mib, or choose a smaller wire.codec"
        ) from error
