"""Weights of stale samples in asynchronous training (FedAsync: Xie, Koyejo and Gupta 2019, arXiv 1903.03934).

The unit of age is the round, `num_clients` uploads: the staleness of a client's samples is the number of rounds since
their request. In synchronous training it is 0; with equally fast clients and no waiting, about 1.
"""

from dataclasses import dataclass
from typing import Literal

from gkt_mpi.errors import require


@dataclass(frozen=True)
class AsyncConfig:
    """Asynchronous training (fedgkt_async)."""

    buffer: int = 1
    """Uploads that the server waits for before it learns from them and answers, as in FedBuff; at least 1, at most
    clients. 1: every client is answered at once. clients: synchronous, as in fedgkt."""
    overtime: float = 1.0
    """Maximum additional training on the current bank while no buffer is full, as a multiple of the training due for
    the last uploads (server.epochs passes over the bank per `clients` uploads); 0 or more, .inf: never idle. It ends
    when all clients have answered."""
    staleness: Literal["constant", "polynomial", "hinge"] = "polynomial"
    """Weight of a client's samples in the server's loss, by their age s in rounds. constant: 1. polynomial: (1 +
    s)^-exponent. hinge: 1 up to hinge_start, then 1 / (1 + hinge_slope * (s - hinge_start))."""
    exponent: float = 0.5
    """Exponent of polynomial; 0 or more."""
    hinge_start: float = 4.0
    """Age in rounds up to which hinge weights all samples equally; 0 or more."""
    hinge_slope: float = 10.0
    """Slope of hinge's decrease beyond that; 0 or more."""
    max_staleness: float | None = None
    """Age in rounds beyond which samples are excluded until their client uploads again; above 0, null for no bound."""

    def __post_init__(self) -> None:
        require(self.buffer >= 1, "async.buffer", self.buffer, "at least 1")
        for name in ("overtime", "exponent", "hinge_start", "hinge_slope"):
            require(getattr(self, name) >= 0, f"async.{name}", getattr(self, name), "0 or more")
        bound = self.max_staleness
        require(bound is None or bound > 0, "async.max_staleness", bound, "above 0, or null")


def staleness_weight(age: float, config: AsyncConfig) -> float:
    """Return the weight, from 0 to 1, of samples that are `age` rounds old; 0 beyond `max_staleness`.

    These are the functions s(t - tau) of the FedAsync paper, which counts age in model updates.
    """
    if config.max_staleness is not None and age > config.max_staleness:
        return 0.0
    match config.staleness:
        case "constant":
            return 1.0
        case "polynomial":
            return (1 + age) ** -config.exponent
        case "hinge":
            return 1 / (1 + config.hinge_slope * max(0.0, age - config.hinge_start))
