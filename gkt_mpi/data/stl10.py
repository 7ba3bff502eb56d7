"""STL-10: 96x96 photographs of ten classes, in the files that torchvision downloads. Unlabelled images are not used."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gkt_mpi.data.published import published
from gkt_mpi.data.source import DataSize, DataSource, Source

if TYPE_CHECKING:
    from gkt_mpi.data.data_config import DataConfig

_CLASSES = "airplane bird car cat deer dog horse monkey ship truck".split()


def _split(datasets: ModuleType, root: Path, split: str, download: bool) -> Any:  # noqa: ANN401 - torchvision's class
    return datasets.STL10(root, split, download=download)


def stl10(config: "DataConfig") -> Source:
    """Return STL-10 (Coates et al. 2011) from `data.dir`/stl10_binary."""
    files = [f"stl10_binary/{split}_{kind}.bin" for split in ("train", "test") for kind in "Xy"]
    return published("stl10", config, files, _split, _CLASSES)


STL10 = DataSource("stl10", stl10, title="STL-10", size=DataSize(5_000, 10, (96, 96, 3)), can_download=True)
