"""SVHN: house numbers in street views, in the files that torchvision downloads. Needs scipy to read them."""

import string
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gkt_mpi.data.augment import crop_only
from gkt_mpi.data.published import published
from gkt_mpi.data.source import DataSize, DataSource, Source

if TYPE_CHECKING:
    from gkt_mpi.data.data_config import DataConfig


def _split(datasets: ModuleType, root: Path, split: str, download: bool) -> Any:  # noqa: ANN401 - torchvision's class
    return datasets.SVHN(root, split, download=download)


def svhn(config: "DataConfig") -> Source:
    """Return SVHN (Netzer et al. 2011), cropped digits, from `data.dir`/train_32x32.mat and test_32x32.mat."""
    return published("svhn", config, ["train_32x32.mat", "test_32x32.mat"], _split, list(string.digits))


SVHN = DataSource(
    "svhn", svhn, title="SVHN", size=DataSize(73_257, 10, (32, 32, 3)), augmentation=crop_only, can_download=True
)
