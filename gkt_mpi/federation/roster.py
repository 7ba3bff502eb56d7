"""Assignment of clients to workers, and reassignment when a worker is lost."""

from collections.abc import Iterator

import numpy as np

from gkt_mpi.errors import GktError


class Roster:
    """Clients 0 to K - 1, their sample ids, and the worker ranks that host them, assigned in turn."""

    def __init__(self, shards: list[np.ndarray], num_ranks: int) -> None:
        """`shards[k]` holds client k's sample ids, int64."""
        self.shards = shards
        self.workers = list(range(1, num_ranks))
        self.worker_of = {client: 1 + client % (num_ranks - 1) for client in range(len(shards))}

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.shards)))

    def __len__(self) -> int:
        return len(self.shards)

    def lose(self, rank: int) -> list[int]:
        """Assign the clients of a lost worker to the others in turn; return those clients.

        Raises `GktError` when no worker is left.
        """
        self.workers.remove(rank)
        if not self.workers:
            raise GktError(f"rank {rank} is lost too, and no worker is left; start the same command again to resume")
        moved = [client for client, worker in self.worker_of.items() if worker == rank]
        for number, client in enumerate(moved):
            self.worker_of[client] = self.workers[number % len(self.workers)]
        return moved

    @property
    def num_samples(self) -> dict[int, int]:
        """Number of samples of each client."""
        return {client: len(shard) for client, shard in enumerate(self.shards)}
