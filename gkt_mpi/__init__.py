"""Group knowledge transfer (FedGKT) over MPI: small CNNs train at the edge, one large CNN on the server.

The names below are imported when they are first used, so that `import gkt_mpi` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gkt_mpi.api import Run, RunFailed, load, run
    from gkt_mpi.config import RunConfig
    from gkt_mpi.data.partition import Partition
    from gkt_mpi.data.source import DataSource
    from gkt_mpi.errors import GktError
    from gkt_mpi.facts import AlgorithmFacts
    from gkt_mpi.learners.algorithm import Algorithm
    from gkt_mpi.models.family import EdgeFamily, ServerFamily
    from gkt_mpi.wire.codec import CodecForm

_MODULES = {
    "run": "api",
    "load": "api",
    "Run": "api",
    "RunFailed": "api",
    "RunConfig": "config",
    "GktError": "errors",
    "Algorithm": "learners.algorithm",
    "AlgorithmFacts": "facts",
    "DataSource": "data.source",
    "Partition": "data.partition",
    "EdgeFamily": "models.family",
    "ServerFamily": "models.family",
    "CodecForm": "wire.codec",
}
__all__ = [
    "Algorithm",
    "AlgorithmFacts",
    "CodecForm",
    "DataSource",
    "EdgeFamily",
    "GktError",
    "Partition",
    "Run",
    "RunConfig",
    "RunFailed",
    "ServerFamily",
    "__version__",
    "load",
    "run",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any of the names above
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
