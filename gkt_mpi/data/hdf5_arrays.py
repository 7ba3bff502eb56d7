"""The data set `hdf5`: a user's own arrays in an HDF5 file, or an image file in this package's own layout.

The arrays have the names of arrays.py and are read in pieces. A file in the package's own layout (datasets.py) is used
as it is.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from gkt_mpi.data.archive import fingerprint_of, nothing_to_read
from gkt_mpi.data.arrays import decode_arrays
from gkt_mpi.data.source import DataSource, Decoded, Source, Split
from gkt_mpi.errors import DataError

if TYPE_CHECKING:
    from gkt_mpi.data.data_config import DataConfig

_OWN_ATTRIBUTES = {"format", "classes", "mean", "std", "checksums"}


def hdf5(config: "DataConfig") -> Source:
    """Return the arrays of `data.file`; in the package's own layout, when its images are to be resized."""
    path = config.file_path
    assert path is not None
    if not path.is_file():
        return Source(str(path), nothing_to_read, missing=f"there is no file {path}; set data.file to an HDF5 file")

    def read() -> Decoded:
        """Read the labels; images are read on demand. Raises `DataError` naming the file and the array."""
        if _is_own_layout(path):
            return _own(path)
        try:
            with h5py.File(path, "r") as file:
                names = [name for name in file if isinstance(file[name], h5py.Dataset)]
        except OSError as error:
            raise DataError(f"{path} is not a readable HDF5 file ({error}); write it again") from error
        return decode_arrays(path, names, lambda name: _Rows(path, name))

    return Source(str(path), read, fingerprint=fingerprint_of([path]))


class _Rows:
    """An array in an HDF5 file, which is open only while rows are read."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        with h5py.File(path, "r") as file:
            self.shape, self.dtype = file[name].shape, file[name].dtype

    def __getitem__(self, rows: Any) -> np.ndarray:  # noqa: ANN401 - a slice, or ... for all
        try:
            with h5py.File(self._path, "r") as file:
                return file[self._name][rows]
        except Exception as error:  # a damaged file can raise almost any exception
            raise DataError(f"{self._path}: {self._name} cannot be read ({error}); write it again") from error


def _own(path: Path) -> Decoded:
    """Return the images of a file in the package's own layout."""

    def split(name: str, parts: Any) -> Split:  # noqa: ANN401 - h5py's own class
        """Return a split whose images, uint8 (n, H, W, channels), are read when asked for; labels int64 (N,)."""
        image = _Rows(path, f"{name}/image")
        owner = parts["owner"][:] if "owner" in parts else None
        return Split(parts["label"][:], lambda first, last: image[first:last], owner)

    with h5py.File(path, "r") as file:
        classes = [str(name) for name in file.attrs["classes"]]
        return Decoded(classes, {name: split(name, file[name]) for name in file}, str(file.attrs["checksums"]))


def _is_own_layout(path: Path) -> bool:
    """Whether a file has the package's own layout; False for one that cannot be read."""
    try:
        with h5py.File(path, "r") as file:
            return set(file.attrs) >= _OWN_ATTRIBUTES
    except Exception:  # a damaged file can raise almost any exception; reading it reports the damage
        return False


def _ready_file(config: "DataConfig") -> Path | None:
    """Return the user's file if it is an image file of this package, to be used as it is."""
    path = config.file_path
    return path if path is not None and config.size is None and _is_own_layout(path) else None


HDF5 = DataSource("hdf5", hdf5, reads_file=True, ready_file=_ready_file)
