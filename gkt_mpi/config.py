"""The configuration of a run: composes the dataclasses defined beside their owners, from YAML and command line."""

import hashlib
import json
import os
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Literal, cast, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_loader

from gkt_mpi import yaml_text
from gkt_mpi.algorithms import ALGORITHMS, AlgorithmName
from gkt_mpi.cost.devices import DevicesConfig
from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.errors import ConfigError, require
from gkt_mpi.federation.checkpoint import CheckpointConfig
from gkt_mpi.federation.client import ClientConfig
from gkt_mpi.federation.faults import FaultsConfig
from gkt_mpi.learners.event_clock import ClockName
from gkt_mpi.learners.feature_rows import BankConfig
from gkt_mpi.learners.site import ServerConfig, SplitConfig
from gkt_mpi.learners.staleness import AsyncConfig
from gkt_mpi.log.logger import LogConfig
from gkt_mpi.lookup import search_beside
from gkt_mpi.models.networks import EDGE_FAMILIES
from gkt_mpi.placement import PlacementConfig
from gkt_mpi.plain import Json, plain
from gkt_mpi.training.compute import ComputeConfig
from gkt_mpi.training.evaluate import EvaluateConfig
from gkt_mpi.training.losses import DistillConfig
from gkt_mpi.wire.codec import WireConfig
from gkt_mpi.wording import kinds_of, reword, wrong_value

Task = Literal["run", "check", "prepare"]
_OPTIONS = (
    "config",
    "check",
    "prepare",
    "print_config",
    "help",
    "version",
)  # options of the command line besides the fields
_YAML_MODE = "limited_yaml"  # name under which the parser knows yaml_text.load


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run."""

    algorithm: AlgorithmName = "fedgkt"
    """fedgkt: group knowledge transfer. fedgkt_async: asynchronous fedgkt, which does not wait for the slowest client.
    fedavg: every client trains the large network, the server averages. split_learning: client and server train it
    together, batch by batch. centralized: training on all images in one place. standalone: every client trains
    alone."""
    name: str = "run"
    """Name of the run: its folder is OUT/NAME."""
    out: str = "runs"
    """Folder of run folders; ~ is expanded."""
    seed: int = 0
    """Seed of all random numbers of the run; 0 or more."""
    rounds: int = 200
    """Communication rounds; at least 1."""
    clients: int | None = None
    """Number of edge clients, on any number of worker ranks; null for one per worker, or with the partitions owner and
    file as many as the data have."""
    participation: float = 1.0
    """Share of the clients that take part in a round, drawn from the seed, at least one; above 0, at most 1."""
    clock: ClockName = "virtual"
    """Order of uploads in fedgkt_async. virtual: by the times of `devices`, reproducible on every machine. real: by
    arrival, as fast as the machine allows."""
    data: DataConfig = field(default_factory=DataConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    async_: AsyncConfig = field(default_factory=AsyncConfig)  # async for users, which is a keyword in Python
    distill: DistillConfig = field(default_factory=DistillConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    bank: BankConfig = field(default_factory=BankConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    devices: DevicesConfig = field(default_factory=DevicesConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        fits = self.name not in ("", ".", "..") and not {"/", "\0"} & set(self.name)
        require(fits, "name", self.name, "the name of a folder, without /")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(self.rounds >= 1, "rounds", self.rounds, "at least 1")
        require(self.clients is None or self.clients >= 1, "clients", self.clients, "at least 1, or null")
        require(0 < self.participation <= 1, "participation", self.participation, "above 0 and at most 1")
        algorithm = ALGORITHMS[self.algorithm]
        has_edges = algorithm.facts.client_part == "edge"
        if not has_edges and not isinstance(self.client.model, str):
            raise ConfigError(
                f"in {self.algorithm} all clients train one network, {self.server.model}, and cannot have different "
                f"ones, as client.model {self.client.model} says; leave it out, or choose {_with_edges()}"
            )
        if not has_edges and self.client.epochs == 0:
            raise ConfigError(f"client.epochs is 0, so {self.algorithm} would learn nothing; expected at least 1")
        require(
            has_edges or self.client.weights is None,
            "client.weights",
            self.client.weights,
            f"null in {self.algorithm}, where clients have no edge models; see server.weights",
        )
        if self.client.upload_every > 1:
            instead = "" if algorithm.facts.is_synchronous else "; let clients train longer instead, by client.epochs"
            expected = f"1 in {self.algorithm}{instead}"
            require(algorithm.may_skip_uploads, "client.upload_every", self.client.upload_every, expected)
        if self.client.share != "none":
            require(algorithm.may_share, "client.share", self.client.share, f"none in {self.algorithm}")
            waits = algorithm.facts.is_synchronous or self.client.extract == "own"
            expected = f"own in {self.algorithm}, where nobody waits for all"
            require(waits, "client.extract", self.client.extract, expected)
        if not algorithm.facts.is_synchronous:
            require(self.participation == 1, "participation", self.participation, "1: no client is ever left out")
            self._check_buffer()

    def _check_buffer(self) -> None:
        if self.clients is not None:
            expected = f"at most {self.clients}, the number of clients"
            require(self.async_.buffer <= self.clients, "async.buffer", self.async_.buffer, expected)

    def as_dict(self) -> Json:
        """Return the configuration in the form of its YAML file."""
        return {name.rstrip("_"): plain(value) for name, value in asdict(self).items()}

    def for_ranks(self, num_ranks: int, natural_clients: int | None = None) -> "RunConfig":
        """Return the configuration with the number of clients filled in.

        If it is null, there are `natural_clients`, the number that the data decide, or otherwise one per worker.
        Raises `ConfigError` for a single rank if the algorithm needs workers.
        """
        if num_ranks < 2 and ALGORITHMS[self.algorithm].facts.has_clients:
            ranks = 5 if self.clients is None else self.clients + 1
            raise ConfigError(
                f"{self.algorithm} needs 1 server and at least 1 worker, but MPI started {num_ranks} rank; "
                f"try: mpirun -np {ranks} python -m gkt_mpi.main ..."
            )
        return replace(self, clients=self.clients or natural_clients or max(1, num_ranks - 1))

    def digest(self) -> bytes:
        """Return 32 bytes that differ for different configurations."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).digest()


