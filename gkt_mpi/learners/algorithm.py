"""The specification of an algorithm: one object with every fact about it.

Each file of gkt_mpi/algorithms/ ends with its own, `ALGORITHM`; facts needed by modules that may not import algorithms
are in its `facts` (gkt_mpi/facts.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gkt_mpi.cost.work import RoundCase, WorkOf
from gkt_mpi.facts import AlgorithmFacts
from gkt_mpi.federation.learner import Learner
from gkt_mpi.federation.server import Server
from gkt_mpi.federation.worker import ClientRound
from gkt_mpi.learners.saved import Parts, SavedRun
from gkt_mpi.learners.site import Site
from gkt_mpi.log.progress import SERVER_TRAINS
from gkt_mpi.wire.header import Kind


@dataclass(frozen=True)
class Algorithm:
    """An algorithm: its server side and client side, its learner, and its cost."""

    facts: AlgorithmFacts
    run_server: Callable[[Server, Any], None]
    """The loop over all rounds, given the server and the learner."""
    run_client: ClientRound | str
    """One round of one client on a worker, or the name of the algorithm whose client side it shares."""
    learner: Callable[[Site], Learner]
    """Builds the learner, which the server trains."""
    requests: frozenset[Kind]
    """Messages that ask a client for its round; empty for an algorithm without clients."""
    work: WorkOf
    """Returns the bytes and operations of a round."""
    networks: str
    """Description of which network is trained where, with placeholders {edge}, {large} and {config.FIELD}."""
    cases: tuple[RoundCase, ...] = (RoundCase(),)
    """The algorithm's rounds in the table of costs (programs/cost.py)."""
    last_phase: str = SERVER_TRAINS
    """The last phase of a round's training, as progress shows it."""
    may_share: bool = False
    """Whether clients may average weights (`client.share`)."""
    may_skip_uploads: bool = False
    """Whether rounds without an upload are possible (`client.upload_every`)."""
    bank_places: int = 0
    """Number of uploads of each client that the server's bank of features holds."""
    trained: Callable[[SavedRun, int | None], Parts] | None = None
    """Returns the trained networks of a client, or without a client those for everybody, from a checkpoint; None if
    they cannot be used outside a run."""

    def __post_init__(self) -> None:
        assert bool(self.requests) == self.facts.has_clients, f"{self.name} asks clients that it does not have"

    @property
    def name(self) -> str:
        """Its name in configurations."""
        return self.facts.name
