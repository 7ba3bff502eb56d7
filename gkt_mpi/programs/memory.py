"""Estimates the memory that the ranks of a node need, and finds its limit, for the check before a run (check.py).

The need is an estimate from counts, a fifth above measurements of short runs of CIFAR-10's size on the CPU: resident
memory of torch, images and messages, the activations of a batch, and on the server the bank of features. With a GPU,
which holds the activations, it has not been measured.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from gkt_mpi.algorithms import ALGORITHMS
from gkt_mpi.build import feature_shape_of
from gkt_mpi.config import RunConfig
from gkt_mpi.cost.flops import NetworkCost, edge_cost, server_cost, whole_cost
from gkt_mpi.data.datasets import ImageFile, look_for
from gkt_mpi.data.source import DataSize
from gkt_mpi.data.sources import DATA_SOURCES
from gkt_mpi.errors import ConfigError
from gkt_mpi.wire.codec import Codec

_MIB = 2**20
_LIBRARIES_MIB = 450.0  # torch, MPI and the rest of an idle rank
_CUDA_MIB = 2000.0  # more with a GPU
_ACTIVATIONS = 1.25  # multiple of the stored activations: gradients, and memory the allocator does not return
_BLOCKS = 16  # of features, between the network, the codec, MPI and the bank
_UNLIMITED = 2**60  # bytes; cgroup version 1 reports slightly less than 2^63 for no limit


def images_of(config: RunConfig) -> DataSize | None:
    """Return the size of the run's data set, even before its file exists; None if it is unknown."""
    with contextlib.suppress(ConfigError):
        found = look_for(config.data)
        if isinstance(found, ImageFile):
            return images_in(found)
    return DATA_SOURCES[config.data.name].size_with(config.data)


def images_in(file: ImageFile) -> DataSize:
    """Return the size of the data set in a file."""
    return DataSize(len(file.labels("train")), len(file.classes), file.image_shape)


def bank_mib(config: RunConfig, images: DataSize) -> float:
    """Return the memory in MiB that all features of a round take on the server, were `bank.memory_mib` no limit."""
    places = ALGORITHMS[config.algorithm].bank_places
    return places * _used(config, images) * _codec(config, images).row_bytes / _MIB


def needed_mib(config: RunConfig, images: DataSize, is_server: bool, has_gpu: bool) -> float:
    """Return the approximate memory need of a rank in MiB."""
    if is_server:
        limit = config.bank.memory_mib
        bank = bank_mib(config, images)
        kept = (bank if limit is None else min(bank, limit)) + _used(config, images) * _image_bytes(images) / _MIB
        network, batch = _on_server(config, images)
    else:
        kept = _used(config, images) * _image_bytes(images) / _MIB / (config.clients or 1)
        network, batch = _on_worker(config, images)
    activations = network.activation_bytes * batch / _MIB if network is not None else 0.0
    features = _used(config, images) * _codec(config, images).row_bytes / _MIB
    blocks = _BLOCKS * min(config.wire.block_mib, features)
    return _LIBRARIES_MIB + kept + blocks + (_CUDA_MIB if has_gpu else _ACTIVATIONS * activations)


def limit_of_node(
    environment: Mapping[str, str] = os.environ, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")
) -> tuple[float, str]:
    """Return the memory limit in MiB of a job's ranks on this node together, and its source."""
    return min(_limits(environment, proc, groups), default=(float("inf"), "nothing"))


def _limits(environment: Mapping[str, str], proc: Path, groups: Path) -> Iterator[tuple[float, str]]:
    if node := _number(environment.get("SLURM_MEM_PER_NODE")):
        yield float(node), "SLURM_MEM_PER_NODE"
    elif per_cpu := _number(environment.get("SLURM_MEM_PER_CPU")):
        yield float(per_cpu * (_number(environment.get("SLURM_CPUS_ON_NODE")) or 1)), "SLURM_MEM_PER_CPU"
    for line in _lines(proc / "self" / "cgroup"):
        controllers, group = (*line.split(":", 2), "", "")[1:3]
        is_v1 = "memory" in controllers.split(",")
        if is_v1 or not controllers:
            root, name = (groups / "memory", "memory.limit_in_bytes") if is_v1 else (groups, "memory.max")
            folder = root / group.strip().lstrip("/")
            for level in (folder, *folder.parents):
                limit = _number(next(iter(_lines(level / name)), ""))
                if limit is not None and limit < _UNLIMITED:
                    yield limit / _MIB, f"its control group's {name}"
                if level == root:
                    break
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemTotal:"):
            yield int(line.split()[1]) / 1024, "the node's memory"


def _on_server(config: RunConfig, images: DataSize) -> tuple[NetworkCost | None, int]:
    """Return the network that the server trains, and its batch size in images."""
    facts = ALGORITHMS[config.algorithm].facts
    if facts.server_part == "none":
        return None, 0
    if facts.server_part == "whole":
        return _whole(config, images), config.server.batch_size
    batch = config.client.batch_size if facts.sends_gradients else config.server.batch_size
    large, shape = config.server, _codec(config, images).shape
    gradient = facts.sends_gradients
    return server_cost(large.model, shape, images.classes, large.norm, large.cut, with_input_gradient=gradient), batch


def _on_worker(config: RunConfig, images: DataSize) -> tuple[NetworkCost | None, int]:
    """Return the largest network that a worker trains, and in batches of how many images."""
    part, batch = ALGORITHMS[config.algorithm].facts.client_part, config.client.batch_size
    if part == "whole":
        return _whole(config, images), batch
    names = [config.client.model] if isinstance(config.client.model, str) else list(config.client.model)
    costs = [edge_cost(name, images.image_shape, images.classes, config.client.norm) for name in names]
    return max(costs, key=lambda cost: cost.activation_bytes), batch


def _whole(config: RunConfig, images: DataSize) -> NetworkCost:
    large = config.server
    return whole_cost(large.model, images.image_shape, images.classes, large.norm, large.cut)


def _used(config: RunConfig, images: DataSize) -> int:
    return min(images.train, config.data.limit or images.train)


def _image_bytes(images: DataSize) -> int:
    height, width, channels = images.image_shape
    return height * width * channels


def _codec(config: RunConfig, images: DataSize) -> Codec:
    return Codec(config.wire.codec, feature_shape_of(config, images.image_shape, images.classes))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _number(text: str | None) -> int | None:
    """Return the integer in a text, or None for anything else, such as max."""
    return int(text) if text and text.strip().isdecimal() else None