def _with_edges() -> str:
    """Return the synchronous algorithms whose clients have edge models, in words."""
    facts = [its.facts for its in ALGORITHMS.values()]
    return " or ".join(
        its.name for its in facts if its.client_part == "edge" and its.has_clients and its.is_synchronous
    )


class _Parser(ArgumentParser):
    def parse_path(self, path: str | os.PathLike[str], *arguments: Any, **options: Any) -> Namespace:  # noqa: ANN401
        """Read a configuration as UTF-8, independent of the locale."""
        text = Path(path).read_text(encoding="utf-8")
        return self.parse_string(text, Path(path).name, *arguments, **options)


@cache
def make_parser() -> ArgumentParser:
    """Return the parser of the command line. The help texts, which take long to read, are in usage.py."""
    set_loader(_YAML_MODE, yaml_text.load, (yaml.YAMLError,))
    parser = _Parser(
        prog="python -m gkt_mpi.main",
        add_help=False,
        exit_on_error=False,
        allow_abbrev=False,  # an abbreviated field is a typing error
        parser_mode=_YAML_MODE,
    )
    parser.add_argument("--config", action="config")
    for task in ("--check", "--prepare"):
        parser.add_argument(task, action="store_true", default=SUPPRESS)  # not part of the configuration
    parser.add_class_arguments(RunConfig, skip={"async_"})
    parser.add_class_arguments(AsyncConfig, "async")
    return parser


def parse(arguments: Sequence[str] | None = None, beside: bool = True) -> RunConfig:
    """Return the configuration of a command line (None: this process's). Raises `ConfigError`, in one line.

    With `beside`, users' modules are also searched for in the folder of the configuration file.
    """
    return parse_command(arguments, beside)[0]


def parse_command(arguments: Sequence[str] | None = None, beside: bool = True) -> tuple[RunConfig, Task]:
    """Return the configuration and the task of a command line; see `parse`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    try:
        for option, value in pairwise([*arguments, ""]):
            if option == "--config" or option.startswith("--config="):
                path = option.partition("=")[2] or value
                yaml_text.check_file(path)
                if beside:
                    search_beside(Path(path))
        values = parser.parse_args(arguments)
        _refuse_empty(values, RunConfig)
        made: Any = parser.instantiate(values)
        del made.config
        is_check, is_prepare = made.pop("check", False), made.pop("prepare", False)
        task: Task = "prepare" if is_prepare else "check" if is_check else "run"
        return RunConfig(async_=made.pop("async"), **vars(made)), task
    except (ArgumentError, ValueError, TypeError, OSError, RecursionError) as error:
        text = reword(str(error), kinds_of(RunConfig), _OPTIONS)
        raise ConfigError(f"{text} (see python -m gkt_mpi.main --help)") from error


def _refuse_empty(values: Any, owner: type, prefix: str = "") -> None:  # noqa: ANN401 - jsonargparse's own class
    """Raise `ConfigError` for an invalid group and for an empty field, which the parser accepts."""
    for field_name, kind in get_type_hints(owner).items():
        if get_origin(kind) is ClassVar:
            continue
        name = field_name.rstrip("_")
        value = values[name]
        if is_dataclass(kind):
            require(isinstance(value, Namespace), prefix + name, value, "a group of fields, one a line below it")
            _refuse_empty(value, cast(type, kind), f"{prefix}{name}.")
        elif value is None and NoneType not in get_args(kind):
            raise ConfigError(f"{prefix}{name} is empty; give it a value, or leave the line out for the default")
        elif isinstance(value, dict) and not all(":" in key or key in EDGE_FAMILIES for key in value):
            # keys are not checked by the parser
            raise ConfigError(wrong_value(prefix + name, value, kind))
