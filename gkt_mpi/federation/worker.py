"""A worker: a rank that hosts edge clients and serves the server's requests until it is stopped."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gkt_mpi.data.augment import ImagePipeline
from gkt_mpi.data.datasets import ImageFile
from gkt_mpi.data.shard import Shard
from gkt_mpi.errors import WireError
from gkt_mpi.federation.client import Client, ClientConfig
from gkt_mpi.placement import peak_mib
from gkt_mpi.training.losses import DistillConfig
from gkt_mpi.training.trainable import AnyEdge
from gkt_mpi.wire.codec import Codec, WireConfig
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.messages import (
    ClientMetrics,
    ClientReport,
    FeatureBlock,
    Gradient,
    HostClient,
    Message,
    ModelState,
    Request,
    Setup,
    Stop,
    TrainRequest,
)
from gkt_mpi.wire.transport import SERVER, Transport

logger = logging.getLogger(__name__)

ClientRound = Callable[["Worker", Client, Any], None]  # an algorithm's client side
LARGEST_BATCH = 256  # a block is also the batch of the forward pass that computes it
BLOCKS_IN_FLIGHT = 3  # the next is computed while two are being received and one waits at the server


def receive_setup(transport: Transport) -> Setup | None:
    """Wait for the server's description of the run; None if it stops before the run begins."""
    _, message = transport.receive(Contract(frozenset({Kind.SETUP, Kind.STOP})))
    return message if isinstance(message, Setup) else None


class _AbandonedError(Exception):
    """The server continues without this client in this round."""


@dataclass(frozen=True)
class Hosted:
    """A client between rounds; its images stay in the file until it trains."""

    sample_id: np.ndarray  # int64 (N,): rows of the training set
    state: Tensor  # uint8 (state_bytes,)


@dataclass(frozen=True)
class WorkerConfig:
    """The fields of a run's configuration that a worker reads (config.py)."""

    seed: int
    rounds: int
    client: ClientConfig
    distill: DistillConfig
    wire: WireConfig


