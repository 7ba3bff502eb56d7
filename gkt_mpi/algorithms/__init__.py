"""One file per algorithm: a server side and a client side, each a plain function, and its specification `ALGORITHM`.

No algorithm imports another.
"""

from typing import TYPE_CHECKING, Literal

from gkt_mpi.algorithms import centralized, fedavg, fedgkt, fedgkt_async, split_learning, standalone
from gkt_mpi.federation.worker import ClientRound
from gkt_mpi.learners.algorithm import Algorithm
from gkt_mpi.lookup import Lookup, ModuleAttribute

ALGORITHMS = Lookup(
    "algorithm",
    Algorithm,
    *(file.ALGORITHM for file in (fedgkt, fedgkt_async, fedavg, split_learning, centralized, standalone)),
)

if TYPE_CHECKING:
    AlgorithmName = str
else:
    AlgorithmName = Literal[tuple(ALGORITHMS)] | ModuleAttribute


def client_side(algorithm: Algorithm) -> ClientRound:
    """Return the client side of an algorithm."""
    side = algorithm.run_client
    return client_side(ALGORITHMS[side]) if isinstance(side, str) else side
