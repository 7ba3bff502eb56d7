"""The configuration of the data: which images, and their distribution over the clients."""

from dataclasses import dataclass, field
from pathlib import Path

from gkt_mpi.data.augment import AugmentName
from gkt_mpi.data.partition import PARTITIONS, PartitionName
from gkt_mpi.data.sources import DATA_SOURCES, DataName
from gkt_mpi.data.synthetic import SyntheticConfig
from gkt_mpi.errors import expand, require


@dataclass(frozen=True)
class DataConfig:
    """The data set, and the distribution of its training images over the clients."""

    name: DataName = "cifar10"
    """Data set. digits is included in the package; synthetic is generated from a seed; folder, npz and hdf5 are your
    own images (docs/own_data.md); the others are read from dir."""
    dir: str = "data"
    """Folder of the data sets' archives, or of class folders (folder), and of the HDF5 file made from them; ~ is
    expanded."""
    file: str | None = None
    """File of arrays that npz and hdf5 read; ~ is expanded. null for other data sets."""
    size: int | None = None
    """Resize images so that the shorter side has this many pixels, and crop the centre; a multiple of 4, at least 8.
    null: as they are, then all of one size."""
    partition: PartitionName = "homo"
    """homo: equal, shuffled. hetero: every class distributed by Dirichlet(alpha), as in the paper. shards:
    classes_per_client classes each. quantity: equal class mix, sizes by Dirichlet(alpha). owner: one client per owner
    named in the data. file: as listed in partition_file."""
    partition_file: str | None = None
    """File that partition file reads: CSV with the columns sample and client, or the partition.npz of a run folder; ~
    is expanded. null for other partitions."""
    alpha: float = 0.5
    """Concentration of the Dirichlet distribution of hetero and quantity; above 0, smaller is more skewed."""
    classes_per_client: int = 2
    """Classes that each client holds with partition shards; at least 1."""
    augment: AugmentName = "auto"
    """Augmentation of training images. paper: random crop, horizontal flip and Cutout. crop_flip: without Cutout. none:
    no augmentation. auto: as in the paper, for digits and letters crops only."""
    download: bool = False
    """Download the data set if its archive is missing and it can be downloaded: cifar10, cifar100, mnist,
    fashion_mnist, emnist, svhn, stl10."""
    limit: int | None = None
    """Use this many training images, drawn from the seed; null for all."""
    test_limit: int | None = None
    """Use this many test images, drawn from the seed; null for all."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        source, partition = DATA_SOURCES.find(self.name), PARTITIONS.find(self.partition)
        for name, is_read, reader in (
            ("file", source.reads_file, f"data.name {self.name}"),
            ("partition_file", partition.reads_file, f"data.partition {self.partition}"),
        ):
            expected = f"a path, which {reader} needs" if is_read else f"null, since {reader} does not read it"
            require(bool(getattr(self, name)) == is_read, f"data.{name}", getattr(self, name), expected)
        fits = self.size is None or (self.size >= 8 and self.size % 4 == 0)
        require(fits, "data.size", self.size, "a multiple of 4, at least 8, or null")
        require(self.alpha > 0, "data.alpha", self.alpha, "a number above 0")
        require(self.classes_per_client >= 1, "data.classes_per_client", self.classes_per_client, "at least 1")
        for name in ("limit", "test_limit"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"data.{name}", value, "at least 1, or null for all")

    @property
    def folder(self) -> Path:
        """The path of `dir`. Raises `ConfigError` if it names an unknown user."""
        return expand(self.dir, "data.dir")

    @property
    def file_path(self) -> Path | None:
        """The absolute path of `file`, if it is given. Raises `ConfigError` if it names an unknown user."""
        return None if self.file is None else expand(self.file, "data.file").absolute()

    @property
    def partition_path(self) -> Path | None:
        """The path of `partition_file`, if it is given. Raises `ConfigError` if it names an unknown user."""
        return None if self.partition_file is None else expand(self.partition_file, "data.partition_file")
