"""CIFAR-10 and CIFAR-100, read from the published archives (version for Python)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gkt_mpi.data.archive import beside, download_with, fingerprint_of, is_published, nothing_to_read
from gkt_mpi.data.pickled import read_pickle
from gkt_mpi.data.source import DataSize, DataSource, Decoded, Source, Split
from gkt_mpi.errors import DataError
from gkt_mpi.torchvision_import import import_torchvision

if TYPE_CHECKING:
    from gkt_mpi.data.data_config import DataConfig


def cifar10(config: "DataConfig") -> Source:
    """Return CIFAR-10 from `data.dir`/cifar-10-batches-py, the archive's own layout."""
    files = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"], "meta": ["batches.meta"]}
    return _cifar("cifar10", "CIFAR10", config, "cifar-10-batches-py", files, "labels", "label_names")


CIFAR10 = DataSource(
    "cifar10",
    cifar10,
    title="CIFAR-10",
    size=DataSize(50_000, 10, (32, 32, 3)),
    statistics=((0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)),
    can_download=True,
)


def cifar100(config: "DataConfig") -> Source:
    """Return CIFAR-100 with its fine labels from `data.dir`/cifar-100-python, the archive's own layout."""
    files = {"train": ["train"], "test": ["test"], "meta": ["meta"]}
    return _cifar("cifar100", "CIFAR100", config, "cifar-100-python", files, "fine_labels", "fine_label_names")


CIFAR100 = DataSource(
    "cifar100",
    cifar100,
    title="CIFAR-100",
    size=DataSize(50_000, 100, (32, 32, 3)),
    statistics=((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    can_download=True,
)


def _cifar(
    name: str,
    torchvision_class: str,
    config: "DataConfig",
    folder_name: str,
    files: dict[str, list[str]],
    label_key: str,
    names_key: str,
) -> Source:
    root = config.folder
    folder = root if (root / files["meta"][0]).is_file() else root / folder_name
    hint = beside(folder, folder_name.replace("batches-py", "python") + "*.tar*")
    if config.download and not folder.is_dir():

        def get() -> None:
            getattr(import_torchvision("datasets"), torchvision_class)(root, download=True)

        download_with(get, torchvision_class, folder, hint)
    paths = [folder / file for part in files.values() for file in part]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        missing = (
            f"{name} was not found: there is no {absent[0]}{hint}. Either add --data.download true on a "
            f"machine with a network, or unpack the archive 'python version' from the data set's home page into {root}"
        )
        return Source(str(folder), nothing_to_read, missing=missing)

    def split(part: str, num_classes: int) -> Split:
        """Return the images and labels in a part's pickled batches."""
        batches = [_batch(folder / file, label_key, num_classes) for file in files[part]]
        planar = np.concatenate([rows for rows, _ in batches]).reshape(-1, 3, 32, 32)
        return Split.of(np.concatenate([labels for _, labels in batches]), planar.transpose(0, 2, 3, 1))

    def read() -> Decoded:
        """Read the archive; torchvision's checksums tell whether it is the published one."""
        dataset_class = getattr(import_torchvision("datasets"), torchvision_class)
        published = [*dataset_class.train_list, *dataset_class.test_list]
        official = all(is_published(folder / file, md5) for file, md5 in published)
        classes = _class_names(folder / files["meta"][0], names_key)
        splits = {part: split(part, len(classes)) for part in ("train", "test")}
        return Decoded(classes, splits, "official" if official else "other")

    return Source(str(folder), read, fingerprint=fingerprint_of(paths))


def _batch(path: Path, label_key: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images uint8 (N, 3072) and labels int64 (N,) of one file. Raises `DataError` with the problem."""
    entries = read_pickle(path)
    rows, labels = _entry(path, entries, "data"), _entry(path, entries, label_key)
    if not (isinstance(rows, np.ndarray) and rows.dtype == np.uint8 and rows.shape[1:] == (3 * 32 * 32,)):
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise _broken(path, f"has data of {found}; expected uint8 (N, 3072)")
    numbers = labels.tolist() if isinstance(labels, np.ndarray) else labels
    if not (isinstance(numbers, list) and all(type(number) is int for number in numbers)):
        raise _broken(path, f"has {label_key} that are not integers")
    if len(rows) != len(numbers):
        raise _broken(path, f"has {len(rows)} images but {len(numbers)} labels")
    if numbers and not 0 <= min(numbers) <= max(numbers) < num_classes:
        raise _broken(path, f"has labels outside 0..{num_classes - 1}, which are the classes of the archive")
    return rows, np.array(numbers, np.int64)


def _class_names(path: Path, names_key: str) -> list[str]:
    """Return the class names in an archive's own list. Raises `DataError` with the problem."""
    names = _entry(path, read_pickle(path), names_key)
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise _broken(path, f"has {names_key} that are not a list of text")
    return names


def _entry(path: Path, entries: dict[str, Any], key: str) -> object:
    """Return a file's entry for a key. Raises `DataError` if it is missing."""
    if key not in entries:
        there = f", only {', '.join(map(repr, entries))}"[:200] if entries else "; it is empty"
        raise _broken(path, f"has no {key!r}{there}")
    return entries[key]


def _broken(path: Path, what: str) -> DataError:
    return DataError(f"{path} {what}; get the archive again")
