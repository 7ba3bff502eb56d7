"""The feature bank of asynchronous training: a client's last upload stands until its next one is complete.

Every client has two places for its rows. What it uploads goes into the one that is not in use, whenever it comes, while
the server trains on the other; `land` makes the new one the one in use. So half an upload, or a bad one, is never
trained on, and nobody's early arrival changes what the server learns. That takes twice the memory of the synchronous
bank; with `bank.memory_mib` the second places are the first to lie on the disk.

A sample's number, from 0 to N, is the same in both places: row = number, or number + N.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gkt_mpi.learners.bank import Bank
from gkt_mpi.learners.feature_rows import BankConfig
from gkt_mpi.wire.codec import Codec


class StandingBank(Bank):
    """Memory for the upload of every client that is in use, and for its next; the inbox of the latter."""

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
        """See `Bank`."""
        super().__init__([*shards, *shards], num_classes, codec, device, config, folder, block_rows)
        self.num_clients = len(shards)
        self.num_samples = self.first[self.num_clients]
        self._in_use: list[int | None] = [None] * self.num_clients  # which of its places a client's upload lies in

    def rows_of(self, client: int) -> slice:
        """Return the rows of a client's upload that is in use, or of the first there will be."""
        return self._place(client, self._in_use[client] or 0)

    def inbox_of(self, client: int) -> slice:
        """Return the rows that a client's next upload goes into."""
        return self._place(client, 1 if self._in_use[client] == 0 else 0)

    def _place(self, client: int, number: int) -> slice:
        k = client + number * self.num_clients
        return slice(self.first[k], self.first[k + 1])

    def land(self, client: int) -> None:
        """Use a client's complete upload from now on, in place of the one before."""
        self._in_use[client] = 1 if self._in_use[client] == 0 else 0
        self.arrived[self.inbox_of(client)] = False

    @property
    def landed(self) -> list[int]:
        """The clients of which there is an upload in use, ascending."""
        return [client for client, place in enumerate(self._in_use) if place is not None]

    def size_of(self, client: int) -> int:
        """Return how many samples a client has."""
        return int(self.first[client + 1] - self.first[client])

    def samples_of(self, client: int) -> Tensor:
        """Return the numbers of a client's samples, int64 (n,)."""
        return torch.arange(self.first[client], self.first[client + 1])

    def row_of(self, sample: Tensor) -> Tensor:
        """Return the rows in use of these samples, int64 (B,)."""
        places = torch.tensor([place or 0 for place in self._in_use])
        return sample + places[self.client_of(sample)] * self.num_samples

    def client_of(self, row: Tensor) -> Tensor:
        """Return whose the samples of these rows are, int64 (B,)."""
        return super().client_of(row) % self.num_clients

    def arrived_rows(self, clients: Iterable[int] | None = None) -> Tensor:
        """Return the rows in use, client by client."""
        used = (self.rows_of(client) for client in (self.landed if clients is None else clients))
        rows = [torch.arange(rows.start, rows.stop) for rows in used]
        return torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64)
