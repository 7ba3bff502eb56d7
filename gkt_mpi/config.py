"""The configuration of a run: gathers the dataclasses that stand beside their owners, from YAML and command line."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from gkt_mpi.algorithms import AlgorithmName
from gkt_mpi.data.datasets import DataConfig
from gkt_mpi.engine.checkpoint import CheckpointConfig
from gkt_mpi.engine.client import ClientConfig
from gkt_mpi.engine.evaluate import EvaluateConfig
from gkt_mpi.engine.server import ServerConfig
from gkt_mpi.errors import ConfigError, require
from gkt_mpi.losses import DistillConfig
from gkt_mpi.placement import PlacementConfig
from gkt_mpi.wire.codec import WireConfig

_DESCRIPTION = """Group knowledge transfer over MPI: rank 0 trains the large CNN, the other ranks run edge clients.
Start it with mpirun, for example: mpirun -np 5 python -m gkt_mpi.main --config launch/configs/digits.yaml"""


@dataclass(frozen=True)
class RunConfig:
    """A run."""

    algorithm: AlgorithmName = "fedgkt"
    """What is run: fedgkt is synchronous group knowledge transfer."""
    name: str = "run"
    """Name of the run: its folder is OUT/NAME."""
    out: str = "runs"
    """Folder of run folders; ~ is expanded."""
    seed: int = 0
    """Seed of everything that is random in the run; 0 or more."""
    rounds: int = 200
    """Communication rounds; at least 1."""
    clients: int | None = None
    """Number of edge clients, on any number of worker ranks; null for one a worker."""
    data: DataConfig = field(default_factory=DataConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)

    def __post_init__(self) -> None:
        require(bool(self.name) and "/" not in self.name, "name", self.name, "a folder name without /")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(self.rounds >= 1, "rounds", self.rounds, "at least 1")
        require(self.clients is None or self.clients >= 1, "clients", self.clients, "at least 1, or null")

    def for_ranks(self, num_ranks: int) -> "RunConfig":
        """Return the configuration with the number of clients filled in. Raises `ConfigError` for a single rank."""
        if num_ranks < 2:
            ranks = 5 if self.clients is None else self.clients + 1
            raise ConfigError(
                f"{self.algorithm} needs 1 server and at least 1 worker, but MPI started {num_ranks} rank; "
                f"try: mpirun -np {ranks} python -m gkt_mpi.main ..."
            )
        return replace(self, clients=num_ranks - 1 if self.clients is None else self.clients)

    def digest(self) -> bytes:
        """Return 32 bytes that differ for different configurations."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).digest()


def make_parser() -> ArgumentParser:
    """Return the parser of the command line; each field's help is the text below it in its dataclass."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="python -m gkt_mpi.main", description=_DESCRIPTION, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the fields below.")
    parser.add_class_arguments(RunConfig)
    return parser


def parse(arguments: Sequence[str] | None = None) -> RunConfig:
    """Return the configuration of a command line (None: this process's). Raises `ConfigError` in one line."""
    parser = make_parser()
    try:
        values: Any = parser.instantiate(parser.parse_args(arguments))
    except ConfigError:
        raise
    except (ArgumentError, ValueError, TypeError, OSError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{text} (see python -m gkt_mpi.main --help)") from error
    del values.config
    return RunConfig(**vars(values))
