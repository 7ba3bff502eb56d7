"""Partitions of the training images over the clients: a `Partition` for each method."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from gkt_mpi.errors import ConfigError
from gkt_mpi.facts import Parameter
from gkt_mpi.lookup import Lookup, ModuleAttribute
from gkt_mpi.seeding import numpy_generator

if TYPE_CHECKING:
    from gkt_mpi.data.datasets import DataConfig

MIN_SAMPLES = 10  # minimum for a client in the hetero and quantity partitions, as in the paper
_MAX_DRAWS = 1000

Owners = np.ndarray | None  # int64 (N,): each image's owner, if the data set defines one
Split = Callable[[np.ndarray, Owners, int, "DataConfig", np.random.Generator], list[np.ndarray]]


@dataclass(frozen=True)
class Partition:
    """A method of distributing the training images over the clients."""

    name: str  # in configurations
    split: Split
    """Returns each client's rows, int64, disjoint, covering all of them, given the labels, int64 (N,), the owners, the
    number of clients, the configuration, and a generator. Raises `ConfigError` if there are too few images."""
    parameter: Parameter | None = None
    """The field of `DataConfig` that it depends on."""
    min_samples: int = 1
    """Minimum number of images per client."""


def partition(
    labels: np.ndarray, num_clients: int, config: "DataConfig", seed: int, owners: Owners = None
) -> list[np.ndarray]:
    """Return each client's sample ids: rows of the training set, int64, ascending, disjoint, covering `labels`.

    With `data.limit`, they cover that many rows drawn from the seed. `owners` is each image's owner, if the data set
    defines one. Depends on its arguments only. Raises `ConfigError` if there are too few images for the clients.
    """
    rng = numpy_generator(seed, "partition")
    sample_id = np.arange(len(labels))
    if config.limit is not None and config.limit < len(labels):
        sample_id = np.sort(rng.permutation(len(labels))[: config.limit])
    chosen = PARTITIONS[config.partition]
    least = chosen.min_samples
    if len(sample_id) < num_clients * least:
        raise ConfigError(
            f"{num_clients} clients with at least {least} images each need {num_clients * least} training images, "
            f"but there are {len(sample_id)}; lower clients or raise data.limit"
        )
    parts = chosen.split(labels[sample_id], None if owners is None else owners[sample_id], num_clients, config, rng)
    return [np.sort(sample_id[part]) for part in parts]


def count_by_class(labels: np.ndarray, parts: list[np.ndarray], num_classes: int) -> np.ndarray:
    """Return the number of images of each class and client, int64 (clients, classes)."""
    return np.stack([np.bincount(labels[part], minlength=num_classes) for part in parts])


def _homo(
    labels: np.ndarray, owners: Owners, num_clients: int, config: "DataConfig", rng: np.random.Generator
) -> list[np.ndarray]:
    return np.array_split(rng.permutation(len(labels)), num_clients)


def _hetero(
    labels: np.ndarray, owners: Owners, num_clients: int, config: "DataConfig", rng: np.random.Generator
) -> list[np.ndarray]:
    """Distribute each class by Dirichlet(alpha); a client that holds its fair share gets none of the next class.

    Repeated until every client has at least `MIN_SAMPLES` (Yurochkin et al. 2019; the paper's released code).
    """
    for _ in range(_MAX_DRAWS):
        parts: list[np.ndarray] = [np.empty(0, np.int64)] * num_clients
        for label in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == label))
            share = rng.dirichlet(np.full(num_clients, config.alpha))
            share *= [len(part) < len(labels) / num_clients for part in parts]
            if not share.sum() > 0:  # every open client drew zero: no valid split of this class
                break
            cuts = (np.cumsum(share / share.sum()) * len(rows)).astype(int)[:-1]
            parts = [np.concatenate(pair) for pair in zip(parts, np.split(rows, cuts), strict=True)]
        if min(map(len, parts)) >= MIN_SAMPLES and sum(map(len, parts)) == len(labels):
            return parts
    raise ConfigError(
        f"after {_MAX_DRAWS} draws of Dirichlet({config.alpha}) some of {num_clients} clients still had fewer than "
        f"{MIN_SAMPLES} of {len(labels)} images; raise data.alpha, lower clients, or use more images"
    )


def _shards(
    labels: np.ndarray, owners: Owners, num_clients: int, config: "DataConfig", rng: np.random.Generator
) -> list[np.ndarray]:
    """Give each client `classes_per_client` classes, and every class to as equal a number of clients as possible.

    The classes are assigned round-robin in a shuffled order; clients that share a class share it equally.
    """
    classes = rng.permutation(np.unique(labels))
    each = config.classes_per_client
    if each > len(classes) or num_clients * each < len(classes):
        raise ConfigError(
            f"data.classes_per_client is {each}; expected from {-(-len(classes) // num_clients)} to {len(classes)} "
            f"for {num_clients} clients and {len(classes)} classes"
        )
    deal = np.arange(num_clients * each).reshape(num_clients, each) % len(classes)
    held = classes[deal[rng.permutation(num_clients)]]
    parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for label in classes:
        owners = np.flatnonzero((held == label).any(axis=1))
        rows = rng.permutation(np.flatnonzero(labels == label))
        for owner, share in zip(owners, np.array_split(rows, len(owners)), strict=True):
            parts[owner].append(share)
    result = [np.concatenate(part) for part in parts]
    if min(map(len, result)) == 0:
        raise ConfigError(f"partition shards leaves a client of {num_clients} without images; lower clients")
    return result


def _quantity(
    labels: np.ndarray, owners: Owners, num_clients: int, config: "DataConfig", rng: np.random.Generator
) -> list[np.ndarray]:
    """Give every client the same mix of classes in a different size: `MIN_SAMPLES`, plus a Dirichlet(alpha) share."""
    rest = len(labels) - num_clients * MIN_SAMPLES
    share = np.cumsum(rng.dirichlet(np.full(num_clients, config.alpha)))[:-1]
    cuts = (share * rest).astype(int) + MIN_SAMPLES * np.arange(1, num_clients)
    return np.split(rng.permutation(len(labels)), cuts)


_ALPHA = Parameter("alpha", "α = {}")
_CLASSES = Parameter("classes_per_client", "{} classes per client")
PARTITIONS = Lookup(
    "data.partition",
    Partition,
    Partition("homo", _homo),
    Partition("hetero", _hetero, _ALPHA, MIN_SAMPLES),
    Partition("shards", _shards, _CLASSES),
    Partition("quantity", _quantity, _ALPHA, MIN_SAMPLES),
)

if TYPE_CHECKING:
    PartitionName = str
else:
    PartitionName = Literal[tuple(PARTITIONS)] | ModuleAttribute
