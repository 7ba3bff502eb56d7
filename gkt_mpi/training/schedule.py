"""Learning-rate schedules, step by step over the run, for both sides.

Time is counted in rounds: 2.5 is the middle of the third. The server's progress in a round is the share of its due
samples that it has trained on, and likewise for a client; in asynchronous training a client starts at the run's current
time.
"""

import math
from typing import Literal

import torch
from torch import Tensor

ScheduleName = Literal["constant", "cosine", "linear", "plateau", "onecycle"]
FIXED_LENGTH: tuple[ScheduleName, ...] = ("cosine", "linear", "onecycle")  # these depend on the number of rounds
PLATEAU_PATIENCE = 10  # rounds, as released
PLATEAU_THRESHOLD = 1e-4  # a loss must decrease by more than this fraction to count as lower; torch's default
_RISE = 0.3  # fraction of the run in which onecycle increases; this and the next two as in torch's OneCycleLR
_FIRST = 1 / 25  # of the maximum rate
_LAST = _FIRST / 1e4


class Schedule:
    """The learning rate of one side.

    DIFFERS: the released plateau watches the best accuracy on the test set. Ours watches the training loss, so that
    test images do not influence the training; factor 0.1 and patience as released. Other schedules were not released.
    """

    def __init__(
        self, name: ScheduleName, lr: float, num_rounds: int, warmup_rounds: float = 0.0, seen: Tensor | None = None
    ) -> None:
        """Initialise; `seen`, float32 (3,), is the state of plateau; zeros at first."""
        self._name, self._lr, self._num_rounds, self._warmup_rounds = name, lr, num_rounds, warmup_rounds
        self.seen = torch.zeros(3) if seen is None else seen  # rounds since the best loss, drops, 1 / the best loss

    def rate(self, at: float) -> float:
        """Return the learning rate at a time of the run, in rounds."""
        if at < self._warmup_rounds:
            return self._lr * at / self._warmup_rounds
        match self._name:
            case "constant":
                return self._lr
            case "plateau":
                return self._lr * 0.1 ** int(self.seen[1])
            case "onecycle":
                return self._lr * _one_cycle(min(1.0, at / self._num_rounds))
        part = min(1.0, (at - self._warmup_rounds) / max(self._num_rounds - self._warmup_rounds, 1e-9))
        return self._lr * (1 - part if self._name == "linear" else _cosine(part))

    def end_round(self, train_loss: float) -> None:
        """Record a finished round with mean training loss `train_loss`."""
        if self._name != "plateau":
            return
        best = float(self.seen[2])
        if not best or train_loss < (1 - PLATEAU_THRESHOLD) / best:
            self.seen[2], self.seen[0] = 1 / max(train_loss, 1e-30), 0
            return
        self.seen[0] += 1
        if self.seen[0] > PLATEAU_PATIENCE:
            self.seen[0] = 0
            self.seen[1] += 1


def _cosine(part: float) -> float:
    """Return half a cosine period, falling from 1 to 0 (Loshchilov and Hutter 2017)."""
    return (1 + math.cos(math.pi * part)) / 2


def _one_cycle(part: float) -> float:
    """Return the rate as a fraction of the maximum: increasing, then decreasing to nearly 0, in half cosine periods."""
    if part < _RISE:
        return 1 - (1 - _FIRST) * _cosine(part / _RISE)
    return _LAST + (1 - _LAST) * _cosine((part - _RISE) / (1 - _RISE))
