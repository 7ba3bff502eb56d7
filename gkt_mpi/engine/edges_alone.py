"""Where the server learns nothing: the clients' edge models are all there is."""

from typing import Any

from torch import Tensor

from gkt_mpi.engine.compute import Compute, has_bfloat16
from gkt_mpi.engine.evaluate import Accuracy, EvaluateMode, evaluate, num_evaluated
from gkt_mpi.engine.learner import Site
from gkt_mpi.wire.messages import Kind


class EdgesAlone:
    """The result of a run in which every client learns by itself, and the inbox of the little that is heard of it."""

    passes, answers = 1, False
    samples_trained: int | None = None

    def __init__(self, site: Site) -> None:
        self._site = site
        precision = site.compute.precision
        if precision == "auto":
            precision = "bfloat16" if has_bfloat16(site.device) else "float32"
        self.compute = Compute(precision)

    def accepts(self) -> dict[str, Any]:
        """Return the fields of the contract: nothing is uploaded, a client only reports."""
        return {"kinds": frozenset({Kind.REPORT})}

    def claim(self, message: object) -> int:
        """Never called: the contract refuses uploads."""
        raise AssertionError(message)

    def check(self, message: object) -> None:
        """Do nothing."""

    def missing(self, client: int) -> str:
        """Return "": nothing is expected."""
        return ""

    def reopen(self, client: int) -> int:
        """Return 0: nothing has come."""
        return 0

    def evaluate(self, states: list[Tensor], mode: EvaluateMode) -> Accuracy:
        """Return the accuracy of every client's edge model."""
        site = self._site
        return evaluate(None, site.edges, states, site.test, mode, site.evaluate.batch_size, site.watch.advance)

    def num_evaluated(self, mode: EvaluateMode) -> int:
        """Return how many images an evaluation passes through the networks."""
        return num_evaluated(mode, len(self._site.shards), len(self._site.test))

    def state(self) -> dict[str, Any]:
        """Return nothing: the clients' states are the whole of it."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
