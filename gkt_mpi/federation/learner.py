"""What an algorithm's server trains, as the bookkeeping around it (server.py) knows it; the learners have a room."""

from typing import Any, Protocol

from torch import Tensor

from gkt_mpi.training.compute import Compute
from gkt_mpi.training.evaluate import Accuracy, EvaluateMode


class Learner(Protocol):
    """What the server of an algorithm trains, as the bookkeeping around it (server.py) needs it."""

    compute: Compute

    @property
    def samples_trained(self) -> int | None:
        """Samples that an epoch of the server passes; None for those of the round's clients."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it: tensors, numbers, text, and lists and dictionaries of such."""

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` returned."""

    def evaluate(self, states: list[Tensor], mode: EvaluateMode) -> Accuracy:
        """Return the accuracy on the test set of what has been learnt; `states[k]` is client k's."""

    def num_evaluated(self, mode: EvaluateMode) -> int:
        """Return how many images an evaluation passes through the networks."""

    def close(self) -> None:
        """Delete what lies on the disk; it must not be used any more."""
