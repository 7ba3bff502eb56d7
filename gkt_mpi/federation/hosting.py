"""Assignment of clients to workers, and every client's last reported state."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gkt_mpi.cost.virtual_clock import Participant
from gkt_mpi.federation.roster import Roster
from gkt_mpi.models.networks import EdgeName
from gkt_mpi.training.trainable import AnyEdge
from gkt_mpi.wire.messages import ClientReport, Gradient, HostClient, Request, TrainRequest
from gkt_mpi.wire.transport import Transport


class Hosting:
    """The clients of a run, on the server: their workers, and their states between rounds."""

    def __init__(
        self, transport: Transport, roster: Roster, edges: Sequence[AnyEdge], models: Sequence[EdgeName]
    ) -> None:
        """Initialise; `edges[k]` is the edge for client k's state, `models[k]` the name of its edge model."""
        self.roster = roster
        self.states = [edge.state() for edge in edges]  # uint8 (bytes,) each; replaced, never modified in place
        self.state_bytes = {client: len(state) for client, state in enumerate(self.states)}
        self._transport, self._models = transport, models

    def send(self, client: int, message: HostClient | Request | Gradient) -> None:
        """Start sending a message to a client's worker."""
        self._transport.send(self.roster.worker_of[client], message)

    def host(self, client: int, state: Tensor | None = None) -> None:
        """Send a client to its worker, in this state or in its last one."""
        samples = torch.from_numpy(self.roster.shards[client])
        self.send(client, HostClient(client, samples, self.states[client] if state is None else state))

    def host_all(self) -> None:
        """Send every client to its worker."""
        for client in self.roster:
            self.host(client)

    def move(self, rank: int, reports: dict[int, ClientReport]) -> list[int]:
        """Assign the clients of a lost worker to others; return those clients.

        Those that have already reported are hosted in the reported state. Raises `GktError` when no worker is left.
        """
        moved = self.roster.lose(rank)
        self._transport.stop(rank)  # in case it is still running
        for client in moved:
            self.host(client, reports[client].state if client in reports else None)
        return moved

    def num_samples(self, client: int) -> int:
        """Return the number of training images of a client."""
        return len(self.roster.shards[client])

    def participant(self, client: int, request: Request) -> Participant:
        """Return what determines the cost of a client's round for this request."""
        gets = (request.sample_id, request.weights) if isinstance(request, TrainRequest) else ((), ())
        gets_logits, gets_weights = (len(part) > 0 for part in gets)
        return Participant(self.num_samples(client), self._models[client], gets_logits, gets_weights)
