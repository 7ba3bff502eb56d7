"""Partitions of the training images over the clients: a `Partition` for each method."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from gkt_mpi.data.partition_file import read_partition
from gkt_mpi.errors import ConfigError, require
from gkt_mpi.facts import Parameter
from gkt_mpi.lookup import Lookup, ModuleAttribute, blaming
from gkt_mpi.seeding import numpy_generator

if TYPE_CHECKING:
    from gkt_mpi.data.data_config import DataConfig

MIN_SAMPLES = 10  # minimum for a client in the hetero and quantity partitions, as in the paper
_MAX_DRAWS = 1000

Owners = np.ndarray | None  # int64 (N,): the number of each image's owner, from 0, if the data set says
Split = Callable[[np.ndarray, Owners, int, "DataConfig", np.random.Generator], list[np.ndarray]]


@dataclass(frozen=True)
class Partition:
    """A method of distributing the training images over the clients."""

    name: str  # in configurations
    split: Split
    """Returns each client's rows, integers, disjoint, given the labels, int64 (N,), the owners, the number of clients,
    the configuration, and a generator, on which alone it may depend. Rows of no client are not used. Raises
    `ConfigError` if it does not fit the images."""
    parameter: Parameter | None = None
    """The field of `DataConfig` that it depends on."""
    min_samples: int = 1
    """Minimum number of images per client."""
    reads_file: bool = False
    """Whether it reads `data.partition_file`, which must then be given."""
    count: Callable[["DataConfig", Owners], int] | None = None
    """Returns the only possible number of clients, where the data decide it. Raises `ConfigError`."""


def partition(
    labels: np.ndarray, num_clients: int, config: "DataConfig", seed: int, owners: Owners = None
) -> list[np.ndarray]:
    """Return each client's sample ids: rows of the training set, int64, ascending, disjoint.

    With `data.limit`, that many rows, drawn from the seed, are distributed. `owners` is each image's owner, if the data
    set defines one. Depends on its arguments only. Raises `ConfigError` if there are too few images for the clients, or
    if the partition is not valid.
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
    if (needed := natural_clients(config, owners)) not in (None, num_clients):
        raise ConfigError(
            f"clients is {num_clients}, but data.partition {config.partition} makes it {needed}; "
            f"set clients to {needed}, or leave it out"
        )
    mine = labels[sample_id], None if owners is None else owners[sample_id], num_clients, config
    if config.partition in PARTITIONS:
        parts = check_parts(config.partition, chosen.split(*mine, rng), num_clients, len(sample_id))
    else:
        parts = _split_twice(chosen, mine, rng)
    return [np.sort(sample_id[part]) for part in parts]


def natural_clients(config: "DataConfig", owners: Owners) -> int | None:
    """Return the number of clients where the data decide it; None if any number is possible. Raises `ConfigError`."""
    count = PARTITIONS[config.partition].count
    return None if count is None else count(config, owners)


def check_parts(name: str, parts: object, num_clients: int, num_rows: int) -> list[np.ndarray]:
    """Return each client's rows, int64. Raises `ConfigError` unless they are a partition of some of the rows."""
    which = f"data.partition is {name}"
    if not isinstance(parts, list | tuple) or len(parts) != num_clients:
        found = f"{len(parts)} parts" if isinstance(parts, list | tuple) else f"a {type(parts).__name__}"
        raise ConfigError(f"{which}, which returned {found}; expected a list of {num_clients} parts, one per client")
    client_of = np.full(num_rows, -1)
    for client, part in enumerate(parts):
        rows = np.asarray(part)
        if rows.size == 0:
            raise ConfigError(f"{which}, which leaves client {client} without images; lower clients or add images")
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise ConfigError(f"{which}; client {client} has rows {rows.dtype} {rows.shape}; expected integers (n,)")
        if rows.min() < 0 or rows.max() >= num_rows:
            wrong = rows[(rows < 0) | (rows >= num_rows)][0]
            raise ConfigError(f"{which}; client {client} has row {wrong}; expected 0 to {num_rows - 1}")
        again = rows[client_of[rows] >= 0]
        if len(again) or len(np.unique(rows)) < len(rows):
            values, counts = np.unique(rows, return_counts=True)
            row, other = (again[0], client_of[again[0]]) if len(again) else (values[counts > 1][0], client)
            raise ConfigError(f"{which}; row {row} is in clients {other} and {client}; expected every row once at most")
        client_of[rows] = client
    return [np.asarray(part, np.int64) for part in parts]


