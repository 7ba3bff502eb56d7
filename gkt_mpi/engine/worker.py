"""A worker: a rank that hosts edge clients and does what the server asks, until it says stop."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gkt_mpi.data.augment import ImagePipeline
from gkt_mpi.data.datasets import ImageFile
from gkt_mpi.data.shard import Shard
from gkt_mpi.engine.client import Client, ClientConfig, Edge
from gkt_mpi.losses import DistillConfig
from gkt_mpi.placement import peak_mib
from gkt_mpi.wire.codec import Codec, WireConfig
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.messages import ClientMetrics, ClientReport, FeatureBlock, HostClient, Kind, Setup, Stop, TrainRequest
from gkt_mpi.wire.transport import SERVER, Transport

LARGEST_BATCH = 256  # a block is also the batch of the forward pass that computes it
BLOCKS_IN_FLIGHT = 2  # while one travels and one waits at the server's door, the next is computed


def receive_setup(transport: Transport) -> Setup | None:
    """Wait for the server to describe the run; None when it stops before it begins."""
    _, message = transport.receive(Contract(frozenset({Kind.SETUP, Kind.STOP})))
    return message if isinstance(message, Setup) else None


@dataclass(frozen=True)
class Hosted:
    """A client between rounds; its images stay in the file until it trains."""

    sample_id: np.ndarray  # int64 (N,): rows of the training set
    state: Tensor  # uint8 (state_bytes,)


@dataclass
class Worker:
    """What a worker has: an edge in memory, the images' file, and the clients it hosts."""

    transport: Transport
    file: ImageFile
    pipeline: ImagePipeline
    edge: Edge
    codec: Codec
    config: ClientConfig
    distill: DistillConfig
    wire: WireConfig
    seed: int
    device: torch.device

    def __post_init__(self) -> None:
        self.hosted: dict[int, Hosted] = {}
        self._num_samples: dict[int, int] = {}  # of each hosted client
        self.timeline = self.transport.timeline
        self.block_rows = min(self.codec.block_rows(self.wire.block_mib), LARGEST_BATCH)

    def run(self, client_round: Callable[["Worker", Client, TrainRequest], None]) -> None:
        """Serve until the server says stop; `client_round` is the algorithm's client side."""
        for message in self._messages():
            match message:
                case HostClient():
                    self.hosted[message.client] = Hosted(message.sample_id.numpy(), message.state)
                    self._num_samples[message.client] = len(message.sample_id)
                    self.timeline.take()  # so that a report has as many spans wherever its client is hosted
                case TrainRequest():
                    self._train(client_round, message)
        self.transport.flush()

    def _messages(self) -> Iterator[HostClient | TrainRequest]:
        while True:
            contract = Contract(
                frozenset({Kind.HOST, Kind.TRAIN, Kind.STOP}),
                num_classes=len(self.file.classes),
                num_samples=self._num_samples,
                state_bytes=self.edge.state_bytes,
                max_samples=len(self.file.labels("train")),
                device=self.device,
            )
            _, message = self.transport.receive(contract)
            if isinstance(message, Stop):
                return
            assert isinstance(message, HostClient | TrainRequest)
            yield message

    def _train(self, client_round: Callable[["Worker", Client, TrainRequest], None], request: TrainRequest) -> None:
        """Load the client, let the algorithm run its round, and report."""
        sample_id = self.hosted[request.client].sample_id
        with self.timeline.phase("load"):
            self.edge.load(self.hosted[request.client].state)
            shard = Shard.load(self.file, "train", sample_id, self.pipeline, self.device)
            client = Client(request.client, shard, self.edge, self.config, self.seed, self.transport.keep_in_touch)
        self.transport.keep_in_touch()
        self._seconds = {"client train": 0.0, "extract": 0.0}
        client_round(self, client, request)
        state = self.edge.state()
        self.hosted[client.id] = Hosted(sample_id, state)
        counted = client.samples, float(client.loss_sum), float(client.correct)
        metrics = ClientMetrics(*counted, self._seconds["client train"], self._seconds["extract"], peak_mib())
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
        self.transport.keep_in_touch()
        with self.timeline.phase("send"):
            self.transport.flush(BLOCKS_IN_FLIGHT)
            self.transport.send(SERVER, block)

    @contextmanager
    def timed(self, phase: Literal["client train", "extract"]) -> Iterator[None]:
        """Add the wall time inside to the client's seconds of this phase, and to the timeline."""
        began = time.perf_counter()
        yield
        self._seconds[phase] += self.timeline.add(phase, began)
