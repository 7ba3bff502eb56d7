"""The trained networks of a run folder: `load("runs/digits").model(client=0)`.

The run may be completed, interrupted or in progress. Neither its data set nor MPI is needed: the checkpoint has the
weights, the normalisation of the images and the names of the classes.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from gkt_mpi.algorithms import ALGORITHMS
from gkt_mpi.build import edges_of
from gkt_mpi.config import RunConfig, parse
from gkt_mpi.data.datasets import ImageFile, file_path
from gkt_mpi.data.image_input import ImageInput
from gkt_mpi.errors import CheckpointError, ConfigError, DataError, require
from gkt_mpi.federation.checkpoint import FORMAT, Contents, checkpoint_paths, read_checkpoint
from gkt_mpi.learners.saved import Parts, SavedRun
from gkt_mpi.lookup import search_here
from gkt_mpi.plain import Json

Which = Literal["last", "best"]


class TrainedModel(nn.Module):
    """The network that an algorithm yields, with the normalisation of its input, in float32.

    `stem` computes the feature on the edge, `layers` the logits from it.
    """

    def __init__(self, stem: nn.Module, layers: nn.Module, input: ImageInput) -> None:
        super().__init__()
        self.stem, self.layers = stem, layers
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", input.mean), ("std", input.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map images, float32 (B, channels, H, W) from 0 to 1, to logits, float32 (B, C)."""
        return self.layers(self.stem((image - self.mean) / self.std))


@dataclass(frozen=True)
class TrainedRun:
    """A run folder and its trained networks; see `load`."""

    folder: Path
    config: RunConfig

    @cached_property
    def summary(self) -> Json:
        """The contents of summary.json; empty while the run is in progress. Raises `DataError` if it is damaged."""
        path = self.folder / "summary.json"
        if not path.exists():
            return {}
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path} is damaged: {error}") from error

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the logits. Raises as `input`."""
        return list(self.input.classes)

    @cached_property
    def input(self) -> ImageInput:
        """The shape and statistics of the images, and the classes. Raises `CheckpointError`, or `DataError`.

        A checkpoint of an older version lacks them: then they are read from the data set's image file.
        """
        config = self.checkpoint("last").config
        if "input" in config:
            return ImageInput.from_dict(config["input"])
        path = file_path(self.config.data)
        if not path.exists():
            raise DataError(
                f"{self.folder} was written by a version that did not save the images' statistics, and {path}, which "
                "has them, is missing; create it with python -m gkt_mpi.main --prepare and the run's config.yaml"
            )
        file = ImageFile(path)
        if config.get("images", file.digest) != file.digest:
            raise DataError(f"{path} has other images than those that {self.folder} was trained on")
        return ImageInput.of(file)

    def rounds_done(self, which: Which = "last") -> int:
        """Return the number of rounds after which a checkpoint was written. Raises `CheckpointError`."""
        return self.checkpoint(which).rounds_done

    def model(self, client: int | None = None, which: Which = "last") -> TrainedModel:
        """Return the run's result as one network, in evaluation mode, on the CPU.

        It maps images, float32 (B, channels, H, W) from 0 to 1, to logits, float32 (B, C): with FedGKT by a client's
        stem and the server's network. Without a client it is the network for everybody, where there is one: the mean
        stem of runs with client.share, or the large network of algorithms that train one. `which` is the checkpoint:
        the newest, or the one with the best test accuracy.

        Raises `ConfigError` if there is no such client or model, `CheckpointError` if the checkpoint is missing,
        damaged or of another version.
        """
        parts = self.parts(client, which)
        return TrainedModel(parts.stem, parts.layers, self.input).eval()

    def parts(self, client: int | None = None, which: Which = "last") -> Parts:
        """Return the networks that `model` composes, newly built. Raises as `model`."""
        clients = self.config.clients or 1
        if client is not None and not 0 <= client < clients:
            raise ConfigError(f"client is {client}; {self.folder} has clients 0 to {clients - 1}")
        trained = ALGORITHMS[self.config.algorithm].trained
        if trained is None:
            raise ConfigError(f"{self.config.algorithm} does not say which network it trains (Algorithm.trained)")
        state, config = self.checkpoint(which).state, self.config
        edges = edges_of(config, self.input, torch.device("cpu"))
        try:
            parts = trained(
                SavedRun(state["learner"], state["clients"], edges, config.client, config.server, self.input), client
            )
        except (KeyError, RuntimeError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise CheckpointError(
                f"{self._path(which)} does not fit {self.folder / 'config.yaml'} ({why}); restore the run's own file"
            ) from error
        for network in filter(None, (parts.stem, parts.server, parts.edge)):
            _own_memory(network.eval())
        return parts

    def checkpoint(self, which: Which) -> Contents:
        """Return the contents of the newest checkpoint, or of the best. Raises `CheckpointError`."""
        require(which in get_args(Which), "which", which, " or ".join(get_args(Which)))
        if which not in self._read:
            path = self._path(which)
            contents = read_checkpoint(path)
            if contents.format != FORMAT:
                raise CheckpointError(f"{path} was written by another version of gkt_mpi; read it with that version")
            self._read[which] = contents
        return self._read[which]

    @cached_property
    def _read(self) -> dict[Which, Contents]:
        return {}

    def _path(self, which: Which) -> Path:
        """Return the path of a checkpoint. Raises `CheckpointError` if there is none."""
        folder = self.folder / "checkpoints"
        if which == "best":
            if (folder / "best.pt").exists():
                return folder / "best.pt"
            raise CheckpointError(f"{folder} has no best.pt; a run keeps it with --checkpoint.best true")
        paths = checkpoint_paths(folder)
        if not paths:
            raise CheckpointError(f"{folder} has no checkpoint; the run has not completed a round, or it was deleted")
        return paths[-1]


def load(folder: Path | str) -> TrainedRun:
    """Return a run from its folder, such as runs/digits.

    Raises `DataError` if it is not the folder of a run, or its configuration cannot be used, for example because a
    user's module is not on PYTHONPATH.
    """
    folder = Path(folder).expanduser()
    path = folder / "config.yaml"
    if not path.is_file():
        raise DataError(f"{folder} is not the folder of a run: there is no config.yaml")
    if not folder.samefile(Path.cwd()):  # a run folder from elsewhere must not bring code
        search_here()
    try:
        config = parse(["--config", str(path)], beside=False)
    except ConfigError as error:
        raise DataError(f"{path} cannot be used: {error}") from error
    return TrainedRun(folder, config)


def _own_memory(network: nn.Module) -> None:
    """Give every tensor its own memory, contiguous: in training they share one block with the optimizer's state."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
