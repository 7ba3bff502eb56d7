"""The device of this rank, and its number of threads.

GPU: the ranks of a node share its GPUs by local rank. The server has a GPU of its own where there are two or more
(`placement.server_gpu: exclusive`); the others are assigned round-robin to the rest. A YAML map overrides this:

    node-a: [1, 2, 2, 2]    # on host node-a, one rank on GPU 0, two each on GPUs 1, 2 and 3
    localhost: [4]          # on every host without a line of its own, four ranks on GPU 0

CPU: the cores available to this process are divided among the ranks of the node.
"""

import contextlib
import ctypes
import os
import platform
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import yaml

from gkt_mpi.cores import usable_cores
from gkt_mpi.errors import ConfigError, expand, require

# Options of glibc's mallopt, from malloc.h: do not map single blocks, keep freed memory, grow in large steps.
_MALLOC_OPTIONS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**26)}

PROC = Path("/proc")  # absent on macOS


@dataclass(frozen=True)
class PlacementConfig:
    """Devices and threads."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    threads: Literal["auto"] | int = "auto"
    """CPU threads of each rank. auto: cores / ranks on the node, at least 1; all cores in the server's phase."""
    server_gpu: Literal["exclusive", "shared"] = "exclusive"
    """exclusive: on a node with two or more GPUs, the server has one of its own."""
    gpu_map: str | None = None
    """YAML file with the number of ranks on each GPU, by host; null for the default rule."""

    def __post_init__(self) -> None:
        require(self.threads == "auto" or self.threads >= 1, "placement.threads", self.threads, "auto, or at least 1")


@dataclass(frozen=True)
class Placement:
    """Device and threads of this rank."""

    device: torch.device
    threads: int
    all_threads: int  # while every other rank of the node waits

    @property
    def has_own_cores(self) -> bool:
        """Whether this rank's computation takes no cores from others of its node, or its threads are fixed."""
        return self.device.type == "cuda" or self.threads == self.all_threads

    def apply(self) -> None:
        """Make torch use this device and this number of threads, and keep freed memory for reuse."""
        keep_freed_memory()
        torch.set_num_threads(self.threads)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    @contextmanager
    def all_cores(self) -> Iterator[None]:
        """Use every core of the node inside the block: for work during which the other ranks wait."""
        torch.set_num_threads(self.all_threads)
        try:
            yield
        finally:
            torch.set_num_threads(self.threads)


def place(config: PlacementConfig, local_rank: int, local_size: int, has_server: bool) -> Placement:
    """Return the placement of the rank that is `local_rank` of `local_size` ranks on its node.

    `has_server` tells whether the server is on this node; it is then local rank 0.

    Raises `ConfigError` if a GPU is requested and there is none, or the GPU map does not fit.
    """
    cores = len(usable_cores())
    if config.threads == "auto":
        threads, all_threads = max(1, cores // local_size), cores
    else:
        threads = all_threads = config.threads
    num_gpus = torch.cuda.device_count() if config.device != "cpu" else 0
    if config.device == "cuda" and num_gpus == 0:
        raise ConfigError(
            f"placement.device is 'cuda', but torch sees no GPU on {socket.gethostname()}; use auto or cpu"
        )
    if num_gpus == 0:
        return Placement(torch.device("cpu"), threads, all_threads)
    host = socket.gethostname()
    if config.gpu_map is not None:
        gpu = gpu_from_map(_read_map(config.gpu_map), host, local_rank, local_size, num_gpus)
    else:
        gpu = gpu_by_rule(local_rank, num_gpus, has_server and config.server_gpu == "exclusive")
    return Placement(torch.device("cuda", gpu), threads, all_threads)


def processor() -> str:
    """Return this machine's processor and the instruction set that torch uses: rounding depends on both."""
    try:
        lines = (PROC / "cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model} ({torch.backends.cpu.get_cpu_capability()})"


def gpu_by_rule(local_rank: int, num_gpus: int, keep_first: bool) -> int:
    """Return the GPU of a rank: round-robin; with `keep_first` GPU 0 of several is reserved for local rank 0."""
    if not keep_first or num_gpus == 1:
        return local_rank % num_gpus
    return 0 if local_rank == 0 else 1 + (local_rank - 1) % (num_gpus - 1)


def gpu_from_map(gpu_map: dict[str, list[int]], host: str, local_rank: int, local_size: int, num_gpus: int) -> int:
    """Return the GPU of a rank from `host: [ranks on GPU 0, ranks on GPU 1, ...]`. Raises `ConfigError`."""
    line = next((name for name in (host, host.partition(".")[0], "localhost") if name in gpu_map), None)
    if line is None:
        raise ConfigError(f"placement.gpu_map has no line for host {host}; it has {', '.join(gpu_map) or 'none'}")
    ranks = gpu_map[line]
    if len(ranks) > num_gpus or sum(ranks) != local_size:
        raise ConfigError(
            f"placement.gpu_map gives host {host} {sum(ranks)} ranks on {len(ranks)} GPUs, but {local_size} ranks run "
            f"there and torch sees {num_gpus} GPUs"
        )
    return [gpu for gpu, count in enumerate(ranks) for _ in range(count)][local_rank]


def keep_freed_memory() -> None:
    """Have glibc keep freed memory in this process; without glibc do nothing.

    Every layer's output takes some MiB and is freed soon after. By default glibc maps such blocks anew each time, and
    the kernel zeroes them page by page: this cost ResNet-56 a third of its speed at batch 64, two thirds at 256.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _MALLOC_OPTIONS.values():
            mallopt(option, value)


def peak_mib() -> float:
    """Return the peak memory of this process so far, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def available_memory_mib() -> float:
    """Return the memory available to this process, in MiB: the node's, or less if a job or container limits it.

    On macOS, where the system does not tell how much is free, it is all of the machine's memory.
    """
    if not (PROC / "meminfo").exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
    found = dict(line.split(":") for line in _text(PROC / "meminfo").splitlines())
    left = int(found["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError, KeyError):  # cgroup version 2
        group = _text(PROC / "self/cgroup").rpartition("::")[2].strip().lstrip("/")
        folder = Path("/sys/fs/cgroup", group)
        for level in (folder, *folder.parents):
            if (level / "memory.max").exists() and (limit := _text(level / "memory.max").strip()) != "max":
                counted = dict(line.split() for line in _text(level / "memory.stat").splitlines())
                used = int(_text(level / "memory.current")) - int(counted["inactive_file"])  # reclaimable
                left = min(left, int(limit) - used)
    return left / 2**20


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _read_map(path: str) -> dict[str, list[int]]:
    try:
        content = yaml.safe_load(expand(path, "placement.gpu_map").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"placement.gpu_map {path} cannot be read: {error}") from error
    fits = isinstance(content, dict) and all(
        isinstance(ranks, list) and all(isinstance(n, int) and n >= 0 for n in ranks) for ranks in content.values()
    )
    if not fits:
        raise ConfigError(
            f"placement.gpu_map {path} must map each host to a list of ranks per GPU, like node-a: [1, 2]"
        )
    return {str(host): ranks for host, ranks in content.items()}
