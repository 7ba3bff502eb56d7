"""Group knowledge transfer (FedGKT) over MPI: small CNNs train at the edge, one large CNN on the server.

The names below are imported when they are first used, so that `import gkt_mpi` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gkt_mpi.api import Run, RunFailed, load, run
    from gkt_mpi.config import RunConfig
    from gkt_mpi.data.data_config import DataConfig
    from gkt_mpi.data.partition import Partition
    from gkt_mpi.data.source import DataSource, Decoded, Source, Split
    from gkt_mpi.errors import GktError
    from gkt_mpi.facts import AlgorithmFacts
    from gkt_mpi.learners.algorithm import Algorithm
    from gkt_mpi.log.sinks.sink import Sink, SinkRun
    from gkt_mpi.models.family import EdgeFamily, FeatureShape, ImageShape, NormName, ServerFamily
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
    "DataConfig": "data.data_config",
    "DataSource": "data.source",
    "Source": "data.source",
    "Decoded": "data.source",
    "Split": "data.source",
    "Partition": "data.partition",
    "EdgeFamily": "models.family",
    "ServerFamily": "models.family",
    "ImageShape": "models.family",
    "FeatureShape": "models.family",
    "NormName": "models.family",
    "CodecForm": "wire.codec",
    "Sink": "log.sinks.sink",
    "SinkRun": "log.sinks.sink",
}
__all__ = [
    "Algorithm",
    "AlgorithmFacts",
    "CodecForm",
    "DataConfig",
    "DataSource",
    "Decoded",
    "EdgeFamily",
    "FeatureShape",
    "GktError",
    "ImageShape",
    "NormName",
    "Partition",
    "Run",
    "RunConfig",
    "RunFailed",
    "ServerFamily",
    "Sink",
    "SinkRun",
    "Source",
    "Split",
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
