"""The inbox of weights that clients send: one ModelState per client and round."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gkt_mpi.errors import WireError
from gkt_mpi.wire.contract import Accepts
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.messages import ModelState


class ModelInbox:
    """The weights received in this round, `models`, each uint8 (bytes,), by client."""

    passes, answers = 1, False

    def __init__(self, model_bytes: int | Mapping[int, int], num_samples: list[int]) -> None:
        """Initialise; `model_bytes` is the size of weights, common or by client; `num_samples[k]` are client k's."""
        self.models: dict[int, Tensor] = {}
        self._model_bytes, self._num_samples = model_bytes, num_samples

    def accepts(self) -> Accepts:
        """Return which messages this inbox accepts: weights and reports."""
        return Accepts(frozenset({Kind.MODEL, Kind.REPORT}), model_bytes=self._model_bytes)

    def claim(self, message: ModelState) -> int:
        """Keep a client's weights; return its number of samples. Raises `WireError` if it has sent weights before."""
        if message.client in self.models:
            raise _refusal(message, "sent a second model")
        self.models[message.client] = message.weights
        return self._num_samples[message.client]

    def check(self, message: ModelState) -> None:
        """Raise `WireError` unless all weights are finite numbers."""
        if not bool(message.weights.view(torch.float32).isfinite().all()):
            self.models.pop(message.client, None)
            raise _refusal(message, "sent weights that are not finite; its training has diverged, lower client.lr")

    def missing(self, client: int) -> str:
        """Describe the missing part of a client's upload."""
        return "" if client in self.models else "its model"

    def reopen(self, client: int) -> int:
        """Discard a client's weights; return the number of samples they represent."""
        return 0 if self.models.pop(client, None) is None else self._num_samples[client]


def _refusal(message: ModelState, why: str) -> WireError:
    error = WireError(f"client {message.client} in round {message.round + 1} {why}")
    error.client = message.client
    return error
