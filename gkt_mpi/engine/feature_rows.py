"""Where the bank's features lie: in memory, and beyond `bank.memory_mib` in an HDF5 file.

The file holds one contiguous data set, `feature` uint8 (rows, row_bytes), whose disk space is reserved when it is
made, and is mapped into memory: blocks are received into it as into memory, and a batch drawn from anywhere in it is
read as fast as the page cache or the disk gives it. HDF5 itself is not needed for either.
"""

import contextlib
import hashlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import h5py
import torch
from torch import Tensor

from gkt_mpi.errors import ConfigError, expand, require


@dataclass(frozen=True)
class BankConfig:
    """The feature bank."""

    memory_mib: float | None = None
    """Features kept in memory, in MiB, in whole clients; the others lie in a file. null: all; 0: none."""
    spill_dir: str | None = None
    """Folder of that file, best on a fast local disk; it is deleted when the run ends. null: the run folder."""

    def __post_init__(self) -> None:
        require(self.memory_mib is None or self.memory_mib >= 0, "bank.memory_mib", self.memory_mib, "0 or more")


class FeatureRows:
    """Rows uint8 (N, row_bytes), in client order, the first of them in memory, the others in a mapped file."""

    def __init__(self, clients_end: list[int], row_bytes: int, config: BankConfig, folder: Path, pinned: bool) -> None:
        """`clients_end[k]` is the row after client k's last one; `folder` is the run's. `pinned`: for a GPU.

        Raises `ConfigError` when the disk cannot hold the file, naming it and the bytes needed.
        """
        num_rows = clients_end[-1]
        limit = num_rows if config.memory_mib is None else int(config.memory_mib * 2**20) // row_bytes
        self.num_in_memory = max((end for end in clients_end if end <= limit), default=0)
        self.path: Path | None = None
        self._near = torch.empty(self.num_in_memory, row_bytes, dtype=torch.uint8, pin_memory=pinned)
        self._far = torch.empty(0, row_bytes, dtype=torch.uint8)
        if self.num_in_memory < num_rows:
            self.path = _file_path(config.spill_dir, folder)
            self._map, self._first_byte = _map_file(self.path, num_rows - self.num_in_memory, row_bytes)
            self._far = torch.frombuffer(self._map, dtype=torch.uint8)[self._first_byte :].view(-1, row_bytes)

    def slice(self, rows: slice) -> Tensor:
        """Return rows of one client, uint8 (n, row_bytes), as the memory they lie in."""
        if rows.start < self.num_in_memory:
            return self._near[rows]
        return self._far[rows.start - self.num_in_memory : rows.stop - self.num_in_memory]

    def gather(self, row: Tensor) -> Tensor:
        """Return a copy of the rows numbered `row`, int64 (B,), in that order: uint8 (B, row_bytes)."""
        if self.path is None:
            return self._near.index_select(0, row)
        is_near = row < self.num_in_memory
        batch = torch.empty(len(row), self._far.shape[1], dtype=torch.uint8)
        for place, source, first in ((is_near, self._near, 0), (~is_near, self._far, self.num_in_memory)):
            batch.index_copy_(0, place.nonzero().flatten(), source.index_select(0, row[place] - first))
        return batch

    def prefetch(self, row: Tensor) -> None:
        """Have the system begin to read the rows numbered `row`, int64 (B,), from the file, and return at once."""
        if self.path is None or not hasattr(mmap, "MADV_WILLNEED"):  # not on every system
            return
        size = self._far.shape[1]
        for number in (row[row >= self.num_in_memory] - self.num_in_memory).tolist():
            begin = self._first_byte + number * size
            page = begin - begin % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, begin + size - page)

    def close(self) -> None:
        """Delete the file, if there is one. Rows must not be used any more."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _file_path(spill_dir: str | None, folder: Path) -> Path:
    """Return where a run's file belongs; a folder of several runs' gets a name that is this run's alone."""
    if spill_dir is None:
        return folder / "feature_bank.h5"
    run = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:8]
    return expand(spill_dir, "bank.spill_dir") / f"feature_bank-{folder.name}-{run}.h5"


def _map_file(path: Path, num_rows: int, row_bytes: int) -> tuple[mmap.mmap, int]:
    """Make the file and return it mapped, whole, with the number of the byte where the data set begins."""
    size = num_rows * row_bytes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w", alignment_threshold=1, alignment_interval=mmap.PAGESIZE) as file:
            space = h5py.h5s.create_simple((num_rows, row_bytes))
            how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            how.set_layout(h5py.h5d.CONTIGUOUS)
            how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # so that it has its place in the file now
            how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            data_set = h5py.h5d.create(file.id, b"feature", h5py.h5t.NATIVE_UINT8, space, how)
            first_byte = data_set.get_offset()
        with open(path, "r+b") as file:
            # The disk may fill up later: a write to a mapped page without a place on the disk would kill the process.
            os.posix_fallocate(file.fileno(), first_byte, size)
            return mmap.mmap(file.fileno(), first_byte + size), first_byte
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(
            f"the feature bank needs {size:,} bytes in {path}, but: {reason.lower()}; make room, set bank.spill_dir to "
            "another disk, raise bank.memory_mib, or choose a smaller wire.codec"
        ) from error
