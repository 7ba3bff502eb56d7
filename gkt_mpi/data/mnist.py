"""MNIST, Fashion-MNIST and EMNIST (balanced: 47 letters and digits), in the files that torchvision downloads."""

import string
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gkt_mpi.data.augment import crop_only
from gkt_mpi.data.published import published
from gkt_mpi.data.source import DataSize, DataSource, Source

if TYPE_CHECKING:
    from gkt_mpi.data.data_config import DataConfig

_DIGITS = list(string.digits)
_CLOTHES = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot".split(", ")
# Lower-case letters that look like their capitals belong to the same class (Cohen et al. 2017).
_SIGNS = sorted({*string.digits, *string.ascii_letters} - {*"cijklmopsuvwxyz"})


def _files(folder: str, prefixes: tuple[str, str]) -> list[str]:
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    return [f"{folder}/raw/{prefix}-{kind}" for prefix in prefixes for kind in kinds]


def _digits(class_name: str, datasets: ModuleType, root: Path, split: str, download: bool) -> Any:  # noqa: ANN401
    """Return a split of a data set in the layout of MNIST, an object of torchvision's class."""
    return getattr(datasets, class_name)(root, train=split == "train", download=download)


def mnist(config: "DataConfig") -> Source:
    """Return MNIST (LeCun et al. 1998) from `data.dir`/MNIST/raw."""
    return published("mnist", config, _files("MNIST", ("train", "t10k")), partial(_digits, "MNIST"), _DIGITS)


def fashion_mnist(config: "DataConfig") -> Source:
    """Return Fashion-MNIST (Xiao et al. 2017) from `data.dir`/FashionMNIST/raw."""
    files = _files("FashionMNIST", ("train", "t10k"))
    return published("fashion_mnist", config, files, partial(_digits, "FashionMNIST"), _CLOTHES)


def _balanced(datasets: ModuleType, root: Path, split: str, download: bool) -> Any:  # noqa: ANN401
    """Return a split of EMNIST, upright: its files hold rows and columns exchanged."""
    found = datasets.EMNIST(root, "balanced", train=split == "train", download=download)
    found.data = found.data.transpose(1, 2)
    return found


def emnist(config: "DataConfig") -> Source:
    """Return the balanced classes of EMNIST (Cohen et al. 2017) from `data.dir`/EMNIST/raw."""
    files = _files("EMNIST", ("emnist-balanced-train", "emnist-balanced-test"))
    return published("emnist", config, files, _balanced, _SIGNS)


MNIST = DataSource(
    "mnist",
    mnist,
    title="MNIST",
    size=DataSize(60_000, 10, (28, 28, 1)),
    augmentation=crop_only,
    can_download=True,
)
FASHION_MNIST = DataSource(
    "fashion_mnist", fashion_mnist, title="Fashion-MNIST", size=DataSize(60_000, 10, (28, 28, 1)), can_download=True
)
EMNIST = DataSource(
    "emnist",
    emnist,
    title="EMNIST",
    size=DataSize(112_800, 47, (28, 28, 1)),
    augmentation=crop_only,
    can_download=True,
)
