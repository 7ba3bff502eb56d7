"""The interface of a learner, which an algorithm's server trains: `Learner`, and two optional parts of it."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from gkt_mpi.training.compute import Compute
from gkt_mpi.training.evaluate import Accuracy, EvaluateMode

# A part of a checkpoint: tensors, numbers, text, and lists and dictionaries of these. Only its owner knows its keys.
State = dict[str, Any]


class Learner(Protocol):
    """What an algorithm's server trains, as the server and the end of a round need it."""

    compute: Compute

    @property
    def samples_trained(self) -> int | None:
        """Samples per epoch of the server; None for those of the round's clients."""

    def evaluate(self, states: list[Tensor], mode: EvaluateMode) -> Accuracy:
        """Return the test accuracy of the learner's result; `states[k]` is client k's."""

    def num_evaluated(self, mode: EvaluateMode) -> int:
        """Return the number of images that an evaluation passes through the networks."""


@runtime_checkable
class HasState(Protocol):
    """A learner whose state is part of a checkpoint."""

    def state(self) -> State:
        """Return the learner's part of a checkpoint."""

    def load(self, state: State) -> None:
        """Restore what `state()` returned."""


@runtime_checkable
class HasFiles(Protocol):
    """A learner with files on disk."""

    def close(self) -> None:
        """Delete the files; the learner must not be used afterwards."""
