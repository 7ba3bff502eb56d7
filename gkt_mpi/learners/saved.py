"""The networks of a saved run: what each learner's file rebuilds from a checkpoint, for use after training.

`gkt_mpi/trained.py` reads the checkpoint and passes it to the algorithm's `trained` function, defined beside the
learner whose `state()` it reads.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gkt_mpi.data.image_input import ImageInput
from gkt_mpi.errors import ConfigError
from gkt_mpi.federation.client import ClientConfig, whole_model
from gkt_mpi.learners.site import ServerConfig
from gkt_mpi.models.networks import EdgeModel, ServerModel, WholeModel, build_server_model, shape_after
from gkt_mpi.plain import Json
from gkt_mpi.training.trainable import Edge


@dataclass(frozen=True)
class Parts:
    """The trained networks: images -> stem -> feature -> server or, without a server's network, the edge's head."""

    stem: nn.Module
    server: ServerModel | None = None
    edge: EdgeModel | None = None  # the client's whole edge model, where clients have one

    @classmethod
    def of_whole(cls, whole: WholeModel) -> "Parts":
        """Return the parts of one large network."""
        stem, server = whole.cut()
        return cls(stem.stem, server)

    @property
    def layers(self) -> nn.Module:
        """The network after the stem, from features to logits (B, C)."""
        if self.server is not None:
            return self.server.layers
        assert self.edge is not None
        return self.edge.head


@dataclass(frozen=True)
class SavedRun:
    """The contents of a checkpoint, and what its networks are built from."""

    learner: Json  # what the learner's `state()` returned
    states: list[Tensor]  # each client's, uint8 (bytes,)
    edges: list[Edge[Any]]  # newly built; edges[k] is the edge for client k's state
    client: ClientConfig
    server: ServerConfig
    input: ImageInput

    def edge_of(self, client: int | None) -> EdgeModel:
        """Return a client's edge model with its trained weights. Raises `ConfigError` if no client is given."""
        if client is None:
            last = len(self.edges) - 1
            raise ConfigError(f"every client of this run has a model of its own; choose a client from 0 to {last}")
        self.edges[client].load(self.states[client])
        return self.edges[client].model

    def new_server(self) -> ServerModel:
        """Return the large network without its stem, whose weights are to be loaded."""
        config, num_classes = self.server, len(self.input.classes)
        shape, cpu = shape_after(self.edges[0].model.stem, self.input.image_shape), torch.device("cpu")
        return build_server_model(config.model, shape, num_classes, torch.Generator(), cpu, config.norm, config.cut)

    def new_whole(self) -> WholeModel:
        """Return the large network with its stem, whose weights are to be loaded."""
        return whole_model(self.server, self.input.image_shape, len(self.input.classes), 0, torch.device("cpu"))
