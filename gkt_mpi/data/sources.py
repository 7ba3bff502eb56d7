"""The data sets that this package knows by name, each from a file of its own."""

from typing import TYPE_CHECKING, Literal

from gkt_mpi.data.cifar import CIFAR10, CIFAR100
from gkt_mpi.data.cinic import CINIC10
from gkt_mpi.data.digits import DIGITS
from gkt_mpi.data.folder import FOLDER
from gkt_mpi.data.hdf5_arrays import HDF5
from gkt_mpi.data.mnist import EMNIST, FASHION_MNIST, MNIST
from gkt_mpi.data.npz import NPZ
from gkt_mpi.data.source import DataSource
from gkt_mpi.data.stl10 import STL10
from gkt_mpi.data.svhn import SVHN
from gkt_mpi.data.synthetic import SYNTHETIC
from gkt_mpi.data.tiny_imagenet import TINY_IMAGENET
from gkt_mpi.lookup import Lookup, ModuleAttribute

_PUBLISHED = (CIFAR10, CIFAR100, CINIC10, MNIST, FASHION_MNIST, EMNIST, SVHN, STL10, TINY_IMAGENET)
_OWN_IMAGES = (FOLDER, NPZ, HDF5)
DATA_SOURCES = Lookup("data.name", DataSource, DIGITS, *_PUBLISHED, SYNTHETIC, *_OWN_IMAGES)

if TYPE_CHECKING:
    DataName = str
else:
    DataName = Literal[tuple(DATA_SOURCES)] | ModuleAttribute
