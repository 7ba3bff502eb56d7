"""Plans HDF5 files of contiguous arrays, so that only plain writes are made to the disk.

HDF5 writes when a file, or an object in it, is closed. If that fails, as on a full disk, the file stays open and
crashes the process at its end. Here HDF5 therefore lays out the file in memory, without the arrays' values: its writes
are recorded, and written by this package around the values, to a file whose disk space has been reserved.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import h5py
import numpy as np


@dataclass(frozen=True)
class Plan:
    """The layout of a file, in bytes from its beginning."""

    size: int
    """Size of the whole file."""
    offsets: dict[str, int]
    """Offset of each array's values, in C order."""
    metadata: list[tuple[int, bytes]]
    """HDF5's metadata, to be written in this order."""

    def reserve(self, file: BinaryIO) -> None:
        """Set a file's size and reserve its disk space.

        Raises `OSError` if there is not enough space. Copy-on-write file systems (btrfs, ZFS) may still run out of it
        later, and so may macOS, where space cannot be reserved this way.
        """
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, self.size)
        else:
            file.truncate(self.size)

    def write_metadata(self, file: BinaryIO) -> None:
        """Write the metadata, which makes the file a valid HDF5 file. Raises `OSError`."""
        for offset, content in self.metadata:
            file.seek(offset)
            file.write(content)


def plan(
    arrays: Mapping[str, tuple[tuple[int, ...], str]], attributes: Mapping[str, Any] | None = None, alignment: int = 1
) -> Plan:
    """Return the plan of a file of these arrays, each /GROUP/NAME or NAME with its shape and type, and attributes.

    The values of the attributes do not affect the arrays' offsets, as long as types and lengths stay the same. Arrays
    of `alignment` bytes or more begin at a multiple of it.
    """
    notes = _Notes()
    offsets = {}
    with h5py.File(notes, "w", alignment_threshold=alignment, alignment_interval=alignment) as file:
        file.attrs.update(attributes or {})
        for path, (shape, dtype) in arrays.items():
            how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            how.set_layout(h5py.h5d.CONTIGUOUS)
            how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # so that it is allocated in the file now
            how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            how.set_obj_track_times(False)
            links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
            links.set_create_intermediate_group(True)
            type, space = h5py.h5t.py_create(np.dtype(dtype)), h5py.h5s.create_simple(shape)
            dataset = h5py.h5d.create(file.id, None, type, space, how)
            h5py.h5o.link(dataset, file.id, path.encode(), lcpl=links)
            offsets[path] = dataset.get_offset()
    ends = (offsets[path] + math.prod(shape) * np.dtype(dtype).itemsize for path, (shape, dtype) in arrays.items())
    return Plan(max(notes.size, *ends), offsets, notes.writes)


class _Notes:
    """An in-memory file that stores only the written ranges, with the methods that h5py needs."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, bytes]] = []
        self.size = 0
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def truncate(self, size: int) -> int:
        """Set the size of the file."""
        self.size = size
        return size

    def flush(self) -> None:
        """Do nothing."""

    def write(self, content: memoryview) -> int:
        """Record the written bytes and their position."""
        self.writes.append((self._position, bytes(content)))
        self._position += len(content)
        self.size = max(self.size, self._position)
        return len(content)

    def read(self, size: int) -> bytes:
        """Read written bytes; zeros elsewhere."""
        content = bytearray(max(0, min(size, self.size - self._position)))
        for offset, written in self.writes:
            first, last = max(offset, self._position), min(offset + len(written), self._position + len(content))
            if first < last:
                content[first - self._position : last - self._position] = written[first - offset : last - offset]
        self._position += len(content)
        return bytes(content)
