"""Facts about the algorithms as plain data, for modules on lower floors than algorithms/: reports, progress, clients.

The specification of each algorithm (gkt_mpi/algorithms/) contains its facts, so each fact is stated once.
"""

from dataclasses import dataclass
from typing import Literal

from gkt_mpi.lookup import Lookup

# The network that a client trains: an edge model of its own, the whole large network, or the stem of it.
ClientPart = Literal["edge", "whole", "stem"]
# The network that the server trains: the large network after its stem, the whole of it, or none.
ServerPart = Literal["rest", "whole", "none"]


@dataclass(frozen=True)
class Parameter:
    """A configuration field that distinguishes variants, and its notation in reports."""

    field: str  # dotted, within the configuration or the group it belongs to
    label: str  # with {} for the field's value


@dataclass(frozen=True)
class AlgorithmFacts:
    """The facts about an algorithm that can be known without its code."""

    name: str  # in configurations
    title: str  # in comparisons of runs
    client_part: ClientPart
    server_part: ServerPart
    variant: Parameter | None = None
    """The title if this field is set."""
    is_synchronous: bool = True
    """Whether the server waits for all clients of a round."""
    is_federated: bool = True
    """Whether clients learn from each other without sharing their images."""
    has_clients: bool = True
    """Whether images are distributed over clients; otherwise the server has all images, and the partition has no
    effect."""

    @property
    def has_server_model(self) -> bool:
        """Whether clients train edge models of their own, and the server trains another network on their features."""
        return self.client_part == "edge" and self.server_part == "rest"

    @property
    def has_edges_alone(self) -> bool:
        """Whether only the clients' edge models are trained."""
        return self.client_part == "edge" and self.server_part == "none"

    @property
    def sends_gradients(self) -> bool:
        """Whether the features' gradient is sent back to the client."""
        return self.client_part == "stem"

    @property
    def evaluated_model(self) -> str:
        """The model whose accuracy a run's `test_accuracy` is, in words."""
        return "server model" if self.has_server_model else "edge models alone" if self.has_edges_alone else "model"


FEDGKT = AlgorithmFacts("fedgkt", "FedGKT", client_part="edge", server_part="rest")
FEDGKT_ASYNC = AlgorithmFacts(
    "fedgkt_async", "FedGKT async", client_part="edge", server_part="rest", is_synchronous=False
)
FEDAVG = AlgorithmFacts(
    "fedavg",
    "FedAvg",
    client_part="whole",
    server_part="none",
    variant=Parameter("client.proximal_mu", "FedProx (μ = {})"),
)
SPLIT_LEARNING = AlgorithmFacts(
    "split_learning",
    "split learning",
    client_part="stem",
    server_part="rest",
    variant=Parameter("split.mode", "split learning ({})"),
)
CENTRALIZED = AlgorithmFacts(
    "centralized",
    "centralized",
    client_part="edge",
    server_part="whole",
    is_federated=False,
    has_clients=False,
)
STANDALONE = AlgorithmFacts("standalone", "edge alone", client_part="edge", server_part="none", is_federated=False)

ALGORITHM_FACTS = {its.name: its for its in (FEDGKT, FEDGKT_ASYNC, FEDAVG, SPLIT_LEARNING, CENTRALIZED, STANDALONE)}

_SPECIFICATIONS = Lookup("algorithm", object)  # of users: their class, Algorithm, is on a higher floor


def facts_of(name: str) -> AlgorithmFacts:
    """Return the facts of an algorithm, ours or a user's (`module:attribute`), as its specification has them.

    For one that is unknown or cannot be imported here, as in a report of somebody else's run, they are those of FedGKT
    under its own name.
    """
    if name in ALGORITHM_FACTS:
        return ALGORITHM_FACTS[name]
    facts = getattr(_SPECIFICATIONS.get(name), "facts", None) if ":" in name else None
    if isinstance(facts, AlgorithmFacts):
        return facts
    return AlgorithmFacts(name, name, FEDGKT.client_part, FEDGKT.server_part)


def name_in_texts(algorithm: str) -> str:
    """Return how a sentence names an algorithm: ours as in configurations, a user's by its title."""
    return facts_of(algorithm).title if ":" in algorithm else algorithm
