"""The specification of an algorithm: one object that carries every fact about it.

Each file of gkt_mpi/algorithms/ ends with its own, `ALGORITHM`; what is needed where algorithms may not be imported is
in its `facts` (gkt_mpi/facts.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gkt_mpi.cost.work import RoundCase, WorkOf
from gkt_mpi.facts import AlgorithmFacts
from gkt_mpi.federation.learner import Learner
from gkt_mpi.federation.server import Server
from gkt_mpi.federation.worker import ClientRound
from gkt_mpi.learners.site import Site
from gkt_mpi.log.progress import SERVER_TRAINS
from gkt_mpi.wire.messages import Kind


@dataclass(frozen=True)
class Algorithm:
    """An algorithm: its server side and its client side, what the server trains, and what it costs."""

    facts: AlgorithmFacts
    run_server: Callable[[Server, Any], None]
    """The loop over all rounds, given the server and the learner."""
    run_client: ClientRound | str
    """One round of one client on a worker, or the name of the algorithm of ours whose client side this one has."""
    learner: Callable[[Site], Learner]
    """Makes what the server trains."""
    requests: frozenset[Kind]
    """Messages that ask a client for its round; none for an algorithm without clients."""
    work: WorkOf
    """Returns the bytes and operations of a round."""
    networks: str
    """Which network is trained where, in words, with {edge}, {large} and {config.FIELD} for their values."""
    cases: tuple[RoundCase, ...] = (RoundCase(),)
    """The rounds that the table of costs (programs/cost.py) shows."""
    last_phase: str = SERVER_TRAINS
    """The phase with which the training of a round ends, as progress shows it."""
    may_share: bool = False
    """Whether clients may average weights (`client.share`)."""
    may_skip_uploads: bool = False
    """Whether there may be rounds without an upload (`client.upload_every`)."""
    bank_places: int = 0
    """How many uploads of each client the server's bank of features has memory for."""

    def __post_init__(self) -> None:
        assert bool(self.requests) == self.facts.has_clients, f"{self.name} asks clients that it does not have"

    @property
    def name(self) -> str:
        """Its name in configurations."""
        return self.facts.name
