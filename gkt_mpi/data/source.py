"""What a data set is: `DataSource`, its specification, whose function `open` returns a `Source`.

A source reports whether its files exist (`missing` states what was not found and how to get it) and when they last
changed; only `read` opens them. Users' own data sets are objects of these classes, too (docs/own_data.md).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gkt_mpi.data.augment import DefaultAugmentation, paper_augmentation

if TYPE_CHECKING:
    from gkt_mpi.data.data_config import DataConfig

Statistics = tuple[Any, Any]  # mean and standard deviation of each channel, from 0 to 1


@dataclass(frozen=True)
class DataSize:
    """Number of training images and classes of a data set, and the shape of an image."""

    train: int
    classes: int
    image_shape: tuple[int, int, int]  # height, width, channels


@dataclass(frozen=True)
class Split:
    """One part of a data set, such as its training images."""

    labels: np.ndarray
    """The class of each image, integers (N,), from 0."""
    images: Callable[[int, int], np.ndarray]
    """Returns images `first` to `last` (exclusive), uint8 (last - first, H, W, channels). It is called more than once,
    and must return the same images each time."""
    owner: np.ndarray | None = None
    """Whose each image is, integers or text (N,), for `data.partition owner`; None if nobody's."""

    @classmethod
    def of(cls, labels: np.ndarray, images: np.ndarray, owner: np.ndarray | None = None) -> "Split":
        """Return the split of an array of images. Raises `ValueError` unless there are as many labels as images."""
        if len(labels) != len(images):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        return cls(np.asarray(labels), lambda first, last: images[first:last], owner)


@dataclass(frozen=True)
class Decoded:
    """An opened data set."""

    classes: list[str]
    splits: dict[str, Split]  # train and test; CINIC-10 also has valid
    checksums: str = "official"  # or "other": the archive differs from the published one


@dataclass(frozen=True)
class Source:
    """A data set that has not been opened."""

    origin: str  # where it is from, for error messages
    read: Callable[[], Decoded]
    missing: str = ""  # why it cannot be read, and what to do; empty if it can be read
    fingerprint: str = ""  # changes when the files change; empty if they are gone or cannot change


def _none_ready(config: "DataConfig") -> None:
    return None


@dataclass(frozen=True)
class DataSource:
    """The specification of a data set, known before it is opened."""

    name: str  # in configurations
    open: Callable[["DataConfig"], Source]
    """Returns the source of a configuration. Uses the fields that apply to it, such as `config.folder`."""
    title: str = ""
    """Its name in reports; empty for `name`."""
    size: DataSize | None = None
    """Its published size; None if there is none."""
    statistics: Statistics | None = None
    """Mean and standard deviation; None for those computed from the training images."""
    augmentation: DefaultAugmentation = paper_augmentation
    """The default augmentation of training images, given their height and width in pixels."""
    can_download: bool = False
    """Whether `open` can download it."""
    is_synthetic: bool = False
    """Whether its images are generated from `data.synthetic`."""
    reads_file: bool = False
    """Whether it is read from `data.file`, which must then be given."""
    ready_file: Callable[["DataConfig"], Path | None] = _none_ready
    """Returns the path of an existing image file that is used as it is; None if one is created from the source."""

    @property
    def label(self) -> str:
        """Its name in reports."""
        return self.title or self.name

    def size_with(self, config: "DataConfig") -> DataSize | None:
        """Return its size, also for synthetic or resized images; None if it is not known in advance."""
        size = config.synthetic.data_size if self.is_synthetic else self.size
        if size is None or config.size is None:
            return size
        return replace(size, image_shape=(config.size, config.size, size.image_shape[-1]))

    def file_stem(self, config: "DataConfig") -> str:
        """Return the name of its image file, without the suffix: one for all that determines its contents."""
        stem = re.sub("[:.]", "-", config.name)
        made = config.synthetic
        if self.is_synthetic:
            stem += f"-{made.train}-{made.test}-{made.size}x{made.size}-{made.classes}-{made.seed}"
        if config.file_path is not None:
            stem += f"-{config.file_path.stem}-{sha256(str(config.file_path).encode()).hexdigest()[:8]}"
        if config.size is not None:
            stem += f"-resized-{config.size}x{config.size}"
        return stem
