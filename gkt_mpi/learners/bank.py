"""The feature bank: the clients' uploads on the server, one row per sample, in client order.

row of client k, sample i of its shard = first[k] + i
sample_id int64 (N,)   label int64 (N,)   client_logit, server_logit float32 (N, C)
feature   uint8 (N, row_bytes), encoded as on the wire, in memory or in a mapped file (feature_rows.py): blocks are
          received directly into it, and a batch is decoded for training, on the training device
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gkt_mpi.errors import WireError
from gkt_mpi.learners.feature_rows import BankConfig, FeatureRows
from gkt_mpi.wire.codec import Codec
from gkt_mpi.wire.contract import Accepts
from gkt_mpi.wire.header import Header, Kind
from gkt_mpi.wire.messages import FeatureBlock

BatchOrder = Literal["mixed", "by_client"]


@dataclass(frozen=True)
class BankBatch:
    """B samples on the training device."""

    row: Tensor  # int64 (B,), in host memory
    feature: Tensor  # float32 (B, K, H, W)
    label: Tensor  # int64 (B,)
    client_logit: Tensor  # float32 (B, C)
    client: Tensor  # int64 (B,): each sample's client


class Bank:
    """Storage for the last upload of every client; the inbox of a round's uploads."""

    passes, answers = 1, False

    def __init__(
        self,
        shards: list[np.ndarray],
        num_classes: int,
        codec: Codec,
        device: torch.device,
        config: BankConfig,
        folder: Path,
        block_rows: int = 256,
    ) -> None:
        """Allocate; `shards[k]` are client k's sample ids, int64; `folder` is the run folder; `device` decodes batches.

        `block_rows` is the largest number of rows in a FeatureBlock.

        Raises `ConfigError` when the disk is too small for the rows that `config` places on it.
        """
        self.codec = codec
        self.block_rows = block_rows
        self.device = device
        self.num_classes, self.num_clients = num_classes, len(shards)
        self.first = np.cumsum([0, *map(len, shards)]).tolist()
        num_samples = self.first[-1]
        self.sample_id = torch.from_numpy(np.concatenate(shards))
        self.label = torch.zeros(num_samples, dtype=torch.int64)
        self.client_logit = torch.zeros(num_samples, num_classes)
        self.server_logit = torch.zeros(num_samples, num_classes)
        self.absent = config.absent
        self.feature = FeatureRows(self.first[1:], codec.row_bytes, config, folder)
        self.arrived = torch.zeros(num_samples, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.sample_id)

    def rows_of(self, client: int) -> slice:
        """Return the rows of a client."""
        return slice(self.first[client], self.first[client + 1])

    def inbox_of(self, client: int) -> slice:
        """Return the rows that receive a client's next upload: here the same as `rows_of`."""
        return self.rows_of(client)

    def accepts(self) -> Accepts:
        """Return which messages this inbox accepts: blocks of features and reports."""
        return Accepts(
            frozenset({Kind.BLOCK, Kind.REPORT}),
            num_classes=self.num_classes,
            feature_shape=self.codec.shape,
            row_bytes=self.codec.row_bytes,
            codec=self.codec.code_id,
            block_rows=self.block_rows,
            admit=self.admit,
        )

    def open_round(self, clients: Iterable[int] | None = None) -> None:
        """Expect a new upload of these clients, by default of all; keep or drop the rows of the others."""
        if self.absent == "drop" or clients is None:
            self.arrived.fill_(False)
        for client in clients or ():
            self.arrived[self.inbox_of(client)] = False

    def admit(self, header: Header, sample_id: Tensor, label: Tensor, logit: Tensor) -> Tensor:
        """Return the rows for a block's features, uint8 (count, row_bytes), to be received into.

        Raises `WireError` naming client and round when the rows have already arrived in this round, or when sample ids
        int64 (n,), labels int16 (n,) or logits float32 (n, C) are not valid.
        """
        # With numpy: for a few values, torch's calls take up to a tenth of the time of receiving a block.
        rows = self._block_rows(header.client, header.first, header.num_samples)
        where = f"client {header.client} in round {header.round + 1}"
        if self.arrived.numpy()[rows].any():
            raise WireError(f"{where} sent {header.num_samples} rows from {header.first} on twice")
        if not np.array_equal(sample_id.numpy(), self.sample_id.numpy()[rows]):
            raise WireError(f"{where} sent sample ids that differ from its shard at row {header.first}")
        if label.numpy().min() < 0 or label.numpy().max() >= self.num_classes:
            raise WireError(f"{where} sent labels outside 0..{self.num_classes - 1}")
        if not np.isfinite(logit.numpy()).all():
            raise WireError(f"{where} sent logits that are not finite; its training has diverged, lower client.lr")
        return self.feature.slice(rows)

    def claim(self, block: FeatureBlock) -> int:
        """Mark the rows of an admitted and received block as arrived, so that nothing else is admitted into them.

        Return their number.
        """
        self.arrived[self._block_rows(block.client, block.first, len(block.sample_id))] = True
        return len(block.sample_id)

    def check(self, block: FeatureBlock) -> None:
        """Validate the features of a claimed block; may run in another thread while other blocks are admitted.

        Raises `WireError` naming client and round when they are not finite; the rows are then missing again.
        """
        rows = self._block_rows(block.client, block.first, len(block.sample_id))
        if not self.codec.is_finite(self.feature.slice(rows)):
            self.arrived[rows] = False
            error = WireError(
                f"client {block.client} in round {block.round + 1} sent features that are not finite; its training has "
                "diverged, lower client.lr"
            )
            error.client = block.client
            raise error
        self.label[rows] = block.label.long()
        self.client_logit[rows] = block.logit

    def num_missing(self, client: int) -> int:
        """Return the number of missing samples of a client's upload."""
        return int((~self.arrived[self.inbox_of(client)]).sum())

    def missing(self, client: int) -> str:
        """Describe the missing part of a client's upload, "" if it is complete."""
        number = self.num_missing(client)
        return f"{number} samples" if number else ""

    def reopen(self, client: int) -> int:
        """Discard a client's upload of this round; return the number of its samples."""
        rows = self.inbox_of(client)
        arrived = int(self.arrived[rows].sum())
        self.arrived[rows] = False
        return arrived

    def train_batches(self, order: BatchOrder, batch_size: int, generator: torch.Generator) -> Iterator[BankBatch]:
        """Yield the batches of one epoch over all arrived rows; the last batch of each sequence may be smaller.

        mixed: every batch is drawn across all clients. by_client: client after client, as in the paper, each client's
        samples shuffled.
        """
        parts = [self.arrived_rows()] if order == "mixed" else self.arrived_by_client()
        sequences = [rows[torch.randperm(len(rows), generator=generator)] for rows in parts]
        yield from self._batches([row for sequence in sequences for row in sequence.split(batch_size)])

    def all_batches(self, batch_size: int, clients: Iterable[int] | None = None) -> Iterator[BankBatch]:
        """Yield every arrived row once, in order, of all or of these clients."""
        yield from self._batches(self.arrived_rows(clients).split(batch_size))

    @property
    def num_arrived(self) -> int:
        """Number of arrived samples."""
        return len(self.arrived_rows())

    def class_counts(self) -> Tensor:
        """Return each client's number of arrived samples by class, int64 (K, C), on the training device."""
        row = self.arrived_rows()
        cell = self.client_of(row) * self.num_classes + self.label[row]
        counts = cell.bincount(minlength=self.num_clients * self.num_classes)
        return counts.view(self.num_clients, self.num_classes).to(self.device)

    def client_of(self, row: Tensor) -> Tensor:
        """Return the client of each of these rows, int64 (B,)."""
        return torch.bucketize(row, torch.tensor(self.first[1:]), right=True)

    def arrived_rows(self, clients: Iterable[int] | None = None) -> Tensor:
        """Return the rows that hold a sample of this round, int64 (N,), ascending; None means of all clients."""
        row = self.arrived.nonzero().flatten()
        return row if clients is None else row[torch.isin(self.client_of(row), torch.tensor(list(clients)))]

    def arrived_by_client(self) -> list[Tensor]:
        """Return the arrived rows of each client that has any, in client order."""
        rows = (first + self.arrived[first:end].nonzero().flatten() for first, end in pairwise(self.first))
        return [row for row in rows if len(row)]

    def _batches(self, batches: Sequence[Tensor]) -> Iterator[BankBatch]:
        self.feature.prefetch(batches[0])
        for k, row in enumerate(batches):
            if k + 1 < len(batches):
                self.feature.prefetch(batches[k + 1])
            yield self.batch(row)

    def batch(self, row: Tensor) -> BankBatch:
        """Return the samples of these rows, int64 (B,)."""
        feature = self.codec.decode(self.feature.gather(row).to(self.device))
        parts = self.label[row], self.client_logit[row], self.client_of(row)
        return BankBatch(row, feature, *(part.to(self.device) for part in parts))

    def close(self) -> None:
        """Delete the file on disk; the bank must not be used afterwards."""
        self.feature.close()

    def _block_rows(self, client: int, first: int, count: int) -> slice:
        begin = self.inbox_of(client).start + first
        return slice(begin, begin + count)
