"""The data set `npz`: a user's own arrays in a file of `numpy.savez` (their names: arrays.py)."""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gkt_mpi.data.archive import fingerprint_of, nothing_to_read
from gkt_mpi.data.arrays import decode_arrays
from gkt_mpi.data.source import DataSource, Decoded, Source
from gkt_mpi.errors import DataError

if TYPE_CHECKING:
    from gkt_mpi.data.data_config import DataConfig


def npz(config: "DataConfig") -> Source:
    """Return the arrays of `data.file`. They are read into memory one by one; nothing in the file is unpickled."""
    path = config.file_path
    assert path is not None
    if not path.is_file():
        return Source(str(path), nothing_to_read, missing=f"there is no file {path}; set data.file to an npz file")

    def read() -> Decoded:
        """Read the arrays. Raises `DataError` naming the file and the array."""
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path} is not a file of numpy.savez; expected .npz with the arrays train_images, ...")
        with np.load(path, allow_pickle=False) as file:
            names = list(file.files)
        loaded: dict[str, np.ndarray] = {}

        def get(name: str) -> np.ndarray:
            """Return an array of the file, read once. Raises `DataError` if it cannot be read."""
            if name not in loaded:
                loaded[name] = _load(path, name)
            return loaded[name]

        return decode_arrays(path, names, get)

    return Source(str(path), read, fingerprint=fingerprint_of([path]))


def _load(path: Path, name: str) -> np.ndarray:
    """Return one array. Raises `DataError` if it is damaged or holds Python objects."""
    try:
        with np.load(path, allow_pickle=False) as file:
            array = file[name]
        if not isinstance(array, np.ndarray):
            raise ValueError("it is not an array")
        return array
    except Exception as error:  # a damaged file can raise almost any exception
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path}: {name} holds Python objects, as it does when images differ in size; expected one array of "
                "numbers: resize the images first, or use data.name folder with data.size"
            ) from error
        raise DataError(f"{path}: {name} cannot be read ({' '.join(str(error).split())}); write it again") from error


NPZ = DataSource("npz", npz, reads_file=True)