def _split_twice(
    chosen: Partition,
    mine: tuple[np.ndarray, Owners, int, "DataConfig"],
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Return the parts of a user's own partition, after calling it twice, which must give the same."""
    labels, _, num_clients, config = mine
    found = []
    for generator in (copy.deepcopy(rng), rng):
        with blaming("data.partition", config.partition):
            parts = chosen.split(*mine, generator)
        found.append(check_parts(config.partition, parts, num_clients, len(labels)))
    if not all(np.array_equal(*pair) for pair in zip(*found, strict=True)):
        raise ConfigError(
            f"data.partition is {config.partition}, which returned different parts when it was called again; draw "
            "random numbers only from the generator it is given"
        )
    return found[0]


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
    return [np.concatenate(part) for part in parts]


def _quantity(
    labels: np.ndarray, owners: Owners, num_clients: int, config: "DataConfig", rng: np.random.Generator
) -> list[np.ndarray]:
    """Give every client the same mix of classes in a different size: `MIN_SAMPLES`, plus a Dirichlet(alpha) share."""
    rest = len(labels) - num_clients * MIN_SAMPLES
    share = np.cumsum(rng.dirichlet(np.full(num_clients, config.alpha)))[:-1]
    cuts = (share * rest).astype(int) + MIN_SAMPLES * np.arange(1, num_clients)
    return np.split(rng.permutation(len(labels)), cuts)


def _owner(
    labels: np.ndarray, owners: Owners, num_clients: int, config: "DataConfig", rng: np.random.Generator
) -> list[np.ndarray]:
    """Give client k the images of owner k."""
    assert owners is not None  # counted before
    return [np.flatnonzero(owners == owner) for owner in range(num_clients)]


def _listed(
    labels: np.ndarray, owners: Owners, num_clients: int, config: "DataConfig", rng: np.random.Generator
) -> list[np.ndarray]:
    """Give each client the samples listed for it in `data.partition_file`."""
    require(config.limit is None, "data.limit", config.limit, "null with data.partition file, which lists the images")
    assert config.partition_path is not None
    return read_partition(config.partition_path, len(labels))


def _count_listed(config: "DataConfig", owners: Owners) -> int:
    assert config.partition_path is not None
    return len(read_partition(config.partition_path))


def _count_owners(config: "DataConfig", owners: Owners) -> int:
    if owners is None:
        raise ConfigError(
            f"data.partition is owner, but {config.name} does not say whose each image is; expected an array "
            "train_owner (npz, hdf5), or a DataSource whose train split has owners"
        )
    return int(owners.max()) + 1


_ALPHA = Parameter("alpha", "α = {}")
_CLASSES = Parameter("classes_per_client", "{} classes per client")
PARTITIONS = Lookup(
    "data.partition",
    Partition,
    Partition("homo", _homo),
    Partition("hetero", _hetero, _ALPHA, MIN_SAMPLES),
    Partition("shards", _shards, _CLASSES),
    Partition("quantity", _quantity, _ALPHA, MIN_SAMPLES),
    Partition("owner", _owner, count=_count_owners),
    Partition("file", _listed, reads_file=True, count=_count_listed),
)

if TYPE_CHECKING:
    PartitionName = str
else:
    PartitionName = Literal[tuple(PARTITIONS)] | ModuleAttribute
