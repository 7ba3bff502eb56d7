"""Which worker hosts which client."""

from collections.abc import Iterator

import numpy as np


class Roster:
    """Clients 0 to K - 1, their sample ids, and the worker ranks that host them, dealt out in turn."""

    def __init__(self, shards: list[np.ndarray], num_ranks: int) -> None:
        """`shards[k]` holds client k's sample ids, int64."""
        self.shards = shards
        self.worker_of = {client: 1 + client % (num_ranks - 1) for client in range(len(shards))}

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.shards)))

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def num_samples(self) -> dict[int, int]:
        """How many samples each client has."""
        return {client: len(shard) for client, shard in enumerate(self.shards)}
