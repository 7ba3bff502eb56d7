"""The feature bank of asynchronous training: a client's last upload stays in use until its next one is complete.

Every client has two slots for its rows. An upload is received into the slot that is not in use, whenever it arrives,
while the server trains on the other; `land` swaps them. A partial or bad upload is therefore never trained on, and an
early arrival does not change what the server learns. This takes twice the memory of the synchronous bank; with
`bank.memory_mib` the second slots are the first to be placed on disk.

A sample's number, from 0 to N, is the same in both slots: row = number, or number + N.
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
    """Storage for every client's upload in use and for its next one; the inbox of the latter."""

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
        self._in_use: list[int | None] = [None] * self.num_clients  # the slot of each client's upload in use

    def rows_of(self, client: int) -> slice:
        """Return the rows of a client's upload in use, or of its first one before it arrives."""
        return self._place(client, self._in_use[client] or 0)

    def inbox_of(self, client: int) -> slice:
        """Return the rows that receive a client's next upload."""
        return self._place(client, 1 if self._in_use[client] == 0 else 0)

    def _place(self, client: int, number: int) -> slice:
        k = client + number * self.num_clients
        return slice(self.first[k], self.first[k + 1])

    def land(self, client: int) -> None:
        """Put a client's complete upload into use, replacing the previous one."""
        self._in_use[client] = 1 if self._in_use[client] == 0 else 0
        self.arrived[self.inbox_of(client)] = False

    @property
    def landed(self) -> list[int]:
        """The clients with an upload in use, ascending."""
        return [client for client, place in enumerate(self._in_use) if place is not None]

    def size_of(self, client: int) -> int:
        """Return the number of samples of a client."""
        return int(self.first[client + 1] - self.first[client])

    def samples_of(self, client: int) -> Tensor:
        """Return the numbers of a client's samples, int64 (n,)."""
        return torch.arange(self.first[client], self.first[client + 1])

    def row_of(self, sample: Tensor) -> Tensor:
        """Return the rows in use of these samples, int64 (B,)."""
        places = torch.tensor([place or 0 for place in self._in_use])
        return sample + places[self.client_of(sample)] * self.num_samples

    def client_of(self, row: Tensor) -> Tensor:
        """Return the client of each of these rows, int64 (B,)."""
        return super().client_of(row) % self.num_clients

    def arrived_rows(self, clients: Iterable[int] | None = None) -> Tensor:
        """Return the rows in use, in client order."""
        used = (self.rows_of(client) for client in (self.landed if clients is None else clients))
        rows = [torch.arange(rows.start, rows.stop) for rows in used]
        return torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64)