@dataclass
class Worker:
    """A worker's edges in memory, image file, and hosted clients.

    `edges[k]` is the edge that client k's state is loaded into, the same one for all clients with the same model.
    `requests` are the kinds of message that ask for a client's round.
    """

    transport: Transport
    file: ImageFile
    pipeline: ImagePipeline
    edges: list[AnyEdge]
    requests: frozenset[Kind]
    codec: Codec
    config: WorkerConfig

    def __post_init__(self) -> None:
        self.distill = self.config.distill
        self._device = self.pipeline.device
        self.hosted: dict[int, Hosted] = {}
        self._num_samples: dict[int, int] = {}  # of each hosted client
        self._state_bytes = {client: edge.state_bytes for client, edge in enumerate(self.edges)}
        self._model_bytes = {client: edge.travelling_bytes for client, edge in enumerate(self.edges)}
        self._asked: deque[Request] = deque()  # requests that arrived while another client was training
        self.timeline = self.transport.timeline
        self.block_rows = min(self.codec.block_rows(self.config.wire.block_mib), LARGEST_BATCH)

    def run(self, client_round: ClientRound) -> None:
        """Serve requests until the server stops this worker; `client_round` is the algorithm's client side."""
        while True:
            message = self._next_message()
            if isinstance(message, Stop):
                break
            if isinstance(message, HostClient):
                self._host(message)
                self.timeline.take()  # so that a report has the same number of spans wherever its client is hosted
            else:
                assert isinstance(message, Request)
                self.run_client_round(client_round, message)
        self.transport.flush()

    def _next_message(self) -> Message:
        """Return the oldest request that came while another client was training; if there is none, wait for one."""
        if self._asked:
            return self._asked.popleft()
        return self.transport.receive(self._contract(self.requests | {Kind.HOST, Kind.STOP}))[1]

    def _contract(self, kinds: frozenset[Kind]) -> Contract:
        """Return the contract under which messages of these kinds are accepted."""
        return Contract(
            kinds,
            num_classes=len(self.file.classes),
            num_samples=self._num_samples,
            state_bytes=self._state_bytes,
            model_bytes=self._model_bytes,
            max_samples=len(self.file.labels("train")),
            device=self._device,
        )

    def _host(self, message: HostClient) -> None:
        self.hosted[message.client] = Hosted(message.sample_id.numpy(), message.state)
        self._num_samples[message.client] = len(message.sample_id)

    def run_client_round(self, client_round: ClientRound, request: Request) -> None:
        """Load the client, let the algorithm run its round, and report."""
        sample_id = self.hosted[request.client].sample_id
        edge = self.edges[request.client]
        with self.timeline.phase("load"):
            edge.load(self.hosted[request.client].state)
            shard = Shard.load(self.file, "train", sample_id, self.pipeline, self._device)
            client = Client(
                request.client,
                shard,
                edge,
                self.config.client,
                self.config.seed,
                self.transport.keep_in_touch,
                self.config.rounds,
                request.at if isinstance(request, TrainRequest) else request.round,
            )
        self.transport.keep_in_touch()
        self._seconds = {"client train": 0.0, "extract": 0.0}
        try:
            client_round(self, client, request)
        except _AbandonedError:
            self.timeline.take()
            return
        client.end_round()
        state = edge.state()
        self.hosted[client.id] = Hosted(sample_id, state)
        counted = (
            *(client.samples, float(client.loss_sum), float(client.cross_entropy_sum)),
            float(client.correct),
        )
        trained_s, extracted_s = self._seconds["client train"], self._seconds["extract"]
        metrics = ClientMetrics(*counted, trained_s, extracted_s, peak_mib())
        logger.debug(
            f"client {client.id}, round {request.round + 1}: train {trained_s:.2f} s, extract {extracted_s:.2f} s"
        )
        self.transport.send(SERVER, ClientReport(client.id, request.round, metrics, state, self.timeline.take()))

    def upload(self, client: Client, round: int, rows: slice, feature: Tensor, logit: Tensor) -> None:
        """Encode and send one block of a client's shard: features (n, K, H, W) and logits (n, C), float32."""
        with self.timeline.phase("encode"):
            block = FeatureBlock(
                client.id,
                round,
                rows.start,
                client.shard.sample_id[rows],
                client.shard.label[rows].to(torch.int16),
                logit,
                self.codec.encode(feature),
                self.codec.shape,
                self.codec.code_id,
            )
        self._send(block)

    def send_weights(self, client: Client, round: int, weights: Tensor) -> None:
        """Send a client's weights to the server, uint8 (bytes,)."""
        self._send(ModelState(client.id, round, weights))

    def exchange(self, client: Client, round: int, first: int, row: Tensor, feature: Tensor) -> Tensor:
        """Send the features (B, K, H, W) of a batch, without logits; return the loss's gradient with respect to them.

        `row` are the batch's samples in the shard, `first` the number of samples before them in this pass.
        """
        label = client.shard.label[row].to(torch.int16)
        empty = torch.empty(len(row), 0, device=feature.device)
        encoded = self.codec.encode(feature.detach())
        ids = client.shard.sample_id[row]
        codec = self.codec
        self._send(FeatureBlock(client.id, round, first, ids, label, empty, encoded, codec.shape, codec.code_id))
        kinds = self.requests | {Kind.HOST, Kind.GRADIENT}  # other clients of this worker may be asked meanwhile
        while True:
            contract = replace(self._contract(kinds), first=first, block_rows=len(row), row_bytes=codec.row_bytes)
            _, message = self.transport.receive(contract)
            if isinstance(message, HostClient):
                self._host(message)
                if message.client == client.id:  # the state from before this round: the server has refused the batch
                    raise _AbandonedError
            elif isinstance(message, Gradient) and (message.client, message.round) == (client.id, round):
                return codec.decode(message.gradient)
            elif isinstance(message, Gradient):
                raise WireError(f"the server sent client {client.id} a gradient for client {message.client}")
            else:
                assert isinstance(message, Request)
                self._asked.append(message)

    def _send(self, message: FeatureBlock | ModelState) -> None:
        self.transport.keep_in_touch()
        with self.timeline.phase("send"):
            self.transport.flush(BLOCKS_IN_FLIGHT)
            self.transport.send(SERVER, message)

    @contextmanager
    def timed(self, phase: Literal["client train", "extract"]) -> Iterator[None]:
        """Add the wall time of the block to the client's seconds of this phase, and to the timeline."""
        began = time.perf_counter()
        yield
        self._seconds[phase] += self.timeline.add(phase, began)
