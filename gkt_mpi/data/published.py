"""Data sets that torchvision downloads and reads, from the files of its own layouts in `data.dir`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from gkt_mpi.data.archive import download_with, fingerprint_of, nothing_to_read
from gkt_mpi.data.source import Decoded, Source, Split
from gkt_mpi.errors import DataError
from gkt_mpi.torchvision_import import import_torchvision

if TYPE_CHECKING:
    from gkt_mpi.data.data_config import DataConfig

_SPLITS = ("train", "test")
Open = Callable[[ModuleType, Path, str, bool], Any]  # (torchvision.datasets, folder, train or test, download)


def published(name: str, config: "DataConfig", files: Sequence[str], open_split: Open, classes: list[str]) -> Source:
    """Return the source of a data set that torchvision reads.

    `files`: relative to `data.dir`, all of them needed; `open_split` returns torchvision's object of a split;
    `classes`: the class names.
    """
    root = config.folder
    first = root / files[0]
    absent = [root / file for file in files if not (root / file).is_file()]
    if absent and config.download:

        def get() -> None:
            for split in _SPLITS:
                open_split(import_torchvision("datasets"), root, split, True)

        download_with(get, name, first, "")
        absent = []
    if absent:
        missing = (
            f"{name} was not found: there is no {absent[0]}. Either add --data.download true on a machine with a "
            f"network, or set data.dir to the folder that has {files[0]}"
        )
        return Source(str(first.parent), nothing_to_read, missing=missing)

    def read() -> Decoded:
        """Read both splits. Raises `DataError` if torchvision cannot read them."""
        return Decoded(classes, {split: _read(name, root, split, first.parent, open_split) for split in _SPLITS})

    return Source(str(first.parent), read, fingerprint=fingerprint_of(root / file for file in files))


def _read(name: str, root: Path, split: str, where: Path, open_split: Open) -> Split:
    """Return a split as torchvision reads it, its images in the order height, width, channels."""
    try:
        found = open_split(import_torchvision("datasets"), root, split, False)
        images = np.asarray(found.data)
        labels = np.asarray(found.targets if hasattr(found, "targets") else found.labels).astype(np.int64)
        images = images[..., None] if images.ndim == 3 else images.transpose(0, 2, 3, 1)
        return Split.of(labels, images)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        raise DataError(f"{name} needs {package} to be read: pip install {package}") from error
    except Exception as error:  # a damaged file can raise almost any exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: the {split} files of {name} are damaged ({reason}); get them again") from error
