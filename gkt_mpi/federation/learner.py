"""The interface of a learner, which an algorithm's server trains, as server.py uses it."""

from typing import Any, Protocol

from torch import Tensor

from gkt_mpi.training.compute import Compute
from gkt_mpi.training.evaluate import Accuracy, EvaluateMode


class Learner(Protocol):
    """What an algorithm's server trains, as server.py needs it."""

    compute: Compute

    @property
    def samples_trained(self) -> int | None:
        """Samples per epoch of the server; None for those of the round's clients."""

    def state(self) -> dict[str, Any]:
        """Return the learner's part of a checkpoint: tensors, numbers, text, and lists and dictionaries of these."""

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state()` returned."""

    def evaluate(self, states: list[Tensor], mode: EvaluateMode) -> Accuracy:
        """Return the test accuracy of the learner's result; `states[k]` is client k's."""

    def num_evaluated(self, mode: EvaluateMode) -> int:
        """Return the number of images that an evaluation passes through the networks."""

    def close(self) -> None:
        """Delete its files on disk; it must not be used afterwards."""
