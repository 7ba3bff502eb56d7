"""The feature bank: what the clients uploaded, on the server, one row a sample, in client order.

row of client k, sample i of its shard = first[k] + i
sample_id int64 (N,)   label int64 (N,)   client_logit, server_logit float32 (N, C)
feature   uint8 (N, row_bytes), in the wire's form: blocks are received straight into it, and a batch is
          decoded when it is trained on, on the device that trains
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gkt_mpi.errors import WireError
from gkt_mpi.wire.codec import Codec
from gkt_mpi.wire.messages import FeatureBlock, Header

BatchOrder = Literal["mixed", "by_client"]


@dataclass(frozen=True)
class BankBatch:
    """B samples on the training device."""

    row: Tensor  # int64 (B,), in host memory
    feature: Tensor  # float32 (B, K, H, W)
    label: Tensor  # int64 (B,)
    client_logit: Tensor  # float32 (B, C)


class Bank:
    """Memory for one round's upload of every client."""

    def __init__(self, shards: list[np.ndarray], num_classes: int, codec: Codec, device: torch.device) -> None:
        """`shards[k]` holds client k's sample ids, int64; `device` is where batches are decoded."""
        self.codec = codec
        self.device = device
        self.num_classes = num_classes
        self.first = np.cumsum([0, *map(len, shards)]).tolist()
        num_samples = self.first[-1]
        self.sample_id = torch.from_numpy(np.concatenate(shards))
        self.label = torch.zeros(num_samples, dtype=torch.int64)
        self.client_logit = torch.zeros(num_samples, num_classes)
        self.server_logit = torch.zeros(num_samples, num_classes)
        self.feature = torch.empty(num_samples, codec.row_bytes, dtype=torch.uint8)
        self._arrived = torch.zeros(num_samples, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.sample_id)

    def rows_of(self, client: int) -> slice:
        """Return the rows of a client."""
        return slice(self.first[client], self.first[client + 1])

    def open_round(self) -> None:
        """Expect a new upload of every sample."""
        self._arrived.fill_(False)

    def memory(self, header: Header) -> Tensor:
        """Return the rows that a block's features belong in, uint8 (count, row_bytes), to be received into.

        Raises `WireError` when one of the rows has already arrived in this round.
        """
        rows = self._block_rows(header.client, header.first, header.num_samples)
        if self._arrived[rows].any():
            raise WireError(
                f"client {header.client} sent {header.num_samples} rows from {header.first} on twice "
                f"in round {header.round}"
            )
        return self.feature[rows]

    def accept(self, block: FeatureBlock) -> None:
        """Take in a block whose features lie in the memory given for it.

        Raises `WireError` naming client and round when sample ids, labels, logits or features are not valid.
        """
        rows = self._block_rows(block.client, block.first, len(block.sample_id))
        where = f"client {block.client} in round {block.round}"
        if not torch.equal(block.sample_id, self.sample_id[rows]):
            raise WireError(f"{where} sent sample ids that are not those of its shard at row {block.first}")
        if int(block.label.min()) < 0 or int(block.label.max()) >= self.num_classes:
            raise WireError(f"{where} sent labels outside 0..{self.num_classes - 1}")
        if not bool(torch.isfinite(block.logit).all()):
            raise WireError(f"{where} sent logits that are not finite; its training has diverged, lower client.lr")
        if not self.codec.is_finite(self.feature[rows]):
            raise WireError(f"{where} sent features that are not finite; its training has diverged, lower client.lr")
        self.label[rows] = block.label.long()
        self.client_logit[rows] = block.logit
        self._arrived[rows] = True

    def require_complete(self, client: int, round: int) -> None:
        """Raise `WireError` unless every sample of the client has arrived in this round."""
        missing = int((~self._arrived[self.rows_of(client)]).sum())
        if missing:
            raise WireError(f"client {client} closed its upload of round {round} with {missing} samples missing")

    def train_batches(self, order: BatchOrder, batch_size: int, generator: torch.Generator) -> Iterator[BankBatch]:
        """Yield the batches of one epoch; the last of each sequence may be smaller.

        mixed: every batch is drawn across all clients. by_client: client after client, as in the paper, each
        client's samples shuffled.
        """
        if order == "mixed":
            sequences = [torch.randperm(len(self), generator=generator)]
        else:
            sizes = [last - first for first, last in zip(self.first, self.first[1:], strict=False)]
            sequences = [
                first + torch.randperm(size, generator=generator)
                for first, size in zip(self.first, sizes, strict=False)
            ]
        for sequence in sequences:
            for row in sequence.split(batch_size):
                yield self._batch(row)

    def all_batches(self, batch_size: int) -> Iterator[BankBatch]:
        """Yield every row once, in order."""
        for row in torch.arange(len(self)).split(batch_size):
            yield self._batch(row)

    def _batch(self, row: Tensor) -> BankBatch:
        feature = self.codec.decode(self.feature[row].to(self.device))
        return BankBatch(row, feature, self.label[row].to(self.device), self.client_logit[row].to(self.device))

    def _block_rows(self, client: int, first: int, count: int) -> slice:
        begin = self.first[client] + first
        return slice(begin, begin + count)
